"""A running server: what watches it, and what ends it.

It is a process tree of ours, or it lives elsewhere: then the command of a detached scheme has
ended, and the server belongs to a container's daemon or to systemd.
"""

from __future__ import annotations

import abc
import logging
import os
import time
import uuid
from dataclasses import replace
from pathlib import Path

import psutil

from manager.config import variables
from manager.models import ports, process_tree
from manager.models.launch import LaunchPlan
from manager.models.process_tree import LaunchError, ProcessTree
from manager.storage import Launch, ModelLogs, Run

log = logging.getLogger(__name__)

PORT_WAIT_SECONDS = 3.0  # that a port may take to be free once its server has been ended
PORT_PAUSE_SECONDS = 0.05
VANISHED_SECONDS = 2.0  # without a listener, after there was one: what is loading has ended
CONNECT_PAUSE_SECONDS = 1.0  # between two connections, where nothing else shows a server's life

# What listens for a container, and holds none of its memory.
_FORWARDERS = frozenset(
    (
        *("docker-proxy", "rootlessport", "rootlesskit", "slirp4netns", "pasta", "passt"),
        *("conmon", "gvproxy", "com.docker.backend", "com.docker.backend.exe", "wslrelay.exe"),
        *("systemd", "ssh", "sshd"),
    )
)

_OUTLIVES = (
    "set stop_command, which has to end it, such as [docker, stop, NAME], and run a container with"
    " --rm, --init and --name NAME"
)
_NOT_DETACHED = (
    "; if the server lives on elsewhere, as after docker run -d or systemctl start, set"
    " detached: true and stop_command"
)


class ServerProcess(abc.ABC):
    """A launched server: ``tree`` is the process tree of its script or command."""

    def __init__(self, run: Run, tree: ProcessTree | None, logs: ModelLogs) -> None:
        self._run = run
        self._tree = tree
        self._logs = logs
        self._listeners = frozenset(run.launch.listeners)
        self._settled = False
        self._has_listened = False
        self._outside: psutil.Process | None = None  # what serves, where that is none of ours

    @property
    @abc.abstractmethod
    def pid(self) -> int | None:
        """The server's process, or that of its command until it is settled; None where it is none
        of ours."""

    @property
    @abc.abstractmethod
    def created(self) -> float | None:
        """When that was created, epoch seconds."""

    @abc.abstractmethod
    def pids(self) -> set[int]:
        """Those that hold the server's memory, found cheaply; empty where they are not known."""

    @abc.abstractmethod
    def alive(self) -> bool: ...

    @abc.abstractmethod
    def has_ended(self) -> bool:
        """Whether nothing of it runs any more."""

    @abc.abstractmethod
    def describe_end(self) -> str:
        """How it has ended by itself, as a sentence without its full stop."""

    @abc.abstractmethod
    def settle(self) -> bool:
        """The server answers: what listens on its port now is what it is known by from here on.
        Returns whether that is a process of ours."""

    def _find_outside(self) -> None:
        """Finds what listens on its port, as far as the system shows it: a container's process,
        unless its daemon forwards from another one."""
        pid = ports.listener(self._run.port)
        try:
            found = psutil.Process(pid) if pid else None
            self._outside = found if found and found.name() not in _FORWARDERS else None
        except psutil.Error:
            self._outside = None  # it has ended, or is another user's

    def _outside_pids(self) -> set[int]:
        if self._outside is None:
            return set()
        try:
            children = self._outside.children(recursive=True)
        except psutil.Error:
            return set()
        return {self._outside.pid, *(child.pid for child in children)}

    def recorded(self, host: str) -> Launch:
        """What another run of the program needs to recognise and to end it. ``host`` is where it
        answers."""
        launch = self._run.launch
        listeners = tuple(sorted(self._listeners)) if launch.stop_command else ()
        return replace(launch, host=host, listeners=listeners)

    def stop(self, grace: float) -> str | None:
        """Ends it, if it has not ended by itself: its stop_command has ``grace`` seconds, as has
        its process tree after a SIGTERM. Then nothing of it may listen on its port any more.

        Returns None once it has ended, else why it has not; then it may be tried again.
        """
        left, fault = self._end(grace)
        if left:
            return "a process of it does not die; see the program's log"
        port = self._run.port
        if self._awaits_free_port():
            if fault is not None and not self._has_listened and self.may_come_up():
                return f"{fault}, and its server may still be loading: port {port} is not open yet"
            return None  # also where the stop_command failed: there was nothing left for it to do
        why = fault or ("" if self._run.launch.stop_command else _OUTLIVES)
        answers = f"a server still answers on its port {port}, held by {ports.holder(port)}"
        return f"{answers}: {why}" if why else f"{answers}, although its stop_command ended well"

    def may_come_up(self) -> bool:
        """Whether a server that nobody has seen yet may still begin to listen, though the command
        that launched it has ended."""
        return False

    @abc.abstractmethod
    def _end(self, grace: float) -> tuple[bool, str | None]:
        """Whether processes are left, and what was wrong with the stop_command."""

    def _stop_tree(self, grace: float) -> bool:
        return self._tree is None or self._tree.stop(grace)

    def _run_stop_command(self, grace: float) -> str | None:
        launch = self._run.launch
        if not launch.stop_command:
            return None
        try:
            output = self._logs.append(self._run.model, self._run.id)
        except OSError as error:
            log.error("%s: the output of its stop_command is lost: %s", self._run.model, error)
            output = os.open(os.devnull, os.O_WRONLY)
        try:
            fault = self._await_stop_command(launch, output, grace)
            if fault is not None:
                log.warning("%s: %s", self._run.model, fault)
                os.write(output, f"# {fault}\n".encode())
        except OSError as error:  # of the log: a full disk
            log.error("%s: its log cannot be written: %s", self._run.model, error)
        finally:
            os.close(output)
        return fault

    def _await_stop_command(self, launch: Launch, output: int, grace: float) -> str | None:
        environment = {**variables.child_environment(), **launch.env}
        try:
            # An id of its own: it must not be taken for a part of the server.
            command = ProcessTree.start(
                uuid.uuid4().hex,
                launch.stop_command,
                cwd=Path(launch.cwd),
                env=environment,
                output=output,
            )
        except LaunchError as error:
            return f"its stop_command failed: {error}"
        code = command.wait(grace)
        if code is None:
            command.stop(0)
            return f"its stop_command had not ended after {grace:g} seconds and was killed"
        return f"its stop_command ended{command.describe_exit()}" if code else None

    def _awaits_free_port(self) -> bool:
        deadline = time.monotonic() + PORT_WAIT_SECONDS
        while self._answers():
            self._has_listened = True
            if time.monotonic() >= deadline:
                return False
            time.sleep(PORT_PAUSE_SECONDS)
        return True

    def _answers(self) -> bool:
        port = self._run.port
        found = ports.listeners(port)
        if self._listeners:
            return not self._listeners.isdisjoint(found)  # another's server is not ours to end
        if not found:
            return ports.accepts(port)
        pid = ports.listener(port)
        return pid is None or process_tree.run_id_of(pid) in (None, self._run.id)


class Attached(ServerProcess):
    """A server that lives as long as the process tree of its script."""

    _tree: ProcessTree
    _serves = True  # whether a process of the tree does

    @property
    def pid(self) -> int:
        return self._tree.pid

    @property
    def created(self) -> float:
        return self._tree.created

    def pids(self) -> set[int]:
        return self._tree.pids() if self._serves else self._outside_pids()

    def alive(self) -> bool:
        return self._tree.alive()

    def has_ended(self) -> bool:
        return not self._tree.pids()

    def describe_end(self) -> str:
        how = self._tree.describe_exit()
        if self._settled:
            return f"its process ended by itself{how}"
        return f"its script ended{how}{_NOT_DETACHED if self._tree.exit_code == 0 else ''}"

    def settle(self) -> bool:
        self._listeners = ports.listeners(self._run.port)
        self._settled = True
        self._serves = self._tree.settle(self._run.port)
        if not self._serves:
            self._find_outside()
        return self._serves

    def _end(self, grace: float) -> tuple[bool, str | None]:
        fault = self._run_stop_command(grace)
        return not self._stop_tree(grace), fault


class Detached(ServerProcess):
    """A server that lives elsewhere, once its command has ended well.

    It is known by the sockets that listen on its port, whoever holds them: docker-proxy,
    rootlessport, the server itself. While one of those is there it is alive, and what listens there
    instead is another server. Nothing is asked of the server itself.
    """

    def __init__(
        self, run: Run, tree: ProcessTree | None, logs: ModelLogs, load_seconds: float = 0.0
    ) -> None:
        """``load_seconds``: how long it may take until it listens."""
        super().__init__(run, tree, logs)
        self._settled = tree is None or bool(self._listeners)  # by an earlier program
        self._comes_up_until = time.monotonic() + load_seconds
        self._listened_at: float | None = None
        self._accepted_at: float | None = None

    @property
    def pid(self) -> int | None:
        return self._tree.pid if self._tree is not None and not self._settled else None

    @property
    def created(self) -> float | None:
        return self._tree.created if self._tree is not None and not self._settled else None

    def pids(self) -> set[int]:
        return self._outside_pids()

    def alive(self) -> bool:
        if self._settled:
            return self._lives_on()
        code = self._tree.exit_code if self._tree is not None else None
        return code is None or (code == 0 and not self._has_vanished())

    def has_ended(self) -> bool:
        return not self.alive()

    def describe_end(self) -> str:
        if not self._settled and self._tree is not None and self._tree.exit_code:
            return f"its command ended{self._tree.describe_exit()}"
        return "its server ended by itself: nothing listens on its port any more"

    def settle(self) -> bool:
        if not self._settled:
            self._listeners = ports.listeners(self._run.port)
            self._settled = True
            self._accepted_at = time.monotonic()
        self._find_outside()
        return False

    def _end(self, grace: float) -> tuple[bool, str | None]:
        # The tree first: a command that still runs could start the server behind its stop.
        left = not self._stop_tree(grace)
        return left, self._run_stop_command(grace)

    def may_come_up(self) -> bool:
        is_launched = self._tree is not None and self._tree.exit_code == 0
        return is_launched and not self._settled and time.monotonic() < self._comes_up_until

    def _lives_on(self) -> bool:
        if self._listeners:
            try:
                return not self._listeners.isdisjoint(ports.listeners(self._run.port))
            except OSError as error:  # of ours, such as too many open files: it says nothing
                log.error("whether %s runs cannot be seen: %s", self._run.model, error)
                return True
        # Where the system shows no listener. One that another run of the program has started looks
        # like any other server then, and is not taken over.
        if self._accepted_at is None:
            return False
        now = time.monotonic()
        if now - self._accepted_at < CONNECT_PAUSE_SECONDS:
            return True
        self._accepted_at = now
        return ports.accepts(self._run.port)

    def _has_vanished(self) -> bool:
        """Whether a server that is still loading has ended: it listened, and does no longer."""
        now = time.monotonic()
        if ports.listeners(self._run.port):
            self._listened_at = now
            self._has_listened = True
        return self._listened_at is not None and now - self._listened_at > VANISHED_SECONDS


def start(plan: LaunchPlan, output: int, logs: ModelLogs, load_seconds: float) -> ServerProcess:
    """Launches a server, its output on the descriptor ``output``; it may take ``load_seconds``
    until it listens. Raises LaunchError."""
    run = plan.run
    tree = ProcessTree.start(
        run.id, plan.arguments, cwd=plan.scheme.cwd, env=plan.env, output=output
    )
    if run.launch.detached:
        return Detached(run, tree, logs, load_seconds)
    return Attached(run, tree, logs)


def find(run: Run, logs: ModelLogs) -> ServerProcess | None:
    """What an earlier program has left of a run: a server that may be alive or not, which is to be
    taken over or stopped; None where there is nothing to do."""
    tree = ProcessTree.find(run.id, run.pid, run.pid_created)
    if tree is not None and not run.launch.detached:
        return Attached(run, tree, logs)
    # The server may live on, also where it was that of a script: a container without its client.
    return Detached(run, tree, logs) if run.launch.stop_command else None

"""A process tree: start it, watch it, stop all of it, find it again.

Every process below a launch script carries the run's id in its environment, so that whatever a
script forks, detaches or leaves behind is found again, also by another run of the program.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from manager import affinity

log = logging.getLogger(__name__)

RUN_ID_VARIABLE = "LLM_MANAGER_RUN"
KILL_WAIT_SECONDS = 5.0  # that a killed process may take to end
_SIGKILL = 9  # which Windows has no name for
_KILLED_HINT = " (often the system's, for want of memory)"
_SUFFIXES = {
    "posix": {".sh", ".py"},
    "nt": {".bat", ".cmd", ".ps1", ".py"},
}


class LaunchError(Exception):
    """A script cannot be started; says what to do about it."""


def unusable_reason(script: Path | None, system: str = os.name) -> str | None:
    """Why this system cannot run such a script, None where it can."""
    if script is None or script.suffix.lower() in _SUFFIXES.get(system, set()):
        return None
    if script.suffix.lower() == ".ps1":
        return None if shutil.which("pwsh") else f"{script.name} needs PowerShell (pwsh)"
    where = "Linux or macOS" if system == "nt" else "Windows"
    return f"{script.name} is a script for {where}"


def command_line(script: Path | None, command: Sequence[str], system: str = os.name) -> list[str]:
    """The arguments that run a scheme's script or command. Raises LaunchError."""
    if script is None:
        return list(command)
    if not script.is_file():
        raise LaunchError(f"the script {script} is missing")
    suffix = script.suffix.lower()
    if suffix == ".py":
        return [sys.executable, str(script)]
    if suffix in (".bat", ".cmd"):
        return ["cmd.exe", "/d", "/c", str(script)]
    if suffix == ".ps1":
        shell = "powershell.exe" if system == "nt" else "pwsh"
        return [shell, "-NoProfile", "-ExecutionPolicy", "Bypass", "-File", str(script)]
    if not os.access(script, os.X_OK):
        raise LaunchError(f"the script {script} is not executable; run: chmod +x {script}")
    return [str(script)]


class ProcessTree:
    """A launched script and everything below it."""

    def __init__(
        self, run: str, leader: psutil.Process, popen: subprocess.Popen[bytes] | None
    ) -> None:
        self._run = run
        self._leader = leader
        self._popen = popen
        self._handed_over = popen is None
        self._settled = False
        self._session = _session_of(leader.pid)

    @classmethod
    def start(
        cls,
        run: str,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        output: int,
    ) -> ProcessTree:
        """Starts a tree of its own session, its output on the descriptor ``output``.

        ``run`` is the id that its processes carry; ``env`` is the whole environment. Raises
        LaunchError.
        """
        # Windows' way to keep a Ctrl-C in the manager's console from reaching the model.
        flags: int = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        try:
            with affinity.PROGRAM.free():
                popen = subprocess.Popen(
                    arguments,
                    cwd=cwd,
                    env={**env, RUN_ID_VARIABLE: run},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=os.name == "posix",
                    creationflags=flags,
                )
        except OSError as error:
            hint = ""
            if isinstance(error, FileNotFoundError) and not cwd.is_dir():
                hint = f" (its folder {cwd} is missing)"
            elif isinstance(error, FileNotFoundError) and Path(arguments[0]).is_absolute():
                if Path(arguments[0]).is_file():
                    hint = " (what its #! line names is missing, or its lines end as on Windows)"
            elif error.errno == 8:  # ENOEXEC
                hint = " (it has no #! line, such as #!/bin/sh, at its top)"
            raise LaunchError(f"{arguments[0]} cannot be run: {error.strerror}{hint}") from error
        except ValueError as error:  # a zero byte, which no system takes
            raise LaunchError(f"{arguments[0]} cannot be run: {error}") from error
        try:
            leader = psutil.Process(popen.pid)
        except psutil.NoSuchProcess:
            raise LaunchError(f"{arguments[0]} ended with exit code {popen.wait()}") from None
        return cls(run, leader, popen)

    @classmethod
    def find(cls, run: str, pid: int | None, created: float | None) -> ProcessTree | None:
        """The tree that an earlier program started as ``run``, if any of it is alive.

        The run's id decides; ``pid`` and ``created`` (its creation, epoch seconds) stand in for
        it where the environment of a process cannot be read.
        """
        members = _processes_of(run)
        if pid is not None and pid not in [member.pid for member in members]:
            try:
                leader = psutil.Process(pid)
                # Two seconds: the epoch time of a creation moves when the clock is set.
                is_ours = created is not None and abs(leader.create_time() - created) < 2
                if is_ours and _is_running(leader):
                    members.append(leader)
            except psutil.NoSuchProcess:
                pass  # it has ended, as most have
        if not members:
            return None
        by_pid = {member.pid: member for member in members}
        leader = by_pid.get(pid or 0) or min(members, key=_age_key)
        return cls(run, leader, None)

    @property
    def pid(self) -> int:
        return self._leader.pid

    @property
    def created(self) -> float:
        """When the leader was created, epoch seconds."""
        return self._leader.create_time()

    @property
    def exit_code(self) -> int | None:
        """The script's exit code once it has ended; None where nobody can know it."""
        return self._popen.poll() if self._popen is not None else None

    def wait(self, timeout: float) -> int | None:
        """The exit code of a script that this program has started; None if it has not ended within
        ``timeout`` seconds."""
        assert self._popen is not None
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def describe_exit(self) -> str:
        """`` with exit code 3`` or ``, killed by signal 15``, behind "it ended"; empty where nobody
        can know it."""
        return describe_code(self.exit_code)

    def pids(self) -> set[int]:
        """Its processes, found cheaply: not those that have detached themselves."""
        if self._session is not None:
            return {pid for pid in psutil.pids() if _session_of(pid) == self._session}
        try:
            children = self._leader.children(recursive=True)
        except psutil.NoSuchProcess:
            return set()
        return {self._leader.pid, *(child.pid for child in children)}

    def alive(self) -> bool:
        """Whether the tree still runs.

        Until it is settled, a script that ends well and leaves processes behind has handed
        over to the eldest of them, as every program does that detaches itself.
        """
        if self._handed_over:
            if _is_running(self._leader):
                return True
        else:
            code = self.exit_code
            if code is None:
                return True
            if code != 0:
                return False
        if self._settled:
            return False
        # A search misses a process that forks and ends meanwhile: a detaching program does that
        # once or twice, so that three searches cannot all miss it.
        for _ in range(3):
            if successors := _processes_of(self._run):
                self._hand_over(min(successors, key=_age_key))
                return True
        return False

    def settle(self, port: int) -> bool:
        """The server answers: from now on the process that listens on its port is the leader,
        and when that one ends the tree has ended, whatever it leaves behind.

        Returns whether a process of the tree listens there. (A container's does not.)
        """
        listening = [process for process in self._members() if _listens(process, port)]
        if listening:
            eldest = min(listening, key=_age_key)
            if eldest.pid != self._leader.pid:
                self._hand_over(eldest)
        self._settled = True
        return bool(listening)

    def stop(self, grace: float) -> bool:
        """Ends the whole tree: SIGTERM, up to ``grace`` seconds of waiting, then SIGKILL for what
        is left. Returns whether all of it has ended.
        """
        members = self._members()
        for process in members:
            _signal(process, psutil.Process.terminate)
        self._wait_ended(members, grace)
        deadline = time.monotonic() + KILL_WAIT_SECONDS
        # In rounds, and a second search where the first finds none: what is about to die may
        # still have forked, in the moment of the search.
        while members := self._members() or self._members():
            for process in members:
                _signal(process, psutil.Process.kill)
            if not self._wait_ended(members, 0.5) and time.monotonic() > deadline:
                log.error("processes %s do not die", [process.pid for process in members])
                return False
        return True

    def _hand_over(self, successor: psutil.Process) -> None:
        self._leader = successor
        self._handed_over = True
        log.info("run %s goes on as process %d", self._run[:8], successor.pid)

    def _members(self) -> list[psutil.Process]:
        members = {process.pid: process for process in _processes_of(self._run)}
        if self._session is not None:
            # A program that was given, or made itself, an environment without the run's id.
            for process in psutil.process_iter():
                if _session_of(process.pid) == self._session and _is_running(process):
                    members.setdefault(process.pid, process)
        try:
            for process in [self._leader, *self._leader.children(recursive=True)]:
                if _is_running(process):
                    members.setdefault(process.pid, process)
        except psutil.NoSuchProcess:
            pass  # it ended meanwhile
        return list(members.values())

    def _wait_ended(self, members: list[psutil.Process], timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        pause = 0.005
        while True:
            if not any(_is_running(process) for process in members):
                if self._popen is not None:
                    self._popen.poll()  # takes our own child out of the process table
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)


def describe_code(code: int | None) -> str:
    """An exit code, negative for a signal, as `ProcessTree.describe_exit` words it."""
    if code is None:
        return ""
    # A shell ends so where the server below it was killed.
    hint = _KILLED_HINT if code in (-_SIGKILL, 128 + _SIGKILL) else ""
    return (f", killed by signal {-code}" if code < 0 else f" with exit code {code}") + hint


def _signal(process: psutil.Process, send: Callable[[psutil.Process], None]) -> None:
    try:
        send(process)
    except psutil.NoSuchProcess:
        pass  # it has ended already
    except psutil.AccessDenied:
        log.error("process %d may not be ended by this user", process.pid)


def run_id_of(pid: int) -> str | None:
    """The run that a process belongs to, None where it is no model's or cannot be known."""
    try:
        return psutil.Process(pid).environ().get(RUN_ID_VARIABLE)
    except (psutil.Error, OSError):
        return None


def _session_of(pid: int) -> int | None:
    """The session that the process leads or is in; None for our own, or if it cannot be known.
    A session's number is not used again while a process is in it."""
    if os.name != "posix":
        return None
    try:
        session = os.getsid(pid)
    except OSError:
        return None
    return session if session != os.getsid(0) else None


def _age_key(process: psutil.Process) -> tuple[float, int]:
    try:
        return process.create_time(), process.pid
    except psutil.NoSuchProcess:
        return float("inf"), process.pid


def _listens(process: psutil.Process, port: int) -> bool:
    try:
        connections = process.net_connections(kind="tcp")
    except psutil.Error:
        return False  # it has ended, or may not be looked into
    return any(c.status == psutil.CONN_LISTEN and c.laddr[1:2] == (port,) for c in connections)


def _is_running(process: psutil.Process) -> bool:
    """A zombie is not running: its parent has only not waited for it yet."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _processes_of(run: str) -> list[psutil.Process]:
    """The living processes that carry the id of this run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_ID_VARIABLE) == run and _is_running(process):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or it has ended meanwhile
    return found

"""The relay processes: hands requests over to them, and ends what they report as ended."""

from __future__ import annotations

import abc
import contextlib
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from manager import affinity
from manager.streams import MessageReader, RelayLoop, encode

log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
_READ_BYTES = 1 << 16
_SEND_SECONDS = 5  # after which a process that takes no message counts as dead
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.2, 10.0  # before one that died is replaced
_HEALTHY_SECONDS = 30.0
_STOP_SECONDS = 5.0


Report = dict[str, Any]


class CarriedRequest(Protocol):
    """What the program keeps of a request that a relay process carries. All is called in one
    thread, and all but ``counted`` only once."""

    def counted(self, events: int) -> None:
        """So many have passed."""

    def handed_back(self, report: Report) -> None:
        """Nothing was sent to the client, and both connections are the program's again; nothing
        else is called after that. ``waited`` is ``answers`` (go on reading behind ``data``),
        ``ended`` (so did the connection, after ``data``, as ``error`` says) or ``silent``;
        ``is_written``: the request is; ``next``: what the client has sent since, in Latin-1."""

    def reported(self, report: Report) -> None:
        """How it ended: ``status``, ``error``, ``usage``, ``streamed``, ``first_byte_at``. Its
        record has to be on disk when this returns."""

    def released(self, is_reusable: bool) -> None:
        """The upstream's connection is the program's again."""

    def sent(self, goes_on: bool, data: bytes) -> None:
        """The client's connection is the program's again, and ``data`` what the client has sent
        since; it has its answer if ``goes_on``."""

    def lost(self) -> None:
        """In place of whatever is still to come: the process has ended."""


@dataclass
class _Lent:
    """A request, and how many of its two connections its process still has."""

    request: CarriedRequest
    left: int = 2


class RelayProcesses:
    """One for each two cores."""

    def __init__(self, count: int | None = None) -> None:
        if count is None:
            count = max(1, (os.cpu_count() or 1) // 2)
        self._processes = [_RelayProcess(number) for number in range(count)]

    def start(self) -> None:
        for process in self._processes:
            process.start()

    def stop(self, grace: float) -> None:
        """Lets the requests end for up to ``grace`` seconds, then ends the processes."""
        deadline = time.monotonic() + grace
        for process in self._processes:
            process.drain(deadline)
        for process in self._processes:
            process.stop()

    def hand_over(
        self,
        client: socket.socket,
        upstream: socket.socket,
        fields: dict[str, Any],
        data: bytes,
        request: CarriedRequest,
    ) -> bool:
        """Gives a request to the process with the fewest; ``fields`` and ``data`` are what
        RelayedExchange takes. False where none takes it: then it is the caller's as before."""
        process = min(self._processes, key=lambda each: (not each.is_there, each.load))
        return process.hand_over(client, upstream, fields, data, request)

    def pids(self) -> list[int]:
        return [pid for process in self._processes if (pid := process.pid) is not None]


class _RelayProcess:
    """One process, or on Windows, which hands no sockets over, a thread with the same loop. The
    thread ``relay-N`` starts it, reads what it reports, and starts another when it ends."""

    def __init__(self, number: int) -> None:
        self._name = f"relay-{number}"
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._sending = threading.Lock()  # a message is written whole; never with _lock
        self._requests: dict[int, _Lent] = {}
        self._number = 0
        self._connection: _Connection | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)

    @property
    def is_there(self) -> bool:
        return self._connection is not None

    @property
    def load(self) -> int:
        return len(self._requests)

    @property
    def pid(self) -> int | None:
        connection = self._connection
        return connection.pid if connection is not None else None

    def start(self) -> None:
        self._connection = self._connect()  # here: the first request finds it
        self._thread.start()

    def drain(self, deadline: float) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: not self._requests, max(0.0, deadline - time.monotonic())
            )

    def stop(self) -> None:
        self._stopping.set()
        connection = self._connection
        if connection is not None:
            connection.shut_down()
        self._thread.join()

    def hand_over(
        self,
        client: socket.socket,
        upstream: socket.socket,
        fields: dict[str, Any],
        data: bytes,
        request: CarriedRequest,
    ) -> bool:
        with self._lock:
            connection = self._connection
            if connection is None or self._stopping.is_set():
                return False
            self._number += 1
            number = self._number
            self._requests[number] = _Lent(request)
        try:
            with self._sending:
                connection.send(encode({"id": number, **fields}, data), (client, upstream))
        except OSError as error:
            log.error("%s takes no request: %s", self._name, error)
            connection.shut_down()  # half a message may be on its way
            # Whoever takes it out ends it: this thread, or the one that reads.
            return self._pop(number) is None
        return True

    def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            began = time.monotonic()
            connection = self._connection
            if connection is not None:
                self._read(connection)
                with self._lock:
                    self._connection = None
                    lost, self._requests = list(self._requests.values()), {}
                    self._changed.notify_all()
                how = connection.end()
                for each in lost:
                    self._call(each.request.lost)
                if self._stopping.is_set():
                    return
                if time.monotonic() - began >= _HEALTHY_SECONDS:
                    pause = _FIRST_PAUSE_SECONDS
                log.error(
                    "a relay process ended (%s) with %d requests; another starts in %.1f s",
                    how,
                    len(lost),
                    pause,
                )
            if self._stopping.wait(pause):
                return
            pause = min(pause * 2, _MAX_PAUSE_SECONDS)
            self._connection = self._connect()

    def _connect(self) -> _Connection | None:
        try:
            return _Process() if hasattr(socket, "send_fds") else _Thread(self._name)
        except OSError as error:  # no memory or no descriptor left for a process
            log.error("no relay process: %s", error)
            return None

    def _read(self, connection: _Connection) -> None:
        """Until it ends."""
        reader = MessageReader()
        while True:
            try:
                data = connection.control.recv(_READ_BYTES)
            except OSError:
                return
            if not data:
                return
            answers = [self._handle(message) for message in reader.feed(data)]
            if any(answers):
                try:
                    with self._sending:
                        connection.send(b"".join(answers))
                except OSError:
                    return

    def _handle(self, message: Report) -> bytes:
        """What to answer."""
        for number, events in message.get("counts", ()):
            if (counted := self._requests.get(number)) is not None:
                counted.request.counted(events)
        number = message.get("id", -1)
        lent = self._requests.get(number)
        if lent is None:
            return b""
        if "waited" in message:
            self._pop(number)
            self._call(lambda: lent.request.handed_back(message))
            return b""
        if "status" in message:
            # The last bytes of an answer whose record no disk takes are not sent.
            is_recorded = self._call(lambda: lent.request.reported(message))
            return encode({"id": number, "finish": is_recorded})
        lent.left -= 1
        if not lent.left:
            self._pop(number)
        if "released" in message:
            self._call(lambda: lent.request.released(message["released"]))
        else:
            self._call(lambda: lent.request.sent(message["sent"], message["data"]))
        return b""

    def _pop(self, number: int) -> _Lent | None:
        with self._lock:
            lent = self._requests.pop(number, None)
            if not self._requests:
                self._changed.notify_all()
            return lent

    def _call(self, action: Callable[[], None]) -> bool:
        try:
            action()
        except Exception:
            # A fault of one request, such as a record that no disk takes, is not that of others.
            log.exception("ending a request failed")
            return False
        return True


class _Connection(abc.ABC):
    """The program's end of what leads to a relay loop."""

    pid: int | None = None

    def __init__(self) -> None:
        self.control, self._theirs = socket.socketpair()
        if hasattr(socket, "SO_SNDTIMEO") and os.name == "posix":
            # The system's own: reads are to wait as long as they like.
            timeval = struct.pack("ll", _SEND_SECONDS, 0)
            self.control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

    @abc.abstractmethod
    def send(self, data: bytes, sockets: tuple[socket.socket, ...] = ()) -> None:
        """Raises OSError."""

    def shut_down(self) -> None:
        """Ends it, from any thread; ``end`` then waits for that."""
        with contextlib.suppress(OSError):  # it has ended already
            self.control.shutdown(socket.SHUT_RDWR)

    @abc.abstractmethod
    def end(self) -> str:
        """Waits until it has ended; says how."""


class _Process(_Connection):
    """Raises OSError where none can be started."""

    def __init__(self) -> None:
        super().__init__()
        command = [sys.executable, "-m", "manager.streams.relay_process"]
        with self._theirs as theirs, affinity.PROGRAM.free():
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # A Ctrl-C in the terminal is for the server, whose streams are to end well.
                start_new_session=True,
            )
        self.pid = self._process.pid

    def send(self, data: bytes, sockets: tuple[socket.socket, ...] = ()) -> None:
        sent = 0
        if sockets:
            descriptors = [each.fileno() for each in sockets]
            sent = socket.send_fds(self.control, [data], descriptors)
        if sent < len(data):
            self.control.sendall(data[sent:])

    def end(self) -> str:
        self.shut_down()
        self.control.close()
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class _Thread(_Connection):
    """Where no socket can be handed to a process: the same loop in a thread of the program."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._given: deque[socket.socket] = deque()
        theirs = self._theirs

        def receive() -> tuple[bytes, list[socket.socket]]:
            data = theirs.recv(_READ_BYTES)
            # Given before the message was sent; those of a later one only come early.
            return data, [self._given.popleft() for _ in range(len(self._given))]

        loop = RelayLoop(theirs, receive)
        self._thread = threading.Thread(target=loop.run, name=f"{name}-loop", daemon=True)
        self._thread.start()

    def send(self, data: bytes, sockets: tuple[socket.socket, ...] = ()) -> None:
        self._given.extend(each.dup() for each in sockets)
        self.control.sendall(data)

    def end(self) -> str:
        self.shut_down()
        self.control.close()
        self._thread.join()
        return "its thread ended"

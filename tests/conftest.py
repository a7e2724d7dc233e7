"""What the tests of several rooms share: waiting with a bound, and servers to talk to."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import fake_upstream
import hypothesis
import pytest

PATIENCE = 20.0  # seconds after which something will not happen any more

# How long an example takes says nothing about it on a machine that does other things as well.
# And the examples of a test may share its folder or its server: they leave both as they were.
hypothesis.settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.function_scoped_fixture,
    ],
)
hypothesis.settings.load_profile("patient")

T = TypeVar("T")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: half of the time is waiting for processes."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session")
def eventually() -> Callable[[Callable[[], T]], T]:
    """Calls a function again and again until it returns something true, which it hands back."""

    def eventually(condition: Callable[[], T]) -> T:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {PATIENCE:g} s, still {value!r}"
            time.sleep(0.005)
        return value

    return eventually


class Peer:
    """The server's side of one connection; ``number`` counts the connections from 1."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.number = number
        self.sock = sock
        self._waiting = b""
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(self) -> bytes:
        """The next request, head and body; b"" where the client has closed or reset."""
        while b"\r\n\r\n" not in self._waiting:
            if not self._receive():
                return b""
        head = self._waiting.partition(b"\r\n\r\n")[0]
        lengths = [
            int(line.partition(b":")[2])
            for line in head.split(b"\r\n")
            if line.lower().startswith(b"content-length:")
        ]
        end = len(head) + 4 + sum(lengths)
        while len(self._waiting) < end:
            if not self._receive():
                return b""
        request, self._waiting = self._waiting[:end], self._waiting[end:]
        return request

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def sees_close(self) -> bool:
        """Waits until the client has closed the connection; False where it sends instead."""
        return not self._waiting and not self._receive()

    def reset(self) -> None:
        """Has the connection end as that of a crashed process does, not in good order."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _receive(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except ConnectionError:
            return False
        self._waiting += data
        return bool(data)


class RawServer:
    """Gives each connection to ``script`` in a thread of its own, and closes it afterwards."""

    def __init__(self, script: Callable[[Peer], None]) -> None:
        self.connections = 0
        self.faults: list[BaseException] = []
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._peers: list[Peer] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            peer = Peer(sock, self.connections)
            self._peers.append(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: Peer) -> None:
        try:
            self._script(peer)
        except ConnectionError:
            pass  # the client has gone, as many tests want it
        except Exception as fault:  # noqa: BLE001 - shown at the test's end
            self.faults.append(fault)
        finally:
            peer.sock.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Peer], None]], RawServer]]:
    """Starts servers that speak as the test says, byte by byte."""
    servers: list[RawServer] = []

    def serve(script: Callable[[Peer], None]) -> RawServer:
        servers.append(RawServer(script))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()
        assert server.faults == []


def _parts_in_the_body(peer: Peer) -> None:
    while request := peer.request():
        wanted = json.loads(request.partition(b"\r\n\r\n")[2])
        for part in wanted["parts"]:
            peer.send(part.encode("latin-1"))
        if wanted["then"] == "reset":
            peer.reset()
        if wanted["then"] != "wait":
            return


@pytest.fixture(scope="module")
def parrot() -> Iterator[RawServer]:
    """A server that answers with the bytes that the request's JSON body asks for.

    ``parts`` are sent one after the other, as latin-1; ``then`` says what comes behind them:
    ``wait`` for the next request, ``close``, or ``reset``.
    """
    server = RawServer(_parts_in_the_body)
    yield server
    server.close()
    assert server.faults == []


class FakeModel:
    """The fake upstream inside of the test's process, on a port of its own."""

    def __init__(self, **flags: Any) -> None:
        defaults = {
            "port": 0,
            "mode": "Chat",
            "loading": 0,
            "never_ready": False,
            "no_health": False,
            "refuse_probe": None,
            "no_ask_usage": False,
            "served_name": None,
        }
        self._server = fake_upstream.Server(argparse.Namespace(**{**defaults, **flags}))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def stats(self) -> dict[str, Any]:
        """What it has seen; see ``fake_upstream``."""
        return self._server.stats()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def fake_model() -> Iterator[Callable[..., FakeModel]]:
    """Starts fake upstreams with the flags given, once for each set of flags in a file."""
    models: dict[str, FakeModel] = {}

    def fake_model(**flags: Any) -> FakeModel:
        key = repr(sorted(flags.items()))
        if key not in models:
            models[key] = FakeModel(**flags)
        return models[key]

    yield fake_model
    for model in models.values():
        model.close()

"""Servers for tests to talk to, and how long a test waits for what has to happen."""

from __future__ import annotations

import argparse
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from tests.support import fake_upstream

PATIENCE = 20.0  # seconds after which something will not happen any more


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
            pass  # the client disconnected, as in many tests
        except Exception as fault:  # noqa: BLE001 - shown at the test's end
            self.faults.append(fault)
        finally:
            peer.sock.close()


class FakeModel:
    """The fake upstream inside of the test's process, on a port of its own."""

    def __init__(self, **flags: Any) -> None:
        defaults = {
            "host": "127.0.0.1",
            "port": 0,
            "mode": "Chat",
            "loading": 0,
            "never_ready": False,
            "no_health": False,
            "refuse_probe": None,
            "no_ask_usage": False,
            "served_name": None,
            "slots": None,
        }
        self._server = fake_upstream.Server(argparse.Namespace(**{**defaults, **flags}))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def breaks(self, how: str) -> None:
        """From now on it is as ``fake_upstream.Fake.breaks`` says; "" has it serve again."""
        self._server.broken = how

    def stats(self) -> dict[str, Any]:
        """What it has seen; see ``fake_upstream``."""
        return self._server.stats()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

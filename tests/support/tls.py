"""TLS in front of any server, with a certificate that is made for the tests."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="needs the openssl command, which makes a certificate"
)


class Certificate:
    """Of localhost, signed by itself; ``bundle`` is what trusts it."""

    def __init__(self, folder: Path) -> None:
        self.bundle, self._key = folder / "certificate.pem", folder / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
                *("-pkeyopt", "ec_paramgen_curve:P-256", "-subj", "/CN=localhost"),
                *("-addext", "subjectAltName=DNS:localhost"),
                *("-out", self.bundle, "-keyout", self._key),
            ],
            check=True,
            capture_output=True,
        )

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.bundle, self._key)
        return context


class TlsFront:
    """Takes TLS on a port of its own, and passes what is in it to a port on loopback and back."""

    def __init__(self, certificate: Certificate, port: int) -> None:
        self._context = certificate.server_context()
        self._behind = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._sockets: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for each in self._sockets:
            _shut_down(each)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._sockets.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            inside = self._context.wrap_socket(client, server_side=True)
            behind = socket.create_connection(("127.0.0.1", self._behind))
        except OSError:  # it does not trust the certificate; nothing is behind
            client.close()
            return
        back = threading.Thread(target=_pass_on, args=(behind, inside), daemon=True)
        back.start()
        _pass_on(inside, behind)
        back.join()
        inside.close()
        behind.close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _shut_down(source)
    _shut_down(target)


def _shut_down(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        # The system's, as two threads use the socket.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)

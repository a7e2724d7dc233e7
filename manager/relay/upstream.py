"""One model server as seen over HTTP: pooled connections, requests that can be aborted.

The pool is the one that requests' adapter holds. The connection is our own: it writes head and
body as one, reads the head with no e-mail parser, and returns whatever has arrived, many
chunks at once. Through ``requests.Session`` the same exchange takes five times the CPU.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterable
from typing import Any, cast

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, NewConnectionError

from manager.relay.response import (
    Aborted,
    Reader,
    Response,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)

# A loopback server that is there accepts at once. The exchange has its own time-out after that.
_CONNECT_TIMEOUT = urllib3.Timeout(connect=5.0)
_RETRY_WITHIN_SECONDS = 0.25  # in which the close of a kept connection is noticed
_MAX_SINGLE_WRITE = 1 << 16  # bytes


class Exchange:
    """One request, and the way to end it from another thread.

    ``timeout`` is how many seconds the upstream may be silent.

    ``abort`` shuts the socket down, which wakes the thread that reads from it and shows the
    upstream that nobody listens any more, so that it stops computing.
    """

    def __init__(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]],
        body: bytes = b"",
        *,
        timeout: float,
    ) -> None:
        self.method = method
        self.target = target
        self.timeout = timeout
        self.fresh_only = False
        self.reused = False
        self.sent_at = 0.0
        self.answered = False  # whether a byte of the answer has come
        self._headers = headers
        self._body = body
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._aborted = False

    @property
    def aborted(self) -> bool:
        return self._aborted

    def abort(self) -> None:
        """Ends the exchange now, whatever it is waiting for. Safe to call at any time."""
        # The lock is held over shutdown(), which never blocks: without it the socket could
        # go back to the pool in between, and the next request on it would be shut down.
        with self._lock:
            self._aborted = True
            if self._socket is not None:
                try:
                    self._socket.shutdown(socket.SHUT_RDWR)
                except OSError:
                    self._socket = None  # the upstream was faster

    def attach(self, sock: socket.socket) -> None:
        """The connection that carries this exchange from now on. Raises Aborted."""
        with self._lock:
            if self._aborted:
                raise Aborted("ended before it was sent")
            self._socket = sock

    def detach(self) -> None:
        """Ends the hold on the connection: ``abort`` no longer closes it."""
        with self._lock:
            self._socket = None

    def write(self, sock: socket.socket, host: str) -> None:
        """Sends head and body, in one packet where they fit."""
        lines = [f"{self.method} {self.target} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in self._headers]
        if self._body:
            lines.append(f"Content-Length: {len(self._body)}")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        self.sent_at = time.monotonic()
        parts = [head + self._body] if len(self._body) <= _MAX_SINGLE_WRITE else [head, self._body]
        try:
            for part in parts:
                sock.sendall(part)
        except (BlockingIOError, TimeoutError):  # the system's time-out, and Python's
            raise UpstreamTimeout(
                f"the model's server did not take the request for {self.timeout:g} seconds"
            ) from None


class Connection(HTTPConnection):
    """A pooled connection that carries an Exchange in place of a body.

    Its socket blocks, with the system's own time-outs: with Python's, every read and write
    polls first, and with hundreds of threads each system call releases the GIL to another.
    """

    _read_timeout = 0.0

    def request(self, *_args: Any, body: Any = None, **_options: Any) -> None:
        """Sends the exchange that travels as ``body``: urlopen hands nothing else down, and
        a silent prompt must be abortable before urlopen returns."""
        exchange = cast(Exchange, body)
        if exchange.fresh_only:
            self.close()
        exchange.reused = self.sock is not None
        if self.sock is None:
            self.connect()
        exchange.attach(self.sock)
        self._exchange = exchange
        if not exchange.reused or exchange.timeout != self._read_timeout:
            self.set_read_timeout(exchange.timeout)
        host = f"[{self.host}]" if ":" in self.host else self.host
        exchange.write(self.sock, f"{host}:{self.port}")

    def set_read_timeout(self, seconds: float) -> None:
        _set_timeout(self.sock, seconds)
        self._read_timeout = seconds

    def getresponse(self) -> Response:  # type: ignore[override]
        return Response(self, self._exchange, Reader(self.sock, self._exchange))


if os.name == "posix":

    def _set_timeout(sock: socket.socket, seconds: float) -> None:
        sock.setblocking(True)
        seconds = max(seconds, 0.001)  # to the system 0 means no time-out
        timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)

else:

    def _set_timeout(sock: socket.socket, seconds: float) -> None:
        sock.settimeout(seconds)


class _Adapter(HTTPAdapter):
    """requests' adapter with our connection in its pool."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool}


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = Connection


class Upstream:
    """The server of one run of a model on loopback, and the connections kept to it."""

    def __init__(self, port: int, connections: int, host: str = "127.0.0.1") -> None:
        self.port = port
        self._adapter = _Adapter(pool_connections=1, pool_maxsize=connections)
        self.use(host)

    def use(self, host: str) -> None:
        """From now on it is at this address, where nothing was sent to it before."""
        self.host = host
        self._pool = self._adapter.poolmanager.connection_from_host(host, self.port)

    def send(self, exchange: Exchange) -> Response:
        """Sends and waits for the head of the answer.

        A kept connection that the server closed just as it was used is tried once more on a
        fresh one, unless it may have begun to work: a byte of an answer has come, or time has
        passed. Raises UpstreamError, UpstreamRefused, UpstreamTimeout, Aborted.
        """
        try:
            return self._send(exchange)
        except (UpstreamTimeout, Aborted):
            raise
        except UpstreamError:
            may_have_worked = time.monotonic() - exchange.sent_at > _RETRY_WITHIN_SECONDS
            if not exchange.reused or exchange.answered or exchange.aborted or may_have_worked:
                raise
        exchange.fresh_only = True
        return self._send(exchange)

    def close(self) -> None:
        """Drops the kept connections; those in use are closed when they come back."""
        self._pool.close()
        self._adapter.close()

    def _send(self, exchange: Exchange) -> Response:
        try:
            response = self._pool.urlopen(
                exchange.method,
                exchange.target,
                body=cast(Any, exchange),
                retries=False,
                redirect=False,
                assert_same_host=False,
                timeout=_CONNECT_TIMEOUT,
                preload_content=False,
            )
        except NewConnectionError as error:
            raise UpstreamRefused(
                f"nothing answers on port {self.port}, where the model's server should be: {error}"
            ) from None
        except (HTTPError, OSError) as error:
            if exchange.aborted:
                raise Aborted("ended from our side") from None
            raise UpstreamError(f"the connection to the model's server broke: {error}") from None
        return cast(Response, response)

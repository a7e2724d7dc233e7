"""One model server as seen over HTTP: pooled connections, requests that can be aborted.

The pool is the one that requests' adapter holds. The connection is our own: it writes head and
body as one, reads the head with no e-mail parser, and returns whatever has arrived, many
chunks at once. Through ``requests.Session`` the same exchange takes six times the CPU, through
urllib3's ``urlopen`` twice as much.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, NewConnectionError

from manager.relay.body import Spooled
from manager.relay.response import (
    Aborted,
    Response,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)

# A server that is there accepts at once. The exchange has its own time-out after that.
_CONNECT_SECONDS = 5.0
_RETRY_WITHIN_SECONDS = 0.25  # in which the close of a kept connection is noticed
_MAX_SINGLE_WRITE = 1 << 16  # bytes
_WITH_BODY = ("POST", "PUT", "PATCH")


# It warns of each connection that the pool is too full to keep, as after a burst of streams.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Address:
    """What the heads of all requests to one server begin with: its ``host`` with the port, its
    ``base``, which each path begins with, and its ``version``, which is there for our ``/v1``.
    ``headers`` may be secret."""

    host: str
    base: str = ""
    version: str = "/v1"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)

    def head(self, method: str, target: str, headers: Iterable[tuple[str, str]]) -> list[str]:
        """The lines, as far as the body does not matter."""
        if target.startswith("/v1/"):
            target = self.version + target[3:]
        lines = [f"{method} {self.base}{target} HTTP/1.1", f"Host: {self.host}"]
        lines += [f"{name}: {value}" for name, value in headers]
        return lines + [f"{name}: {value}" for name, value in self.headers]


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
        body: bytes | Spooled = b"",
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
        self.patience: float | None = None  # seconds that the first read waits
        self.is_handed_over = False  # another reads the answer
        self.unwritten = b""
        self.is_cut = False  # the upstream did not take all of the request
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
            self._shut_down()

    def cut(self) -> None:
        """Ends the connection as if the server had. Safe to call at any time."""
        with self._lock:
            self._shut_down()

    def _shut_down(self) -> None:
        if self._socket is not None:
            try:
                # The system's: ssl's own first turns encryption off, and what another thread
                # sends in that moment would go out in plain text.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
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

    def silence(self) -> str:
        """What to say where the upstream said nothing for too long."""
        return f"the model's server was silent for {self.timeout:g} seconds"

    def write(self, sock: socket.socket, address: Address) -> None:
        """Sends head and body, in one packet where they fit; that packet becomes ``unwritten`` if
        another is to send it."""
        lines = address.head(self.method, self.target, self._headers)
        # Without a length some servers wait for the connection's end.
        if self._body or self.method in _WITH_BODY:
            lines.append(f"Content-Length: {len(self._body)}")
        head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        self.sent_at = time.monotonic()
        self.is_cut = False
        body = self._body
        if isinstance(body, Spooled):
            self._send(sock, itertools.chain([head], body))
        elif len(body) > _MAX_SINGLE_WRITE:
            self._send(sock, [head, body])
        elif self.is_handed_over:
            self.unwritten = head + body
        else:
            self._send(sock, [head + body])

    def write_rest(self, sock: socket.socket) -> None:
        """Sends what nobody else has sent."""
        unwritten, self.unwritten = self.unwritten, b""
        self._send(sock, [unwritten])

    def _send(self, sock: socket.socket, parts: Iterable[bytes]) -> None:
        for part in parts:
            try:
                sock.sendall(part)
            except (BlockingIOError, TimeoutError):  # the system's time-out, and Python's
                raise UpstreamTimeout(
                    f"the model's server did not take the request for {self.timeout:g} seconds"
                ) from None
            except OSError:
                self.is_cut = True  # it may have said why before it closed: that is read
                return


class Connection(HTTPConnection):
    """A pooled connection, which carries one Exchange at a time.

    Its socket blocks, with the system's own time-outs: with Python's, every read and write
    polls first, and with hundreds of threads each system call releases the GIL to another.
    """

    _read_timeout = _sends = _longest = 0.0  # seconds

    def carry(self, exchange: Exchange, address: Address) -> None:
        """Connects and sends it. Raises OSError, urllib3's HTTPError, UpstreamError."""
        if exchange.fresh_only:
            self.close()
        exchange.reused = self.sock is not None
        if self.sock is None:
            self.timeout = _CONNECT_SECONDS
            self.connect()
        exchange.attach(self.sock)
        self._longest = exchange.timeout
        seconds = min(exchange.patience or exchange.timeout, exchange.timeout)
        if not exchange.reused or seconds != self._read_timeout or exchange.timeout != self._sends:
            self._set_timeouts(seconds)
        exchange.write(self.sock, address)

    def waits_longer(self) -> bool:
        """Reads wait as long as the exchange allows from now on; False where they did already."""
        if self._read_timeout >= self._longest:
            return False
        self._set_timeouts(self._longest)
        return True

    def set_deadline(self, seconds: float) -> None:
        """How long reads wait for what is left of this exchange."""
        self._longest = seconds
        self._set_timeouts(seconds)

    def lent(self) -> None:
        """Another uses the socket, who on some systems makes it one that never waits."""
        if os.name != "posix":
            self._read_timeout = 0.0

    def _set_timeouts(self, seconds: float) -> None:
        _set_timeouts(self.sock, seconds, self._longest)
        self._read_timeout, self._sends = seconds, self._longest


if os.name == "posix":

    def _set_timeouts(sock: socket.socket, receive: float, send: float) -> None:
        sock.setblocking(True)
        for option, seconds in ((socket.SO_RCVTIMEO, receive), (socket.SO_SNDTIMEO, send)):
            seconds = max(seconds, 0.001)  # to the system 0 means no time-out
            timeval = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
            sock.setsockopt(socket.SOL_SOCKET, option, timeval)

else:

    def _set_timeouts(sock: socket.socket, receive: float, send: float) -> None:
        sock.settimeout(max(receive, send))  # Python's, which has only one


class TlsConnection(Connection, HTTPSConnection):
    """The same over TLS, which does not wait where the system says that it has waited enough: here
    the time-outs are Python's."""

    def _set_timeouts(self, seconds: float) -> None:
        self.sock.settimeout(max(seconds, self._longest))
        self._read_timeout, self._sends = seconds, self._longest


class _Adapter(HTTPAdapter):
    """requests' adapter with our connections in its pools."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = Connection


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = TlsConnection


class Upstream:
    """The server of one run of a model on loopback, and the connections kept to it.

    ``can_hand_over``: another process may use its connections.
    """

    can_hand_over = True
    api_key: str | None = None

    def __init__(self, port: int, connections: int, host: str = "127.0.0.1") -> None:
        self.port = port
        self._adapter = _Adapter(pool_connections=1, pool_maxsize=connections)
        self.use(host)

    def use(self, host: str) -> None:
        """From now on it is at this address, where nothing was sent to it before."""
        self.host = host
        self.address = Address(f"{f'[{host}]' if ':' in host else host}:{self.port}")
        self._pool = self._adapter.poolmanager.connection_from_host(host, self.port)

    @property
    def where(self) -> str:
        """As a message says it."""
        return f"on port {self.port}"

    def send(self, exchange: Exchange) -> Response:
        """Sends and waits for the head of the answer.

        A kept connection that the server closed just as it was used is tried once more on a
        fresh one, unless it may have begun to work: a byte of an answer has come, or time has
        passed. Raises UpstreamError, UpstreamRefused, UpstreamTimeout, Aborted.
        """
        return self._with_retry(exchange, lambda: self._answer(exchange))

    def open(self, exchange: Exchange) -> Response:
        """A connection for another, who sends what is ``unwritten`` of the exchange and reads the
        answer. Raises as ``send``."""
        exchange.is_handed_over = True
        return self._with_retry(exchange, lambda: self._connected(exchange))

    def begin(self, exchange: Exchange, patience: float) -> Response:
        """As ``send``, where the answer begins within so many seconds; otherwise another may read
        it, and then the exchange ``is_handed_over``."""

        def attempt() -> Response:
            exchange.patience = patience
            response = self._connected(exchange)
            if response.has_begun():
                response.read_head()
            else:
                exchange.is_handed_over = True
            return response

        return self._with_retry(exchange, attempt)

    def go_on(
        self, exchange: Exchange, response: Response, data: bytes, end: str | None
    ) -> Response:
        """As ``send``, after another has sent it, read ``data``, and perhaps seen the ``end`` of
        the connection; or after nobody did, where something is ``unwritten``."""

        def answer() -> Response:
            response.go_on(data, end)
            exchange.write_rest(response.socket)
            response.read_head()
            return response

        return self._with_retry(exchange, answer)

    def _with_retry(self, exchange: Exchange, attempt: Callable[[], Response]) -> Response:
        try:
            return attempt()
        except (UpstreamTimeout, Aborted):
            raise
        except UpstreamError:
            may_have_worked = time.monotonic() - exchange.sent_at > _RETRY_WITHIN_SECONDS
            if not exchange.reused or exchange.answered or exchange.aborted or may_have_worked:
                raise
        exchange.fresh_only = True
        exchange.is_handed_over = False
        exchange.patience = None
        return self._answer(exchange)

    def _answer(self, exchange: Exchange) -> Response:
        response = self._connected(exchange)
        response.read_head()
        return response

    def close(self) -> None:
        """Drops the kept connections; those in use are closed when they come back."""
        self._pool.close()
        self._adapter.close()

    def _connected(self, exchange: Exchange) -> Response:
        try:
            return self._connect(exchange)
        except NewConnectionError as error:
            raise UpstreamRefused(
                f"nothing answers {self.where}, where the model's server should be: {error}"
            ) from None
        except (HTTPError, OSError) as error:
            if exchange.aborted:
                raise Aborted("ended from our side") from None
            raise _broken(error) from None

    def _connect(self, exchange: Exchange) -> Response:
        connection = cast(Connection, self._pool._get_conn())
        try:
            connection.carry(exchange, self.address)
        except BaseException:
            exchange.detach()
            connection.close()
            self._pool._put_conn(connection)
            raise
        return Response(connection, exchange, self._pool._put_conn)


def _broken(error: Exception) -> UpstreamError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return UpstreamError(
            f"the certificate of the model's server is not trusted: {error.verify_message};"
            " REQUESTS_CA_BUNDLE names a file of certificates that are"
        )
    return UpstreamError(f"the connection to the model's server broke: {error}")

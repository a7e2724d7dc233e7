"""One model server as seen over HTTP: pooled connections, requests that can be aborted.

The pool is the one that requests' adapter holds. The connection is ours: it writes head and
body as one, reads the head with no e-mail parser, and hands on whatever has arrived, many
chunks at once. Through ``requests.Session`` the same exchange takes five times the CPU.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, cast

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, NewConnectionError

from manager.relay.chunked import ChunkedDecoder, NotChunked

# A loopback server that is there accepts at once. The exchange has its own time-out after that.
_CONNECTING = urllib3.Timeout(connect=5.0)
_CLOSED_MEANWHILE = 0.25  # seconds in which a closed connection is noticed
_READ = 65536
_MAX_HEAD = 1 << 18
_ONE_WRITE = 1 << 16
_LENGTH = re.compile("[0-9]{1,18}")
_HEADER_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_UNFIT = re.compile(rb"[\r\n\0]")  # in a value
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: ([^\r\n]*))?\r?$")

Headers = list[tuple[str, str]]


class UpstreamError(Exception):
    """The upstream did not answer as an HTTP server does: refused, reset, cut, not HTTP."""


class UpstreamTimeout(UpstreamError):
    """The upstream was silent for longer than allowed."""


class Aborted(UpstreamError):
    """The exchange was ended from our side."""


class Exchange:
    """One request, and the way to end it from another thread.

    ``timeout`` is how many seconds the upstream may be silent.

    ``abort`` shuts the socket down, which wakes the thread that reads from it, and tells the
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
        """The connection is no longer ours; ``abort`` leaves it alone from here on."""
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
        parts = [head + self._body] if len(self._body) <= _ONE_WRITE else [head, self._body]
        try:
            for part in parts:
                sock.sendall(part)
        except (BlockingIOError, TimeoutError):  # the system's time-out, and Python's
            raise UpstreamTimeout(
                f"the model's server did not take the request for {self.timeout:g} seconds"
            ) from None


class Reader:
    """Reads one answer off a connection: its head, then whatever bytes have arrived."""

    def __init__(self, sock: socket.socket, exchange: Exchange) -> None:
        self._sock = sock
        self._exchange = exchange
        self._buffer = b""

    def read(self) -> bytes:
        """The next bytes, as many as are here; b"" at the end of the connection.

        Raises UpstreamError, UpstreamTimeout, Aborted.
        """
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        try:
            data = self._sock.recv(_READ)
        except (BlockingIOError, TimeoutError):  # the system's time-out, and Python's
            raise UpstreamTimeout(
                f"the model's server was silent for {self._exchange.timeout:g} seconds"
            ) from None
        except OSError as error:
            if self._exchange.aborted:
                raise Aborted("ended from our side") from None
            raise UpstreamError(f"the connection to the model's server broke: {error}") from None
        if data:
            self._exchange.answered = True
        elif self._exchange.aborted:
            raise Aborted("ended from our side")
        return data

    def read_required(self) -> bytes:
        """As ``some``, where the end of the connection would be before its time."""
        data = self.read()
        if not data:
            raise UpstreamError("the model's server closed the connection in mid-answer")
        return data

    def put_back(self, data: bytes) -> None:
        self._buffer = data

    @property
    def is_drained(self) -> bool:
        return not self._buffer

    def head(self) -> tuple[int, int, str, Headers]:
        """HTTP's minor version, status, reason and headers of the answer proper."""
        while True:
            minor, status, reason, headers = self._one_head()
            if status >= 200:  # "100 Continue" and its like come before the answer
                return minor, status, reason, headers

    def _one_head(self) -> tuple[int, int, str, Headers]:
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _MAX_HEAD or not b"HTTP/1.".startswith(data[:7]):
                raise UpstreamError(f"what came is not an HTTP answer: {data[:60]!r}")
            piece = self.read()
            if not piece:
                what = "in the middle of an answer's head" if data else "without an answer"
                raise UpstreamError(f"the model's server closed the connection {what}")
            data += piece
        self.put_back(data[end + 4 :])
        status_line, *lines = data[:end].split(b"\r\n")
        match = _STATUS_LINE.match(status_line)
        if not match:
            raise UpstreamError(f"what came is not an HTTP answer: {status_line[:60]!r}")
        headers = []
        for line in lines:
            name, colon, value = line.partition(b":")
            # A lone line end would be one header here and two to whoever reads it next.
            if not colon or not _HEADER_NAME.fullmatch(name) or _UNFIT.search(value):
                raise UpstreamError(f"a header is not well formed: {line[:60]!r}")
            headers.append((name.decode("latin-1"), value.strip().decode("latin-1")))
        return int(match[1]), int(match[2]), (match[3] or b"").decode("latin-1"), headers


class Response(urllib3.HTTPResponse):
    """An answer whose head is here and whose body is read with ``pieces``.

    ``header_items`` keeps order and repetition; ``length`` is the declared length in bytes,
    None where the body is chunked or ends with its connection.
    """

    def __init__(self, connection: Connection, exchange: Exchange, reader: Reader) -> None:
        minor, status, reason, self.header_items = reader.head()
        super().__init__(
            headers=urllib3.HTTPHeaderDict(self.header_items),
            status=status,
            version=10 + minor,
            reason=reason,
            preload_content=False,
            decode_content=False,
            enforce_content_length=False,
            request_method=exchange.method,
            request_url=exchange.target,
        )
        self._carrier: Connection | None = connection
        self._exchange = exchange
        self._reader = reader
        self.length, self._is_chunked = _framing(self)
        persistent = self.header("Connection").lower()
        self._reusable = "close" not in persistent and (minor == 1 or "keep-alive" in persistent)

    def header(self, name: str) -> str:
        """A header's value, "" where there is none; repeated ones joined by commas."""
        return self.headers.get(name, "")

    def iter_bytes(self) -> Iterator[bytes]:
        """The body as it arrives: no piece is empty, none waits to be filled.

        Raises UpstreamError where the body ends before its time, UpstreamTimeout, Aborted.
        At the end the connection goes back to the pool.
        """
        try:
            if self._is_chunked:
                yield from self._chunked_pieces()
            elif self.length is not None:
                yield from self._sized_pieces(self.length)
            else:
                self._reusable = False  # its end is the end of the body
                while piece := self._reader.read():
                    yield piece
        except BaseException:
            self.discard()
            raise
        if self._reusable and self._reader.is_drained:
            self._carrier = None
            self._exchange.detach()
            self.release_conn()
        else:
            self.discard()

    def set_deadline(self, seconds: float) -> None:
        """What is left of the body has to come within this time: it is only framing."""
        if self._carrier is not None:
            self._carrier.set_read_timeout(seconds)

    def discard(self) -> None:
        """Closes the connection, unless the answer was read to its end: it is no longer
        wanted, or no longer to be had."""
        if self._carrier is not None:
            self._exchange.detach()
            self._carrier.close()
            self._carrier = None
            self.release_conn()

    def _sized_pieces(self, left: int) -> Iterator[bytes]:
        while left:
            piece = self._reader.read_required()
            if len(piece) > left:
                self._reader.put_back(piece[left:])
                piece = piece[:left]
            left -= len(piece)
            yield piece

    def _chunked_pieces(self) -> Iterator[bytes]:
        decoder = ChunkedDecoder()
        while not decoder.finished:
            try:
                piece = decoder.feed(self._reader.read_required())
            except NotChunked as error:
                raise UpstreamError(f"the answer is not well formed: {error}") from None
            if piece:
                yield piece
        self._reader.put_back(decoder.rest)


def _framing(response: Response) -> tuple[int | None, bool]:
    """The body's declared length, and whether it is chunked (RFC 9112, section 6.3)."""
    encoding = response.header("Transfer-Encoding").lower()
    lengths = {value.strip() for value in response.header("Content-Length").split(",")} - {""}
    if response.status in (204, 304):
        return 0, False
    if encoding == "chunked":
        return None, True
    if encoding:
        raise UpstreamError(f"the answer's transfer encoding is not known: {encoding[:60]!r}")
    if not lengths:
        return None, False
    length = lengths.pop()
    if lengths or not _LENGTH.fullmatch(length):
        raise UpstreamError("the answer's Content-Length is not one number")
    return int(length), False


class Connection(HTTPConnection):
    """A pooled connection that carries an Exchange in place of a body.

    Its socket blocks, with the system's own time-outs: with Python's, every read and write
    polls first, and with hundreds of threads each system call is a turn at the interpreter's
    lock given away.
    """

    _span = 0.0

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
        if not exchange.reused or exchange.timeout != self._span:
            self.set_read_timeout(exchange.timeout)
        exchange.write(self.sock, f"{self.host}:{self.port}")

    def set_read_timeout(self, seconds: float) -> None:
        _set_timeout(self.sock, seconds)
        self._span = seconds

    def getresponse(self) -> Response:  # type: ignore[override]
        return Response(self, self._exchange, Reader(self.sock, self._exchange))


if os.name == "posix":

    def _set_timeout(sock: socket.socket, seconds: float) -> None:
        sock.setblocking(True)
        seconds = max(seconds, 0.001)  # to the system 0 is for ever
        span = struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)

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

    def __init__(self, port: int, connections: int) -> None:
        self.port = port
        self._adapter = _Adapter(pool_connections=1, pool_maxsize=connections)
        self._pool = self._adapter.poolmanager.connection_from_host("127.0.0.1", port)

    def send(self, exchange: Exchange) -> Response:
        """Sends and waits for the head of the answer.

        A kept connection that the server closed just as it was used is tried once more on a
        fresh one, unless it may have begun to work: a byte of an answer has come, or time has
        passed. Raises UpstreamError, UpstreamTimeout, Aborted.
        """
        try:
            return self._send(exchange)
        except (UpstreamTimeout, Aborted):
            raise
        except UpstreamError:
            worked = time.monotonic() - exchange.sent_at > _CLOSED_MEANWHILE
            if not exchange.reused or exchange.answered or exchange.aborted or worked:
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
                timeout=_CONNECTING,
                preload_content=False,
            )
        except NewConnectionError as error:
            raise UpstreamError(
                f"nothing answers on port {self.port}, where the model's server should be: {error}"
            ) from None
        except (HTTPError, OSError) as error:
            if exchange.aborted:
                raise Aborted("ended from our side") from None
            raise UpstreamError(f"the connection to the model's server broke: {error}") from None
        return cast(Response, response)

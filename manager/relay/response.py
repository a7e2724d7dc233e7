"""An upstream's answer as it comes off its connection: the head, then the body's bytes."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import urllib3

from manager.relay.chunked import ChunkedDecoder, NotChunked

if TYPE_CHECKING:
    from manager.relay.upstream import Connection, Exchange

_READ_BYTES = 65536
_MAX_HEAD = 1 << 18  # bytes
_LENGTH = re.compile("[0-9]{1,18}")
_HEADER_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_A_VALUE = re.compile(rb"[\r\n\0]")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: ([^\r\n]*))?\r?$")

Headers = list[tuple[str, str]]


class UpstreamError(Exception):
    """The upstream did not answer as an HTTP server does: refused, reset, cut, not HTTP."""


class UpstreamRefused(UpstreamError):
    """Nothing takes connections where the upstream should be."""


class UpstreamTimeout(UpstreamError):
    """The upstream was silent for longer than allowed."""


class Aborted(UpstreamError):
    """The exchange was ended from our side."""


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
            data = self._sock.recv(_READ_BYTES)
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
        """As ``read``, where the end of the connection would be premature.

        Raises UpstreamError there as well."""
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
            # A bare CR or LF would be one header here and two to the client.
            if not colon or not _HEADER_NAME.fullmatch(name) or _NOT_IN_A_VALUE.search(value):
                raise UpstreamError(f"a header is not well formed: {line[:60]!r}")
            headers.append((name.decode("latin-1"), value.strip().decode("latin-1")))
        return int(match[1]), int(match[2]), (match[3] or b"").decode("latin-1"), headers


class Response(urllib3.HTTPResponse):
    """An answer whose head is here and whose body is read with ``iter_bytes``.

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
        # None once the body was read or dropped. (urllib3 has a `_connection` of its own.)
        self._open_connection: Connection | None = connection
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

        At its end the connection goes back to the pool.

        Raises UpstreamError where the body ends too early, UpstreamTimeout, Aborted.
        """
        try:
            if self._is_chunked:
                yield from self._chunked_body()
            elif self.length is not None:
                yield from self._sized_body(self.length)
            else:
                self._reusable = False  # its end is the end of the body
                while piece := self._reader.read():
                    yield piece
        except BaseException:
            self.discard()
            raise
        if self._reusable and self._reader.is_drained:
            self._open_connection = None
            self._exchange.detach()
            self.release_conn()
        else:
            self.discard()

    def set_deadline(self, seconds: float) -> None:
        """Limits the wait for the rest of the body, which is only framing."""
        if self._open_connection is not None:
            self._open_connection.set_read_timeout(seconds)

    def discard(self) -> None:
        """Closes the connection, unless the answer was read to its end."""
        if self._open_connection is not None:
            self._exchange.detach()
            self._open_connection.close()
            self._open_connection = None
            self.release_conn()

    def _sized_body(self, remaining: int) -> Iterator[bytes]:
        while remaining:
            piece = self._reader.read_required()
            if len(piece) > remaining:
                self._reader.put_back(piece[remaining:])
                piece = piece[:remaining]
            remaining -= len(piece)
            yield piece

    def _chunked_body(self) -> Iterator[bytes]:
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

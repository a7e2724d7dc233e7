"""An upstream's answer as it comes off its connection: the head, then the body's bytes."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from manager.streams import AnswerHead, ChunkedDecoder, NotChunked, NotHttp, read_head

if TYPE_CHECKING:
    from manager.relay.upstream import Connection, Exchange

_READ_BYTES = 65536


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

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        self._connection = connection
        self._sock: socket.socket = connection.sock
        self._exchange = exchange
        self._buffer = b""
        self._end: str | None = None  # as another has seen who read before

    def feed(self, data: bytes, end: str | None) -> None:
        """What another has read of the answer, and what it says of the connection's end."""
        self._buffer, self._end = data, end
        self._exchange.answered = bool(data)

    def has_begun(self) -> bool:
        """Whether something comes within the connection's time-out, if only its end."""
        try:
            self._buffer = self._receive()
        except UpstreamTimeout:
            return False
        return True

    def read(self) -> bytes:
        """The next bytes, as many as are here; b"" at the end of the connection.

        Raises UpstreamError, UpstreamTimeout, Aborted.
        """
        if self._buffer:
            data, self._buffer = self._buffer, b""
            return data
        if self._end is not None:
            raise UpstreamError(self._end)
        while True:
            try:
                return self._receive()
            except UpstreamTimeout:
                if not self._connection.waits_longer():
                    raise

    def _receive(self) -> bytes:
        try:
            data = self._sock.recv(_READ_BYTES)
        except (BlockingIOError, TimeoutError):  # the system's time-out, and Python's
            raise UpstreamTimeout(self._exchange.silence()) from None
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

    def head(self) -> AnswerHead:
        """Raises UpstreamError also where it is none."""
        data = b""
        while piece := self.read():
            try:
                head, at = read_head(data + piece)
            except NotHttp as error:
                raise UpstreamError(str(error)) from None
            data = (data + piece)[at:]
            if head is not None:
                self.put_back(data)
                return head
        what = "in the middle of an answer's head" if data else "without an answer"
        raise UpstreamError(f"the model's server closed the connection {what}")


class Response:
    """An answer: ``read_head`` first, which sets ``head``, then the body with ``iter_bytes``.
    ``release`` takes the connection back, open or closed."""

    head: AnswerHead

    def __init__(
        self, connection: Connection, exchange: Exchange, release: Callable[[Connection], None]
    ) -> None:
        self.is_reusable = False
        self._connection: Connection | None = connection  # None once the body was read or dropped
        self._exchange = exchange
        self._reader = Reader(connection, exchange)
        self._release = release

    @property
    def status(self) -> int:
        return self.head.status

    @property
    def has_body(self) -> bool:
        """False for an answer to HEAD, whose head is that of the answer to a GET."""
        return self._exchange.method != "HEAD"

    def has_begun(self) -> bool:
        """Whether the answer begins, or its connection ends, within the exchange's patience."""
        return self._reader.has_begun()

    def read_head(self) -> None:
        """Raises UpstreamError, UpstreamTimeout, Aborted, and then the connection is closed."""
        try:
            self.head = self._reader.head()
        except BaseException:
            self.discard()
            raise
        self.is_reusable = self.head.keeps_alive and not self._exchange.is_cut

    def iter_bytes(self) -> Iterator[bytes]:
        """The body as it arrives: no piece is empty, none waits to be filled.

        At its end the connection goes back to the pool.

        Raises UpstreamError where the body ends too early, UpstreamTimeout, Aborted.
        """
        try:
            if not self.has_body:
                pass
            elif self.head.is_chunked:
                yield from self._chunked_body()
            elif self.head.length is not None:
                yield from self._sized_body(self.head.length)
            else:
                self.is_reusable = False  # its end is the end of the body
                while piece := self._reader.read():
                    yield piece
        except BaseException:
            self.discard()
            raise
        self._end_body(self.is_reusable and self._reader.is_drained)

    @property
    def socket(self) -> socket.socket:
        """The connection's, for another who writes the request and reads the answer;
        ``take_back`` or ``go_on`` ends that."""
        assert self._connection is not None
        self._connection.lent()
        sock: socket.socket = self._connection.sock
        return sock

    def take_back(self, is_reusable: bool) -> None:
        """The other has read all of the answer, or the connection is of no use any more."""
        self.is_reusable = is_reusable
        self._end_body(is_reusable)

    def go_on(self, data: bytes, end: str | None) -> None:
        """Reads on behind what another has read, who then saw the connection end if ``end`` says
        so."""
        if self._connection is not None:
            self._connection.waits_longer()
        self._reader.feed(data, end)

    def set_deadline(self, seconds: float) -> None:
        """Limits the wait for the rest of the body, which is only framing."""
        if self._connection is not None:
            self._connection.set_deadline(seconds)

    def _end_body(self, is_reusable: bool) -> None:
        if is_reusable and self._connection is not None:
            self._give_up(self._connection)
        else:
            self.discard()

    def discard(self) -> None:
        """Closes the connection, unless the answer was read to its end."""
        if self._connection is not None:
            self._exchange.detach()
            self._connection.close()
            self._give_up(self._connection)

    def _give_up(self, connection: Connection) -> None:
        self._exchange.detach()
        self._connection = None
        self._release(connection)

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
            fault: NotChunked | None = None
            try:
                piece = decoder.feed(self._reader.read_required())
            except NotChunked as error:
                piece, fault = error.data, error
            if piece:
                yield piece
            if fault is not None:
                raise UpstreamError(f"the answer is not well formed: {fault}")
        self._reader.put_back(decoder.rest)

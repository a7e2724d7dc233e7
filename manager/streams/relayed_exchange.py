"""One request to a model's server and its answer, carried by a relay process.

The program begins a request: it authenticates, takes the lease, connects, and hands both sockets
over. Here is the rest. What holds what:

============  ============================  =========================  =============================
phase         upstream's socket             client's socket            lease, permit, row
============  ============================  =========================  =============================
asking        the request is written        what it sends is kept      the program's, for this one
answering     the head is read, and all of  as above                   the program's
              a body that comes whole
relaying      events are read               events are written         the program's; it is sent
                                                                       counts twice a second
reported      read to the end of its        its last bytes wait for    the row is being written; the
              framing, for 2 s              ``finish``                 program answers ``finish``
finishing     as above                      its last bytes are         the row is on disk
                                            written
released      the program has it again      as above                   the lease is released
sent          as above                      the program has it again   over
============  ============================  =========================  =============================

Each side ends by itself, in either order. What happens meanwhile, in every phase where it can:

- client disconnected: the upstream is shut down, ``reported`` with 499 if it was not before,
  ``released`` and ``sent`` as failed, at once; on Linux within half a second where it has sent
  more than is kept of its next request.
- before anything was sent to the client, an upstream that is dead, silent for too long, not HTTP,
  or whose answer is none of those that are carried: both connections are handed back with all that
  was read, and the program goes on in a thread, or answers with an error.
- while events are relayed, an upstream that is dead, malformed or silent for too long:
  ``reported`` with 502 or 504, the error event is among the last bytes, ``released`` as not
  reusable.
- a client that reads slowly: its upstream is not read until it has taken what was read before.
- the program ends, however it does: its end of the control connection closes, all sockets here are
  closed, and no answer gets its end.
- this process ends: the program closes the clients' connections and writes the rows from the last
  counts that it was sent.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time
from collections.abc import Callable
from typing import Protocol

from manager.errors import CLIENT_CLOSED_REQUEST, ApiError
from manager.interfaces import error_in, stream_protocol
from manager.streams.answer_head import AnswerHead, ClientHead, NotHttp, read_head
from manager.streams.chunked import ChunkedDecoder, NotChunked, UntilClose
from manager.streams.event_stream import EventStream
from manager.streams.messages import Message
from manager.tokens import TokenUsage, from_body

MAX_WHOLE = 1 << 20  # bytes
"""Up to this size an answer of known length is read whole before its first byte is sent: one
write, and an upstream that breaks off in the middle is still a clean 502."""
AFTER_DONE_SECONDS = 2.0  # for the framing behind the last event
# Blocking belongs to a socket and not to a descriptor of it: the program's would change too.
DONT_WAIT: int = getattr(socket, "MSG_DONTWAIT", 0)
# Of twice that and more the C library asks the system for memory at each read, and returns it.
_READ_BYTES = 1 << 16
_STALLED_CLIENT_SECONDS = 300.0
_MAX_NEXT = 1 << 16  # bytes
_TCP_ESTABLISHED = 1  # of Linux
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class Loop(Protocol):
    """What an exchange needs of the loop that it is in."""

    def post(self, message: Message, data: bytes = b"") -> None: ...
    def watch(self, sock: socket.socket, mask: int, call: Callable[[int], None]) -> None: ...
    def forget(self, number: int) -> None: ...


class RelayedExchange:
    """See the table above. ``message``: ``timeout`` in seconds, ``client`` (ClientHead), how a
    stream's ``protocol`` is called and whether it ``may_be_plain`` text, ``strip_usage``,
    ``hides_limits``, ``reads_whole``: whether usage in a whole answer looks as usual; its data is
    what is still to be written to the upstream."""

    def __init__(
        self, loop: Loop, message: Message, client: socket.socket, upstream: socket.socket
    ) -> None:
        self.number: int = message["id"]
        self._loop = loop
        self._message = message
        self._client_head = ClientHead.of(message["client"])
        self._timeout: float = message["timeout"]
        self._client: socket.socket | None = client
        self._upstream: socket.socket | None = upstream
        self._unwritten: bytes = message["data"]  # of the request
        self._is_written = not self._unwritten
        self._read_so_far = bytearray()  # of an answer of which nothing was sent
        self._head: AnswerHead | None = None
        self._body_at = 0
        self._events: EventStream | None = None
        self._decoder: ChunkedDecoder | UntilClose = UntilClose()
        self._is_framed = False
        self._unsent = bytearray()
        self._last = b""  # what waits for `finish`
        self._heard_at = self._moved_at = self._reported_at = time.monotonic()
        self._first_byte_at: float | None = None
        self._count = 0  # events, as last reported
        self._is_reported = self._is_finishing = False
        self._watched = (0, 0)  # of the upstream and the client, while there is one
        self._next = bytearray()  # what the client has sent since: its next request

    # --- what the loop calls ------------------------------------------------------------

    def begin(self) -> None:
        self._write_request()

    def finish(self, is_recorded: bool) -> None:
        """The row is on disk, and the last bytes may be sent; or it is not, and they are not."""
        if not is_recorded:
            self._release(False)
            self._give_back(False)
            return
        self._is_finishing = True
        self._moved_at = time.monotonic()
        self._send(self._last)

    def new_count(self) -> int | None:
        """The events so far, where those are more than before."""
        if self._events is None or self._events.chunks == self._count:
            return None
        self._count = self._events.chunks
        return self._count

    def check_time(self, now: float) -> None:
        if self._upstream is not None:
            if self._is_reported:
                if now - self._reported_at > AFTER_DONE_SECONDS:
                    self._release(False)
            elif now - self._silent_since() > self._timeout:
                if self._events is None:
                    self._hand_back("silent")
                    return
                message = f"the model's server was silent for {self._timeout:g} seconds"
                self._fail(ApiError(504, "upstream_timeout", message))
        is_stalled = bool(self._unsent) and now - self._moved_at > _STALLED_CLIENT_SECONDS
        if is_stalled or (self._reads_no_more and self._client_has_closed()):
            self._client_disconnected()

    def close(self) -> None:
        """The program has ended."""
        for sock in (self._client, self._upstream):
            if sock is not None:
                sock.close()

    def _silent_since(self) -> float:
        """Nobody asks the upstream while the client has not taken what it said before."""
        return time.monotonic() if self._unsent else max(self._heard_at, self._moved_at)

    # --- the upstream -------------------------------------------------------------------

    def _on_upstream(self, mask: int) -> None:
        if mask & _WRITE and self._upstream is not None:
            self._write_request()
        if not mask & _READ or self._upstream is None:
            return  # released in this round
        try:
            data = self._upstream.recv(_READ_BYTES, DONT_WAIT)
        except BlockingIOError:
            return
        except OSError as error:
            self._broke(f"the connection to the model's server broke: {error}")
            return
        self._heard_at = time.monotonic()
        if not data:
            self._ended()
        elif self._events is None:
            self._read_whole(data)
        else:
            self._read_events(self._events, data)

    def _write_request(self) -> None:
        assert self._upstream is not None
        try:
            if self._unwritten:
                sent = self._upstream.send(self._unwritten, DONT_WAIT)
                self._unwritten = self._unwritten[sent:]
                self._is_written = not self._unwritten
                self._heard_at = time.monotonic()
        except BlockingIOError:
            pass
        except OSError:
            self._unwritten = b""  # it may have said why before it closed: read that
        self._watch()

    def _ended(self) -> None:
        if self._events is not None and isinstance(self._decoder, UntilClose):
            self._end_of_answer(self._events, b"", is_whole=True)
            self._release(False)
        else:
            self._broke("the model's server closed the connection in mid-answer")

    def _broke(self, message: str) -> None:
        if self._events is None:
            self._hand_back("ended", message)
        else:
            self._fail(ApiError(502, "upstream_error", message))

    # --- an answer of which nothing was sent ----------------------------------------------

    def _read_whole(self, data: bytes) -> None:
        self._read_so_far += data
        if self._head is None and not self._has_head():
            return
        head = self._head
        assert head is not None
        if head.length is None:
            return
        body = self._read_so_far[self._body_at :]
        if len(body) >= head.length:
            self._answer_whole(head, bytes(body[: head.length]))
            self._release(head.keeps_alive and len(body) == head.length)

    def _has_head(self) -> bool:
        """Whether it is here, and the answer one that comes whole; a stream is begun."""
        try:
            found = read_head(bytes(self._read_so_far))
        except NotHttp:
            self._hand_back("answers")  # the program finds the same fault
            return False
        head, at = found
        if head is None:
            del self._read_so_far[:at]  # interim answers: else each read would look through them
            return False
        self._body_at = at
        is_stream = head.is_stream(self._message["may_be_plain"])
        protocol = stream_protocol.PROTOCOLS.get(self._message["protocol"])
        if is_stream and head.length is None and protocol is not None:
            self._begin_stream(head, EventStream(protocol, self._message["strip_usage"]))
            return False
        reads_whole = self._message["reads_whole"] and not head.is_web_page and not is_stream
        if not reads_whole or head.length is None or head.length > MAX_WHOLE:
            self._hand_back("answers")
            return False
        self._head = head
        return True

    def _answer_whole(self, head: AnswerHead, body: bytes) -> None:
        self._first_byte_at = time.monotonic()
        status, message = head.status, None
        if status < 300 and (error := error_in(body)) is not None:
            status, message = error.status, error.message
        self._report(status, message, from_body(body), self._written_head(head) + body)

    def _written_head(self, head: AnswerHead) -> bytes:
        returned = head.returned(
            is_stream=self._events is not None, hides_limits=self._message["hides_limits"]
        )
        return self._client_head.write(head.status, head.reason, returned, head.length)

    def _hand_back(self, how: str, error: str | None = None) -> None:
        """The program goes on with both connections."""
        for sock in (self._client, self._upstream):
            assert sock is not None
            self._loop.watch(sock, 0, self._on_client)
        self.close()
        self._client = self._upstream = None
        self._loop.forget(self.number)
        report = {
            "waited": how,
            "error": error,
            "is_written": self._is_written,
            "next": self._next.decode("latin-1"),
        }
        self._loop.post({"id": self.number, **report}, bytes(self._read_so_far))

    # --- events -----------------------------------------------------------------------------

    def _begin_stream(self, head: AnswerHead, events: EventStream) -> None:
        self._events, self._head = events, head
        self._decoder = ChunkedDecoder() if head.is_chunked else UntilClose()
        self._is_framed = self._client_head.is_framed(None)
        self._unsent += self._written_head(head)
        if rest := bytes(self._read_so_far[self._body_at :]):
            self._read_events(events, rest)
        self._read_so_far.clear()
        self._flush()  # the head alone, where the first event is long in coming

    def _read_events(self, events: EventStream, data: bytes) -> None:
        fault: NotChunked | None = None
        try:
            piece = self._decoder.feed(data)
        except NotChunked as error:
            piece, fault = error.data, error
        is_whole = self._decoder.finished
        if not self._is_reported:
            out = b""
            if piece:
                self._first_byte_at = self._first_byte_at or self._heard_at
                out = events.feed(piece)
            if is_whole or events.done:
                self._end_of_answer(events, out, is_whole=is_whole)
            elif out:
                self._send(self._framed(out))
        if fault is not None:
            self._broke(f"the answer is not well formed: {fault}")
        elif is_whole:
            assert self._head is not None
            self._release(self._head.keeps_alive and not self._decoder.rest)

    def _end_of_answer(self, events: EventStream, out: bytes, *, is_whole: bool) -> None:
        """``out`` is what is not sent yet; ``is_whole``: nothing more can come."""
        assert self._head is not None
        if self._is_reported:
            return
        if is_whole:
            rest = events.flush()
            if fault := events.truncated:
                self._send(self._framed(out))
                self._broke(fault)
                return
            out += rest
        self._report_events(events, self._head.status, None, self._framed(out))

    def _fail(self, failure: ApiError) -> None:
        assert self._events is not None
        assert self._head is not None
        events = self._events
        if events.has_ended:  # all is here: how the connection ended does not matter
            self._report_events(events, self._head.status, None, b"")
        else:
            event = events.protocol.error_event(failure)
            self._report_events(events, failure.status, failure.message, self._framed(event))
        self._release(False)

    def _report_events(
        self, events: EventStream, status: int, error: str | None, last: bytes
    ) -> None:
        end = b"0\r\n\r\n" if self._is_framed else b""
        self._report(*events.result(status, error), last + end)

    # --- the end ----------------------------------------------------------------------------

    def _report(
        self, status: int, error: str | None, usage: TokenUsage | None, last: bytes
    ) -> None:
        """Once. ``last`` is sent when the program has answered."""
        if self._is_reported:
            return
        self._is_reported = True
        self._reported_at = time.monotonic()
        self._last = last
        self._loop.post(
            {
                "id": self.number,
                "status": status,
                "error": error,
                "usage": usage and [*vars(usage).values()],
                "streamed": self._events is not None,
                "first_byte_at": self._first_byte_at,
            }
        )

    def _release(self, is_reusable: bool) -> None:
        """The program has the upstream's connection again."""
        if self._upstream is None:
            return
        self._loop.watch(self._upstream, 0, self._on_upstream)
        self._upstream.close()
        self._upstream = None
        self._loop.post({"id": self.number, "released": is_reusable and self._is_written})
        self._forget_if_over()

    # --- the client -----------------------------------------------------------------------

    def _framed(self, data: bytes) -> bytes:
        return b"%X\r\n%b\r\n" % (len(data), data) if data and self._is_framed else data

    def _send(self, data: bytes) -> None:
        if self._client is None:
            return
        if not self._unsent:  # as nearly always: without a copy of it
            try:
                data = data[self._client.send(data, DONT_WAIT) :]
                self._moved_at = time.monotonic()
            except BlockingIOError:
                pass
            except OSError:
                self._client_disconnected()
                return
        self._unsent += data
        self._flush()

    def _on_client(self, mask: int) -> None:
        if self._client is None:
            return
        if mask & _READ and not self._reads_no_more:
            if not self._read_client(self._client):
                self._client_disconnected()
                return
            self._watch()
        if mask & _WRITE:
            self._flush()

    def _read_client(self, client: socket.socket) -> bool:
        """Keeps what the client sends for the program, so that its disconnecting is seen behind
        that; whether it is still there."""
        try:
            data = client.recv(_MAX_NEXT - len(self._next), DONT_WAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._next += data
        return bool(data)

    @property
    def _reads_no_more(self) -> bool:
        """Whether the client has sent so much that it has to wait for its answer first."""
        return len(self._next) >= _MAX_NEXT

    def _client_has_closed(self) -> bool:
        """As the system knows before the data ahead of the close are read; on Linux alone."""
        if self._client is None or sys.platform != "linux":
            return False
        try:
            state = self._client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        except OSError:
            return False  # not TCP
        return state != _TCP_ESTABLISHED

    def _flush(self) -> None:
        while self._unsent and self._client is not None:
            try:
                sent = self._client.send(self._unsent, DONT_WAIT)
            except BlockingIOError:
                break
            except OSError:
                self._client_disconnected()
                return
            del self._unsent[:sent]
            self._moved_at = time.monotonic()
        if self._is_finishing and not self._unsent:
            assert self._head is not None
            self._give_back(self._client_head.goes_on(self._head.length))
            return
        self._watch()

    def _watch(self) -> None:
        """A client that reads slowly holds back its own model's server, and nobody else."""
        is_held = bool(self._unsent) and not self._is_reported
        of_upstream = (0 if is_held else _READ) | (_WRITE if self._unwritten else 0)
        of_client = (0 if self._reads_no_more else _READ) | (_WRITE if self._unsent else 0)
        if (of_upstream, of_client) == self._watched:
            return
        self._watched = of_upstream, of_client
        if self._upstream is not None:
            self._loop.watch(self._upstream, of_upstream, self._on_upstream)
        if self._client is not None:
            self._loop.watch(self._client, of_client, self._on_client)

    def _client_disconnected(self) -> None:
        error = "the client disconnected"
        if self._events is None:
            self._report(CLIENT_CLOSED_REQUEST, error, None, b"")
        else:
            self._report_events(self._events, CLIENT_CLOSED_REQUEST, error, b"")
        if self._upstream is not None:
            with contextlib.suppress(OSError):  # it was faster
                # So that the server stops computing now: the program has a descriptor of it too.
                self._upstream.shutdown(socket.SHUT_RDWR)
        self._release(False)
        self._give_back(False)

    def _give_back(self, goes_on: bool) -> None:
        """The program has the client's connection again; it closes one that does not go on."""
        if self._client is None:
            return
        self._loop.watch(self._client, 0, self._on_client)
        self._client.close()
        self._client = None
        self._loop.post({"id": self.number, "sent": goes_on}, bytes(self._next))
        self._forget_if_over()

    def _forget_if_over(self) -> None:
        if self._client is None and self._upstream is None:
            self._loop.forget(self.number)

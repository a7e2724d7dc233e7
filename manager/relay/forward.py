"""One request to one upstream and back.

What arrives is sent on at once, as it came. The relay knows a lease and nothing else of the
fleet: who the upstream is, what it calls its model, and how to release it.

A relay process carries a request from the moment its connection is open; a thread of the program
does where there is none, where that connection cannot be handed over, and where the answer is one
that no relay process knows.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

from manager.errors import CLIENT_CLOSED_REQUEST, ApiError, ClientDisconnected
from manager.interfaces import PROTOCOLS, Interface, error_in
from manager.relay.outgoing import is_true, outgoing_body, outgoing_headers
from manager.relay.redirects import put_below
from manager.relay.relay_processes import RelayProcesses, Report
from manager.relay.request import (
    ClientConnection,
    HandedOver,
    Lease,
    Outcome,
    RelayRequest,
    RelayResponse,
    TruncatedResponse,
)
from manager.relay.response import Aborted, Response, UpstreamError, UpstreamTimeout
from manager.relay.upstream import Exchange
from manager.relay.watcher import Watcher
from manager.streams import AFTER_DONE_SECONDS, MAX_WHOLE, EventStream, Headers
from manager.tokens import TokenUsage

# Answers that come whole mostly begin within that: a relay process would cost more than the thread.
_PATIENCE_SECONDS = 0.05
_MAX_START = 1 << 16  # bytes of a larger one that are kept beside its end


@dataclass(frozen=True)
class Carriers:
    """What carries a request without a thread: ``lend_client`` lends the client's connection.
    ``may_wait``: whether this thread may wait for the answer to begin. A thread that goes on with
    the answer afterwards counts by ``hold_thread``, which may raise ApiError, until it calls what
    that returns."""

    processes: RelayProcesses
    lend_client: Callable[[], ClientConnection]
    may_wait: Callable[[], bool]
    hold_thread: Callable[[], Callable[[], None]]


def forward(
    lease: Lease,
    request: RelayRequest,
    *,
    watch: Watcher,
    client_disconnected: Callable[[], bool],
    on_end: Callable[[Outcome], None],
    on_answer: Callable[[EventStream | None], None] = lambda _stream: None,
    carriers: Carriers | None = None,
) -> RelayResponse:
    """Sends the request and returns the answer, its body still to come.

    Once ``client_disconnected`` is true the upstream's connection is closed. ``on_end`` is
    called once, before the client has the last byte. The lease is released as soon as the
    upstream is done. ``on_answer`` is called when the answer begins, with what counts its events.

    With ``carriers`` status and headers are not known yet, and the first piece that is asked for
    raises HandedOver; the answer may then be closed at once.

    Raises ApiError 502 or 504, 503 ``busy`` where only a thread could carry it and none may, and
    ClientDisconnected.
    """
    if carriers is not None and not lease.upstream.can_hand_over:
        if not carriers.may_wait():
            message = "All slots for requests are taken; try again in a moment"
            raise ApiError(503, "busy", message, retry_after=1)
        carriers = None
    body, strip_usage = outgoing_body(lease, request)
    exchange = Exchange(
        request.method,
        request.target,
        outgoing_headers(lease, request),
        body,
        timeout=lease.upstream_timeout,
    )

    def watch_client() -> int:
        return watch.add(client_disconnected, exchange.abort)

    transfer = _Transfer(
        lease, request, exchange, strip_usage, watch, watch_client, on_end, on_answer, carriers
    )
    try:
        if carriers is None:
            response = lease.upstream.send(exchange)
        elif transfer.asks_for_stream or not carriers.may_wait():
            response = lease.upstream.open(exchange)
        else:
            response = lease.upstream.begin(exchange, _PATIENCE_SECONDS)
        if exchange.is_handed_over:
            return transfer.carried(response)
        return transfer.answer(response)
    except Aborted as error:
        transfer.close()
        raise ClientDisconnected from error
    except UpstreamError as error:
        failure = _to_api_error(error)
        transfer.fail(failure)
        raise failure from error
    except BaseException:
        transfer.close()
        raise


class _Transfer:
    """One exchange in progress: it is reported once, and releases what it holds once."""

    def __init__(
        self,
        lease: Lease,
        request: RelayRequest,
        exchange: Exchange,
        strip_usage: bool,
        watch: Watcher,
        watch_client: Callable[[], int],
        on_end: Callable[[Outcome], None],
        on_answer: Callable[[EventStream | None], None],
        carriers: Carriers | None,
    ) -> None:
        self._lease = lease
        self._request = request
        self._exchange = exchange
        self._protocol = request.endpoint.stream
        self.asks_for_stream = is_true(request.body.fields.get("stream"))
        # Where forms are taken plain text is a transcript, and no stream that is called so.
        self._may_be_plain = self.asks_for_stream and not request.endpoint.is_form
        self._strip_usage = strip_usage
        self._watch = watch
        self._watch_client = watch_client
        self._token = watch_client()
        self._on_end = on_end
        self._on_answer = on_answer
        self._carriers = carriers
        self._client: ClientConnection | None = None  # once it was lent
        self._response: Response | None = None
        self._stream: EventStream | None = None
        self._first_byte_at: float | None = None
        self._outcome: Outcome | None = None
        self._released = False

    def answer(self, response: Response) -> RelayResponse:
        """The answer to this response. Raises UpstreamError where it can be none."""
        self._response = response
        head = response.head
        if head.is_web_page and not self._request.base:
            raise UpstreamError("what answered is a web page, not a model's server")
        is_stream = head.is_stream(self._may_be_plain) and response.has_body
        headers = head.returned(is_stream=is_stream, hides_limits=self._request.hides_limits)
        if self._request.base:
            headers = self._redirected(headers)
        if is_stream and not self._request.is_safe:  # of which no event is of any interest
            self._stream = EventStream(self._protocol, self._strip_usage)
            pieces = self._events(response, self._stream)
        elif (head.length is not None and head.length <= MAX_WHOLE) or not response.has_body:
            pieces = iter(self._whole(response))
        else:
            pieces = self._unbuffered(response)
        self._on_answer(self._stream)
        answer = RelayResponse(f"{head.status} {head.reason}", headers, pieces, self.close)
        answer.is_stream = is_stream
        return answer

    def _redirected(self, headers: Headers) -> Headers:
        """Raises UpstreamError."""
        upstream, request = self._lease.upstream, self._request
        own = {f"{host}:{upstream.port}" for host in (upstream.host, "localhost")}
        own |= {value.lower() for name, value in request.headers if name.lower() == "host"}
        placed = []
        for name, value in headers:
            if name.lower() == "location":
                below = put_below(value, request.target, request.base, own)
                if below is None:
                    raise UpstreamError("the model's server redirects to another address")
                placed.append((name, below))
            else:
                placed.append((name, value))
        return placed

    def close(self) -> None:
        """The client has its answer or has disconnected; what is still open is closed."""
        try:
            self._report(CLIENT_CLOSED_REQUEST, "the client disconnected")
        finally:
            self._release()

    def fail(self, failure: ApiError) -> None:
        """The exchange failed before anything was sent to the client."""
        try:
            self._report(failure.status, failure.message)
        finally:
            self._release()

    def _whole(self, response: Response) -> list[bytes]:
        body = b"".join(response.iter_bytes())
        self._first_byte_at = time.monotonic()
        self._report_body(response, body)
        self._release()
        return [body]

    def _report_body(self, response: Response, body: bytes, start: bytes = b"") -> None:
        """Of a whole answer, or the end and the start of a large one."""
        error = error_in(body) if response.status < 300 else None
        status, message = (error.status, error.message) if error else (response.status, None)
        usage = self._lease.interface.usage(body)
        if usage is None and start:
            usage = self._lease.interface.usage(start)
        self._report(status, message, usage)

    def _unbuffered(self, response: Response) -> Iterator[bytes]:
        """An answer that is too large to hold, or of unknown length."""
        # Usage stands at the end of most answers, and before the vectors in llama.cpp's.
        start, tail, remaining = b"", b"", response.head.length
        is_answer = response.status < 400
        try:
            for piece in response.iter_bytes():
                self._lease.produced = is_answer
                self._first_byte_at = self._first_byte_at or time.monotonic()
                start = (start + piece)[:_MAX_START] if len(start) < _MAX_START else start
                tail = (tail + piece)[-MAX_WHOLE:]
                remaining = None if remaining is None else remaining - len(piece)
                if remaining == 0:  # a client reads no further than the length in its head
                    self._report_body(response, tail, start)
                yield piece
        except Aborted:
            return  # the client disconnected, which close() reports
        except UpstreamError as error:
            self._report(_to_api_error(error).status, str(error))
            raise TruncatedResponse(str(error)) from error
        self._report_body(response, tail, start)
        self._release()

    def _events(self, response: Response, stream: EventStream) -> Iterator[bytes]:
        is_answer = response.status < 400
        done_at: float | None = None
        try:
            for piece in response.iter_bytes():
                self._lease.produced = is_answer
                self._first_byte_at = self._first_byte_at or time.monotonic()
                data = stream.feed(piece)
                if stream.done:
                    # Before the client has [DONE]: to most of them that is the last byte.
                    self._report(response.status)
                    done_at = done_at or time.monotonic()
                    response.set_deadline(AFTER_DONE_SECONDS)
                if data:
                    yield data
                if done_at and time.monotonic() - done_at > AFTER_DONE_SECONDS:
                    break  # it goes on talking, and would hold its lease; close() ends that
            rest = stream.flush()
            if fault := stream.truncated:
                raise UpstreamError(fault)
        except Aborted:
            return  # the client disconnected, which close() reports
        except UpstreamError as error:
            if not stream.has_ended:
                failure = _to_api_error(error)
                self._report(failure.status, failure.message)
                yield self._protocol.error_event(failure)
                return
            rest = b""
        self._report(response.status)
        self._release()
        if rest:
            yield rest

    # --- in a relay process ---------------------------------------------------------------

    def carried(self, response: Response) -> RelayResponse:
        """The answer that is to come, whose status and headers are not known yet."""
        self._response = response
        return RelayResponse("200 OK", [], self._carry(response), self.close)

    def _carry(self, response: Response) -> Iterator[bytes]:
        assert self._carriers is not None
        self._client = client = self._carriers.lend_client()
        protocol = self._protocol if self._protocol in PROTOCOLS.values() else None
        fields = {
            "timeout": self._lease.upstream_timeout,
            "client": client.head.fields(),
            "protocol": protocol and protocol.name,  # a plugin's own the process does not know
            "may_be_plain": self._may_be_plain,
            "strip_usage": self._strip_usage,
            "hides_limits": self._request.hides_limits,
            "reads_whole": type(self._lease.interface).usage is Interface.usage,
        }
        # Before it is handed over: from then on another thread may go on with it.
        self._watch.remove(self._token)  # the process sees for itself who disconnects
        processes, unwritten = self._carriers.processes, self._exchange.unwritten
        self._exchange.unwritten = b""
        with client.socket as sock:
            if processes.hand_over(sock, response.socket, fields, unwritten, self):
                raise HandedOver
        self._token = self._watch_client()
        self._exchange.unwritten = unwritten
        client.keep()
        yield from self._go_on(response, b"", None)

    def counted(self, events: int) -> None:
        if self._stream is None:
            self._stream = EventStream(self._protocol)
            self._on_answer(self._stream)
        self._stream.chunks = events
        self._lease.produced = True

    def handed_back(self, report: Report) -> None:
        assert self._client is not None
        self._client.go_on(lambda: self._resumed(report), report["next"].encode("latin-1"))

    def _resumed(self, report: Report) -> RelayResponse:
        assert self._response is not None
        assert self._carriers is not None
        self._token = self._watch_client()
        if report["waited"] == "silent":
            pieces = self._failed(_to_api_error(UpstreamTimeout(self._exchange.silence())))
        else:
            pieces = self._go_on(
                self._response, report["data"], report["error"], is_written=report["is_written"]
            )
        return RelayResponse("", [], pieces, self.close)

    def _go_on(
        self, response: Response, data: bytes, end: str | None, *, is_written: bool = True
    ) -> Iterator[bytes]:
        assert self._client is not None
        assert self._carriers is not None
        try:
            release = self._carriers.hold_thread()
        except ApiError as busy:
            yield from self._failed(busy)
            return
        try:
            response = self._lease.upstream.go_on(self._exchange, response, data, end)
            response.is_reusable &= is_written
            answer = self.answer(response)
        except Aborted:
            return  # the client disconnected, which close() reports
        except UpstreamError as error:
            yield from self._failed(_to_api_error(error))
        else:
            self._client.set_head(answer.status, answer.headers)
            yield from answer
        finally:
            release()

    def _failed(self, failure: ApiError) -> Iterator[bytes]:
        assert self._client is not None
        self.fail(failure)
        body = json.dumps(self._request.endpoint.error(failure)).encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        if failure.retry_after is not None:
            headers.append(("Retry-After", str(math.ceil(failure.retry_after))))
        status = HTTPStatus(failure.status)
        self._client.set_head(f"{status} {status.phrase}", headers)
        yield body

    def reported(self, report: Report) -> None:
        counts = report["usage"]
        usage = None if counts is None else TokenUsage(*counts)
        status, error, streamed = report["status"], report["error"], report["streamed"]
        self._lease.produced |= status < 400
        self._end(Outcome(status, usage, streamed, report["first_byte_at"], error))

    def released(self, is_reusable: bool) -> None:
        if self._response is not None:
            self._response.take_back(is_reusable)
        self._release()

    def sent(self, goes_on: bool, data: bytes) -> None:
        client, self._client = self._client, None  # `lost` comes here again
        if client is not None:
            client.take_back(goes_on, data)

    def lost(self) -> None:
        if self._stream is None and self.asks_for_stream:
            self._stream = EventStream(self._protocol)  # it may have begun since the last counts
        try:
            self._report(502, "the relay process that carried it has ended")
        finally:
            self.released(False)
            self.sent(False, b"")

    # --- the end ----------------------------------------------------------------------------

    def _report(
        self, status: int, error: str | None = None, usage: TokenUsage | None = None
    ) -> None:
        if self._stream is not None:
            status, error, usage = self._stream.result(status, error)
        if (usage is None or usage.estimated) and self._request.is_safe:
            usage = TokenUsage()
        streamed = self._stream is not None
        self._end(Outcome(status, usage, streamed, self._first_byte_at, error))

    def _end(self, outcome: Outcome) -> None:
        if self._outcome is None:
            self._outcome = outcome
            self._on_end(outcome)

    def _release(self) -> None:
        if self._released:
            return
        self._released = True
        self._watch.remove(self._token)
        if self._response is not None:
            self._response.discard()
        self._lease.release(self._outcome)


def _to_api_error(error: UpstreamError) -> ApiError:
    if isinstance(error, UpstreamTimeout):
        return ApiError(504, "upstream_timeout", str(error))
    return ApiError(502, "upstream_error", str(error))

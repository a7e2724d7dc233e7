"""One request to one upstream and back.

What arrives is sent on at once, as it came. The relay knows a lease and nothing else of the
fleet: who the upstream is, what it calls its model, and how to release it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from manager.errors import CLIENT_CLOSED_REQUEST, ApiError, ClientDisconnected
from manager.interfaces import AnswerError, Endpoint, Interface, error_of, find_error_offsets
from manager.relay.event_stream import EventStream
from manager.relay.headers import outgoing_headers, returned_headers
from manager.relay.payload import Payload
from manager.relay.response import Aborted, Headers, Response, UpstreamError, UpstreamTimeout
from manager.relay.upstream import Exchange, Upstream
from manager.relay.watcher import Watcher
from manager.tokens import TokenUsage

# Up to this size an answer of known length is read whole before its first byte is sent: one
# write, and an upstream that breaks off in the middle is still a clean 502.
_MAX_BUFFERED = 1 << 20  # bytes
_MAX_START = 1 << 16  # bytes of a larger one that are kept beside its end

_AFTER_DONE_SECONDS = 2.0


class Lease(Protocol):
    """All that the relay needs of the fleet. ``release`` takes what the request came to, where it
    was sent, and may be called more than once; ``produced`` is set with each piece of an answer
    that is no error."""

    produced: bool

    @property
    def interface(self) -> Interface: ...
    @property
    def upstream(self) -> Upstream: ...
    @property
    def served_model_name(self) -> str | None: ...
    @property
    def ask_usage(self) -> bool: ...
    @property
    def upstream_timeout(self) -> float: ...
    def release(self, outcome: Outcome | None = None) -> None: ...


@dataclass(frozen=True)
class RelayRequest:
    """What the client sent, to which endpoint: ``target`` is the path with its query."""

    endpoint: Endpoint
    target: str
    headers: Headers
    payload: Payload


@dataclass(frozen=True)
class Outcome:
    """What a request came to. ``first_byte_at`` is on the monotonic clock, None if none came;
    ``error`` says why an answer is not whole, and ``status`` is then that of the error, also where
    the client had been sent 200 before."""

    status: int
    usage: TokenUsage | None = None
    streamed: bool = False
    first_byte_at: float | None = None
    error: str | None = None


class TruncatedResponse(OSError):
    """An answer that breaks off in the middle. As an OSError it makes the server close the
    client's connection, so that a truncated answer never looks complete."""


class RelayResponse:
    """An answer on its way to the client: status, headers and an iterable of bytes.

    ``close`` releases whatever is still held, however far the answer is. (A generator would
    not do: one that was never started runs none of its clean-up.)
    """

    def __init__(
        self,
        status: str,
        headers: Headers,
        pieces: Iterator[bytes],
        close: Callable[[], None],
        stream: EventStream | None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.stream = stream  # of an answer in server-sent events; it counts them
        self._pieces = pieces
        self._closers = ExitStack()  # all of them, also if one fails
        self._closers.callback(close)

    def __iter__(self) -> RelayResponse:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def when_closed(self, action: Callable[[], None]) -> None:
        """Calls ``action`` once the client has its answer or has disconnected."""
        self._closers.callback(action)

    def close(self) -> None:
        self._closers.close()


def forward(
    lease: Lease,
    request: RelayRequest,
    *,
    watch: Watcher,
    client_disconnected: Callable[[], bool],
    on_end: Callable[[Outcome], None],
) -> RelayResponse:
    """Sends the request and returns the answer, its body still to come.

    Once ``client_disconnected`` is true the upstream's connection is closed. ``on_end`` is
    called once, before the client has the last byte. The lease is released as soon as the
    upstream is done. Raises ApiError 502 or 504, and ClientDisconnected.
    """
    body, strip_usage = _outgoing_body(lease, request)
    exchange = Exchange(
        "POST",
        request.target,
        outgoing_headers(request.headers),
        body,
        timeout=lease.upstream_timeout,
    )
    token = watch.add(client_disconnected, exchange.abort)
    is_stream = _is_true(request.payload.fields.get("stream"))
    transfer = _Transfer(lease, request.endpoint, is_stream, watch, token, on_end)
    try:
        response = lease.upstream.send(exchange)
        return transfer.answer(response, strip_usage)
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
        endpoint: Endpoint,
        asks_for_stream: bool,
        watch: Watcher,
        token: int,
        on_end: Callable[[Outcome], None],
    ) -> None:
        self._lease = lease
        self._protocol = endpoint.stream
        self._asks_for_stream = asks_for_stream
        self._watch = watch
        self._token = token
        self._on_end = on_end
        self._response: Response | None = None
        self._stream: EventStream | None = None
        self._first_byte_at: float | None = None
        self._outcome: Outcome | None = None
        self._released = False

    def answer(self, response: Response, strip_usage: bool) -> RelayResponse:
        """The answer to this response. Raises UpstreamError where it can be none."""
        self._response = response
        kind = response.header("Content-Type").lower()
        if kind.startswith("text/html") and response.status < 300:
            raise UpstreamError("what answered is a web page, not a model's server")
        is_stream = _is_stream(response, self._asks_for_stream)
        headers = returned_headers(response, is_stream)
        if is_stream:
            self._stream = EventStream(self._protocol, strip_usage)
            pieces = self._events(response, self._stream)
        elif response.length is not None and response.length <= _MAX_BUFFERED:
            pieces = iter(self._whole(response))
        else:
            pieces = self._unbuffered(response)
        status = f"{response.status} {response.reason}"
        return RelayResponse(status, headers, pieces, self.close, self._stream)

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
        start, tail, remaining = b"", b"", response.length
        is_answer = response.status < 400
        try:
            for piece in response.iter_bytes():
                self._lease.produced = is_answer
                self._first_byte_at = self._first_byte_at or time.monotonic()
                start = (start + piece)[:_MAX_START] if len(start) < _MAX_START else start
                tail = (tail + piece)[-_MAX_BUFFERED:]
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
        try:
            for piece in response.iter_bytes():
                self._lease.produced = is_answer
                self._first_byte_at = self._first_byte_at or time.monotonic()
                data = stream.feed(piece)
                if stream.done:
                    # Before the client has [DONE]: to most of them that is the last byte.
                    self._report(response.status)
                    response.set_deadline(_AFTER_DONE_SECONDS)
                if data:
                    yield data
            rest = stream.flush()
            if self._protocol.end and not stream.has_ended:
                raise UpstreamError("the model's server ended its stream without [DONE]")
        except Aborted:
            return  # the client disconnected, which close() reports
        except UpstreamError as error:
            if not stream.has_ended:
                failure = _to_api_error(error)
                self._report(failure.status, failure.message)
                yield self._protocol.error_event(failure.body())
                return
            rest = b""
        self._report(response.status)
        self._release()
        if rest:
            yield rest

    def _report(
        self, status: int, error: str | None = None, usage: TokenUsage | None = None
    ) -> None:
        if self._outcome is not None:
            return
        stream = self._stream
        if stream is not None:
            usage = stream.usage() or stream.estimate()
            if stream.error is not None:
                status, error = stream.error.status, stream.error.message
        streamed = stream is not None
        self._outcome = Outcome(status, usage, streamed, self._first_byte_at, error)
        self._on_end(self._outcome)

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


def error_in(body: bytes) -> AnswerError | None:
    """The error that an answer with status 200 is."""
    if not find_error_offsets(body):
        return None
    try:
        return error_of(json.loads(body))
    except (ValueError, RecursionError):
        return None  # no JSON, or only the end of it


def _is_true(value: Any) -> bool:
    """What servers take for true: vLLM's reads texts and numbers as pydantic does."""
    if isinstance(value, str):
        return value.lower() in ("true", "t", "1", "yes", "y", "on")
    return value in (True, 1)


def _outgoing_body(lease: Lease, request: RelayRequest) -> tuple[bytes, bool]:
    """The body to send, and whether only the manager asked for a usage chunk."""
    payload = request.payload
    changes: dict[str, Any] = {}
    if lease.served_model_name is not None:
        changes["model"] = lease.served_model_name
    options = payload.fields.get("stream_options")
    is_added = (
        _is_true(payload.fields.get("stream"))
        and lease.ask_usage
        and request.endpoint.asks_for_usage
        and (options is None or isinstance(options, dict))
        and not (options or {}).get("include_usage")
    )
    if is_added:
        changes["stream_options"] = {**(options or {}), "include_usage": True}
        if "continuous_usage_stats" in changes["stream_options"]:
            # vLLM's, which means something only with the other: usage in every chunk.
            changes["stream_options"]["continuous_usage_stats"] = False
    return payload.with_changes(changes), is_added


def _is_stream(response: Response, asks_for_stream: bool) -> bool:
    """Some servers call a stream that was asked for plain text; an error is never one."""
    kind = response.header("Content-Type").lower()
    is_plain = asks_for_stream and response.length is None and kind.startswith("text/plain")
    return response.status < 400 and (is_plain or kind.startswith("text/event-stream"))

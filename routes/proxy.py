"""The way of every request to a model, by whichever route it came."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from flask import Request, Response, after_this_request, g, request

from manager.access import Permit
from manager.captures import Capture
from manager.config import loader
from manager.errors import CLIENT_CLOSED_REQUEST, ApiError, ClientDisconnected
from manager.interfaces import Endpoint, error_in
from manager.models import Lease, Model
from manager.recorder import Recorder, RequestRecord
from manager.relay import (
    Body,
    Carriers,
    Headers,
    Outcome,
    RelayRequest,
    RelayResponse,
    content_encoding,
    forward,
    is_true,
)
from manager.tokens import MAX_TOKENS, TokenUsage
from routes.auth import Caller
from routes.services import Services, current

LOADING_SECONDS = 5.0  # between two signs of life of a stream that waits
_MAX_ERROR_BYTES = 1 << 16
MAX_NAME = 200  # characters, as in the config
_ID_HEADER = "X-LLM-Manager-Request"
_STREAM_HEADERS = (
    ("Content-Type", "text/event-stream"),
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),  # nginx would collect a stream until its buffer is full
)


class ModelCall(ABC):
    """A request to a model, as the route that it came by has read it: the ``name`` that it asks
    for, and the ``size`` of its prompt in bytes, as far as that is known: often its body's.
    ``method`` and ``base`` are as in RelayRequest; without a method it is the endpoint's."""

    method = ""
    base = ""
    is_carried = True  # by a relay process, where one can: the answer goes on as it comes
    is_sent = True  # to the model's server; else it is over once the model is ready for it
    starts_model = True
    record: RequestRecord  # set before ``sent_to`` is called

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size

    @abstractmethod
    def sent_to(self, model: Model) -> tuple[Endpoint, str, Body]:
        """The endpoint, the path with its query, and the body, as this model's server is to have
        them. Raises ApiError."""

    def headers(self, environ: Mapping[str, Any]) -> Headers:
        """Those of the client, as far as the server may be meant."""
        return _headers(environ)

    def answer(self, answer: RelayResponse) -> RelayResponse:
        """What the client gets of the server's answer, which is empty where nothing was sent."""
        return answer


class Proxy:
    """Serves requests to models. Each has one row, whatever becomes of it."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.recorder = Recorder(
            services.clock,
            services.activity,
            services.spool,
            services.metrics,
            lambda: services.fleet.config.program.token_tracker,
        )

    def serve(self, path: str, read: Callable[[Request], ModelCall]) -> Response:
        """The answer of the model that the current request names. ``path`` is the endpoint in its
        row; ``read`` may raise ApiError. Raises ApiError, ClientDisconnected."""
        kept = current(g)
        caller, kept.is_recorded = kept.caller, True
        proxied = _Proxied(self, path, caller, current(request))
        id_header = (_ID_HEADER, proxied.record.id)
        try:
            answer = proxied.answer(read)
        except BaseException as error:
            proxied.fail(error)
            left = self.services.limits.headers(caller.key) if caller.key is not None else []
            after_this_request(lambda response: _with_headers(response, [id_header, *left]))
            raise
        try:
            return _Answer(
                answer,  # a WSGI iterable with a close of its own
                status=answer.status,
                headers=[*answer.headers, id_header, *proxied.limits],
                direct_passthrough=True,
            )
        except ValueError:
            answer.close()  # the server never sees it, and so cannot close it
            raise


class _Answer(Response):
    default_mimetype = None  # an answer without a type stays one


class _Proxied:
    """One request on its way: what it holds is released in the end, whatever that is."""

    def __init__(self, proxy: Proxy, path: str, caller: Caller, asked: Request) -> None:
        self._services = services = proxy.services
        self._caller = caller
        self._asked = asked
        self._environ = environ = asked.environ
        self._client_disconnected: Callable[[], bool] = environ["waitress.client_disconnected"]
        self._slot = services.slots.one()
        self._lease: Lease | None = None
        self._permit: Permit | None = None
        self._is_captured = False
        self.record = proxy.recorder.begin(path, caller.usage_key, caller.address)

    @property
    def limits(self) -> Headers:
        """The headers that say what is left of its key's limits."""
        return self._permit.headers if self._permit else []

    def answer(self, read: Callable[[Request], ModelCall]) -> RelayResponse:
        """Raises ApiError, ClientDisconnected; `fail` is to be called then."""
        services, caller, record = self._services, self._caller, self.record
        services.monitor.touch()
        call = read(self._asked)
        call.record, record.size, name = record, call.size, call.name
        # JSON can spell a lone surrogate, which neither a database nor a log takes.
        record.request.asked_for = name.encode("utf-8", "replace").decode("utf-8")
        model = services.fleet.find(name, lambda settings: may_use(caller, settings))
        record.request.model, record.request.mode = model.settings.name, model.settings.mode
        require_use(caller, model.settings, name)
        endpoint, target, body = call.sent_to(model)
        changes = model.settings.changes(name)
        if changes is not None:
            body = body.changed(changes.strip, changes.default, changes.set)
        if caller.key is not None:
            self._permit = record.permit = services.limits.admit(
                caller.key, model.settings.name, call.size, _max_tokens(body, endpoint)
            )
        sent = RelayRequest(
            endpoint,
            target,
            call.headers(self._environ),
            body,
            hides_limits=bool(self.limits),
            method=call.method or endpoint.method,
            base=call.base,
            sets_model=changes is not None and "model" in changes.set,
        )
        self._is_captured = model.is_captured  # which is for a thread
        carriers = self._carriers() if call.is_carried and not self._is_captured else None
        if carriers is None:
            self._slot.take()
        if call.starts_model:
            answer = self._answer_of(model, call, sent, carriers)
        else:
            answer = call.answer(self._nothing_sent())
        answer.when_closed(self._slot.release)
        return answer

    def _answer_of(
        self, model: Model, call: ModelCall, sent: RelayRequest, carriers: Carriers | None
    ) -> RelayResponse:
        shows_wait = call.is_carried and self._shows_wait(sent)
        leases = model.await_lease(
            self._client_disconnected,
            self._caller.priority,
            self._slot.take,
            self._caller.user,
            LOADING_SECONDS if shows_wait else math.inf,
        )
        lease = next(leases)
        if lease is None:
            return self._loading(model, leases, sent)
        leases.close()
        if call.is_sent:
            return call.answer(self._forwarded(lease, sent, carriers))
        with lease:
            self.record.leased(lease.scheme)
        return call.answer(self._nothing_sent())

    def _nothing_sent(self) -> RelayResponse:
        """The end of a request for which the model's server is not asked."""
        request = self.record.request
        if self._permit is not None:  # first: no tokens say nothing of what others will take
            self._permit.end(request.model, request.began_ms, None)
        self.record.close(Outcome(200, TokenUsage()))
        return RelayResponse("200 OK", [], iter(()), lambda: None)

    def fail(self, error: BaseException, *, streamed: bool = False) -> None:
        """There is no answer of the model, or no more of it."""
        if self._lease is not None:
            self._lease.release()
        self._slot.release()
        status = error.status if isinstance(error, ApiError) else 500
        status = CLIENT_CLOSED_REQUEST if isinstance(error, ClientDisconnected) else status
        message = str(error) or "the client disconnected"
        self.record.close(Outcome(status, streamed=streamed, error=message))

    def _forwarded(
        self, lease: Lease, sent: RelayRequest, carriers: Carriers | None
    ) -> RelayResponse:
        self._lease = lease
        self.record.leased(lease.scheme)
        kept: Capture | None = None
        if self._is_captured:
            kept = self._services.captures.begin(self.record.id, self.record.request.model, sent)
        answer = forward(
            lease,
            sent,
            watch=self._services.watch,
            client_disconnected=self._client_disconnected,
            on_end=self.record.close,
            on_answer=self.record.answered,
            carriers=carriers,
        )
        return answer if kept is None else kept.record(answer)

    def _carriers(self) -> Carriers | None:
        lend_client = self._environ.get("llm_manager.lend_client")
        if lend_client is None:
            return None  # another server than ours calls the application
        services = self._services
        return Carriers(services.relays, lend_client, self._slot.try_take, services.slots.acquire)

    # --- a stream that waits ------------------------------------------------------------------

    def _shows_wait(self, sent: RelayRequest) -> bool:
        if not self._services.fleet.config.program.send_loading_state:
            return False
        # Many servers answer a form whole, whatever it asks for.
        return is_true(sent.body.fields.get("stream")) and not sent.endpoint.is_form

    def _loading(
        self, model: Model, leases: Generator[Lease | None, None, None], sent: RelayRequest
    ) -> RelayResponse:
        """Comments until the model is ready, then its stream. As the answer has begun, it stays in
        this thread, and what fails is an event of it."""

        def pieces() -> Generator[bytes, None, None]:
            yield _comment(model)
            try:
                for lease in leases:
                    if lease is None:
                        yield _comment(model)
                    else:
                        yield from _as_stream(self._forwarded(lease, sent, None))
            except ApiError as failure:
                self.fail(failure, streamed=True)
                yield sent.endpoint.stream.error_event(failure)
            except ClientDisconnected:
                return  # which close() reports

        stream = pieces()

        def close() -> None:
            stream.close()
            leases.close()  # a generator that was never begun does not
            self.fail(ClientDisconnected(), streamed=True)

        return RelayResponse("200 OK", list(_STREAM_HEADERS), stream, close)


def _comment(model: Model) -> bytes:
    """Which every reader of server-sent events ignores."""
    return f": waiting for {model.name!r}, which is {model.state.value}\n\n".encode()


def _as_stream(answer: RelayResponse) -> Iterator[bytes]:
    """The pieces of a stream. Raises ApiError where the answer is none."""
    with contextlib.closing(answer):
        if answer.is_stream:
            yield from answer
            return
        status, body = int(answer.status.partition(" ")[0]), b""
        for piece in answer:
            body += piece
            if len(body) > _MAX_ERROR_BYTES:
                break  # it is no error, and may have no end
    error = error_in(body)
    message = error.message if error else f"the model's server answered {status} without a stream"
    raise ApiError(status if status >= 400 else 502, "upstream_error", message)


def may_use(caller: Caller, model: loader.Model) -> bool:
    return caller.key is None or caller.key.may_use((model.name, *model.aliases))


def listed(services: Services, caller: Caller) -> Iterator[tuple[Model, str]]:
    """The models that the caller can see and use, by name; by each alias too, behind them, where
    the config says so."""
    models = [
        model
        for model in services.fleet.models()
        if not model.settings.unlisted and may_use(caller, model.settings)
    ]
    yield from ((model, model.settings.name) for model in models)
    if services.fleet.config.program.list_aliases:
        yield from ((model, alias) for model in models for alias in model.settings.aliases)


def require_use(caller: Caller, model: loader.Model, asked_for: str) -> None:
    """Raises ApiError 403 where the caller's key is not for this model."""
    if not may_use(caller, model):
        assert caller.key is not None
        raise ApiError(
            403,
            "model_not_allowed",
            f"The key {caller.key.name!r} may not use {asked_for}; GET /v1/models lists what it"
            " may",
            param="model",
        )


def require_endpoint(model: Model, path: str, asked_for: str) -> Endpoint:
    """The endpoint at this path. Raises ApiError 400 where the model does not serve it."""
    if not model.serves(path):
        raise ApiError(
            400,
            "endpoint_not_supported",
            f"{asked_for} is a model of mode {model.settings.mode}, which is served at "
            f"{model.interface.endpoints[0]}, not at {path}; if its server has that too, add it"
            " to the model's endpoints in the config",
            param="model",
        )
    return model.interface.endpoint(path)


def read_body(services: Services, asked: Request) -> bytes:
    """The request's body, decoded where it is compressed. Raises ApiError 400, 413, 415."""
    body = asked.get_data(cache=False)
    if "HTTP_CONTENT_ENCODING" in asked.environ:
        limit = services.fleet.config.program.max_body_mb << 20
        body = content_encoding.decode(body, asked.environ["HTTP_CONTENT_ENCODING"], limit)
    return body


def model_name(name: Any) -> str:
    """The name in a request's field ``model``. Raises ApiError 400, 404."""
    if not isinstance(name, str) or not name:
        raise ApiError(
            400, "model_missing", 'The request has no "model" that is a name', param="model"
        )
    if len(name) > MAX_NAME:
        raise ApiError(
            404,
            "model_not_found",
            f"The model {name[:40]!r}... does not exist: the name is too long",
            param="model",
        )
    return name


def with_query(path: str, environ: dict[str, Any]) -> str:
    """A path at a model's server, with the client's query."""
    query = environ["QUERY_STRING"]
    return f"{path}?{query}" if query else path


def _with_headers(response: Response, headers: Headers) -> Response:
    response.headers.extend(headers)
    return response


def _max_tokens(body: Body, endpoint: Endpoint) -> int | None:
    """The most tokens that the answer may have, where the request says so."""
    values = [body.fields.get(name) for name in endpoint.limits]
    limits = [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
    return min(max(limits), MAX_TOKENS) if limits else None


def _headers(environ: Mapping[str, Any]) -> Headers:
    headers = [
        (key[5:].replace("_", "-").title(), value)
        for key, value in environ.items()
        if key.startswith("HTTP_")
    ]
    content_type = environ.get("CONTENT_TYPE")
    if content_type:
        headers.append(("Content-Type", content_type))
    return headers

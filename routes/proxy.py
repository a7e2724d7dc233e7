"""The way of every request to a model, by whichever route it came."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from flask import Request, Response, after_this_request, g, request

from manager.access import Permit
from manager.config import loader
from manager.errors import CLIENT_CLOSED_REQUEST, ApiError, ClientDisconnected
from manager.interfaces import Endpoint
from manager.models import Lease, Model
from manager.recorder import Recorder
from manager.relay import (
    Body,
    Carriers,
    Headers,
    Outcome,
    RelayRequest,
    RelayResponse,
    content_encoding,
    forward,
)
from manager.tokens import MAX_TOKENS
from routes.auth import Caller
from routes.http import Slot
from routes.services import Services, current

_MAX_NAME = 200  # characters, as in the config
_ID_HEADER = "X-LLM-Manager-Request"


class ModelCall(ABC):
    """A request to a model, as the route that it came by has read it: the ``name`` that it asks
    for, and the ``size`` of its body in bytes."""

    is_carried = True  # by a relay process, where one can: the answer goes on as it comes

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size

    @abstractmethod
    def sent_to(self, model: Model) -> tuple[Endpoint, str, Body]:
        """The endpoint, the path with its query, and the body, as this model's server is to have
        them. Raises ApiError."""

    def answer(self, answer: RelayResponse) -> RelayResponse:
        """What the client gets of the server's answer."""
        return answer


class Proxy:
    """Serves requests to models. Each has one row, whatever becomes of it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._recorder = Recorder(
            services.clock,
            services.activity,
            services.spool,
            services.metrics,
            lambda: services.fleet.config.program.token_tracker,
        )

    def serve(self, path: str, read: Callable[[Request], ModelCall]) -> Response:
        """The answer of the model that the current request names. ``path`` is the endpoint in its
        row; ``read`` may raise ApiError. Raises ApiError, ClientDisconnected."""
        # Each use of `request` looks the current one up.
        services, asked, caller = self._services, current(request), g.caller
        environ = asked.environ
        client_disconnected: Callable[[], bool] = environ["waitress.client_disconnected"]
        record = self._recorder.begin(path, caller.usage_key, caller.address)
        id_header = (_ID_HEADER, record.id)
        slot = services.slots.one()
        lease: Lease | None = None
        permit: Permit | None = None
        try:
            services.monitor.touch()
            call = read(asked)
            record.size, name = call.size, call.name
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
                permit = services.limits.admit(
                    caller.key, model.settings.name, call.size, _max_tokens(body, endpoint)
                )
                record.permit = permit
            carriers = self._carriers(environ, slot) if call.is_carried else None
            if carriers is None:
                slot.take()
            lease = model.lease(client_disconnected, caller.priority, slot.take)
            record.leased(lease.scheme)
            answer = forward(
                lease,
                RelayRequest(
                    endpoint,
                    target,
                    _headers(environ),
                    body,
                    hides_limits=bool(permit and permit.headers),
                    sets_model=changes is not None and "model" in changes.set,
                ),
                watch=services.watch,
                client_disconnected=client_disconnected,
                on_end=record.close,
                on_answer=record.answered,
                carriers=carriers,
            )
        except BaseException as error:
            if lease is not None:
                lease.release()
            slot.release()
            status = error.status if isinstance(error, ApiError) else 500
            status = CLIENT_CLOSED_REQUEST if isinstance(error, ClientDisconnected) else status
            record.close(Outcome(status, error=str(error) or "the client disconnected"))
            left = services.limits.headers(caller.key) if caller.key is not None else []
            after_this_request(lambda response: _with_headers(response, [id_header, *left]))
            raise
        answer.when_closed(slot.release)
        answer = call.answer(answer)
        ours = [id_header, *(permit.headers if permit else ())]
        try:
            return Response(
                answer,  # a WSGI iterable with a close of its own
                status=answer.status,
                headers=[*answer.headers, *ours],
                direct_passthrough=True,
            )
        except ValueError:
            answer.close()  # the server never sees it, and so cannot close it
            raise

    def _carriers(self, environ: dict[str, Any], slot: Slot) -> Carriers | None:
        lend_client = environ.get("llm_manager.lend_client")
        if lend_client is None:
            return None  # another server than ours calls the application
        services = self._services
        return Carriers(services.relays, lend_client, slot.try_take, services.slots.acquire)


def may_use(caller: Caller, model: loader.Model) -> bool:
    return caller.key is None or caller.key.may_use((model.name, *model.aliases))


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
    if len(name) > _MAX_NAME:
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


def _headers(environ: dict[str, Any]) -> Headers:
    headers = [
        (key[5:].replace("_", "-").title(), value)
        for key, value in environ.items()
        if key.startswith("HTTP_")
    ]
    content_type = environ.get("CONTENT_TYPE")
    if content_type:
        headers.append(("Content-Type", content_type))
    return headers

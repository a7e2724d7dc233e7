"""The OpenAI side: ``/v1``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flask import Response, after_this_request, g, jsonify, request

from manager.access import Permit
from manager.config import loader
from manager.errors import CLIENT_CLOSED_REQUEST, ApiError, ClientDisconnected
from manager.interfaces import Endpoint
from manager.models import Lease, Model
from manager.recorder import Recorder
from manager.relay import (
    Carriers,
    Headers,
    Outcome,
    Payload,
    RelayRequest,
    content_encoding,
    forward,
)
from manager.tokens import MAX_TOKENS
from routes.auth import Caller
from routes.calls import Api, Rule
from routes.http import Slot
from routes.services import Services, current

_MAX_NAME = 200  # characters, as in the config
_ID_HEADER = "X-LLM-Manager-Request"


def blueprint(services: Services) -> Api:
    api = Api("openai", tag="openai")
    began = int(time.time())
    recorder = Recorder(
        services.clock,
        services.activity,
        services.spool,
        services.metrics,
        lambda: services.fleet.config.program.token_tracker,
    )

    modes = services.interfaces.values()
    endpoints = {path: mode.endpoint(path) for mode in modes for path in mode.endpoints}
    for number, path in enumerate(sorted(endpoints)):
        declare = api.call(
            f"POST {path}",
            Rule.MODELS,
            endpoint=f"proxy_{number}",
            summary=endpoints[path].summary,
            schema=endpoints[path].schema,
            answers={200: "Answer"},
            errors=(404, 429, 502, 504),
        )
        declare(lambda: _proxy(services, recorder))

    @api.call("GET /v1/models", Rule.MODELS)
    def list_models() -> Response:
        """The models that can be used."""
        listed = [
            model
            for model in services.fleet.models()
            if not model.settings.unlisted and _may_use(g.caller, model.settings)
        ]
        entries = [_entry(model, model.settings.name, began) for model in listed]
        if services.fleet.config.program.list_aliases:
            entries += [_entry(m, alias, began) for m in listed for alias in m.settings.aliases]
        return jsonify({"object": "list", "data": entries})

    @api.call("GET /v1/models/<path:name>", Rule.MODELS)
    def one_model(name: str) -> Response:
        """One of them."""
        caller: Caller = g.caller
        model = services.fleet.find(name, lambda known: _may_use(caller, known))
        _require(caller, model.settings, name)
        return jsonify(_entry(model, name, began))

    return api


def _entry(model: Model, name: str, began: int) -> dict[str, Any]:
    settings = model.settings
    return {
        "id": name,
        "object": "model",
        "created": began,
        "owned_by": "llm-manager",
        "aliases": list(settings.aliases),
        "mode": settings.mode,
        "endpoints": list(model.endpoints),
    }


def _may_use(caller: Caller, model: loader.Model) -> bool:
    return caller.key is None or caller.key.may_use((model.name, *model.aliases))


def _require(caller: Caller, model: loader.Model, asked_for: str) -> None:
    if not _may_use(caller, model):
        assert caller.key is not None
        raise ApiError(
            403,
            "model_not_allowed",
            f"The key {caller.key.name!r} may not use {asked_for}; GET /v1/models lists what it"
            " may",
            param="model",
        )


def _proxy(services: Services, recorder: Recorder) -> Response:
    # Each use of `request` looks the current one up.
    asked, caller = current(request), g.caller
    environ, path = asked.environ, asked.path
    client_disconnected: Callable[[], bool] = environ["waitress.client_disconnected"]
    record = recorder.begin(path, caller.usage_key, caller.address)
    id_header = (_ID_HEADER, record.id)
    slot = services.slots.one()
    lease: Lease | None = None
    permit: Permit | None = None
    try:
        services.monitor.touch()
        body = asked.get_data(cache=False)
        if "HTTP_CONTENT_ENCODING" in environ:
            limit = services.fleet.config.program.max_body_mb << 20
            body = content_encoding.decode(body, environ["HTTP_CONTENT_ENCODING"], limit)
        record.size = len(body)
        payload = Payload(body)
        name = _model_name(payload)
        # JSON can spell a lone surrogate, which neither a database nor a log takes.
        record.request.asked_for = name.encode("utf-8", "replace").decode("utf-8")
        model = services.fleet.find(name, lambda settings: _may_use(caller, settings))
        record.request.model, record.request.mode = model.settings.name, model.settings.mode
        _require(caller, model.settings, name)
        if not model.serves(path):
            raise ApiError(
                400,
                "endpoint_not_supported",
                f"{name} is a model of mode {model.settings.mode}, which is served at "
                f"{model.interface.endpoints[0]}, not at {path}; if its server has that too, add it"
                " to the model's endpoints in the config",
                param="model",
            )
        endpoint = model.interface.endpoint(path)
        if (changes := model.settings.request) is not None:
            payload = payload.changed(changes.strip, changes.default, changes.set)
        if caller.key is not None:
            permit = services.limits.admit(
                caller.key, model.settings.name, len(body), _max_tokens(payload, endpoint)
            )
            record.permit = permit
        carriers = _carriers(services, environ, slot)
        if carriers is None:
            slot.take()
        lease = model.lease(client_disconnected, caller.priority, slot.take)
        record.leased(lease.scheme)
        answer = forward(
            lease,
            RelayRequest(
                endpoint,
                _target(endpoint.server_path or path, environ),
                _headers(environ),
                payload,
                hides_limits=bool(permit and permit.headers),
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


def _carriers(services: Services, environ: dict[str, Any], slot: Slot) -> Carriers | None:
    lend_client = environ.get("llm_manager.lend_client")
    if lend_client is None:
        return None  # another server than ours calls the application
    return Carriers(services.relays, lend_client, slot.try_take, services.slots.acquire)


def _with_headers(response: Response, headers: Headers) -> Response:
    response.headers.extend(headers)
    return response


def _max_tokens(payload: Payload, endpoint: Endpoint) -> int | None:
    """The most tokens that the answer may have, where the request says so."""
    values = [payload.fields.get(name) for name in endpoint.limits]
    limits = [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
    return min(max(limits), MAX_TOKENS) if limits else None


def _model_name(payload: Payload) -> str:
    name = payload.fields.get("model")
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


def _target(path: str, environ: dict[str, Any]) -> str:
    query = environ["QUERY_STRING"]
    return f"{path}?{query}" if query else path


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

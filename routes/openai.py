"""The OpenAI side: ``/v1``."""

from __future__ import annotations

import time
from typing import Any

from flask import Request, Response, g, jsonify, request

from manager.interfaces import Endpoint
from manager.models import Model
from manager.relay import Body, Payload
from routes.auth import Caller
from routes.calls import Api, Rule
from routes.proxy import (
    ModelCall,
    Proxy,
    may_use,
    model_name,
    read_body,
    require_endpoint,
    require_use,
    with_query,
)
from routes.services import Services, current


def blueprint(services: Services) -> Api:
    api = Api("openai", tag="openai")
    began = int(time.time())
    proxy = Proxy(services)

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
        declare(lambda: proxy.serve(current(request).path, lambda asked: JsonCall(services, asked)))

    @api.call("GET /v1/models", Rule.MODELS)
    def list_models() -> Response:
        """The models that can be used."""
        listed = [
            model
            for model in services.fleet.models()
            if not model.settings.unlisted and may_use(g.caller, model.settings)
        ]
        entries = [_entry(model, model.settings.name, began) for model in listed]
        if services.fleet.config.program.list_aliases:
            entries += [_entry(m, alias, began) for m in listed for alias in m.settings.aliases]
        return jsonify({"object": "list", "data": entries})

    @api.call("GET /v1/models/<path:name>", Rule.MODELS)
    def one_model(name: str) -> Response:
        """One of them."""
        caller: Caller = g.caller
        model = services.fleet.find(name, lambda known: may_use(caller, known))
        require_use(caller, model.settings, name)
        return jsonify(_entry(model, name, began))

    return api


def _entry(model: Model, name: str, began: int) -> dict[str, Any]:
    settings, capabilities = model.settings, model.capabilities
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": began,
        "owned_by": "llm-manager",
        "aliases": list(settings.aliases),
        "mode": settings.mode,
        "endpoints": list(model.endpoints),
        "capabilities": list(capabilities),
    }
    if (context := model.context_length) is not None:
        entry |= {"context_length": context, "max_model_len": context}
    if "chat" not in capabilities:
        entry["info"] = {"meta": {"hidden": True}}  # by which Open WebUI offers no chat with it
    return entry


class JsonCall(ModelCall):
    """A JSON body that names its model, at one of the endpoints. Raises ApiError."""

    def __init__(self, services: Services, asked: Request) -> None:
        self._asked = asked
        body = read_body(services, asked)
        self._payload = Payload(body)
        super().__init__(model_name(self._payload.fields.get("model")), len(body))

    def sent_to(self, model: Model) -> tuple[Endpoint, str, Body]:
        endpoint = require_endpoint(model, self._asked.path, self.name)
        target = with_query(endpoint.server_path or endpoint.path, self._asked.environ)
        return endpoint, target, self._payload

"""The OpenAI side: ``/v1``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import urlencode

from flask import Request, Response, g, jsonify, request

from manager.errors import ApiError
from manager.interfaces import Endpoint
from manager.models import Model
from manager.relay import Body, Form, Payload, RawBody, RelayResponse
from routes.auth import Caller
from routes.calls import Api, Rule
from routes.http import check_is_no_foreign_page
from routes.proxy import (
    ModelCall,
    Proxy,
    listed,
    may_use,
    model_name,
    read_body,
    require_endpoint,
    require_use,
    with_query,
)
from routes.services import Services, current

_PROXIED = "proxy_"
_AGAINST_PAGES = {
    "content-security-policy": ("Content-Security-Policy", "sandbox; default-src 'none'"),
    "x-content-type-options": ("X-Content-Type-Options", "nosniff"),
}


def blueprint(services: Services) -> Api:
    api = Api("openai", tag="openai")
    began = datetime.now(timezone.utc).replace(microsecond=0)
    proxy = Proxy(services)

    modes = services.interfaces.values()
    endpoints = {path: mode.endpoint(path) for mode in modes for path in mode.endpoints}
    for number, path in enumerate(sorted(endpoints)):
        endpoint = endpoints[path]
        has_body = endpoint.method != "GET"
        declare = api.call(
            f"{endpoint.method} {path}",
            Rule.MODELS,
            endpoint=f"{_PROXIED}{number}",
            summary=endpoint.summary,
            parameters=() if has_body else ("model",),
            schema=endpoint.schema if has_body else None,
            takes_form=endpoint.is_form,
            answers={200: "Answer"},
            errors=(404, 429, 502, 504),
        )
        declare(_served_by(proxy, _reader(services, endpoint)))

    @api.call("GET /v1/models", Rule.MODELS)
    def list_models() -> Response:
        """The models that can be used."""
        entries = [_entry(model, name, began) for model, name in listed(services, g.caller)]
        ids = [entry["id"] for entry in entries]
        # All in one page, with Anthropic's fields of a page.
        ends = {"first_id": ids[0], "last_id": ids[-1]} if ids else {}
        return jsonify({"object": "list", "data": entries, "has_more": False, **ends})

    @api.call("GET /v1/models/<path:name>", Rule.MODELS)
    def one_model(name: str) -> Response:
        """One of them."""
        caller: Caller = g.caller
        model = services.fleet.find(name, lambda known: may_use(caller, known))
        require_use(caller, model.settings, name)
        return jsonify(_entry(model, name, began))

    return api


def is_proxied(route: str) -> bool:
    """Whether the requests to this route, by its name in Flask, go on to a model."""
    return route.startswith(f"openai.{_PROXIED}")


def _reader(services: Services, endpoint: Endpoint) -> Callable[[Request], ModelCall]:
    if endpoint.method == "GET":
        return QueryCall
    return FormCall if endpoint.is_form else lambda asked: JsonCall(services, asked)


def _served_by(proxy: Proxy, read: Callable[[Request], ModelCall]) -> Callable[[], Response]:
    return lambda: proxy.serve(current(request).path, read)


def _entry(model: Model, name: str, began: datetime) -> dict[str, Any]:
    """With OpenAI's fields and, where they have other names, Anthropic's."""
    settings, capabilities = model.settings, model.capabilities
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": int(began.timestamp()),
        "owned_by": "llm-manager",
        "type": "model",
        "display_name": name,
        "created_at": began.isoformat(),
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


class FormCall(ModelCall):
    """A form that names its model, at one of the endpoints. Raises ApiError."""

    def __init__(self, asked: Request) -> None:
        self._asked = asked
        environ, kind = asked.environ, asked.mimetype
        if kind != "multipart/form-data":
            raise ApiError(
                400,
                "invalid_form",
                f"{asked.path} takes a form (multipart/form-data), not"
                f" {kind[:40] or 'a body without a Content-Type'}",
            )
        if environ.get("HTTP_CONTENT_ENCODING", "identity").strip().lower() != "identity":
            raise ApiError(
                415,
                "unsupported_encoding",
                "A form is not taken with a Content-Encoding; its files may be compressed ones",
            )
        # waitress has it in a file, where it is large, and closes that behind the answer.
        self._form = Form(environ["wsgi.input"], asked.mimetype_params.get("boundary", ""))
        fields = self._form.fields
        # Its texts alone: a recording's bytes say nothing of tokens.
        size = sum(len(text.encode()) for text in fields.values())
        super().__init__(model_name(fields.get("model")), size)

    def sent_to(self, model: Model) -> tuple[Endpoint, str, Body]:
        endpoint = require_endpoint(model, self._asked.path, self.name)
        target = with_query(endpoint.server_path or endpoint.path, self._asked.environ)
        return endpoint, target, self._form


class QueryCall(ModelCall):
    """A request without a body, whose query names the model. Raises ApiError."""

    is_carried = False

    def __init__(self, asked: Request) -> None:
        if asked.method != "GET":  # Flask takes HEAD, too, whose answers end where others begin
            raise ApiError(405, "method_not_allowed", f"{asked.path} takes no {asked.method}")
        check_is_no_foreign_page(asked.environ)  # which would start a model
        self._asked = asked
        names = asked.args.getlist("model")
        if len(names) != 1:
            raise ApiError(
                400,
                "model_missing",
                f"The query has to name one model: GET {asked.path}?model=NAME",
                param="model",
            )
        super().__init__(model_name(names[0]), 0)

    def sent_to(self, model: Model) -> tuple[Endpoint, str, Body]:
        endpoint = require_endpoint(model, self._asked.path, self.name)
        path, served = endpoint.server_path or endpoint.path, model.settings.served_model_name
        if served is None:
            return endpoint, with_query(path, self._asked.environ), RawBody(b"")
        query = {**self._asked.args.to_dict(flat=False), "model": served}
        return endpoint, f"{path}?{urlencode(query, doseq=True)}", RawBody(b"")

    def answer(self, answer: RelayResponse) -> RelayResponse:
        """A browser can be led here, and must not run what a server sends as a page of ours."""
        kept = [one for one in answer.headers if one[0].lower() not in _AGAINST_PAGES]
        answer.headers = [*kept, *_AGAINST_PAGES.values()]
        return answer

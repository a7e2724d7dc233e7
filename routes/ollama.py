"""Ollama's API: ``/api/chat`` and its like."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from flask import Request, Response, g, jsonify, request

from manager.errors import ApiError
from manager.interfaces import Endpoint, is_ollamas
from manager.models import Model, Server, State
from manager.relay import Body, Headers, Payload, RelayResponse, ollama
from routes.auth import Caller
from routes.calls import Api, Rule
from routes.http import client_of
from routes.proxy import (
    ModelCall,
    Proxy,
    listed,
    may_use,
    model_name,
    read_body,
    require_endpoint,
    require_use,
)
from routes.services import Services, current

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

# Clients ask before they use what came with a version: thinking with 0.9, `dimensions` with 0.11.
_VERSION = "0.12.0"
_LATEST = ":latest"
_CHAT = "/v1/chat/completions"
_MAX_PATH = 200  # characters of it in a message
_FOR_EVER = timedelta(days=36_500).total_seconds()
_REFUSED = (
    "POST /api/pull",
    "POST /api/push",
    "POST /api/create",
    "POST /api/copy",
    "DELETE /api/delete",
    "GET /api/blobs/<digest>",
    "POST /api/blobs/<digest>",
)
_SUMMARIES = {
    ollama.Kind.CHAT: "The next message of a chat",
    ollama.Kind.GENERATE: "A text to a prompt",
    ollama.Kind.EMBED: "Vectors of texts",
    ollama.Kind.EMBEDDINGS: "The vector of one text",
}


def blueprint(services: Services) -> Api:
    api = Api("ollama", tag="ollama")
    proxy = Proxy(services)
    clock = services.clock
    began = ollama.rfc3339(clock.wall())

    def declare(kind: ollama.Kind) -> None:
        declared = api.call(
            f"POST {kind.value}",
            Rule.OLLAMA,
            endpoint=kind.name.lower(),
            summary=_SUMMARIES[kind],
            schema="OllamaPrompt",
            answers={200: "Lines"},
            errors=(404, 429, 502, 504),
        )
        declared(lambda: proxy.serve(kind.value, lambda asked: _OllamaCall(services, asked, kind)))

    for kind in ollama.Kind:
        declare(kind)

    @api.call("GET /api/tags", Rule.OLLAMA)
    def tags() -> Response:
        """The models that can be used."""
        entries = [
            {**_entry(name), "modified_at": began, "size": 0}
            for model, name in listed(services, g.caller)
            if _capabilities(model)
        ]
        return jsonify({"models": entries})

    @api.call("GET /api/ps", Rule.OLLAMA)
    def running() -> Response:
        """Those of them that run."""
        entries = [
            {**_entry(name), **_life(services, model, server)}
            for model, name in listed(services, g.caller)
            if name == model.name and (server := model.server) and model.state is State.READY
        ]
        return jsonify({"models": entries})

    @api.call("POST /api/show", Rule.OLLAMA, schema="Named", errors=(404,))
    def show() -> Response:
        """What is known of a model."""
        fields = Payload(read_body(services, current(request))).fields
        caller: Caller = g.caller
        asked_for = model_name(fields.get("model") or fields.get("name"))
        name = _known_name(services, asked_for)
        model = services.fleet.find(name, lambda known: may_use(caller, known))
        require_use(caller, model.settings, name)
        return jsonify(
            {
                "modelfile": "",
                "parameters": "",
                "template": "",
                "details": _DETAILS,
                "model_info": _information(model),
                "capabilities": _capabilities(model),
                "modified_at": began,
            }
        )

    @api.call("GET /api/version", Rule.OLLAMA)
    def version() -> Response:
        """The version of Ollama whose API this is."""
        return jsonify({"version": _VERSION})

    def refuse(**_parts: str) -> Response:
        raise ApiError(
            501,
            "not_supported",
            "This is LLM-Manager: its models are those of its config.yaml, where they are added"
            " and taken out",
        )

    for number, name in enumerate(_REFUSED):
        api.call(
            name,
            Rule.OLLAMA,
            endpoint=f"refused_{number}",
            summary="Refused: the config has the models",
            answers={501: "OllamaError"},
        )(refuse)

    return api


# --- a port of its own --------------------------------------------------------------------


def alone(app: WSGIApplication, services: Services) -> WSGIApplication:
    """As much of the application as Ollama's clients know of, and the line by which they see that
    there is somebody."""

    def serve(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if is_ollamas(path):
            return app(environ, start_response)
        if path == "/" and method in ("GET", "HEAD"):
            status, kind, body = "200 OK", "text/plain; charset=utf-8", b"Ollama is running"
        else:
            address = client_of(environ, services.fleet.config.program).address
            log.info("%s %r from %s: 404, not Ollama's", method, path[:_MAX_PATH], address)
            error = f"Ollama's API has nothing at {method} {path[:_MAX_PATH]}"
            status, kind, body = (
                "404 Not Found",
                "application/json",
                json.dumps({"error": error}).encode(),
            )
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [] if method == "HEAD" else [body]

    return serve


# --- what is known of models --------------------------------------------------------------

_DETAILS = {
    "parent_model": "",
    "format": "",
    "family": "",
    "families": [],
    "parameter_size": "",
    "quantization_level": "",
}


_CAPABILITIES = {
    "chat": "completion",
    "completion": "completion",
    "embedding": "embedding",
    "vision": "vision",
    "tools": "tools",
    "reasoning": "thinking",
}


def _entry(name: str) -> dict[str, Any]:
    digest = hashlib.sha256(name.encode()).hexdigest()  # clients tell models apart by it
    return {"name": name, "model": name, "digest": digest, "details": _DETAILS}


def _capabilities(model: Model) -> list[str]:
    """By Ollama's names: none where its API is of no use for the model, as for a reranker."""
    names = (_CAPABILITIES.get(capability) for capability in model.capabilities)
    return list(dict.fromkeys(filter(None, names)))


def _information(model: Model) -> dict[str, Any]:
    """Ollama has what a model's file says; clients look in it for the context, below the name of
    an architecture."""
    information: dict[str, Any] = {"general.basename": model.name}
    if (context := model.context_length) is not None:
        information |= {"general.architecture": "unknown", "unknown.context_length": context}
    return information


def _life(services: Services, model: Model, server: Server) -> dict[str, Any]:
    """What a running model takes, as it has declared it, and until when."""
    memory_mb = server.launched.reservation.memory_mb if server.launched else {}
    devices = services.monitor.snapshot.devices
    ram = {each.reading.id for each in devices if each.reading.kind == "cpu"}
    on_cards = sum(mb for device, mb in memory_mb.items() if device not in ram)
    expires_at = model.to_json()["idle_stop_at"]
    if expires_at is None:  # it is busy, or never stopped
        seconds = model.settings.alive_time * 60 or _FOR_EVER
        expires_at = ollama.rfc3339(services.clock.wall() + seconds)
    return {
        "size": sum(memory_mb.values()) << 20,
        "size_vram": on_cards << 20,
        "expires_at": expires_at,
        "context_length": model.context_length,
    }


def _known_name(services: Services, name: str) -> str:
    """The name in the config: to Ollama each name without a tag has this one."""
    is_known = services.fleet.config.find(name) is not None
    return name if is_known else name.removesuffix(_LATEST)


# --- requests -----------------------------------------------------------------------------


class _OllamaCall(ModelCall):
    """A request at one of the paths that a model answers. Raises ApiError."""

    is_carried = False  # its answer is another than that of the model's server

    def __init__(self, services: Services, asked: Request, kind: ollama.Kind) -> None:
        body = read_body(services, asked)
        self._fields = Payload(body).fields
        self._asked_for = model_name(self._fields.get("model"))
        self._services = services
        self._kind = kind
        self._unloads = ollama.asks_to_unload(self._fields)
        self._user = g.caller.user
        super().__init__(_known_name(services, self._asked_for), len(body))

    def sent_to(self, model: Model) -> tuple[Endpoint, str, Body]:
        self._model = model
        asked = self._translated(model)
        endpoint = require_endpoint(model, asked.path, self.name)
        self.is_sent = asked.body is not None
        self.starts_model = self.is_sent or not self._unloads
        body = {"model": self.name, **(asked.body or {})}
        if body.get("stream") and model.settings.ask_usage:
            body["stream_options"] = {"include_usage": True}
        return endpoint, endpoint.server_path or endpoint.path, Payload(json.dumps(body).encode())

    def headers(self, _environ: Mapping[str, Any]) -> Headers:
        return [("Content-Type", "application/json")]  # whatever the client has called it

    def answer(self, answer: RelayResponse) -> RelayResponse:
        clock, request = self._services.clock, self.record.request
        leased_ms = request.leased_ms or request.began_ms
        form = ollama.Form(
            self._kind,
            self._asked_for,
            began=request.began,
            began_at=request.began_ms / 1000,
            ready=request.began + (leased_ms - request.began_ms) / 1000,
            hides_thinking=ollama.hides_thinking(self._fields),
        )
        if not self.is_sent:
            reason = "unload" if self._unloads and self._unload() else "load"
            return ollama.replaced(answer, form.nothing_asked(reason, clock.monotonic()))
        streams = ollama.asks_for_stream(self._fields)
        translated = ollama.translated(answer, form, clock.monotonic, asks_for_stream=streams)
        if self._unloads:
            translated.when_closed(self._unload)
        return translated

    def _translated(self, model: Model) -> ollama.OpenAIRequest:
        fields = self._fields
        if self._kind is ollama.Kind.CHAT:
            return ollama.from_chat(fields)
        if self._kind is ollama.Kind.GENERATE:
            return ollama.from_generate(fields, has_chat=model.serves(_CHAT))
        if self._kind is ollama.Kind.EMBED:
            return ollama.from_embed(fields)
        return ollama.from_embeddings(fields)

    def _unload(self) -> bool:
        try:
            return self._model.unload(self._user)
        except ApiError as error:  # the system has no thread for it
            log.warning("%s is not unloaded: %s", self._model.name, error)
            return False

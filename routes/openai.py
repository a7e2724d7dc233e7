"""The OpenAI side: ``/v1``."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from flask import Blueprint, Response, after_this_request, g, jsonify, request

from manager.access.limits import Permit, prompt_estimate
from manager.config import loader
from manager.errors import ApiError, ClientDisconnected
from manager.models.lease import Lease
from manager.relay.forward import (
    CLIENT_CLOSED_REQUEST,
    Outcome,
    RelayRequest,
    RelayResponse,
    forward,
)
from manager.relay.payload import Payload
from manager.relay.upstream import Headers
from manager.storage.rows import RequestRow, uuid7
from manager.tokens import MAX_TOKENS, TokenUsage
from manager.usage.activity import ActiveRequest
from routes.auth import Caller
from routes.services import Services

log = logging.getLogger("manager.requests")

_LONGEST_NAME = 200  # characters, as in the config
_LONGEST_ERROR = 500
_ID_HEADER = "X-LLM-Manager-Request"


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("openai", __name__)
    began = int(time.time())

    endpoints = {path for kind in services.interfaces.values() for path in kind.endpoints}
    for number, path in enumerate(sorted(endpoints)):
        routes.add_url_rule(path, f"proxy_{number}", lambda: _proxy(services), methods=["POST"])

    @routes.get("/v1/models")
    def list_models() -> Response:
        models = [model.settings for model in services.fleet.models()]
        listed = [s for s in models if not s.unlisted and _may_use(g.caller, s)]
        entries = [_entry(settings, settings.name, began) for settings in listed]
        if services.fleet.config.program.list_aliases:
            entries += [_entry(s, alias, began) for s in listed for alias in s.aliases]
        return jsonify({"object": "list", "data": entries})

    @routes.get("/v1/models/<path:name>")
    def one_model(name: str) -> Response:
        caller: Caller = g.caller
        settings = services.fleet.find(name, lambda known: _may_use(caller, known)).settings
        _require(caller, settings, name)
        return jsonify(_entry(settings, name, began))

    return routes


def _entry(settings: loader.Model, name: str, began: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": began,
        "owned_by": "llm-manager",
        "aliases": list(settings.aliases),
        "mode": settings.mode,
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


class _Recorder:
    """What becomes known of a request on its way, told once, before its client has the last
    byte: to usage.db, the log and the metrics."""

    def __init__(self, services: Services, endpoint: str, key: str) -> None:
        self._services = services
        self._permit: Permit | None = None
        self._began = services.clock.monotonic()
        began_ms = services.clock.wall_ms()
        self.request = ActiveRequest(uuid7(began_ms), endpoint, began_ms)
        self.request.key = key
        self._leased: float | None = None
        self.size = 0  # of the body, in bytes
        self._is_closed = False
        services.activity.begin(self.request)

    @property
    def header(self) -> tuple[str, str]:
        """Tells the client under which id its request is in usage.db."""
        return _ID_HEADER, str(uuid.UUID(bytes=self.request.id))

    def permitted(self, permit: Permit) -> None:
        self._permit = permit

    def leased(self, lease: Lease) -> None:
        self._leased = self._services.clock.monotonic()
        self.request.scheme = lease.scheme
        self.request.leased_ms = self._wall_ms(self._leased)

    def answered(self, answer: RelayResponse) -> None:
        self.request.stream = answer.stream
        self.request.answered = True

    def close(self, outcome: Outcome) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        now = self._services.clock.monotonic()
        outcome = self._with_prompt(outcome)
        request, usage = self.request, outcome.usage
        tracked = self._services.fleet.config.program.token_tracker
        is_tracked = not request.mode or request.mode in tracked
        if self._permit is not None:
            self._permit.end(request.model, request.began_ms, usage, is_tracked)
        if is_tracked:
            self._services.spool.add(self._row(outcome, now))
        self._services.activity.end(request, outcome.status, usage)
        waited = (self._leased or now) - self._began
        first = outcome.first_byte_at - self._began if outcome.first_byte_at else None
        self._services.metrics.request(request.model, outcome, now - self._began, first)
        log.info(
            "%s %s as %r: %d in %.3f s, waited %.3f, first byte %s, %s%s",
            request.endpoint,
            request.model or "-",
            request.asked_for or "-",
            outcome.status,
            now - self._began,
            waited,
            "-" if first is None else f"{first:.3f}",
            "no usage"
            if usage is None
            else f"tokens {usage.prompt_tokens}+{usage.completion_tokens}"
            f" ({usage.cached_tokens} cached{', estimated' if usage.estimated else ''})",
            f", {outcome.error.splitlines()[0]}" if outcome.error else "",
        )

    def _with_prompt(self, outcome: Outcome) -> Outcome:
        """With an estimate of the prompt, where the model has read it and nobody has heard how long
        it was: who leaves before the last event would pay for no prompt."""
        usage = outcome.usage or TokenUsage(estimated=True)
        is_cut = outcome.status == CLIENT_CLOSED_REQUEST or (
            outcome.streamed and outcome.status < 400
        )
        if self._leased is None or not is_cut or usage.prompt_tokens or not usage.estimated:
            return outcome
        return replace(outcome, usage=replace(usage, prompt_tokens=prompt_estimate(self.size)))

    def _row(self, outcome: Outcome, now: float) -> RequestRow:
        request, usage = self.request, outcome.usage or TokenUsage()
        return RequestRow(
            id=request.id,
            model=request.model,
            asked_for=request.asked_for,
            mode=request.mode,
            scheme=request.scheme,
            key=request.key,
            endpoint=request.endpoint,
            streamed=outcome.streamed,
            status=outcome.status,
            started_ms=request.began_ms,
            leased_ms=request.leased_ms,
            first_byte_ms=self._wall_ms(outcome.first_byte_at),
            ended_ms=request.began_ms + round((now - self._began) * 1000),
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            # Also where a server has not said: a bill shows that something may be missing.
            estimated=usage.estimated or (outcome.usage is None and outcome.status < 300),
            error=outcome.error.splitlines()[0][:_LONGEST_ERROR] if outcome.error else None,
        )

    def _wall_ms(self, moment: float | None) -> int | None:
        """All from one reading of the wall clock: one that is set meanwhile bends no span."""
        if moment is None:
            return None
        return self.request.began_ms + round((moment - self._began) * 1000)


def _proxy(services: Services) -> Response:
    # Each use of `request` is a search for the current one.
    asked, caller = request._get_current_object(), g.caller
    environ, path = asked.environ, asked.path
    gone: Callable[[], bool] = environ["waitress.client_disconnected"]
    account = _Recorder(services, path, caller.usage_key)
    give_back: Callable[[], None] | None = None
    lease: Lease | None = None
    permit: Permit | None = None
    try:
        services.monitor.touch()
        give_back = services.slots.acquire()
        body = asked.get_data(cache=False)
        account.size = len(body)
        payload = Payload(body)
        name = _model_name(payload)
        # JSON can spell half a character (a lone surrogate), which no database and no log takes.
        account.request.asked_for = name.encode("utf-8", "replace").decode("utf-8")
        model = services.fleet.find(name, lambda settings: _may_use(caller, settings))
        account.request.model, account.request.mode = model.settings.name, model.settings.mode
        _require(caller, model.settings, name)
        if path not in model.interface.endpoints:
            raise ApiError(
                400,
                "endpoint_not_supported",
                f"{name} is a model of mode {model.settings.mode}, which is served at "
                f"{' and '.join(model.interface.endpoints)}, not at {path}",
                param="model",
            )
        if caller.key is not None:
            permit = services.limits.admit(
                caller.key, model.settings.name, len(body), _max_tokens(payload)
            )
            account.permitted(permit)
        lease = model.lease(gone, caller.priority)
        account.leased(lease)
        answer = forward(
            lease,
            RelayRequest(_target(path, environ), _headers(environ), payload),
            watch=services.watch,
            gone=gone,
            on_end=account.close,
        )
        account.answered(answer)
    except BaseException as error:
        if lease is not None:
            lease.release()
        if give_back is not None:
            give_back()
        status = error.status if isinstance(error, ApiError) else 500
        status = CLIENT_CLOSED_REQUEST if isinstance(error, ClientDisconnected) else status
        account.close(Outcome(status, error=str(error) or "the client left"))
        left = services.limits.headers(caller.key) if caller.key is not None else []
        after_this_request(lambda response: _with_headers(response, [account.header, *left]))
        raise
    answer.when_closed(give_back)
    ours = [account.header, *(permit.headers if permit else ())]
    if len(ours) > 1:  # what its server says of limits is not what the key has left
        theirs = [h for h in answer.headers if not h[0].lower().startswith("x-ratelimit-")]
    else:
        theirs = answer.headers
    try:
        return Response(
            answer,  # a WSGI iterable with a close of its own
            status=answer.status,
            headers=[*theirs, *ours],
            direct_passthrough=True,
        )
    except ValueError:
        answer.close()  # nobody else will: the server never gets to see it
        raise


def _with_headers(response: Response, headers: Headers) -> Response:
    response.headers.extend(headers)
    return response


def _max_tokens(payload: Payload) -> int | None:
    """How long an answer may become at most, where the client says so."""
    values = [payload.fields.get(name) for name in ("max_completion_tokens", "max_tokens")]
    limits = [v for v in values if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
    return min(max(limits), MAX_TOKENS) if limits else None


def _model_name(payload: Payload) -> str:
    name = payload.fields.get("model")
    if not isinstance(name, str) or not name:
        raise ApiError(
            400, "model_missing", 'The request has no "model" that is a name', param="model"
        )
    if len(name) > _LONGEST_NAME:
        raise ApiError(
            404,
            "model_not_found",
            f"The model {name[:40]!r}... does not exist: no name is as long as this",
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

"""HTTP and nothing else: read, check, call the manager, answer. One blueprint a file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from manager.errors import ApiError, ClientGone
from manager.relay import CLIENT_GONE
from routes import (
    data,
    devices,
    events,
    exports,
    health,
    logs,
    metrics,
    models,
    openai,
    prices,
    settings,
    usage,
)
from routes.house import House

log = logging.getLogger(__name__)

_BLUEPRINTS: tuple[Callable[[House], Any], ...] = (
    openai.blueprint,
    health.blueprint,
    models.blueprint,
    logs.blueprint,
    devices.blueprint,
    events.blueprint,
    settings.blueprint,
    metrics.blueprint,
    usage.blueprint,
    prices.blueprint,
    exports.blueprint,
    data.blueprint,
)
_CHANGING = frozenset(("POST", "PUT", "PATCH", "DELETE"))


def create_app(house: House) -> Flask:
    """The WSGI application over a house whose parts are all running."""
    app = Flask("llm_manager", static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    for make in _BLUEPRINTS:
        app.register_blueprint(make(house))
    app.before_request(_require_json)
    app.register_error_handler(ApiError, _tell)
    app.register_error_handler(ClientGone, lambda _gone: Response(status=CLIENT_GONE))
    app.register_error_handler(HTTPException, _tell_http)
    app.register_error_handler(Exception, _tell_fault)
    return app


def _require_json() -> None:
    """A form on a foreign page can post to a local port, but not with this content type."""
    environ = request.environ
    if (
        environ["REQUEST_METHOD"] in _CHANGING
        and environ["PATH_INFO"].startswith("/api/")
        and request.mimetype != "application/json"
    ):
        raise ApiError(
            415,
            "json_required",
            "Calls that change something need the header Content-Type: application/json",
        )


def _tell(error: ApiError) -> Response:
    response = jsonify(error.body())
    response.status_code = error.status
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return response


def _tell_http(error: HTTPException) -> Response:
    status = error.code or 500
    if status == 404:
        message = f"There is nothing at {request.method} {request.path}"
    else:
        message = error.description or error.name
    response = _tell(ApiError(status, error.name.lower().replace(" ", "_"), message))
    if status == 405 and request.url_rule is None:
        response.headers["Allow"] = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
    return response


def _tell_fault(_error: Exception) -> Response:
    log.exception("%s %s failed", request.method, request.path)
    return _tell(ApiError(500, "internal_error", "An internal error; the program's log has more"))

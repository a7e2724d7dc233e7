"""HTTP and nothing else: read, check, call the manager, answer. One blueprint a file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, Request, Response, current_app, jsonify, request
from flask.sessions import SecureCookieSessionInterface, SessionMixin
from flask_wtf.csrf import ValidationError, validate_csrf
from werkzeug.exceptions import HTTPException

from manager.errors import ApiError, ClientGone
from manager.relay import CLIENT_GONE
from routes import (
    about,
    answers,
    assets,
    data,
    devices,
    events,
    exports,
    health,
    logs,
    metrics,
    models,
    openai,
    pages,
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
    about.blueprint,
    pages.blueprint,
)
_ROOT = Path(__file__).resolve().parent.parent
_CHANGING = frozenset(("POST", "PUT", "PATCH", "DELETE"))


def create_app(house: House, secret: bytes) -> Flask:
    """The WSGI application over a house whose parts are all running; `secret` signs sessions."""
    app = Flask("llm_manager", static_folder=None, root_path=str(_ROOT))
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.session_interface = _Sessions()
    static, asset = assets.blueprint()
    pages.prepare(app, secret, asset)
    for blueprint in (static, *(make(house) for make in _BLUEPRINTS)):
        if blueprint.name != "openai":  # whose answers are the models' own
            blueprint.after_request(answers.finish)
        app.register_blueprint(blueprint)
    app.before_request(_check_change)
    app.register_error_handler(ApiError, _tell)
    app.register_error_handler(ClientGone, lambda _gone: Response(status=CLIENT_GONE))
    app.register_error_handler(HTTPException, _tell_http)
    app.register_error_handler(Exception, _tell_fault)
    return app


class _Sessions(SecureCookieSessionInterface):
    """Sessions are for pages: what is proxied has none to read."""

    def open_session(self, app: Flask, request: Request) -> SessionMixin | None:
        if _is_proxied(request):
            return self.make_null_session(app)
        return super().open_session(app, request)


def _is_proxied(request: Request) -> bool:
    return bool(request.environ["PATH_INFO"].startswith("/v1/"))


def _check_change() -> None:
    """A form on a foreign page can post to a local port. It cannot send JSON's content type, which
    is what scripts are asked for, nor the token that our own pages know."""
    if request.environ["REQUEST_METHOD"] not in _CHANGING or _is_proxied(request):
        return
    is_call = request.path.startswith("/api/")
    if is_call and request.mimetype != "application/json":
        raise ApiError(
            415,
            "json_required",
            "Calls that change something need the header Content-Type: application/json",
        )
    if not is_call or current_app.config["SESSION_COOKIE_NAME"] in request.cookies:
        try:
            validate_csrf(request.headers.get("X-CSRFToken") or request.form.get("csrf_token"))
        except ValidationError as error:
            raise ApiError(
                403, "page_outdated", "This page is out of date: load it again"
            ) from error


def _tell(error: ApiError) -> Response:
    response = jsonify(error.body())
    response.status_code = error.status
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after)))
    return response


def _tell_http(error: HTTPException) -> Response:
    status = error.code or 500
    if status == 404 and request.accept_mimetypes.best == "text/html":
        return pages.failed(status, request.path)
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

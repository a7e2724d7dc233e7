"""HTTP and nothing else: read, check, call the manager, answer. One blueprint a file."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import werkzeug
from flask import Flask, Request, Response, g, jsonify, redirect, request
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from werkzeug.exceptions import HTTPException

from manager.errors import CLIENT_CLOSED_REQUEST, ApiError, ClientDisconnected
from manager.interfaces import error_body, is_for_models
from manager.storage import DatabaseError
from routes import auth, llama_swap, ollama, openai, paths, upstream
from routes.api import (
    accounts,
    captures,
    config,
    data,
    devices,
    entries,
    events,
    exports,
    keys,
    logs,
    models,
    offers,
    openapi,
    prices,
    status,
    usage,
)
from routes.calls import Api
from routes.http import client_of
from routes.page_passes import without_pass
from routes.pages import assets, headers, login, views
from routes.services import Services

log = logging.getLogger(__name__)

_BLUEPRINTS: tuple[Callable[[Services], Api], ...] = (
    openai.blueprint,
    upstream.blueprint,
    ollama.blueprint,
    status.blueprint,
    models.blueprint,
    captures.blueprint,
    llama_swap.blueprint,
    logs.blueprint,
    devices.blueprint,
    events.blueprint,
    config.blueprint,
    entries.blueprint,
    offers.blueprint,
    usage.blueprint,
    prices.blueprint,
    exports.blueprint,
    data.blueprint,
    keys.blueprint,
    accounts.blueprint,
    login.blueprint,
    openapi.blueprint,
    views.blueprint,
)
_MAX_PATH = 200  # characters of it in a message
_MAX_MESSAGE = 500  # in the log
_ROOT = Path(__file__).resolve().parent.parent


def create_app(services: Services, secret: bytes) -> Flask:
    """The WSGI application; ``secret`` signs sessions. Raises LookupError for a route without a
    declaration."""
    app = paths.PathsApp("llm_manager", static_folder=None, root_path=str(_ROOT))
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.json.ensure_ascii = False  # type: ignore[attr-defined]
    app.session_interface = _Sessions()
    static, asset = assets.blueprint()
    views.init_app(app, secret, asset)
    for blueprint in (static, *(make(services) for make in _BLUEPRINTS)):
        # The models' own responses are left as they are.
        if blueprint.name not in ("openai", "ollama", "upstream"):
            blueprint.after_request(headers.set_headers)
        app.register_blueprint(blueprint)
    auth.protect(app, services)
    named = auth.calls_of(app)
    calls = named.values()
    app.endpoints = frozenset(call.path for name, call in named.items() if openai.is_proxied(name))
    openapi.init_app(app, calls)
    known = [(call.method, call.template) for call in calls if call.tag]
    app.register_error_handler(ApiError, lambda error: _api_error_response(services, error))
    app.register_error_handler(
        ClientDisconnected, lambda _error: Response(status=CLIENT_CLOSED_REQUEST)
    )
    app.register_error_handler(DatabaseError, _database_error_response)
    app.register_error_handler(
        HTTPException, lambda error: _http_error_response(services, known, error)
    )
    app.register_error_handler(Exception, _internal_error_response)
    return app


class _Sessions(SecureCookieSessionInterface):
    """Sessions are for pages: of what is proxied only a page's own requests have one to read."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        environ = request.environ
        if is_for_models(environ["PATH_INFO"]) and "HTTP_X_CSRFTOKEN" not in environ:
            return self.make_null_session(app)
        return super().open_session(app, request)

    def get_cookie_secure(self, _app: Flask) -> bool:
        return bool(g.get("secure"))


def _api_error_response(services: Services, error: ApiError) -> werkzeug.Response:
    # A request to a model has a line already, the recorder's.
    if error.code == "model_not_found" and not g.get("is_recorded"):
        _log_not_found(services, error)
    return _error_response(error)


def _error_response(error: ApiError) -> werkzeug.Response:
    is_page = request.blueprint in ("pages", "login")
    if is_page and error.code == "sign_in_needed":
        return redirect(views.sign_in_address(request.full_path), 303)
    response = views.failed(error) if is_page else jsonify(error_body(request.path, error))
    response.status_code = error.status
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"  # as RFC 9110 asks
        # Anthropic's and OpenAI's SDKs read it; Claude Code tries a wrong key for minutes else.
        response.headers["X-Should-Retry"] = "false"
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return response


def _database_error_response(error: Exception) -> werkzeug.Response:
    log.error("usage.db cannot be used: %s", error)
    return _error_response(
        ApiError(503, "database_unavailable", f"usage.db cannot be used: {error}", retry_after=5)
    )


def _http_error_response(
    services: Services, known: Iterable[tuple[str, str]], error: HTTPException
) -> werkzeug.Response:
    status = error.code or 500
    code = error.name.lower().replace(" ", "_")
    if status not in (404, 405):
        return _error_response(ApiError(status, code, error.description or error.name))
    found = ApiError(status, code, _what_is_there(known, status))
    _log_not_found(services, found)
    is_call = request.path.startswith(("/api/", "/v1/"))
    accepts = request.accept_mimetypes
    wants_page = accepts["text/html"] > accepts["application/json"]
    if status == 404 and not is_call and wants_page:
        return views.failed(ApiError(status, code, request.path))
    response = _error_response(found)
    if status == 405:
        response.headers["Allow"] = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
    return response


def _what_is_there(known: Iterable[tuple[str, str]], status: int) -> str:
    """The message for a path, or a method at it, that is not known."""
    method, path = request.method, without_pass(request.path)[:_MAX_PATH]
    near = paths.nearest(method, path, known)
    what = f"There is nothing at {method} {path}" if status == 404 else f"{path} takes no {method}"
    if near is None:
        return f"{what}; OpenAI clients take a base URL that ends in /v1, and /openapi.json has all"
    return f"{what}; did you mean {near}?"


def _log_not_found(services: Services, error: ApiError) -> None:
    """However many there are: the log is rotated."""
    address = client_of(request.environ, services.fleet.config.program).address
    log.info(
        "%s %r from %s: %d, %r",
        request.method,
        without_pass(request.path)[:_MAX_PATH],
        address,
        error.status,
        error.message[:_MAX_MESSAGE],
    )


def _internal_error_response(_error: Exception) -> werkzeug.Response:
    log.exception("%s %s failed", request.method, without_pass(request.path))
    return _error_response(
        ApiError(500, "internal_error", "An internal error; the program's log has more")
    )

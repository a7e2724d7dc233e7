"""``/upstream/NAME/``: a model's whole server, with any method, its own web page included.

What it answers is foreign content on our origin. A page of it is sandboxed by the header that each
answer has: it has an origin of its own, can read nothing of ours, and a browser sends no cookie of
ours with what it asks for. See `PagePasses` for what it sends instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote

import werkzeug
from flask import Request, redirect, request, session

from manager.errors import ApiError
from manager.interfaces import RAW, Endpoint
from manager.models import Model
from manager.relay import Body, RawBody, RelayResponse, Spooled
from routes.auth import has_secret
from routes.calls import Api, Rule
from routes.paths import raw_path
from routes.proxy import MAX_NAME, ModelCall, Proxy, read_body, with_query
from routes.services import Services, current

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# Headers of an answer that would keep a page from its own files, since its origin is another than
# theirs, or that are ours to set.
_NOT_RETURNED = frozenset(
    [
        "content-security-policy",
        "content-security-policy-report-only",
        "cross-origin-embedder-policy",
        "cross-origin-resource-policy",
        "www-authenticate",  # no credentials are passed on
    ]
)


def blueprint(services: Services) -> Api:
    api = Api("upstream")
    proxy = Proxy(services)

    def serve(**_parts: str) -> werkzeug.Response:
        asked = current(request)
        environ = asked.environ
        if "HTTP_UPGRADE" in environ:
            raise ApiError(
                501,
                "upgrade_not_supported",
                "WebSockets, and other upgrades of a connection, do not reach models' servers",
            )
        if environ.get("HTTP_SERVICE_WORKER") == "script":
            raise ApiError(403, "service_worker_refused", "No page here may have a service worker")
        place = _place(services, environ)
        model = services.fleet.config.find(place.name)
        if model is not None and not has_secret(environ) and not place.has_pass:
            base = services.page_passes.issue(session, model.name)
            return _redirect(base + (place.target or "/"), 303, environ)
        if model is not None and not place.target:
            return _redirect(f"{place.base}/", 308, environ)
        return proxy.serve(RAW.path, lambda asked: RawCall(services, asked, place))

    # Else Flask would answer OPTIONS by itself.
    serve.provide_automatic_options = False  # type: ignore[attr-defined]
    for method in _METHODS:
        api.call(
            f"{method} {RAW.path}/<path:rest>",
            Rule.RAW,
            endpoint=method.lower(),
            tag="" if method == "OPTIONS" else "openai",
            summary="Passed on to the model's server as it is: `rest` is its name, then any path",
            answers={200: "Answer"},
            errors=(429, 501, 502, 504),
        )(serve)
    return api


class _Place(NamedTuple):
    """The model's name as it was asked for, the path at which the client has the root of its
    server, and what is behind that, with a slash in front, or empty; as they were sent."""

    name: str
    base: str
    target: str
    has_pass: bool


def _place(services: Services, environ: dict[str, Any]) -> _Place:
    """Raises ApiError 400."""
    parts = raw_path(environ["REQUEST_URI"]).lstrip("/").split("/")[1:]
    page = services.page_passes.find(environ["PATH_INFO"])
    name, count = (unquote(parts[0]), 1) if page is None else (page.model, 1)
    if page is None:
        # A name may have slashes in it: the longest that there is.
        begun = ""
        for number, part in enumerate(parts, 1):
            begun = unquote(part) if number == 1 else f"{begun}/{unquote(part)}"
            if len(begun) > MAX_NAME:
                break
            if services.fleet.config.find(begun) is not None:
                name, count = begun, number
    target = "".join(f"/{part}" for part in parts[count:])
    if not {".", ".."}.isdisjoint(unquote(target).split("/")):
        raise ApiError(400, "bad_path", "A path here has no parts . or .., encoded or not")
    base = "/".join((RAW.path, *parts[:count]))
    return _Place(name, base, target, page is not None)


def _redirect(path: str, status: int, environ: dict[str, Any]) -> werkzeug.Response:
    response = redirect(with_query(path, environ), status)
    response.headers["Cache-Control"] = "no-store"
    return response


class RawCall(ModelCall):
    """Passed on as it is. Raises ApiError."""

    is_carried = False  # a relay process knows answers to POST alone

    def __init__(self, services: Services, asked: Request, place: _Place) -> None:
        self.method = asked.method
        self.base = place.base
        self._target = with_query(place.target, asked.environ)
        size = asked.content_length or 0
        if "HTTP_CONTENT_ENCODING" in asked.environ:
            self._body = RawBody(read_body(services, asked))
        else:
            self._body = RawBody(Spooled(asked.environ["wsgi.input"], [(0, size)] if size else []))
        super().__init__(place.name, size)

    def sent_to(self, _model: Model) -> tuple[Endpoint, str, Body]:
        return RAW, self._target, self._body

    def answer(self, answer: RelayResponse) -> RelayResponse:
        answer.headers = [
            (name, value) for name, value in answer.headers if name.lower() not in _NOT_RETURNED
        ]
        return answer

"""Paths: names with slashes in them, and what was meant by a path that is not there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from flask import Flask, Request
from werkzeug.routing import Map, MapAdapter, PathConverter, UnicodeConverter

from manager.interfaces import canonical

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# A %2F while routes are matched. No decoded path has half a character in it.
_SLASH = "\udc2f"
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
_BASE = "/v1"
_LIKE = 0.8  # of difflib's ratio: /v1/embedding, not /api/data for /api/chat
_MAX_PATH = 200  # characters that are compared


# --- names ------------------------------------------------------------------------------


class PathsApp(Flask):
    """An application in whose paths ``%2F`` belongs to a name: ``/api/models/x%2Flogs`` is the
    model ``x/logs``, and ``/api/models/x/logs`` the logs of ``x``. WSGI's PATH_INFO, in which both
    are the same, is not asked. A slash as it is may be in a name, too, as far as that is clear."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.url_map.converters |= {"default": _Part, "string": _Part, "path": _Name}
        self.endpoints: frozenset[str] = frozenset()  # those of models

    def wsgi_app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Before anything is decided by the path: what means an endpoint becomes that."""
        environ["PATH_INFO"] = canonical(environ["PATH_INFO"], self.endpoints)
        return super().wsgi_app(environ, start_response)

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return super().create_url_adapter(request)
        # Without Flask's check of the host, which is ours, and its subdomains.
        environ, path = request.environ, request.path
        uri = environ.get("REQUEST_URI", "")
        return MapAdapter(
            self.url_map,
            environ.get("HTTP_HOST") or environ["SERVER_NAME"],
            "/",
            "",
            request.scheme,
            _with_names(uri, path) if "%2" in uri else path,
            request.method,
            environ.get("QUERY_STRING"),
        )


class _Part(UnicodeConverter):
    """A part without a slash, encoded or not."""

    def __init__(self, map: Map, **options: Any) -> None:
        super().__init__(map, **options)
        self.regex = self.regex.replace("[^/]", f"[^/{_SLASH}]")


class _Name(PathConverter):
    def to_python(self, value: str) -> str:
        return value.replace(_SLASH, "/")


def raw_path(uri: str) -> str:
    """The path of a request's URI as it was sent."""
    raw = re.split("[?#]", uri, maxsplit=1)[0]
    if not raw.startswith("/"):  # http://host/path, as for a proxy
        raw = "/" + raw.split("/", 3)[-1]
    return raw


def _with_names(uri: str, path: str) -> str:
    """The path of a request's URI, each encoded slash in it as `_SLASH`; ``path`` where there is
    none."""
    parts = _ENCODED_SLASH.split(raw_path(uri))
    if len(parts) == 1:
        return path
    # Two in a row are one, as without names; here, since a redirect could not spell _SLASH.
    return _SLASH.join(unquote(re.sub("//+", "/", part), errors="replace") for part in parts)


# --- what was meant ---------------------------------------------------------------------


def nearest(method: str, path: str, known: Iterable[tuple[str, str]]) -> str | None:
    """The call that was probably meant, such as ``POST /v1/chat/completions``; None where there is
    none. ``known`` are the methods and paths that there are, these with ``{name}`` for a part."""
    methods: dict[str, list[str]] = {}
    for one, template in known:
        methods.setdefault(template, []).append(one)
    parts = [part for part in path[:_MAX_PATH].split("/") if part]
    found = _by_its_end(parts, methods) or _by_spelling("/" + "/".join(parts), methods)
    if found is None:
        return None
    there = methods[found]
    return f"{method if method in there else ' or '.join(there)} {found}"


def _by_its_end(parts: list[str], templates: Iterable[str]) -> str | None:
    """With too much before it (``/v1/v1``, another server's base), too little, or a slash behind
    it. The whole path first, and then ever less of its end."""
    for start in range(len(parts)):
        end = "/" + "/".join(parts[start:])
        for candidate in (end, _BASE + end):
            for template in templates:
                if candidate == template or (start == 0 and _matches(candidate, template)):
                    return template
    return None


def _matches(path: str, template: str) -> bool:
    literals = re.split(r"\{\w+\}", template)
    return re.fullmatch("[^/]+".join(map(re.escape, literals)), path) is not None


def _by_spelling(path: str, templates: Iterable[str]) -> str | None:
    for candidate in (path, _BASE + path):
        if near := difflib.get_close_matches(candidate, templates, 1, _LIKE):
            return near[0]
    return None

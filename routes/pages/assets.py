"""``/static``: scripts and style of the pages, read once and sent compressed."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flask import Response, abort, request

from routes.calls import Api, Rule

_ROOT = Path(__file__).resolve().parents[2] / "static"
_SENT = {".js", ".css", ".svg", ".png"}
_COMPRESSED = {".js", ".css", ".svg"}
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class _Asset:
    content: bytes
    compressed: bytes | None
    mimetype: str


def blueprint() -> tuple[Api, Callable[[str], str]]:
    """The routes, and the function that gives a file's address.

    The address holds a digest of all files, so that a browser keeps them for ever and still never
    mixes those of two versions; modules name each other relatively, and stay within one.
    """
    assets, digest = _read()
    api = Api("assets")

    def asset(name: str) -> str:
        if name not in assets:
            raise KeyError(f"there is no static/{name}")
        return f"/static/{digest}/{name}"

    @api.call("GET /static/<version>/<path:name>", Rule.OPEN)
    def send(version: str, name: str) -> Response:
        """A script or style of the pages."""
        found = assets.get(name)
        if found is None or version != digest:
            abort(404)
        answer = Response(found.content, mimetype=found.mimetype)
        if found.compressed is not None and request.accept_encodings["gzip"]:
            answer = Response(found.compressed, mimetype=found.mimetype)
            answer.headers["Content-Encoding"] = "gzip"
        answer.headers["Vary"] = "Accept-Encoding"
        answer.headers["Cache-Control"] = _FOR_EVER
        return answer

    return api, asset


def _read() -> tuple[dict[str, _Asset], str]:
    digest = hashlib.sha256()
    assets = {}
    for path in sorted(_ROOT.rglob("*")):
        if path.suffix in _SENT:
            name, content = path.relative_to(_ROOT).as_posix(), path.read_bytes()
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
            mimetype = mimetypes.guess_type(name)[0] or "application/octet-stream"
            compressed = gzip.compress(content) if path.suffix in _COMPRESSED else None
            assets[name] = _Asset(content, compressed, mimetype)
    return assets, digest.hexdigest()[:12]

"""The logs of the models, and the program's own: their ends, and what comes after."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

from flask import Blueprint, Response, request

from manager.errors import ApiError
from manager.events import Event
from routes import streams
from routes.house import House

_MAX_LINES = 10_000
_KEEP_ALIVE_ROUNDS = 60  # quiet moments of a follower, about 15 seconds


def blueprint(house: House) -> Blueprint:
    routes = Blueprint("logs", __name__)

    @routes.get("/api/models/<path:name>/logs")
    def logs(name: str) -> Response:
        model = house.fleet.find(name)
        return _text(house.logs.tail(model.settings.name, lines_asked_for()))

    @routes.get("/api/models/<path:name>/logs/stream")
    def follow(name: str) -> Response:
        model = house.fleet.find(name)
        stopped = threading.Event()
        lines = house.logs.follow(model.settings.name, lines_asked_for(), stopped)
        return streams.answer(house, _log_pieces(lines), stopped.set)

    @routes.get("/api/log")
    def own() -> Response:
        return _text(house.logs.own_tail(lines_asked_for()))

    return routes


def lines_asked_for() -> int:
    """How many lines of a log are wanted. Raises ApiError 400."""
    text = request.args.get("lines", "200")
    if not re.fullmatch("[1-9][0-9]{0,4}", text) or int(text) > _MAX_LINES:
        raise ApiError(
            400,
            "bad_parameter",
            f"lines has to be 1 to {_MAX_LINES}, not {text[:40]!r}",
            param="lines",
        )
    return int(text)


def _log_pieces(lines: Iterator[str | None]) -> Iterator[bytes]:
    quiet = 0
    for line in lines:
        if line is not None:
            yield Event("line", line).message
            continue
        quiet += 1
        if quiet % _KEEP_ALIVE_ROUNDS == 1:
            yield b": still here\n\n"


def _text(text: str) -> Response:
    return Response(text + "\n" if text else "", mimetype="text/plain")

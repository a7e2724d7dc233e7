"""``/api/models``: what each model does, and steering it; its logs."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, jsonify, request

from manager.errors import ApiError
from manager.model import Model
from routes import streams
from routes.house import House

_MAX_LINES = 10_000
_KEEP_ALIVE_ROUNDS = 60  # quiet moments of a follower, about 15 seconds


def blueprint(house: House) -> Blueprint:
    routes = Blueprint("models", __name__)

    @routes.get("/api/models")
    def models() -> Response:
        return jsonify({"models": [model.view() for model in house.fleet.models()]})

    @routes.get("/api/models/<path:name>")
    def model(name: str) -> Response:
        return jsonify(house.fleet.find(name).view())

    @routes.post("/api/models/<path:name>/start")
    def start(name: str) -> tuple[Response, int]:
        model = house.fleet.find(name)
        if request.args.get("dry_run") in ("1", "true"):
            return jsonify(model.preview()), 200
        model.start()
        return _accepted(house, [model], model.view)

    @routes.post("/api/models/<path:name>/stop")
    def stop(name: str) -> tuple[Response, int]:
        model = house.fleet.find(name)
        model.stop()
        return _accepted(house, [model], model.view)

    @routes.post("/api/models/<path:name>/restart")
    def restart(name: str) -> tuple[Response, int]:
        model = house.fleet.find(name)
        model.stop(start_again=True)
        return _accepted(house, [model], model.view)

    @routes.post("/api/models/stop")
    def stop_all() -> tuple[Response, int]:
        models = house.fleet.models()
        house.fleet.stop_all()
        return _accepted(house, models, lambda: {"models": [model.view() for model in models]})

    @routes.get("/api/models/<path:name>/logs")
    def logs(name: str) -> Response:
        model = house.fleet.find(name)
        text = house.logs.tail(model.settings.name, _lines())
        return Response(text + "\n" if text else "", mimetype="text/plain")

    @routes.get("/api/models/<path:name>/logs/stream")
    def follow(name: str) -> Response:
        model = house.fleet.find(name)
        stopped = threading.Event()
        lines = house.logs.follow(model.settings.name, _lines(), stopped)
        return streams.answer(house, _log_pieces(lines), stopped.set)

    return routes


def _accepted(house: House, models: list[Model], view: Any) -> tuple[Response, int]:
    """202 at once; with ``?wait=1`` 200 when every start and stop under way has ended."""
    if request.args.get("wait") not in ("1", "true"):
        return jsonify(view()), 202
    give_back = house.slots.take()
    try:
        for model in models:
            settings = model.settings
            room = house.fleet.config.program.queue_timeout
            model.wait_settled(room + settings.start_timeout + 3 * settings.stop_timeout)
    finally:
        give_back()
    return jsonify(view()), 200


def _lines() -> int:
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
            yield streams.event("line", line)
            continue
        quiet += 1
        if quiet % _KEEP_ALIVE_ROUNDS == 1:
            yield b": still here\n\n"

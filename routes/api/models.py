"""``/api/models``: what each model does, and steering it."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, request

from manager.models.model import Model
from routes.services import House


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

"""``/api/models``: what each model does, and steering it."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, jsonify, request

from manager.models.model import Model
from routes.services import Services


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("models", __name__)

    @routes.get("/api/models")
    def models() -> Response:
        return jsonify({"models": [model.to_json() for model in services.fleet.models()]})

    @routes.get("/api/models/<path:name>")
    def model(name: str) -> Response:
        return jsonify(services.fleet.find(name).to_json())

    @routes.post("/api/models/<path:name>/start")
    def start(name: str) -> tuple[Response, int]:
        model = services.fleet.find(name)
        if request.args.get("dry_run") in ("1", "true"):
            return jsonify(model.preview()), 200
        model.start()
        return _accepted(services, [model], model.to_json)

    @routes.post("/api/models/<path:name>/stop")
    def stop(name: str) -> tuple[Response, int]:
        model = services.fleet.find(name)
        model.stop()
        return _accepted(services, [model], model.to_json)

    @routes.post("/api/models/<path:name>/restart")
    def restart(name: str) -> tuple[Response, int]:
        model = services.fleet.find(name)
        model.stop(start_again=True)
        return _accepted(services, [model], model.to_json)

    @routes.post("/api/models/stop")
    def stop_all() -> tuple[Response, int]:
        models = services.fleet.models()
        services.fleet.stop_all()
        return _accepted(
            services, models, lambda: {"models": [model.to_json() for model in models]}
        )

    return routes


def _accepted(services: Services, models: list[Model], view: Any) -> tuple[Response, int]:
    """202 at once; with ``?wait=1`` 200 when every start and stop under way has ended."""
    if request.args.get("wait") not in ("1", "true"):
        return jsonify(view()), 202
    give_back = services.slots.acquire()
    try:
        for model in models:
            settings = model.settings
            room = services.fleet.config.program.queue_timeout
            model.wait_idle(room + settings.start_timeout + 3 * settings.stop_timeout)
    finally:
        give_back()
    return jsonify(view()), 200

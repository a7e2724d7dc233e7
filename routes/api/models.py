"""``/api/models``: the state of each model, and starting and stopping it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Response, g, jsonify

from manager.models import Model
from routes.calls import Api, Rule
from routes.request import WAIT, flag
from routes.services import Services

_DRY_RUN = {"dry_run": flag("1: only says what a start would do")}
_ANSWERS = {200: "Model", 202: "Accepted"}


def blueprint(services: Services) -> Api:
    api = Api("models", tag="models")

    @api.call("GET /api/models", Rule.VIEW)
    def models() -> Response:
        """The state of each model."""
        models = services.fleet.models()
        services.fleet.read_model_files(*models)
        return jsonify({"models": [model.to_json() for model in models]})

    @api.call("GET /api/models/<path:name>", Rule.VIEW, answers={200: "Model"})
    def model(name: str) -> Response:
        """The state of one model."""
        model = services.fleet.find(name)
        services.fleet.read_model_files(model)
        return jsonify(model.to_json())

    @api.call(
        "POST /api/models/<path:name>/start",
        Rule.ADMIN,
        query={**WAIT, **_DRY_RUN},
        answers=_ANSWERS,
    )
    def start(name: str, query: dict[str, Any]) -> tuple[Response, int]:
        """Starts it."""
        model = services.fleet.find(name)
        if query["dry_run"]:
            g.is_change = False
            return jsonify(model.preview()), 200
        model.start()
        return _accepted(services, [model], model.to_json, query["wait"])

    @api.call(
        "POST /api/models/<path:name>/stop",
        Rule.ADMIN,
        query=WAIT,
        answers=_ANSWERS,
        errors=(409,),
    )
    def stop(name: str, query: dict[str, Any]) -> tuple[Response, int]:
        """Stops it. 409 `not_started_here` where others start its server."""
        model = services.fleet.find(name)
        model.stop()
        return _accepted(services, [model], model.to_json, query["wait"])

    @api.call("POST /api/models/<path:name>/restart", Rule.ADMIN, query=WAIT, answers=_ANSWERS)
    def restart(name: str, query: dict[str, Any]) -> tuple[Response, int]:
        """Stops it and starts it again."""
        model = services.fleet.find(name)
        model.stop(start_again=True)
        return _accepted(services, [model], model.to_json, query["wait"])

    @api.call("POST /api/models/stop", Rule.ADMIN, query=WAIT, answers=_ANSWERS, errors=(404,))
    def stop_all(query: dict[str, Any]) -> tuple[Response, int]:
        """Stops all models."""
        models = services.fleet.models()
        services.fleet.stop_all()
        return _accepted(
            services,
            models,
            lambda: {"models": [model.to_json() for model in models]},
            query["wait"],
        )

    return api


def _accepted(
    services: Services, models: list[Model], view: Callable[[], Any], wait: bool
) -> tuple[Response, int]:
    """202 at once; where it is to ``wait``, 200 when every start and stop under way has ended."""
    if not wait:
        return jsonify(view()), 202
    wait_idle(services, models)
    return jsonify(view()), 200


def wait_idle(services: Services, models: list[Model]) -> None:
    """Returns when every start and stop under way has ended. Raises ApiError 503 where no thread
    is left to wait."""
    release = services.slots.acquire()
    try:
        for model in models:
            settings = model.settings
            queued = services.fleet.config.program.queue_timeout
            model.wait_idle(queued + settings.start_timeout + 3 * settings.stop_timeout)
    finally:
        release()

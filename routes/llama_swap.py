"""Two calls of llama-swap, so that its scripts go on working."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify

from manager.models import Model, State
from routes.api.models import wait_idle
from routes.calls import Api, Rule
from routes.services import Services

# As llama-swap has it, which knows no queue.
_STATES = {
    State.QUEUED: "starting",
    State.STARTING: "starting",
    State.READY: "ready",
    State.STOPPING: "stopping",
}


def blueprint(services: Services) -> Api:
    api = Api("llama_swap", tag="models")

    @api.call("GET /running", Rule.LOCAL)
    def running() -> Response:
        """The models that are not stopped, as llama-swap lists them.

        Of each `model`, `state`, `name`, `proxy`, which is its server's address, and `ttl`, the
        seconds without a request after which it is stopped (0: never).
        """
        models = services.fleet.models()
        return jsonify({"running": [_entry(one) for one in models if one.state in _STATES]})

    def unload() -> Response:
        """Stops all models, and answers when they are."""
        services.fleet.stop_all()
        wait_idle(services, services.fleet.models())
        return Response("OK", mimetype="text/plain")

    for method in ("GET", "POST"):
        api.call(
            f"{method} /unload",
            Rule.SCRIPT,
            endpoint=f"{method.lower()}_unload",
            audit=True,
            answers={200: "Text"},
        )(unload)
    return api


def _entry(model: Model) -> dict[str, Any]:
    view = model.to_json()
    return {
        "model": view["name"],
        "state": _STATES[State(view["state"])],
        "name": view["name"],
        "proxy": view["url"] or (f"http://127.0.0.1:{view['port']}" if view["port"] else ""),
        "ttl": round(model.settings.alive_time * 60),
    }

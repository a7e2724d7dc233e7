"""``/api/captures``: whole requests and answers, of models for which an admin has them kept."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify

from manager.errors import ApiError
from routes.calls import Api, Rule
from routes.request import integer
from routes.services import Services

_MAX_MINUTES = 60


def blueprint(services: Services) -> Api:
    api = Api("captures", tag="models")

    @api.call(
        "POST /api/models/<path:name>/capture",
        Rule.ADMIN,
        body={"minutes": integer(0, _MAX_MINUTES).required()},
        answers={200: "Model"},
    )
    def capture(name: str, body: dict[str, Any]) -> Response:
        """Keeps whole requests and answers of it for some minutes.

        They are in memory only, the last 50 of all models and 256 KB of each body, and the secrets
        of their headers are masked. With 0 minutes it ends, and those of this model are deleted."""
        model = services.fleet.find(name)
        model.capture(60 * body["minutes"])
        if not body["minutes"]:
            services.captures.discard(model.name)
        return jsonify(model.to_json())

    @api.call("GET /api/captures", Rule.ADMIN)
    def captures() -> Response:
        """What is kept, without bodies, the newest first."""
        kept = services.captures.all()
        return jsonify({"captures": [one.to_json(whole=False) for one in kept]})

    @api.call("GET /api/captures/<number>", Rule.ADMIN)
    def one_capture(number: str) -> Response:
        """The whole request with this id, and its answer."""
        found = services.captures.find(number)
        if found is None:
            raise ApiError(404, "not_found", f"No request {number[:40]} was kept, or it is no more")
        return jsonify(found.to_json())

    return api

"""Whether the program answers."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from routes.services import Services


def blueprint(_services: Services) -> Blueprint:
    routes = Blueprint("health", __name__)

    @routes.get("/health")
    def health() -> Response:
        return jsonify({"status": "ok"})

    return routes

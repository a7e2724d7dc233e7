"""``/openapi.json``: what can be asked of this program, for tools."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml
from flask import Blueprint, Response, jsonify
from flask.blueprints import BlueprintSetupState

from manager import __version__
from routes.api.prices import tier_schema
from routes.services import Services

_FILE = Path(__file__).with_name("openapi.yaml")


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("description", __name__)
    document = describe({path for kind in services.interfaces.values() for path in kind.endpoints})

    @routes.record
    def name_cookie(state: BlueprintSetupState) -> None:
        cookie = document["components"]["securitySchemes"]["session"]
        cookie["name"] = state.app.config["SESSION_COOKIE_NAME"]

    @routes.get("/openapi.json")
    def openapi() -> Response:
        return jsonify(document)

    return routes


def describe(endpoints: set[str]) -> dict[str, Any]:
    """The OpenAPI document; `endpoints` are those of the modes that are loaded, of which some may
    be a plugin's."""
    document: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    document = {key: value for key, value in document.items() if not key.startswith("x-")}
    document["info"]["version"] = __version__
    document["components"]["schemas"]["Tier"] = tier_schema()
    proxied = document["components"].pop("pathItems")["Proxied"]
    for path in sorted(endpoints - set(document["paths"])):
        document["paths"][path] = copy.deepcopy(proxied)
    return document

"""``/api/config``: what the program runs with, and reading the file anew."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify

from jobs.tasks import Settings
from manager import config
from manager.config import ConfigError
from manager.errors import ApiError
from manager.masking import MASK, argument_spans, hidden, is_telling, masked_at
from routes.house import House

# What is built once, at the program's start.
_AT_START = [
    "host",
    "port",
    "log_level",
    "device_plugin_dir",
    "interface_plugin_dir",
    "threads",
    "max_body_mb",
    "export",
    "queue",
]


def blueprint(house: House) -> Blueprint:
    routes = Blueprint("settings", __name__)

    @routes.get("/api/config")
    def show() -> Response:
        return jsonify(masked(house.fleet.config))

    @routes.post("/api/config/reload")
    def reload() -> Response:
        return jsonify(apply(house))

    return routes


def apply(house: House) -> dict[str, Any]:
    """Reads the file and applies it; says what needs a restart of the program to take effect.

    Raises ApiError 400 ``invalid_config``, and then nothing has changed; 503
    ``database_unavailable`` where all is applied but the prices of models that had none.
    """
    before = house.fleet.config
    try:
        after = house.load()
    except ConfigError as error:
        refusal = ApiError(400, "invalid_config", str(error))
        raise refusal from error
    house.fleet.apply(after)
    house.worker.update(Settings.of(after.program, house.data_dir))
    try:
        house.prices.seed(after.models.values())
    except sqlite3.Error as error:
        raise ApiError(
            503,
            "database_unavailable",
            f"The config is in use, but prices that are new in it are not: {error}. Reload again",
            retry_after=5,
        ) from error
    changed = [
        key for key in _AT_START if getattr(before.program, key) != getattr(after.program, key)
    ]
    if after.program.export and before.program.timezone != after.program.timezone:
        changed.append("timezone")  # of the schedule: all else has it now
    return {"models": list(after.models), "restart_needed_for": changed}


def masked(settings: config.Config) -> dict[str, Any]:
    """The config as JSON, with every value that may be a secret replaced by asterisks."""
    program = _plain(dataclasses.asdict(settings.program))
    if settings.program.queue:
        program["queue"] = hidden(settings.program.queue)
    models = []
    for model in settings.models.values():
        shown = _plain(dataclasses.asdict(model))
        for scheme in shown["schemes"]:
            scheme["env"] = {
                name: MASK if is_telling(name) else hidden(value)
                for name, value in scheme["env"].items()
            }
            scheme["command"] = [
                masked_at(argument, spans)
                for argument, spans in zip(
                    scheme["command"], argument_spans(scheme["command"]), strict=True
                )
            ]
        models.append(shown)
    return {"path": str(settings.path), "program": program, "models": models}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value

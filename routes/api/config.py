"""``/api/config``: what the program runs with, its file as a text to edit, and reloading it."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Collection, Iterable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, g, jsonify

from jobs.tasks import WorkerSettings
from manager.config import config_file, loader
from manager.config.declaration import keys
from manager.config.loader import ConfigError, Problem
from manager.config.redaction import MASK, argument_spans, redact_spans
from manager.config.settings import Program
from manager.errors import ApiError
from manager.storage.store import DatabaseError
from routes.request import Number, bad, body, refuse_unknown
from routes.services import Services

_LONGEST_TEXT = 200_000  # some hundred models; one as long as that takes seconds
_applying = threading.Lock()


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("settings", __name__)
    writing = threading.Lock()

    def modes(_folder: Path | None) -> Collection[str]:
        return services.interfaces  # loaded once, at the program's start

    @routes.get("/api/config")
    def show() -> Response:
        return jsonify(masked(services.fleet.config))

    @routes.post("/api/config/reload")
    def reload() -> Response:
        return jsonify(apply(services))

    @routes.get("/api/config/text")
    def text() -> Response:
        path = services.fleet.config.path
        found = config_file.read_file(path)
        return jsonify(
            {
                "path": str(path),
                "text": found.text,
                "version": found.version,
                "problems": _listed(found.problems(modes)),
                "writable": config_file.is_writable(path),
            }
        )

    @routes.post("/api/config/check")
    def check() -> Response:
        given = body()
        refuse_unknown(given, ("text",))
        found = config_file.read_file(services.fleet.config.path)
        edited = found.edited(_text(given), modes)
        names = list(edited.config.models) if edited.config else []
        return jsonify({"problems": _listed(edited.problems), "models": names})

    @routes.put("/api/config/text")
    def put() -> Response:
        given = body()
        refuse_unknown(given, ("text", "version"))
        text, version = _text(given), _version(given)
        path = services.fleet.config.path
        found = config_file.read_file(path)
        _require_version(found, version)
        edited = found.edited(text, modes)
        if edited.problems:
            raise ApiError(
                400,
                "invalid_config",
                f"{ConfigError(path, edited.problems)}\nNothing was written",
                details={"problems": _listed(edited.problems)},
            )
        with writing:  # I/O, but of a small file on a local disk, and only savers wait for it
            _require_version(config_file.read_file(path), version)
            try:
                written = config_file.write(path, edited.text, found)
            except OSError as error:
                raise ApiError(
                    409, "config_not_writable", f"{path} was not changed: {error}"
                ) from error
        g.is_done = True  # whatever comes now: it is to be in the audit table
        try:
            return jsonify({**apply(services), "version": written.version})
        except ApiError as error:
            raise ApiError(
                error.status,
                error.code,
                f"{path} was written ({config_file.backup_of(path)} has what was there before),"
                f" but: {error.message}",
                retry_after=error.retry_after,
                details={"version": written.version},
            ) from error

    return routes


def _text(given: dict[str, Any]) -> str:
    text = given.get("text")
    if not isinstance(text, str) or isinstance(text, Number):
        raise bad("text", "text has to be the config, as text")
    if len(text) > _LONGEST_TEXT:
        raise ApiError(
            413,
            "body_too_large",
            f"The text is over {_LONGEST_TEXT} characters: edit the file itself",
        )
    return text


def _version(given: dict[str, Any]) -> str | None:
    if "version" not in given:
        raise bad("version", "version is missing: it came with the text")
    version = given["version"]
    if version is not None and (not isinstance(version, str) or isinstance(version, Number)):
        raise bad("version", "version has to be what came with the text")
    return version


def _require_version(found: config_file.ConfigFile, version: str | None) -> None:
    if found.problem and found.content is None and os.path.exists(found.path):
        raise ApiError(409, "config_not_writable", found.problem.message)
    if found.version != version:
        raise ApiError(
            409,
            "config_changed",
            f"{found.path} is another one than this text was made from (or the program was"
            " started anew meanwhile): get it again, and make your changes there",
            details={"version": found.version},
        )


def _listed(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(problem) for problem in problems]


def apply(services: Services) -> dict[str, Any]:
    """Reads the file and applies it; says what needs a restart of the program to take effect.

    Raises ApiError 400 ``invalid_config``, and then nothing has changed; 503
    ``database_unavailable`` where all is applied but the prices of models that had none.
    """
    with _applying:  # of two at once, the one that read the older file could be the last
        before = services.fleet.config
        try:
            after = services.load()
        except ConfigError as error:
            refusal = ApiError(400, "invalid_config", str(error))
            raise refusal from error
        services.fleet.apply(after)
        services.worker.update(WorkerSettings.of(after.program, services.data_dir))
    loader.log_warnings(after)
    try:
        services.prices.seed_from_config(
            (model.name, model.price) for model in after.models.values() if model.price
        )
    except DatabaseError as error:
        raise ApiError(
            503,
            "database_unavailable",
            f"The config is in use, but prices that are new in it are not: {error}. Reload again",
            retry_after=5,
        ) from error
    changed = [
        key.name
        for key in keys(Program)
        if key.restart and getattr(before.program, key.field) != getattr(after.program, key.field)
    ]
    if after.program.export and before.program.timezone != after.program.timezone:
        changed.append("timezone")  # of the schedule: all else has it now
    return {"models": list(after.models), "restart_needed_for": changed}


def masked(settings: loader.Config) -> dict[str, Any]:
    """The config as JSON, with every value that may be a secret replaced by asterisks."""
    program = _plain(dataclasses.asdict(settings.program))
    models = []
    for model in settings.models.values():
        shown = _plain(dataclasses.asdict(model))
        for scheme in shown["schemes"]:
            # The place for secrets, which other users of the machine cannot read in a process.
            scheme["env"] = dict.fromkeys(scheme["env"], MASK)
            scheme["command"] = [
                redact_spans(argument, spans)
                for argument, spans in zip(
                    scheme["command"], argument_spans(scheme["command"]), strict=True
                )
            ]
        models.append(shown)
    return {"path": str(settings.path), "program": program, "models": models}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path | IPv4Network | IPv6Network) else value

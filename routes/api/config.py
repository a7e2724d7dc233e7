"""``/api/config``: what the program runs with, its file as a text to edit, and reloading it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from flask import Response, g, jsonify

from manager.config import (
    ANY_VERSION,
    MASK,
    ConfigChanged,
    ConfigError,
    NotApplied,
    NotSaved,
    Problem,
    argument_spans,
    config_file,
    loader,
    redact_spans,
)
from manager.errors import ApiError
from routes.auth import may_edit_config
from routes.calls import Api, Rule
from routes.request import Field, Number, bad
from routes.services import Services

_MAX_TEXT = 200_000  # some hundred models; one as long as that takes seconds


def _read_text(path: str, value: Any) -> str:
    if not isinstance(value, str) or isinstance(value, Number):
        raise bad(path, f"{path} has to be the config, as text")
    if len(value) > _MAX_TEXT:
        raise ApiError(
            413,
            "body_too_large",
            f"The text is over {_MAX_TEXT} characters: edit the file itself",
        )
    return value


def _read_version(path: str, value: Any) -> str | None:
    if value is not None and (not isinstance(value, str) or isinstance(value, Number)):
        raise bad(path, f"{path} has to be what came with the text")
    return value


_TEXT = Field(_read_text, {"type": "string", "maxLength": _MAX_TEXT})
VERSION = Field(
    _read_version, {"type": ["string", "null"], "description": "What came with the text"}
)


def blueprint(services: Services) -> Api:
    api = Api("settings", tag="program")

    def modes(_folder: Path | None) -> Collection[str]:
        return services.interfaces  # loaded once, at the program's start

    @api.call("GET /api/config", Rule.VIEW)
    def show() -> Response:
        """What the program runs with, secrets and all values of `env` masked."""
        return jsonify(masked(services.fleet.config))

    @api.call("POST /api/config/reload", Rule.ADMIN)
    def reload() -> Response:
        """Reads the config's file again and applies it."""
        return jsonify(services.reload_config())

    @api.call("GET /api/config/file", Rule.VIEW)
    def file() -> Response:
        """Whether a saved file is applied by itself, and what keeps it from being in use.

        `version` is that of the text on the disk. `watched` is `watch_config`; without it
        `problems` is empty and `waiting` null. The messages of `problems`, which may quote the
        file, are for those who may read its text, else null. `waiting` is `code`
        (`others_may_write`, `removes_models`, `not_applied`) and `message`: a reload by hand
        applies the file.
        """
        program, state = services.fleet.config.program, services.live_config.state
        problems = _listed(state.problems)
        if not may_edit_config(g.caller, program):
            problems = [{**problem, "message": None} for problem in problems]
        waiting = dataclasses.asdict(state.waiting) if state.waiting else None
        return jsonify(
            {
                "watched": program.watch_config,
                "version": config_file.read_file(services.fleet.config.path).version,
                "problems": problems,
                "waiting": waiting,
            }
        )

    @api.call("GET /api/config/text", Rule.CONFIG)
    def text() -> Response:
        """The config as a text to edit, as it is."""
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

    @api.call("POST /api/config/check", Rule.CONFIG, body={"text": _TEXT.required()}, audit=False)
    def check(body: dict[str, Any]) -> Response:
        """What is wrong with a text of the config; nothing is written."""
        found = config_file.read_file(services.fleet.config.path)
        edited = found.edited(body["text"], modes)
        names = list(edited.config.models) if edited.config else []
        return jsonify({"problems": _listed(edited.problems), "models": names})

    @api.call(
        "PUT /api/config/text",
        Rule.CONFIG,
        body={"text": _TEXT.required(), "version": VERSION.required()},
        errors=(409,),
    )
    def put(body: dict[str, Any]) -> Response:
        """Writes and applies the config."""
        return jsonify(save(services, lambda _text: body["text"], body["version"]))

    return api


def save(
    services: Services,
    change: Callable[[str], str],
    version: object = ANY_VERSION,
    *,
    is_partial: bool = False,
) -> dict[str, Any]:
    """Has the config's file written and applied, as `LiveConfig.save`; what a reload answers, and
    the file's version. Raises ApiError."""
    path = services.fleet.config.path
    try:
        saved = services.live_config.save(change, version, is_partial=is_partial)
    except ConfigChanged as error:
        raise ApiError(
            409,
            "config_changed",
            f"{path} is another one than this text was made from (or the program was"
            " restarted meanwhile): get it again, and make your changes there",
            details={"version": error.file.version},
        ) from error
    except ConfigError as error:
        raise ApiError(
            400,
            "invalid_config",
            f"{error}\nNothing was written",
            details={"problems": _listed(error.problems)},
        ) from error
    except NotSaved as error:
        raise ApiError(409, "config_not_writable", str(error)) from error
    except NotApplied as error:
        g.is_change = True  # it is to be in the audit table
        written, reason = error.written, error.reason
        backup = f" ({written.backup} has what was there before)" if written.backup else ""
        raise ApiError(
            reason.status,
            reason.code,
            f"{path} was written{backup}, but: {reason.message}",
            retry_after=reason.retry_after,
            details={"version": written.file.version},
        ) from error
    return {**saved.applied, "version": saved.file.version}


def _listed(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(problem) for problem in problems]


def masked(settings: loader.Config) -> dict[str, Any]:
    """The config as JSON, with every value that may be a secret replaced by asterisks."""
    program = _plain(dataclasses.asdict(settings.program))
    models = []
    for model in settings.models.values():
        shown = _plain(dataclasses.asdict(model))
        # The names alone, as scripts know them.
        aliases, shown["aliases"] = shown["aliases"], list(model.aliases)
        shown["alias_changes"] = {name: one for name, one in aliases.items() if one["set"]}
        shown["api_key"] = model.api_key and MASK
        for scheme in shown["schemes"]:
            # The place for secrets, which other users of the machine cannot read in a process.
            scheme["env"] = dict.fromkeys(scheme["env"], MASK)
            for key in ("command", "stop_command"):
                spans = argument_spans(scheme[key])
                scheme[key] = [
                    redact_spans(argument, secret)
                    for argument, secret in zip(scheme[key], spans, strict=True)
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

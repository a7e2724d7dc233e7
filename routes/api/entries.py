"""``/api/config/models``: single models of the config, added, replaced and removed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import Response, jsonify

from manager.config import ANY_VERSION, Problem, config_file, edit
from manager.errors import ApiError
from routes.api.config import VERSION, save
from routes.calls import Api, Rule
from routes.request import Field, Number, bad, boolean, text
from routes.services import Services

_MAX_ENTRY = 20_000  # characters
_MAX_NAME = 200  # as the config has it


def _read_entry(path: str, value: Any) -> str:
    if not isinstance(value, str) or isinstance(value, Number) or len(value) > _MAX_ENTRY:
        raise bad(path, f"{path} has to be YAML, as text of at most {_MAX_ENTRY} characters")
    return value


_ENTRY = Field(
    _read_entry,
    {
        "type": "string",
        "maxLength": _MAX_ENTRY,
        "description": "What stands under the model's name in the config, as YAML",
    },
).required()
_NAME = text(1, _MAX_NAME).required()
_START = boolean().default_to(False).described("Starts it then")


def blueprint(services: Services) -> Api:
    api = Api("entries", tag="models")

    def change(name: str, edited: Callable[[str], str], **options: Any) -> dict[str, Any]:
        with _refusals():
            return {"name": name, **save(services, edited, is_partial=True, **options)}

    @api.call("GET /api/config/models/<path:name>", Rule.CONFIG, errors=(404,))
    def show(name: str) -> Response:
        """A model's entry in the config, as it is written.

        `entry` is YAML, and `version` that of the whole file.
        """
        found = _file(services)
        with _refusals():
            entry = edit.entry_text(found.text, name)
        return jsonify({"name": name, "entry": entry, "version": found.version})

    @api.call(
        "POST /api/config/models",
        Rule.CONFIG,
        body={"name": _NAME, "entry": _ENTRY, "start": _START},
        errors=(409,),
    )
    def add(body: dict[str, Any]) -> Response:
        """Adds a model to the config, and applies that."""
        name, entry = body["name"], body["entry"]
        done = change(name, lambda text: edit.add_models(text, {name: edit.read_entry(entry)}))
        if body["start"]:
            services.fleet.find(name).start()
        return jsonify(done)

    @api.call(
        "PUT /api/config/models/<path:name>",
        Rule.CONFIG,
        body={"entry": _ENTRY, "version": VERSION},
        errors=(404, 409),
    )
    def replace(name: str, body: dict[str, Any]) -> Response:
        """Replaces a model's entry in the config, and applies that.

        With `version` only where the file is still the one that the entry was read from. A running
        model goes on as it is until it is started again.
        """

        def edited(text: str) -> str:
            return edit.replace_model(text, name, edit.read_entry(body["entry"]))

        return jsonify(change(name, edited, version=body.get("version", ANY_VERSION)))

    @api.call("DELETE /api/config/models/<path:name>", Rule.CONFIG, errors=(404, 409))
    def remove(name: str) -> Response:
        """Removes a model from the config, and applies that: it drains and stops."""
        return jsonify(change(name, lambda text: edit.remove_model(text, name)))

    @api.call(
        "POST /api/config/preview",
        Rule.CONFIG,
        body={"name": _NAME, "entry": _ENTRY},
        audit=False,
    )
    def preview(body: dict[str, Any]) -> Response:
        """What is wrong with an entry, and what a start of its model would do; nothing is written.

        `problems` and `warnings` have the `line` of the entry, 0 for the name. `start` is as of
        `POST /api/models/{name}/start?dry_run=1`, null where there are problems.
        """
        name, found = body["name"], _file(services)
        with _refusals():
            entry = edit.read_entry(body["entry"])
            try:
                after = edit.replace_model(found.text, name, entry)
            except edit.NoEntry:
                after = edit.add_models(found.text, {name: entry})
            lines = edit.lines_of(after, name)
        edited = found.edited(after, lambda _folder: services.interfaces)
        config = edited.config
        return jsonify(
            {
                "problems": [_of_entry(problem, lines) for problem in edited.problems],
                "warnings": [
                    _of_entry(warning, lines)
                    for warning in (config.warnings if config else ())
                    if warning.line in lines
                ],
                "start": services.fleet.preview(config.models[name]) if config else None,
            }
        )

    return api


def _file(services: Services) -> config_file.ConfigFile:
    """Raises ApiError where it cannot be read."""
    found = config_file.read_file(services.fleet.config.path)
    if found.problem:
        raise ApiError(409, "config_not_writable", found.problem.message)
    return found


@contextmanager
def _refusals() -> Iterator[None]:
    """What an edit refuses, as ApiError."""
    try:
        yield
    except edit.NoEntry as error:
        raise ApiError(404, "model_not_found", str(error)) from error
    except edit.NameTaken as error:
        raise ApiError(409, "model_exists", str(error), param="name") from error
    except edit.EditError as error:
        raise ApiError(400, "invalid_entry", str(error), param="entry") from error


def _of_entry(problem: Problem, lines: range) -> dict[str, Any]:
    """A problem with its line in the entry; with the file's, said so, where it is elsewhere."""
    if problem.line in lines:
        return {"line": problem.line - lines.start, "message": problem.message}
    return {"line": None, "message": f"line {problem.line} of the file: {problem.message}"}

"""What editors and the docs get of the declarations: a JSON Schema, and tables in Markdown."""

from __future__ import annotations

from typing import Any

from manager.config import declaration
from manager.config.declaration import Key, keys
from manager.config.settings import (
    REMOVED_KEYS,
    AliasChanges,
    Export,
    Model,
    Program,
    RequestChanges,
    Scheme,
)

TABLES = {
    "program": Program,
    "export": Export,
    "model": Model,
    "request": RequestChanges,
    "alias": AliasChanges,
    "scheme": Scheme,
}
"""The tables of the docs, each with the dataclass whose keys it lists."""


def json_schema() -> dict[str, Any]:
    """The schema of config.yaml, for editors. The program's own checks know more."""
    program = declaration.schema(Program)
    for name, instead in REMOVED_KEYS.items():
        program["properties"][name] = {"description": f"Ignored: {instead}.", "deprecated": True}
    scheme = declaration.schema(Scheme)
    scheme["oneOf"] = [{"required": ["script_path"]}, {"required": ["command"]}]
    scheme["if"] = {"properties": {"detached": {"const": True}}, "required": ["detached"]}
    scheme["then"] = {"required": ["stop_command"]}
    # What is no key of a model is one of its schemes, under a name of the user's choice.
    model = {**declaration.schema(Model), "additionalProperties": {"$ref": "#/$defs/scheme"}}
    models = {"additionalProperties": {"$ref": "#/$defs/model"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "LLM-Manager's config.yaml",
        "type": "object",
        "properties": {
            "program": {**program, "type": ["object", "null"]},
            "Local-Models": {**models, "type": ["object", "null"]},
        },
        "patternProperties": {"^x-": True},
        "additionalProperties": False,
        "$defs": {"model": model, "scheme": scheme},
    }


def table(cls: type) -> str:
    """The keys of a dataclass as a table in Markdown."""
    rows = ["| key | default | takes | meaning |", "| --- | --- | --- | --- |"]
    for key in keys(cls):
        cells = (f"`{key.name}`", _default(key), _takes(key), key.described)
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _default(key: Key) -> str:
    if key.required:
        return "has to be there"
    if key.inherit:
        return "the program's"
    if key.absent:
        return key.absent
    if key.default in (None, (), {}):
        return "none"
    if isinstance(key.default, tuple):
        return f"`[{', '.join(key.default)}]`"
    return f"`{_number(key.default)}`"


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _takes(key: Key) -> str:
    return f"{_kind(key.reader.schema)} {key.unit}".rstrip()


def _kind(schema: Any) -> str:
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    match schema["type"]:
        case ["array", "object"]:
            return "a list, or a mapping"
        case "boolean":
            return "`true`, `false`"
        case "integer":
            return f"{schema['minimum']} to {schema['maximum']}"
        case "number":
            least = "0" if "minimum" in schema else "more than 0"
            return f"{least} to {schema['maximum']}"
        case "array":
            return "a list"
        case "object":
            values = schema.get("additionalProperties")
            return f"a mapping, each {_kind(values)}" if values else "a mapping"
    return "text"

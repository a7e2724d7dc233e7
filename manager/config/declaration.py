"""How a key of config.yaml is declared: once, as a field of the dataclass that holds its value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from manager.config.yaml_reader import Reader, Section, Value, reader, section

T = TypeVar("T")


@dataclass(frozen=True)
class Key:
    """What the file may have under `name`, and the `field` that it fills.

    `help` is a sentence of Markdown, `unit` is that of a number. With `restart` a changed value is
    used from the program's next start on, else from the next reload. `inherit`: a model that does
    not have the key has the program's value. `required` says what to write where the key is
    missing. `absent` says what holds where neither the file nor `default` has a value.
    """

    field: str
    name: str
    reader: Reader[Any]
    help: str
    default: Any = None
    unit: str = ""
    absent: str = ""
    required: str = ""
    restart: bool = False
    inherit: bool = False

    @property
    def described(self) -> str:
        """`help`, and whether a reload is enough."""
        return self.help + (" Needs a restart of the program." if self.restart else "")


def key(default: Any, reader: Reader[Any], help: str, *, repr: bool = True, **rest: Any) -> Any:
    """A dataclass field for a key: `rest` are further attributes of its `Key`. Where the file calls
    it otherwise than Python, `name` does."""
    metadata = {"key": {"reader": reader, "help": help, "default": default, **rest}}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, repr=repr, metadata=metadata)
    return dataclasses.field(default=default, repr=repr, metadata=metadata)


def inherited(cls: type, field: str) -> Any:
    """A field for a key of a model that is also one of the program, which has its default."""
    declared = next(one for one in dataclasses.fields(cls) if one.name == field)
    metadata = {"key": {**declared.metadata["key"], "inherit": True}}
    return dataclasses.field(default=declared.default, metadata=metadata)


def keys(cls: type) -> Iterator[Key]:
    """The keys of a dataclass, in order; its fields that are no keys are left out."""
    for field in dataclasses.fields(cls):
        if declared := field.metadata.get("key"):
            yield Key(field.name, **{"name": field.name, **declared})


def read_keys(
    cls: type, given: Section, readers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The values, by field, of those keys that are given and good. The others' problems are noted.

    `readers` has, by field, those that read instead of the declared ones and know more of the file.
    """
    values = {}
    for declared in keys(cls):
        if declared.required:
            given.require(declared.name, declared.required)
        value = given.read(
            declared.name, (readers or {}).get(declared.field, declared.reader), None
        )
        if value is not None:
            values[declared.field] = value
    return values


def record(cls: type[T]) -> Reader[T]:
    """Reads a mapping with the keys of a dataclass and no others."""

    @reader(**schema(cls))
    def read(value: Value) -> T:
        given = section(value)
        result = cls(**read_keys(cls, given))
        given.reject_unread()
        return result

    return read


def schema(cls: type) -> dict[str, Any]:
    """What a mapping with the keys of a dataclass has in it, as JSON Schema."""
    result: dict[str, Any] = {
        "type": "object",
        "properties": {declared.name: _described(declared) for declared in keys(cls)},
        "additionalProperties": False,
    }
    if required := [declared.name for declared in keys(cls) if declared.required]:
        result["required"] = required
    return result


def _described(declared: Key) -> dict[str, Any]:
    described: dict[str, Any] = {**declared.reader.schema, "description": declared.described}
    if declared.unit:
        described["description"] += f" In {declared.unit}."
    if declared.default not in (None, (), {}) and not declared.inherit:
        described["default"] = declared.default
    return described

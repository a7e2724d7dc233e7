"""Readers for what stands under the config's keys: scalars, lists, paths, times, prices."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import zoneinfo
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import yaml

from manager.billing import Price, Tier, parse_amount, pricing
from manager.config import schedule, variables
from manager.config.variables import Expanded
from manager.config.yaml_reader import (
    TAG,
    InvalidValue,
    Reader,
    Value,
    has_control,
    nearest,
    reader,
    section,
)

T = TypeVar("T")

SCRIPT_SUFFIXES = (".sh", ".bat", ".cmd", ".ps1", ".py")
_MAX_TOKENS = 1_000_000_000_000
_MAX_JSON_DEPTH = 32
_SCALAR = ["string", "number", "boolean"]
_NUMBERS = (TAG + "int", TAG + "float")
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

# YAML 1.1 also has octal (010), hexadecimal and sexagesimal (1:30) numbers: nobody means them here.
_DECIMAL_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_DECIMAL_NUMBER = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?")


@reader(type="string")
def text(value: Value) -> str:
    """Text on one line, not empty."""
    if isinstance(value.node, yaml.ScalarNode) and value.node.tag != TAG + "str":
        raise InvalidValue(f"expected text, found {value.found}: put it in quotes if that is meant")
    return single_line(value)


@reader(type=_SCALAR)
def single_line(value: Value) -> str:
    """Any scalar as it was written, on one line, not empty: `3.10` and `on` are names here."""
    written = scalar_text(value)
    if not written.strip():
        raise InvalidValue("expected text, found none")
    if has_control(written):
        raise InvalidValue(
            "has a control character in it; in double quotes \\ begins an escape: "
            "write / instead, or use single quotes"
        )
    return written


@reader(type=_SCALAR)
def scalar_text(value: Value) -> str:
    """Any scalar as it was written, whatever YAML takes it for; it may be empty or have lines."""
    if not isinstance(value.node, yaml.ScalarNode):
        raise InvalidValue(f"expected text, found {value.kind}")
    if value.is_null:
        raise InvalidValue('expected text, found nothing: write "" for an empty one')
    written: str = value.node.value
    if "\0" in written or any("\ud800" <= character <= "\udfff" for character in written):
        raise InvalidValue("take out the character that no program can be given (NUL, surrogate)")
    return written


@reader(type="boolean")
def boolean(value: Value) -> bool:
    """true or false."""
    if value.node.tag != TAG + "bool" or value.node.value.lower() not in _BOOLEANS:
        raise InvalidValue(f"expected true or false without quotes, found {value.found}")
    return _BOOLEANS[value.node.value.lower()]


def _json(value: Value, depth: int = _MAX_JSON_DEPTH) -> Any:
    """What JSON can say: a text, a number, true, false, null, a list or a mapping of those."""
    node = value.node
    # A list's items are read by nobody else who would count them.
    value.document.count(1, value.line)
    if not depth:
        raise InvalidValue(f"is nested more than {_MAX_JSON_DEPTH} deep")
    if isinstance(node, yaml.SequenceNode):
        return [_json(item, depth - 1) for item in value.items()]
    if isinstance(node, yaml.MappingNode):
        return {name: _json(entry, depth - 1) for name, entry in section(value).unread()}
    if value.is_null:
        return None
    if node.tag == TAG + "bool":
        return boolean(value)
    if node.tag == TAG + "str":
        return scalar_text(value)
    digits = node.value.replace("_", "")
    if node.tag == TAG + "int" and _DECIMAL_INTEGER.fullmatch(node.value) and len(digits) <= 20:
        return int(digits)
    is_float = node.tag == TAG + "float" and _DECIMAL_NUMBER.fullmatch(node.value)
    if is_float and math.isfinite(number := float(digits)):
        return number
    raise InvalidValue(f"expected what JSON can say, found {value.found}: put it in quotes")


@reader(type="string")
def body_field(value: Value) -> str:
    """The name of a field of a request's body, but for the model's."""
    name = single_line(value)
    _check_body_field(name)
    return name


@reader(type="object", propertyNames={"not": {"const": "model"}})
def body_fields(value: Value) -> dict[str, Any]:
    """Fields of a request's body, but for the model's, with their values."""
    found = {}
    for name, entry in section(value).unread():
        _check_body_field(name)
        found[name] = _json(entry)
    return found


@reader(type="object", properties={"model": text.schema})
def alias_fields(value: Value) -> dict[str, Any]:
    """As `body_fields`, and what the server calls the model, under ``model``."""
    given = section(value)
    model = given.read("model", text, None)
    others = {name: _json(entry) for name, entry in given.unread()}
    return others if model is None else {"model": model, **others}


def _check_body_field(name: str) -> None:
    if name == "model":
        raise InvalidValue("the model that is asked for is set by served_model_name")


def integer(low: int, high: int) -> Reader[int]:
    """A whole number in low..high."""

    @reader(type="integer", minimum=low, maximum=high)
    def read(value: Value) -> int:
        if value.node.tag == TAG + "int" and _DECIMAL_INTEGER.fullmatch(value.node.value):
            digits = value.node.value.replace("_", "")
            # Python refuses to convert thousands of digits; that many are out of range anyway.
            if len(digits) <= 20 and low <= int(digits) <= high:
                return int(digits)
        raise InvalidValue(f"expected a whole number from {low} to {high}, found {value.found}")

    return read


def number(high: float, *, zero: bool = False) -> Reader[float]:
    """A number above 0, or from 0 with `zero`, up to `high`."""

    @reader(type="number", maximum=high, **{"minimum" if zero else "exclusiveMinimum": 0})
    def read(value: Value) -> float:
        if value.node.tag in _NUMBERS and _DECIMAL_NUMBER.fullmatch(value.node.value):
            result = abs(float(value.node.value.replace("_", "")))  # abs: no -0.0
            negative = value.node.value.startswith("-") and result > 0
            if result <= high and not negative and (result > 0 or zero):
                return result
        least = "from 0" if zero else "above 0"
        raise InvalidValue(f"expected a number {least} up to {high:.0f}, found {value.found}")

    return read


def choice(what: str, names: Collection[str], *, any_case: bool = False) -> Reader[str]:
    """One of `names`, which are the known `what`s."""

    @reader(enum=list(names))
    def read(value: Value) -> str:
        word = text(value)
        return _known(what, word.upper() if any_case else word, names)

    return read


@reader(type="string")
def mode(value: Value) -> str:
    """A mode of the shipped interfaces or of a plugin's."""
    return _known("mode", text(value), value.document.modes)


def _known(what: str, word: str, names: Collection[str]) -> str:
    if word not in names:
        near = nearest(word, names)
        hint = f"; did you mean {near}?" if near else ""
        raise InvalidValue(f"unknown {what} {word!r}; known: {', '.join(names)}{hint}")
    return word


def listed(item: Reader[T]) -> Reader[tuple[T, ...]]:
    """A list of what `item` reads; the good items where some are bad."""

    @reader(type="array", items=item.schema)
    def read(value: Value) -> tuple[T, ...]:
        if not isinstance(value.node, yaml.SequenceNode):
            raise InvalidValue(f"expected a list, found {value.kind}: write [one, two]")
        results = (one.read(item, None) for one in value.items())
        return tuple(result for result in results if result is not None)

    return read


def mapped(item: Reader[T]) -> Reader[dict[str, T]]:
    """A mapping from names to what `item` reads; the good entries where some are bad."""

    @reader(type="object", additionalProperties=item.schema)
    def read(value: Value) -> dict[str, T]:
        results = {key: entry.read(item, None) for key, entry in section(value).unread()}
        return {key: result for key, result in results.items() if result is not None}

    return read


@reader(type="string")
def path(value: Value) -> Path:
    """A path with either slash, relative to the file's folder; it need not exist. A leading ``~``
    is the home directory."""
    return value.document.folder / _at_home(text(value))


@reader(type="string")
def folder(value: Value) -> Path:
    """An existing folder."""
    return _existing(path(value))


@reader(type=["string", "array"], items={"type": "string"})
def folders(value: Value) -> tuple[Path, ...]:
    """Existing folders: one, or a list."""
    if isinstance(value.node, yaml.SequenceNode):
        return listed(folder)(value)
    return (folder(value),)


@reader(type="string")
def working_folder(value: Value) -> Path:
    """As `folder`, with ``${NAME}`` from the environment."""
    written = variables.expand(_at_home(text(value))).text
    return _existing(value.document.folder / written.replace("\\", "/"))


def _at_home(written: str) -> str:
    """Before variables are expanded, as in a command: their values are taken as they are."""
    return os.path.expanduser(written.replace("\\", "/"))


def _existing(result: Path) -> Path:
    # os.path answers False where pathlib raises (no right to read, a name too long).
    if not os.path.isdir(result):
        raise InvalidValue(f"there is no folder {result}")
    return result


@reader(type="string")
def timezone(value: Value) -> str:
    name = text(value)
    try:
        zoneinfo.ZoneInfo(name)
    # OSError: the name of a folder of zones, such as America.
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = zoneinfo.available_timezones()
        if not known:
            raise InvalidValue(
                "this system has no time zone data: `pip install tzdata`, or leave this out"
            ) from None
        near = nearest(name, known) or "Europe/Berlin"
        raise InvalidValue(f"unknown time zone {name!r}; did you mean {near}?") from None
    return name


@reader(type="string")
def cron_expression(value: Value) -> str:
    expression = text(value)
    try:
        schedule.check(expression)
    except ValueError as error:
        raise InvalidValue(str(error)) from None
    return expression


@reader(type="string")
def script(value: Value) -> Path:
    """An existing file that can be started."""
    result = path(value)
    if result.suffix.lower() not in SCRIPT_SUFFIXES:
        value.problem(f"a script ends in {', '.join(SCRIPT_SUFFIXES)}; for others use command")
    if not os.path.isfile(result):
        raise InvalidValue(f"there is no file {result}")
    return result


@reader(type="array", items=scalar_text.schema, minItems=1)
def command(value: Value) -> tuple[str, ...]:
    arguments = listed(scalar_text)(value)
    if not arguments or not arguments[0].strip():
        raise InvalidValue("expected a list that begins with the program to run")
    return arguments


@reader(type="object", additionalProperties=scalar_text.schema)
def environment(value: Value) -> dict[str, Expanded]:
    for name, entry in section(value).unread():
        if not name or "=" in name or "\0" in name:
            entry.problem("an environment variable's name cannot be empty or have a = in it")
    return mapped(_expanded)(value)


@reader(**scalar_text.schema)
def _expanded(value: Value) -> Expanded:
    return variables.expand(scalar_text(value))


@reader(type="string")
def api_key(value: Value) -> str:
    """What a server is sent as its key; ``${NAME}`` is from the environment. No message has any of
    it."""
    written = scalar_text(value)
    key = variables.expand(written).text
    if not key or not all("!" <= character <= "~" for character in key):
        where = "what is written here" if key == written else "the value of the variable"
        raise InvalidValue(f"{where} is no key: ASCII without spaces, not empty")
    return key


@reader(type=["number", "string"])
def amount(value: Value) -> int:
    """An amount of the currency, in billionths."""
    try:
        return parse_amount(scalar_text(value))
    except ValueError as error:
        raise InvalidValue(str(error)) from error


PORT = integer(1, 65535)
MEGABYTES = integer(1, 1_000_000_000)

_TIER_READERS: dict[str, Reader[Any]] = {"amount": amount, "flag": boolean}


def _tier_reader(field: dataclasses.Field[Any]) -> Reader[Any]:
    unit, default = field.metadata["unit"], field.metadata["default"]
    return integer(default, _MAX_TOKENS) if unit == "tokens" else _TIER_READERS[unit]


@reader(
    type="object",
    properties={field.name: _tier_reader(field).schema for field in dataclasses.fields(Tier)},
    required=[one.name for one in dataclasses.fields(Tier) if one.metadata["default"] is None],
    additionalProperties=False,
)
def tier(value: Value) -> Tier:
    """A price for requests of some size."""
    given = section(value)
    for field in dataclasses.fields(Tier):
        if field.metadata["default"] is None:
            given.require(field.name, "a price per million tokens, 0 if free")
    values: dict[str, Any] = {
        field.name: given.read(field.name, _tier_reader(field), field.metadata["default"] or 0)
        for field in dataclasses.fields(Tier)
    }
    read = Tier(**values)
    for fault in pricing.find_errors(Price(None, (read,))):
        value.problem(fault.removeprefix("tier 1: "))
    given.reject_unread()
    return read


@reader(
    type="object",
    properties={
        "per_hour": amount.schema,
        "tiers": {"type": "array", "items": tier.schema},
    },
    additionalProperties=False,
)
def price(value: Value) -> Price:
    """What a model costs."""
    given = section(value)
    read = Price(given.read("per_hour", amount, None), given.read("tiers", listed(tier), ()))
    if given.get("per_hour") is None and given.get("tiers") is None:
        value.problem("a price has per_hour, tiers or both", value.key_line)
    given.reject_unread()
    return read

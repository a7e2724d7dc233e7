"""The fields of query strings and JSON bodies: how each is read, and its schema. An error names the
field by its path, such as ``tiers[0].input``."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone, tzinfo
from typing import Any

from flask import request

from manager.billing import parse_amount
from manager.config import has_control
from manager.errors import ApiError
from manager.relay import json_fault

_LATEST = 253_339_228_800  # epoch seconds: the year 9998, the last that the calendar can compute
MAX_TEXT = 500  # characters
_MAX_BODY = 1_000_000  # bytes
_DECIMAL = re.compile(r"[0-9]{1,12}(?:\.([0-9]{1,9}))?")
# A + in a query string is a blank.
_BLANK_OFFSET = re.compile(r"(.*T.*) (\d\d:?\d\d)")


class Number(str):
    """A number of JSON, as it was written: no digit of an amount is lost."""

    __slots__ = ()


# --- what fields are --------------------------------------------------------------------


Reader = Callable[[str, Any], Any]
"""Reads the value of a field, whose path is for messages; raises ApiError 400."""

Schema = dict[str, Any]
"""As OpenAPI has it."""

_ABSENT = object()


@dataclass(frozen=True)
class Field:
    """A field of a JSON body, or a parameter of a query: how it is read, and its schema."""

    read: Reader
    schema: Schema
    is_required: bool = False
    default: Any = _ABSENT

    def required(self) -> Field:
        return replace(self, is_required=True)

    def default_to(self, value: Any) -> Field:
        """The same; where it is left out, it has this value."""
        is_shown = isinstance(value, str | int) and value != ""
        schema = {**self.schema, "default": value} if is_shown else self.schema
        return replace(self, default=value, schema=schema)

    def nullable(self) -> Field:
        """The same, or null, which is read as None."""
        kind = self.schema.get("type")
        if isinstance(kind, str) and "enum" not in self.schema:
            schema: Schema = {**self.schema, "type": [kind, "null"]}
        else:
            schema = {"oneOf": [self.schema, {"type": "null"}]}
        read = self.read
        return replace(
            self,
            read=lambda path, value: None if value is None else read(path, value),
            schema=schema,
        )

    def described(self, description: str) -> Field:
        return replace(self, schema={**self.schema, "description": description})


Fields = Mapping[str, Field]


@dataclass(frozen=True)
class Body:
    """The fields of a JSON object; ``more`` is added to its schema."""

    fields: Fields
    more: Schema = field(default_factory=dict)

    @property
    def schema(self) -> Schema:
        needed = [name for name, one in self.fields.items() if one.is_required]
        return {
            "type": "object",
            "additionalProperties": False,
            **({"required": needed} if needed else {}),
            "properties": {name: one.schema for name, one in self.fields.items()},
            **self.more,
        }


def read_fields(fields: Fields, given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The values of the fields. One that is not given has its default, or is not in the result.
    Raises ApiError 400 for one that is not known, missing or of another kind; ``where`` is the
    path of the object, such as ``tiers[0].``"""
    for name in given:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(fields)}"
            raise bad(where + name[:40], f"there is no {where}{name[:40]}; {hint}")
    values = {}
    for name, one in fields.items():
        if name in given:
            values[name] = one.read(where + name, given[name])
        elif one.is_required:
            raise bad(where + name, f"{where}{name} is missing")
        elif one.default is not _ABSENT:
            values[name] = one.default
    return values


def read_body(body: Body) -> dict[str, Any]:
    """The values of the request's JSON object. Raises ApiError."""
    return read_fields(body.fields, _json())


def read_query(fields: Fields) -> dict[str, Any]:
    """The values of the request's query string. Raises ApiError 400 also for a parameter that is
    not known or there twice, since without it the answer would be another one."""
    given: dict[str, Any] = {}
    for name, values in request.args.lists():
        if len(values) > 1:
            raise bad(name, f"{name[:40]} is there twice; give it once")
        is_number = name in fields and fields[name].schema.get("type") == "integer"
        given[name] = Number(values[0]) if is_number else values[0]
    return read_fields(fields, given)


def anything(**schema: Any) -> Field:
    """A parameter that is taken as it is."""
    return Field(lambda _path, value: value, {"type": "string", **schema})


def text(least: int = 0, most: int = MAX_TEXT, pattern: str | None = None) -> Field:
    """One line; ``pattern`` is for the schema."""

    def read(path: str, value: Any) -> str:
        is_text = isinstance(value, str) and not isinstance(value, Number)
        if not is_text or len(value) > MAX_TEXT or has_control(value):
            raise bad(path, f"{path} has to be text of one line and at most {MAX_TEXT} characters")
        return str(value)

    schema: Schema = {"type": "string", "maxLength": most}
    if least:
        schema["minLength"] = least
    return Field(read, schema if pattern is None else {"type": "string", "pattern": pattern})


def choice(*choices: str) -> Field:
    def read(path: str, value: Any) -> Any:
        if value not in choices:
            shown = repr(value[:40]) if isinstance(value, str) else "another kind of value"
            raise bad(path, f"{path} has to be {' or '.join(choices)}, not {shown}")
        return value

    return Field(read, {"type": "string", "enum": list(choices)})


def flag(description: str) -> Field:
    """A parameter that is 1 or 0, read as a bool; False where it is left out."""
    one = choice("0", "1", "true", "false")
    read = one.read
    return replace(
        one, read=lambda path, value: read(path, value) in ("1", "true"), default=False
    ).described(description)


WAIT = {"wait": flag("1: answers when it is done")}
"""Of the calls that begin something and answer 202."""


def integer(least: int, most: int) -> Field:
    def read(path: str, value: Any) -> int:
        if isinstance(value, Number) and re.fullmatch("-?[0-9]{1,15}", value):
            number = int(value)
            if least <= number <= most:
                return number
        raise bad(path, f"{path} has to be a whole number from {least} to {most}")

    return Field(read, {"type": "integer", "minimum": least, "maximum": most})


def boolean() -> Field:
    def read(path: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise bad(path, f"{path} has to be true or false")
        return value

    return Field(read, {"type": "boolean"})


def amount(*, is_signed: bool = False) -> Field:
    """Money, in billionths."""

    def read(path: str, value: Any) -> int:
        if not isinstance(value, str):  # a Number is one, too
            raise bad(path, f'{path} has to be an amount, such as "0.5"')
        try:
            if is_signed and value.startswith("-"):
                return -parse_amount(value[1:])
            return parse_amount(value)
        except ValueError as error:
            raise bad(path, f"{path}: {error}") from error

    return Field(read, {"$ref": "#/components/schemas/Amount"})


def moment(zone: Callable[[], tzinfo]) -> Field:
    """A moment, in epoch ms; without an offset it is the zone's."""

    def read(path: str, value: Any) -> int:
        if not isinstance(value, str):
            raise bad(path, f"{path} has to be epoch seconds or ISO 8601")
        return moment_ms(path, value, zone())

    return Field(read, {"$ref": "#/components/schemas/Moment"})


def record(body: Body, example: str) -> Field:
    """An object in a body, as a dict; ``example`` is for the message where it is none."""

    def read(path: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise bad(path, f"{path} has to be an object{example and f', such as {example}'}")
        return read_fields(body.fields, value, f"{path}.")

    return Field(read, body.schema)


def list_of(item: Field, least: int, most: int | None, what: str) -> Field:
    """A list, as a tuple; ``what`` says of what."""

    def read(path: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise bad(path, f"{path} has to be a list of {what}")
        if most is not None and len(value) > most:
            raise bad(path, f"{path} has to have at most {most} in it")
        return tuple(item.read(f"{path}[{place}]", one) for place, one in enumerate(value))

    schema: Schema = {"type": "array", "items": item.schema}
    if least:
        schema["minItems"] = least
    if most is not None:
        schema["maxItems"] = most
    return Field(read, schema)


# --- reading ----------------------------------------------------------------------------


def moment_ms(name: str, text: str, zone: tzinfo) -> int:
    """A moment in epoch seconds or ISO 8601, in epoch ms; without an offset it is the zone's.
    Raises ApiError 400."""
    decimal = _DECIMAL.fullmatch(text)
    if decimal:
        seconds, _, part = text.partition(".")
        ms = int(seconds) * 1000 + int((part + "000")[:3])
    else:
        ms = _iso_ms(name, text, zone)
    if not 0 <= ms < _LATEST * 1000:
        raise bad(
            name,
            f"{name} has to be in the years 1970 to 9997, not {text[:40]!r}"
            " (a number is in seconds, not milliseconds)",
        )
    return ms


def _iso_ms(name: str, text: str, zone: tzinfo) -> int:
    # Python 3.10 does not know the Z.
    spelled = re.sub("[zZ]$", "+00:00", _BLANK_OFFSET.sub(r"\1+\2", text))
    try:
        moment = datetime.fromisoformat(spelled)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=zone)
        since = moment - datetime(1970, 1, 1, tzinfo=timezone.utc)
    except (ValueError, OverflowError):
        raise bad(
            name,
            f"{name} has to be epoch seconds or ISO 8601, such as 2026-11-01 or"
            f" 2026-11-01T08:00:00Z, not {text[:40]!r}",
        ) from None
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def _json() -> dict[str, Any]:
    """The request's JSON object; its numbers are of type Number. Raises ApiError."""
    if (request.content_length or 0) > _MAX_BODY:
        raise ApiError(413, "body_too_large", f"The body is over {_MAX_BODY} bytes")
    coding = request.headers.get("Content-Encoding", "identity")
    if coding.strip().lower() != "identity":  # the audit table has what is sent, in the clear
        raise ApiError(
            415,
            "unsupported_encoding",
            f"The Content-Encoding of the request is {coding[:40]!r}; calls of /api take none",
        )
    body = request.get_data()
    try:
        decoded = json.loads(
            body.decode("utf-8-sig"),
            parse_float=Number,
            parse_int=Number,
            parse_constant=_refuse,
            object_pairs_hook=_once,
        )
    except (ValueError, RecursionError) as error:
        message = f"The body is not valid JSON: {json_fault(body, error)}"
        raise ApiError(400, "invalid_json", message) from error
    if not isinstance(decoded, dict):
        raise ApiError(400, "invalid_json", "The body has to be a JSON object")
    return decoded


def bad(name: str, message: str) -> ApiError:
    """The error for a parameter or a field of the body."""
    return ApiError(400, "bad_parameter", message, param=name)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is in an object twice")
    for key in result:
        key.encode("utf-8")  # JSON can spell half a character, which no message can hold
    return result

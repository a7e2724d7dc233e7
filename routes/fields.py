"""Reading the fields of a JSON body. The name that a message gives a field is its path."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import tzinfo
from typing import Any

from manager.billing.pricing import billionths
from manager.config.yaml_reader import has_control
from routes.request import Number, bad, moment_ms

LONGEST_TEXT = 500
REQUIRED = object()

Reader = Callable[[str, Any], Any]
"""Reads the value at a path, or raises ApiError 400, as each function below does."""


def read(
    given: dict[str, Any], name: str, reader: Reader, default: Any = REQUIRED, path: str = ""
) -> Any:
    """The field, or the default where it is not there. Raises ApiError 400."""
    if name in given:
        return reader(path + name, given[name])
    if default is REQUIRED:
        raise bad(path + name, f"{path}{name} is missing")
    return default


def optional(reader: Reader) -> Reader:
    """The same, or null."""
    return lambda path, value: None if value is None else reader(path, value)


def amount(path: str, value: Any) -> int:
    """Money, in billionths."""
    if not isinstance(value, str):  # a Number is one, too
        raise bad(path, f'{path} has to be an amount, such as "0.5"')
    try:
        return billionths(value)
    except ValueError as error:
        raise bad(path, f"{path}: {error}") from error


def signed(path: str, value: Any) -> int:
    """Money that may be below zero, in billionths."""
    if isinstance(value, str) and value.startswith("-"):
        return -amount(path, value[1:])
    return amount(path, value)


def integer(path: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, Number) and re.fullmatch("-?[0-9]{1,15}", value):
        number = int(value)
        if least <= number <= most:
            return number
    raise bad(path, f"{path} has to be a whole number from {least} to {most}")


def boolean(path: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise bad(path, f"{path} has to be true or false")
    return value


def text(path: str, value: Any) -> str:
    """One line, maybe an empty one."""
    is_text = isinstance(value, str) and not isinstance(value, Number)
    if not is_text or len(value) > LONGEST_TEXT or has_control(value):
        raise bad(path, f"{path} has to be text of one line and at most {LONGEST_TEXT} characters")
    return str(value)


def moment(path: str, value: Any, zone: tzinfo) -> int:
    """A moment in epoch ms; without an offset it is the zone's."""
    if not isinstance(value, str):
        raise bad(path, f"{path} has to be epoch seconds or ISO 8601")
    return moment_ms(path, value, zone)

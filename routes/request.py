"""Reading what a query string or a JSON body asks for; what is wrong is said by its name."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection
from datetime import datetime, timezone, tzinfo
from typing import Any

from flask import request

from manager.errors import ApiError

_LATEST = 253_339_228_800  # epoch seconds: the year 9998, the last that the calendar can compute
_LONGEST_BODY = 1_000_000  # bytes
_DECIMAL = re.compile(r"[0-9]{1,12}(?:\.([0-9]{1,9}))?")
# A + in a query string is a blank.
_BLANK_OFFSET = re.compile(r"(.*T.*) (\d\d:?\d\d)")


class Number(str):
    """A number of JSON, as it was written: no digit of an amount is lost."""

    __slots__ = ()


class Query:
    """The query string's parameters. Raises ApiError 400 ``bad_parameter`` for those that are not
    known or there twice, since without them the answer would be another one."""

    def __init__(self, known: Collection[str]) -> None:
        for name, values in request.args.lists():
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
                raise bad(name, f"there is no parameter {name[:40]!r}; {hint}")
            if len(values) > 1:
                raise bad(name, f"{name} is there twice; give it once")

    def text(self, name: str) -> str | None:
        return request.args.get(name)

    def choice(self, name: str, choices: Collection[str]) -> str | None:
        """One of the choices. Raises ApiError 400."""
        value = request.args.get(name)
        if value is not None and value not in choices:
            raise bad(name, f"{name} has to be {' or '.join(choices)}, not {value[:40]!r}")
        return value

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`. Raises ApiError 400."""
        value = request.args.get(name)
        if value is None:
            return None
        if not re.fullmatch("[0-9]{1,9}", value) or not low <= int(value) <= high:
            raise bad(name, f"{name} has to be {low} to {high}, not {value[:40]!r}")
        return int(value)

    def moment_ms(self, name: str, zone: tzinfo) -> int | None:
        """A moment, epoch ms; see below. Raises ApiError 400."""
        value = request.args.get(name)
        return None if value is None else moment_ms(name, value, zone)


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


def body() -> dict[str, Any]:
    """The request's JSON object; its numbers are of type Number. Raises ApiError."""
    if (request.content_length or 0) > _LONGEST_BODY:
        raise ApiError(413, "body_too_large", f"The body is over {_LONGEST_BODY} bytes")
    try:
        decoded = json.loads(
            request.get_data().decode("utf-8"),
            parse_float=Number,
            parse_int=Number,
            parse_constant=_refuse,
            object_pairs_hook=_once,
        )
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"The body is not valid JSON: {error}") from error
    if not isinstance(decoded, dict):
        raise ApiError(400, "invalid_json", "The body has to be a JSON object")
    return decoded


def refuse_unknown(given: dict[str, Any], known: Collection[str], where: str = "") -> None:
    """Raises ApiError 400 for a key that is not known; `where` is what is before it."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
            raise bad(where + key[:40], f"there is no {where}{key[:40]}; {hint}")


def bad(name: str, message: str) -> ApiError:
    """The refusal of a parameter or of a field of the body."""
    return ApiError(400, "bad_parameter", message, param=name)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is in an object twice")
    for key in result:
        key.encode("utf-8")  # JSON can spell half a character, which no message can tell
    return result

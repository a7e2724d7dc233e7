"""Rollups: sums of requests and runs over quarters of an hour, hours and days, all in UTC.

Quarters are enough for every time zone in use, since its days and hours begin at one of them; hours
and days above them keep long ranges quick. The sums are declared once, as fields of `Sums`: what
reads requests into sums, adds sums up, or shows them takes its columns from there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

ALL = "*"
"""In a row of sums, in place of a name: of all together."""

QUARTER_MS = 900_000
HOUR_MS = 4 * QUARTER_MS
DAY_MS = 24 * HOUR_MS
SPANS = {"quarter": QUARTER_MS, "hour": HOUR_MS, "day": DAY_MS}
"""The length of each span, ms; each is made of whole ones of the span before it."""

CELL = ("span", "start_ms", "model", "key", "mode", "scheme")
"""The key of ``rollups`` and ``latencies``."""

Who = tuple[str, str, str, str]
"""Model, key, mode, scheme."""

MAX_INTEGER = 2**63 - 1


def _of_request(sql: str, *, on_bill: bool = False, money: bool = False) -> Any:
    """A sum over requests: ``sql`` is what one row of ``requests`` adds to it."""
    return field(default=0, metadata={"sql": sql, "on_bill": on_bill, "money": money})


def _of_run(*, money: bool = False) -> Any:
    """A sum over the time of runs."""
    return field(default=0, metadata={"money": money})


@dataclass
class Sums:
    """Sums over some requests and runs. Money is in billionths."""

    requests: int = _of_request("1", on_bill=True)
    errors: int = _of_request("status >= 400", on_bill=True)
    prompt_tokens: int = _of_request("prompt_tokens", on_bill=True)
    cached_tokens: int = _of_request("cached_tokens", on_bill=True)
    completion_tokens: int = _of_request("completion_tokens", on_bill=True)
    # Requests whose tokens we counted.
    estimated: int = _of_request("estimated", on_bill=True)
    # Requests with tokens that no tier fits; a price without tiers charges nothing for tokens.
    unpriced: int = _of_request(
        "cost IS 0 AND tier IS NULL AND prompt_tokens + completion_tokens > 0 AND"
        " (price IS NULL OR price IN (SELECT id FROM prices WHERE tiers != '[]'))",
        on_bill=True,
    )
    cost_tokens: int = _of_request("ifnull(cost, 0)", money=True)
    # Completion tokens of streamed answers, and the time from their first byte to their end.
    generated_tokens: int = _of_request(
        "iif(streamed AND first_byte_ms IS NOT NULL, completion_tokens, 0)"
    )
    generated_ms: int = _of_request(
        "iif(streamed AND first_byte_ms IS NOT NULL, max(ended_ms - first_byte_ms, 0), 0)"
    )
    run_ms: int = _of_run()
    cost_hours: int = _of_run(money=True)

    def add(self, other: Sums) -> None:
        """Adds the other's sums to these; both are of the same class."""
        sums = vars(self)
        for name, value in vars(other).items():
            sums[name] += value

    def add_found(self, found: Sequence[int], sign: int = 1) -> None:
        """Adds what a SELECT of `ADDED_UP` has found, or takes it away."""
        sums, values = vars(self), iter(found)
        for name, value in zip(SUM_COLUMNS, values, strict=False):
            if name in MONEY:
                value = value * _UNIT + next(values)
            sums[name] += sign * value

    def is_empty(self) -> bool:
        return not any(vars(self).values())


_COLUMNS = {column.name: column.metadata for column in fields(Sums)}
SUM_COLUMNS = tuple(_COLUMNS)
"""The columns of ``rollups`` beside `CELL`."""
REQUEST_SUMS = {name: data["sql"] for name, data in _COLUMNS.items() if "sql" in data}
"""What one row of ``requests`` adds to each of the sums, in SQL."""
RUN_SUMS = tuple(name for name in SUM_COLUMNS if name not in REQUEST_SUMS)
MONEY = frozenset(name for name, data in _COLUMNS.items() if data["money"])
ON_BILL = tuple(name for name, data in _COLUMNS.items() if data.get("on_bill"))

CONTRIBUTION = ", ".join(f"{sql} AS {name}" for name, sql in REQUEST_SUMS.items())
"""For a SELECT from ``requests``: what each row adds to the sums of requests."""

# Money in two columns: added up it may be more than SQLite's integers hold.
_UNIT = 1_000_000_000


def _added_up(column: str) -> str:
    if column in MONEY:
        return f"sum({column} / {_UNIT}), sum({column} % {_UNIT})"
    return f"sum({column})"


ADDED_UP = ", ".join(map(_added_up, SUM_COLUMNS))
"""For a SELECT from ``rollups``: all sums, as `Sums.add_found` takes them."""
REQUESTS_ADDED_UP = ", ".join(
    _added_up(name) if name in REQUEST_SUMS else "0, 0" if name in MONEY else "0"
    for name in SUM_COLUMNS
)
"""The same for a SELECT from a SELECT of `CONTRIBUTION`."""


class Piece(NamedTuple):
    """The rollups of this span that start from ``start_ms`` on and before ``end_ms``; ``places``
    are the ranges that they are added to (1) or taken from (-1)."""

    span: str
    start_ms: int
    end_ms: int
    places: tuple[tuple[int, int], ...]


def pieces(borders: Sequence[int]) -> Iterator[Piece]:
    """Few rollups that make up the ranges between the borders. A quarter belongs to where it
    starts.

    Ranges of about a day and more are made of days in UTC; what lies between a border and the
    midnight next to it is read once, for the ranges on both of its sides. So the days of a zone
    eight hours from UTC need eight hours each, not twenty-four.
    """
    ranges = list(itertools.pairwise(borders))
    if borders[-1] - borders[0] < len(ranges) * DAY_MS // 2:
        for place, (low, high) in enumerate(ranges):
            yield from _inside(low, high, place)
        return
    for place, (low, high) in enumerate(ranges):
        first, last = _nearest(low, DAY_MS), _nearest(high, DAY_MS)
        if first < last:
            yield Piece("day", first, last, ((place, 1),))
    for number, border in enumerate(borders):
        for sign, span, low, high in _beside(border):
            places = ((number - 1, sign), (number, -sign))
            yield Piece(span, low, high, places[number == 0 : 2 - (number == len(ranges))])


def _inside(start_ms: int, end_ms: int, place: int) -> Iterator[Piece]:
    """Hours, and quarters at the ends."""
    low, high = start_ms + -start_ms % HOUR_MS, end_ms - end_ms % HOUR_MS
    parts = [("quarter", start_ms, low), ("hour", low, high), ("quarter", high, end_ms)]
    for span, first, last in parts if low < high else [("quarter", start_ms, end_ms)]:
        if first < last:
            yield Piece(span, first, last, ((place, 1),))


def _beside(border: int) -> Iterator[tuple[int, str, int, int]]:
    """What is between the midnight next to a moment and the moment, or less than nothing where the
    midnight comes after it."""
    at = _nearest(border, DAY_MS)
    for span, until in (("hour", _nearest(border, HOUR_MS)), ("quarter", border)):
        if at != until:
            yield (1 if at < until else -1), span, min(at, until), max(at, until)
        at = until


def _nearest(ms: int, length: int) -> int:
    return (ms + length // 2) // length * length


def merged(who: Who) -> tuple[Who, Who]:
    """Whom it is added up with: the model with all keys, and the key with all models."""
    model, key, mode, scheme = who
    return (model, ALL, mode, scheme), (ALL, key, ALL, ALL)


def spread(start_ms: int, ms: int, cost: int) -> Iterator[tuple[int, int, int]]:
    """What a stretch of a run's time that costs so much has in each quarter: its start, ms and
    cost. The parts of the cost are rounded so that they add up to it."""
    done = 0
    while done < ms:
        quarter = (start_ms + done) // QUARTER_MS * QUARTER_MS
        until = min(quarter + QUARTER_MS - start_ms, ms)
        yield quarter, until - done, cost * until // ms - cost * done // ms
        done = until

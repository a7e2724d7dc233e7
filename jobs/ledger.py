"""What the parts of billing share: the state of the sums, prices, and requests as numbers.

Everything is read and computed first, and written in a short transaction, which begins with a look
at whether what was read still holds: a kill at any moment leaves all of it or nothing, and of two
workers at once one begins anew. Rows are the truth, marks say how far their sums have come.

Sums are only ever added to: those of requests that retention has deleted cannot be made again.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import tzinfo
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from jobs import tally
from jobs.tally import Book, Cell, Packed, Version, Who
from manager.billing import calendar
from manager.billing.pricing import PER_UNIT, Price, hour_cost, tiers_from_json
from manager.storage.maintenance import mark
from manager.storage.schema import SUMS
from manager.usage import latency

LARGEST = 2**63 - 1

T = TypeVar("T")
Row = tuple[Any, ...]

_NUMBERS = (
    *("seq", "status", "streamed", "started_ms", "first_byte_ms", "ended_ms"),
    *("prompt_tokens", "cached_tokens", "completion_tokens", "estimated"),
    *("price", "tier", "cost", "new"),
)
_READ = (
    "SELECT model, key, mode, scheme, seq, status, streamed, started_ms,"
    " ifnull(first_byte_ms, -1), ended_ms, prompt_tokens, cached_tokens, completion_tokens,"
    " estimated, ifnull(price, 0), ifnull(tier, -1), ifnull(cost, 0), cost IS NULL FROM requests"
)

CELL = ("span", "start_ms", "model", "key", "mode", "scheme")


def adding(table: str, sums: tuple[str, ...], added: str) -> str:
    """The statement that adds to a row of sums, and makes it where there is none."""
    columns = (*CELL, *sums)
    changes = ", ".join(f"{name} = {added.format(name, f'excluded.{name}')}" for name in sums)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        f" ON CONFLICT DO UPDATE SET {changes}"
    )


# A sum of integers that is too large becomes a float: rather the largest integer.
NUMBER = f"min({{}} + {{}}, {LARGEST})"
LATENCIES = ("first", "whole")
ADD_REQUESTS = adding("rollups", SUMS, NUMBER)
ADD_LATENCIES = adding("latencies", LATENCIES, "latency_added({}, {})")
WHERE_CELL = " AND ".join(f"{name} = ?" for name in CELL)
CLEAR_ROLLUPS = (
    f"DELETE FROM rollups WHERE {WHERE_CELL} AND requests = 0 AND run_ms = 0 AND cost_hours = 0"
)
SET_MARK = "INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)"


class Changed(Exception):
    """What was read does not hold any more; nothing was written."""


@dataclass(frozen=True)
class Move:
    """How far the sums have moved to the hours and days of another time zone: the mark `move`.

    Requests up to `last` were added up in the zone before, those up to `seq` have moved. Then come
    the hours of runs, in order; those before `run` and `hour_ms` have moved.
    """

    zone: str
    last: int
    seq: int = 0
    run: str = ""
    hour_ms: int = 0


@dataclass(frozen=True)
class State:
    """What the sums are sums of, as the marks have it."""

    timezone: str | None
    move: Move | None

    def zone(self, configured: tzinfo) -> tzinfo:
        """Where what is new goes. Raises ValueError where that zone cannot be read any more."""
        name = self.move.zone if self.move else self.timezone
        return configured if name is None else zone_of(name, configured)


class Prices:
    """All versions; it holds as long as nobody has added or replaced one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._seen = self._look(connection)
        self._live: list[Version] = []
        self._by_id: dict[int, Version] = {}
        for id_, model, effective_ms, per_hour, tiers, replaced in connection.execute(
            "SELECT id, model, effective_ms, per_hour, tiers, replaced_ms IS NOT NULL FROM prices"
            " ORDER BY effective_ms"
        ):
            price = Price(per_hour, tiers_from_json(tiers))
            self._by_id[id_] = Version(id_, model, effective_ms, price)
            if not replaced:
                self._live.append(self._by_id[id_])

    def hold(self, connection: sqlite3.Connection) -> bool:
        return self._look(connection) == self._seen

    def book(self) -> Book:
        return Book(self._live)

    def cost(self, price: int, ms: int) -> int:
        return hour_cost(self._by_id[price].price.per_hour, ms) if price else 0

    def order(self, price: int) -> int:
        """By this the versions of a model come one after the other; no price comes first."""
        return self._by_id[price].effective_ms if price else -LARGEST

    def parts(self, model: str, start_ms: int, end_ms: int, zone: tzinfo) -> Iterator[Part]:
        """The stretches of a time, by hours and versions."""
        versions = [version for version in self._live if version.model == model]
        begins = [version.effective_ms for version in versions]
        while start_ms < end_ms:
            number = bisect_right(begins, start_ms)
            hour_ms = calendar.hour_start_ms(start_ms, zone)
            end = min(calendar.next_hour_ms(hour_ms, zone), end_ms, *begins[number : number + 1])
            price = versions[number - 1].id if number else 0
            yield Part(hour_ms, start_ms, end, price)
            start_ms = end

    @staticmethod
    def _look(connection: sqlite3.Connection) -> tuple[int, ...]:
        seen: tuple[int, ...] = connection.execute(
            "SELECT count(*), count(replaced_ms), max(id), sum(created_ms) FROM prices"
        ).fetchone()
        return seen


@dataclass(frozen=True)
class Batch:
    """Requests as numbers: `frame` has _NUMBERS, and `who` as a place in `names`."""

    frame: pd.DataFrame
    names: list[Who]

    @property
    def seqs(self) -> list[int]:
        return list(self.frame["seq"].tolist())


class Part(NamedTuple):
    """A stretch of a run's time within an hour, under one version of the price (0: none)."""

    hour_ms: int
    start_ms: int
    end_ms: int
    price: int


def again(attempt: Callable[[], T]) -> T:
    """Its result; tries again where somebody has written meanwhile what it had read."""
    while True:
        with suppress(Changed):
            return attempt()


def require(holds: bool) -> None:
    if not holds:
        raise Changed


def teach(connection: sqlite3.Connection) -> None:
    """Has SQLite know how to add and take packed latencies."""
    connection.create_function("latency_added", 2, latency.added, deterministic=True)
    connection.create_function("latency_taken", 2, latency.taken, deterministic=True)


def state_of(connection: sqlite3.Connection) -> State:
    move = mark(connection, "move")
    return State(mark(connection, "timezone"), Move(**json.loads(move)) if move else None)


def write_move(connection: sqlite3.Connection, move: Move) -> None:
    connection.execute(SET_MARK, ("move", json.dumps(asdict(move))))


def zone_of(name: str, configured: tzinfo) -> tzinfo:
    for known in (configured, calendar.zone(None)):
        if str(known) == name:  # the system's may have a name that is none of IANA's
            return known
    return calendar.zone(name)


def read(connection: sqlite3.Connection, where: str, values: tuple[object, ...]) -> Batch | None:
    rows = connection.execute(f"{_READ} {where}", values).fetchall()
    if not rows:
        return None
    model, key, mode, scheme, *numbers = zip(*rows, strict=True)
    places: dict[Who, int] = {}
    who = [
        places.setdefault(name, len(places)) for name in zip(model, key, mode, scheme, strict=True)
    ]
    columns = dict(zip(_NUMBERS, (np.array(column, np.int64) for column in numbers), strict=True))
    return Batch(pd.DataFrame({**columns, "who": who}), list(places))


def are_there(connection: sqlite3.Connection, seqs: list[int]) -> bool:
    """Whether none of the requests between the first and the last has been deleted."""
    if not seqs:
        return True
    (count,) = connection.execute(
        "SELECT count(*) FROM requests WHERE seq BETWEEN ? AND ?", (seqs[0], seqs[-1])
    ).fetchone()
    return bool(count == len(seqs))


def priced(batch: Batch, book: Book, which: np.ndarray | bool) -> Batch:
    """With prices for those, and with what is unpriced of all."""
    frame = batch.frame.copy()
    found = book.price([model for model, *_ in batch.names], frame)
    for name in ("price", "tier", "cost"):
        frame[name] = np.where(which, found[name], frame[name])
    return Batch(frame.assign(unpriced=book.unpriced(frame)), batch.names)


def rollup_rows(sums: pd.DataFrame, names: list[Who]) -> list[Row]:
    """For ADD_REQUESTS."""
    columns = {name: sums[name].tolist() for name in tally.NUMBERS}
    money = zip(columns.pop("units"), columns.pop("billionths"), strict=True)
    columns["cost_tokens"] = [
        max(min(units * PER_UNIT + billionths, LARGEST), -LARGEST) for units, billionths in money
    ]
    return _rows(sums, tally.everyone(names), [columns[name] for name in SUMS])


def latency_rows(latencies: dict[Cell, Packed]) -> list[Row]:
    """For ADD_LATENCIES."""
    return sorted((*cell, *packed) for cell, packed in latencies.items())


def _rows(sums: pd.DataFrame, names: list[Who], columns: list[list[Any]]) -> list[Row]:
    # In the order of the tables' keys: neighbours are on the same page.
    cells = zip(sums["span"].tolist(), sums["start"].tolist(), sums["who"].tolist(), strict=True)
    return sorted(
        (span, start, *names[who], *values)
        for (span, start, who), values in zip(cells, zip(*columns, strict=True), strict=True)
    )

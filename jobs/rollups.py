"""Adding to the rollups, and two writers that meet.

Everything is read and computed first, and written in a short transaction that begins with a check
whether what was read still holds: a kill at any moment leaves all of it or nothing, and of two
workers at once one starts again. Rows are the truth, marks say how far their sums have come.

Sums are only ever added to: those of requests that retention has deleted cannot be made again.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from manager.billing import PriceVersion, hour_cost, read_versions
from manager.storage import latency
from manager.storage.rollups import (
    CELL,
    HOUR_MS,
    MAX_INTEGER,
    REQUEST_SUMS,
    RUN_SUMS,
    SPANS,
    SUM_COLUMNS,
    Who,
    merged,
)

T = TypeVar("T")
Row = tuple[Any, ...]

SET_MARK = "INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)"


class WriteConflict(Exception):
    """What was read does not hold any more; nothing was written."""


def retry_on_conflict(attempt: Callable[[], T]) -> T:
    """Its result; tries again where somebody has written meanwhile what it had read."""
    while True:
        with suppress(WriteConflict):
            return attempt()


def require(holds: bool) -> None:
    if not holds:
        raise WriteConflict


def _adding(table: str, sums: Iterable[str], added: str) -> str:
    """The statement that adds to a row of sums, and makes it where there is none."""
    columns = (*CELL, *sums)
    changes = ", ".join(f"{name} = {added.format(name, f'excluded.{name}')}" for name in sums)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        f" ON CONFLICT DO UPDATE SET {changes}"
    )


# A sum of integers that is too large becomes a float: rather the largest integer.
_NUMBER = f"min({{}} + {{}}, {MAX_INTEGER})"
_ADD_REQUESTS = _adding("rollups", REQUEST_SUMS, _NUMBER)
_ADD_RUN_TIME = _adding("rollups", RUN_SUMS, _NUMBER)
_ADD_LATENCIES = _adding("latencies", ("first", "whole"), "latency_added({}, {})")
_CLEAR = (
    f"DELETE FROM rollups WHERE {' AND '.join(f'{name} = ?' for name in CELL)}"
    f" AND {' AND '.join(f'{name} = 0' for name in SUM_COLUMNS)}"
)


def add_requests(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Rows of CELL and the sums of requests; inside of a transaction, as all that add."""
    # In the order of the table's key: neighbours are on the same page.
    connection.executemany(_ADD_REQUESTS, sorted(rows))


def add_run_time(
    connection: sqlite3.Connection, who: Who, quarters: dict[int, tuple[int, int]]
) -> None:
    """Milliseconds and cost by the start of the quarter; both may be below zero."""
    cells: dict[Row, list[int]] = defaultdict(lambda: [0, 0])
    for start_ms, (ms, cost) in quarters.items():
        for span, length in SPANS.items():
            for whose in (who, *merged(who)):
                cell = (span, start_ms // length * length, *whose)
                sums = cells[cell]
                sums[0] += ms
                sums[1] += cost
    rows = [(*cell, *sums) for cell, sums in sorted(cells.items()) if any(sums)]
    connection.executemany(_ADD_RUN_TIME, rows)
    less = [cell for cell, sums in cells.items() if min(sums) < 0]
    connection.executemany(_CLEAR, less)


class LatencyCells:
    """Histograms of how long requests took, of each model with all keys and each key with all
    models: with those of each model and key there would be about as many as there are requests."""

    def __init__(self) -> None:
        self._cells: dict[Row, list[int]] = defaultdict(lambda: [0, 0])

    def count(
        self, who: Who, quarter_ms: int, started_ms: int, first_ms: int | None, ended_ms: int
    ) -> None:
        first = 0 if first_ms is None else latency.histogram(first_ms - started_ms)
        whole = latency.histogram(ended_ms - started_ms)
        for whose in merged(who):
            cell = (quarter_ms, *whose)
            sums = self._cells[cell]
            sums[0] += first
            sums[1] += whole

    def add_to(self, connection: sqlite3.Connection) -> None:
        rows: dict[Row, list[int]] = defaultdict(lambda: [0, 0])
        for (start_ms, *whose), (first, whole) in self._cells.items():
            for span, length in SPANS.items():
                cell = (span, start_ms // length * length, *whose)
                sums = rows[cell]
                sums[0] += first
                sums[1] += whole
        connection.create_function("latency_added", 2, latency.add, deterministic=True)
        connection.executemany(
            _ADD_LATENCIES,
            [(*cell, *map(latency.pack, sums)) for cell, sums in sorted(rows.items())],
        )


class PricedInterval(NamedTuple):
    """A stretch of a run's time within an hour, under one version of the price (0: none)."""

    hour_ms: int
    start_ms: int
    end_ms: int
    price: int


class PriceSnapshot:
    """All versions of prices, as they were read; they hold until somebody adds or replaces one."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._seen = self._look(connection)
        self._of_model: dict[str, list[PriceVersion]] = defaultdict(list)
        for version in read_versions(connection):
            self._of_model[version.model].append(version)
        every = [*read_versions(connection), *read_versions(connection, replaced=True)]
        self._by_id = {version.id: version for version in every}

    def still_hold(self, connection: sqlite3.Connection) -> bool:
        return self._look(connection) == self._seen

    def of_model(self, model: str) -> list[PriceVersion]:
        """In the order in which they come into force."""
        return self._of_model.get(model, [])

    def hour_cost(self, price: int, ms: int) -> int:
        return hour_cost(self._by_id[price].price.per_hour, ms) if price else 0

    def order(self, price: int) -> int:
        """By this the versions of a model come one after the other; no price comes first."""
        return self._by_id[price].effective_ms if price else -MAX_INTEGER

    def intervals(
        self, model: str, start_ms: int, end_ms: int, hour_ms: int
    ) -> Iterator[PricedInterval]:
        """The stretches of a time, by hours in UTC and versions; the first hour is `hour_ms`."""
        versions = self.of_model(model)
        begins = [version.effective_ms for version in versions]
        while start_ms < end_ms:
            if start_ms >= hour_ms + HOUR_MS:
                hour_ms = start_ms // HOUR_MS * HOUR_MS
            number = bisect_right(begins, start_ms)
            end = min(hour_ms + HOUR_MS, end_ms, *begins[number : number + 1])
            price = versions[number - 1].id if number else 0
            yield PricedInterval(hour_ms, start_ms, end, price)
            start_ms = end

    @staticmethod
    def _look(connection: sqlite3.Connection) -> tuple[int, ...]:
        seen: tuple[int, ...] = connection.execute(
            "SELECT count(*), count(replaced_ms), max(id), sum(created_ms) FROM prices"
        ).fetchone()
        return seen

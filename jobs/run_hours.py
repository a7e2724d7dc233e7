"""What runs of models cost by their time: one row a run, hour and version of the price.

The cost of a row is that of all its time, rounded once; the quarters of an hour share it.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from jobs.rollups import (
    PricedInterval,
    PriceSnapshot,
    add_run_time,
    require,
    retry_on_conflict,
)
from manager.storage import transaction
from manager.storage.rollups import HOUR_MS, MAX_INTEGER, spread

_AT_ONCE = 100  # hours in one transaction

Hours = dict[tuple[int, int], tuple[int, int]]
"""Milliseconds and cost, by the start of the hour and the version of the price."""


class Run(NamedTuple):
    """A row of runs."""

    id: str
    model: str
    mode: str
    scheme: str
    ready_ms: int
    ended_ms: int | None
    heartbeat_ms: int | None
    billed_ms: int | None
    ready_clock_ms: int | None  # None: its times are the wall clock's, as before schema 6


class RunHours:
    """What run_hours has of a run for some hours, and changes of it that are written together
    with those of the rollups.

    Hours are those of UTC; before schema 5 they were local ones, which may begin at another
    quarter: the last of these is filled up before the next one begins.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        run: Run,
        prices: PriceSnapshot,
        low_ms: int,
        high_ms: int,
    ) -> None:
        self._run = run
        self._prices = prices
        # A local hour may reach into the first one.
        self._range = (run.id, low_ms - HOUR_MS, high_ms)
        self._stored = self._read(connection)
        self._now = dict(self._stored)

    def intervals(self) -> list[PricedInterval]:
        """When the stored time was."""
        return [interval for interval, _ in self._laid_out(self._stored)]

    def hour_ms(self, at_ms: int) -> int:
        """The hour that time from this moment on belongs to."""
        stored = [hour_ms for hour_ms, _ in self._stored if hour_ms <= at_ms < hour_ms + HOUR_MS]
        return max(stored, default=at_ms // HOUR_MS * HOUR_MS)

    def add(self, interval: PricedInterval) -> None:
        ms, _ = self._now.get((interval.hour_ms, interval.price), (0, 0))
        self._put(interval, ms + interval.end_ms - interval.start_ms)

    def remove(self, interval: PricedInterval) -> None:
        """Takes away all that an hour has under a version."""
        self._put(interval, 0)

    def write(self, connection: sqlite3.Connection) -> None:
        """Inside of a transaction. Raises WriteConflict where others have written what was
        read."""
        require(self._read(connection) == self._stored)
        for key, (ms, cost) in self._now.items():
            if ms:
                connection.execute(
                    "INSERT OR REPLACE INTO run_hours VALUES (?, ?, ?, ?, ?)",
                    (self._run.id, *key, ms, cost),
                )
            else:
                connection.execute(
                    "DELETE FROM run_hours WHERE run = ? AND hour_ms = ? AND price = ?",
                    (self._run.id, *key),
                )
        before, after = self._quarters(self._stored), self._quarters(self._now)
        change = {
            start_ms: (
                after[start_ms][0] - before[start_ms][0],
                after[start_ms][1] - before[start_ms][1],
            )
            for start_ms in {**before, **after}
        }
        who = (self._run.model, "", self._run.mode, self._run.scheme)
        add_run_time(connection, who, change)

    def _put(self, interval: PricedInterval, ms: int) -> None:
        cost = self._prices.hour_cost(interval.price, ms)
        self._now[interval.hour_ms, interval.price] = (ms, cost)

    def _laid_out(self, hours: Hours) -> Iterator[tuple[PricedInterval, int]]:
        """One after the other, with their costs: within an hour a version's time follows that of
        the one before."""
        end_ms = self._run.ready_ms
        in_order = sorted(hours, key=lambda key: (key[0], self._prices.order(key[1])))
        for hour_ms, price in in_order:
            ms, cost = hours[hour_ms, price]
            start_ms = max(hour_ms, end_ms)
            end_ms = start_ms + ms
            yield PricedInterval(hour_ms, start_ms, end_ms, price), cost

    def _quarters(self, hours: Hours) -> defaultdict[int, tuple[int, int]]:
        """Milliseconds and cost by the start of the quarter."""
        sums: defaultdict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for interval, cost in self._laid_out(hours):
            ms = interval.end_ms - interval.start_ms
            for start_ms, part_ms, part_cost in spread(interval.start_ms, ms, cost):
                ms_before, cost_before = sums[start_ms]
                sums[start_ms] = (ms_before + part_ms, cost_before + part_cost)
        return sums

    def _read(self, connection: sqlite3.Connection) -> Hours:
        rows = connection.execute(
            "SELECT hour_ms, price, ms, cost FROM run_hours"
            " WHERE run = ? AND hour_ms >= ? AND hour_ms <= ?",
            self._range,
        )
        return {(hour_ms, price): (ms, cost) for hour_ms, price, ms, cost in rows}


def bill_runs(connection: sqlite3.Connection, now_ms: int) -> int:
    """Adds the time that runs have taken and that was not added yet; says of how many runs.

    A run is billed from when it was ready to its end; while it goes on, to its last heartbeat. One
    whose heartbeats are the wall clock's is billed no further than now: that clock may have been
    ahead.
    """
    runs = connection.execute(
        "SELECT id FROM runs WHERE ready_ms IS NOT NULL"
        " AND (ended_ms IS NULL OR billed_ms IS NOT ended_ms) ORDER BY id"
    ).fetchall()
    billed = 0
    for (run,) in runs:
        pieces = 0
        while retry_on_conflict(lambda: _bill_run(connection, run, now_ms)):  # noqa: B023 - called now
            pieces += 1
        billed += pieces > 0
    return billed


def are_billed(connection: sqlite3.Connection, until_ms: int) -> bool:
    """Whether all time that runs are known to have taken before that moment was added."""
    unbilled = connection.execute(
        "SELECT 1 FROM runs WHERE ready_ms IS NOT NULL"
        " AND (ended_ms IS NULL OR billed_ms IS NOT ended_ms)"
        " AND ready_ms < ?1"
        " AND min(coalesce(ended_ms, heartbeat_ms, 0), ?1) > coalesce(billed_ms, ready_ms) LIMIT 1",
        (until_ms,),
    )
    return unbilled.fetchone() is None


def price_unpriced(connection: sqlite3.Connection, run: str, start_ms: int, end_ms: int) -> int:
    """Prices the hours of a run that had no price and have one now; says how many."""
    changed = 0
    at: int | None = start_ms
    while at is not None:
        after = at
        done, at = retry_on_conflict(
            lambda: _price_some_hours(connection, run, after, end_ms)  # noqa: B023
        )
        changed += done
    return changed


def run_of(connection: sqlite3.Connection, run: str) -> Run | None:
    row = connection.execute(
        f"SELECT {', '.join(Run._fields)} FROM runs WHERE id = ?",
        (run,),
    ).fetchone()
    return None if row is None else Run(*row)


def _bill_run(connection: sqlite3.Connection, run: str, now_ms: int) -> bool:
    """Bills a piece of its time; False where there is nothing to do."""
    prices, row = PriceSnapshot(connection), run_of(connection, run)
    if row is None or row.billed_ms == row.ended_ms is not None:
        return False
    billed_ms = max(row.billed_ms or 0, row.ready_ms)
    if row.ended_ms is not None:
        until_ms = max(row.ended_ms, row.ready_ms)
    else:
        until_ms = row.heartbeat_ms or 0
        if row.ready_clock_ms is None:
            until_ms = min(until_ms, now_ms)
        if until_ms <= billed_ms:
            return False
    if until_ms < billed_ms:
        hours, reached_ms = _taken_back(connection, prices, row, until_ms)
    else:
        hours, reached_ms = _gone_on(connection, prices, row, billed_ms, until_ms)
    if row.ended_ms is not None and reached_ms == until_ms:
        reached_ms = row.ended_ms  # which may lie before ready_ms
    with transaction(connection):
        require(prices.still_hold(connection) and run_of(connection, run) == row)
        hours.write(connection)
        connection.execute("UPDATE runs SET billed_ms = ? WHERE id = ?", (reached_ms, run))
    return True


def _gone_on(
    connection: sqlite3.Connection, prices: PriceSnapshot, run: Run, start_ms: int, end_ms: int
) -> tuple[RunHours, int]:
    """Adds what it has taken since `start_ms`, and how far that goes."""
    hours = RunHours(connection, run, prices, start_ms // HOUR_MS * HOUR_MS, end_ms)
    intervals = prices.intervals(run.model, start_ms, end_ms, hours.hour_ms(start_ms))
    some = list(islice(intervals, _AT_ONCE))
    for interval in some:
        hours.add(interval)
    return hours, some[-1].end_ms if some else end_ms


def _taken_back(
    connection: sqlite3.Connection, prices: PriceSnapshot, run: Run, end_ms: int
) -> tuple[RunHours, int]:
    """Takes away what was billed beyond its end, the last hours first, and down to where: a clock
    that was set back ends a run before its last heartbeat."""
    last = connection.execute(
        "SELECT hour_ms FROM run_hours WHERE run = ? AND hour_ms > ? ORDER BY hour_ms DESC LIMIT ?",
        (run.id, end_ms - HOUR_MS, _AT_ONCE),
    ).fetchall()
    first_ms = last[-1][0] if last else end_ms
    hours = RunHours(connection, run, prices, first_ms, MAX_INTEGER)
    reached_ms = max(end_ms, first_ms)
    stored = [interval for interval in hours.intervals() if interval.end_ms > reached_ms]
    for interval in stored:
        hours.remove(interval)
    for interval in stored:
        if interval.start_ms < reached_ms:
            hours.add(interval._replace(end_ms=reached_ms))
    return hours, reached_ms


def _price_some_hours(
    connection: sqlite3.Connection, run: str, start_ms: int, end_ms: int
) -> tuple[int, int | None]:
    """How many it has priced, and from when on to go on."""
    prices, row = PriceSnapshot(connection), run_of(connection, run)
    starts = connection.execute(
        "SELECT hour_ms FROM run_hours WHERE run = ? AND price = 0 AND hour_ms >= ?"
        " AND hour_ms < ? ORDER BY hour_ms LIMIT ?",
        (run, start_ms, end_ms, _AT_ONCE),
    ).fetchall()
    if row is None or not starts:
        return 0, None
    first_ms, last_ms = starts[0][0], starts[-1][0]
    hours = RunHours(connection, row, prices, first_ms, last_ms)
    changed = 0
    for interval in hours.intervals():
        if interval.price or interval.hour_ms < first_ms:
            continue
        now = list(prices.intervals(row.model, *interval[1:3], interval.hour_ms))
        if any(piece.price for piece in now):
            hours.remove(interval)
            for piece in now:
                hours.add(piece)
            changed += 1
    with transaction(connection):
        require(prices.still_hold(connection) and run_of(connection, run) == row)
        hours.write(connection)
    return changed, last_ms + 1

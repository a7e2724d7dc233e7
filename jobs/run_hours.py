"""What runs of models cost by their time: one row a run, hour and version of the price."""

from __future__ import annotations

import sqlite3
from datetime import tzinfo
from itertools import groupby, islice
from typing import NamedTuple

from jobs import tally
from jobs.ledger import (
    CELL,
    CLEAR_ROLLUPS,
    LARGEST,
    NUMBER,
    SET_MARK,
    Part,
    Prices,
    adding,
    again,
    require,
    state_of,
)
from manager.billing import calendar
from manager.storage.maintenance import transaction
from manager.storage.schema import SUMS_OF_RUNS

_AT_ONCE = 100  # hours in one transaction
_ADD_TIME = adding("rollups", SUMS_OF_RUNS, NUMBER)


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


class RunHours:
    """What run_hours has of a run for some hours, and changes of it that are written together
    with those of the rollups."""

    def __init__(
        self, connection: sqlite3.Connection, run: Run, prices: Prices, low_ms: int, high_ms: int
    ) -> None:
        self._run = run
        self._prices = prices
        self._range = (run.id, low_ms, high_ms)
        self._stored = self._read(connection)
        self._now = dict(self._stored)
        self._sums: dict[tuple[str, int], list[int]] = {}

    def parts(self) -> list[Part]:
        """When the stored time was: in an hour, a version's time follows that of the one before."""
        parts = []
        for hour_ms, keys in groupby(sorted(self._stored), key=lambda key: key[0]):
            at = max(hour_ms, self._run.ready_ms)
            for _, price in sorted(keys, key=lambda key: self._prices.order(key[1])):
                ms, _ = self._stored[hour_ms, price]
                parts.append(Part(hour_ms, at, at + ms, price))
                at += ms
        return parts

    def add(self, part: Part, zone: tzinfo) -> None:
        """Its hour is one of the zone's."""
        ms, _ = self._now.get((part.hour_ms, part.price), (0, 0))
        self._put(part, ms + part.end_ms - part.start_ms, zone)

    def take(self, part: Part, zone: tzinfo) -> None:
        """Takes a whole part away that was added in this zone."""
        self._put(part, 0, zone)

    def write(self, connection: sqlite3.Connection) -> None:
        """Inside of a transaction. Raises Changed where others have written what was read."""
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
        who = (self._run.model, "", self._run.mode, self._run.scheme)
        cells = [
            (span, start_ms, *whose, ms, cost)
            for (span, start_ms), (ms, cost) in self._sums.items()
            if ms or cost
            for whose in (who, *tally.merged(who))
        ]
        connection.executemany(_ADD_TIME, cells)
        connection.executemany(CLEAR_ROLLUPS, [cell[: len(CELL)] for cell in cells])

    def _put(self, part: Part, ms: int, zone: tzinfo) -> None:
        key = (part.hour_ms, part.price)
        before = self._now.get(key, (0, 0))
        after = self._now[key] = (ms, self._prices.cost(part.price, ms))
        for span, start_ms in (
            ("hour", part.hour_ms),
            ("day", calendar.day_start_ms(part.hour_ms, zone)),
        ):
            sums = self._sums.setdefault((span, start_ms), [0, 0])
            sums[0] += after[0] - before[0]
            sums[1] += after[1] - before[1]

    def _read(self, connection: sqlite3.Connection) -> dict[tuple[int, int], tuple[int, int]]:
        rows = connection.execute(
            "SELECT hour_ms, price, ms, cost FROM run_hours"
            " WHERE run = ? AND hour_ms >= ? AND hour_ms <= ?",
            self._range,
        )
        return {(hour_ms, price): (ms, cost) for hour_ms, price, ms, cost in rows}


def bill_runs(connection: sqlite3.Connection, zone: tzinfo, now_ms: int) -> int:
    """Adds the time that runs have taken and that was not added yet; says of how many runs.

    A run is billed from when it was ready to its end; while it goes on, to its last heartbeat, but
    no further than now. While `rebuild` is under way, none is. Raises ValueError as `price_new`.
    """
    runs = connection.execute(
        "SELECT id FROM runs WHERE ready_ms IS NOT NULL"
        " AND (ended_ms IS NULL OR billed_ms IS NOT ended_ms) ORDER BY id"
    ).fetchall()
    billed = 0
    for (run,) in runs:
        pieces = 0
        while again(lambda: _bill_run(connection, zone, run, now_ms)):  # noqa: B023 - called now
            pieces += 1
        billed += pieces > 0
    return billed


def price_unpriced(
    connection: sqlite3.Connection, zone: tzinfo, run: str, start_ms: int, end_ms: int
) -> int:
    changed = 0
    at: int | None = start_ms
    while at is not None:
        after = at
        done, at = again(
            lambda: _price_some_hours(connection, zone, run, after, end_ms)  # noqa: B023
        )
        changed += done
    return changed


def run_of(connection: sqlite3.Connection, run: str) -> Run | None:
    row = connection.execute(
        "SELECT id, model, mode, scheme, ready_ms, ended_ms, heartbeat_ms, billed_ms FROM runs"
        " WHERE id = ?",
        (run,),
    ).fetchone()
    return None if row is None else Run(*row)


def _bill_run(connection: sqlite3.Connection, configured: tzinfo, run: str, now_ms: int) -> bool:
    """Bills a piece of its time; False where there is nothing to do."""
    state, prices, row = state_of(connection), Prices(connection), run_of(connection, run)
    if state.move or row is None or row.billed_ms == row.ended_ms is not None:
        return False
    billed_ms = max(row.billed_ms or 0, row.ready_ms)
    if row.ended_ms is not None:
        until_ms = max(row.ended_ms, row.ready_ms)
    elif (until_ms := min(row.heartbeat_ms or 0, now_ms)) <= billed_ms:
        return False
    zone = state.zone(configured)
    if until_ms < billed_ms:
        hours, reached_ms = _taken_back(connection, prices, row, until_ms, zone)
    else:
        hours, reached_ms = _gone_on(connection, prices, row, billed_ms, until_ms, zone)
    if row.ended_ms is not None and reached_ms == until_ms:
        reached_ms = row.ended_ms  # which may lie before ready_ms
    with transaction(connection):
        require(state_of(connection) == state and prices.hold(connection))
        require(run_of(connection, run) == row)
        hours.write(connection)
        connection.execute("UPDATE runs SET billed_ms = ? WHERE id = ?", (reached_ms, run))
        if state.timezone is None:
            connection.execute(SET_MARK, ("timezone", str(zone)))
    return True


def _gone_on(
    connection: sqlite3.Connection,
    prices: Prices,
    run: Run,
    start_ms: int,
    end_ms: int,
    zone: tzinfo,
) -> tuple[RunHours, int]:
    """Adds what it has taken since `start_ms`, and how far that goes."""
    parts = list(islice(prices.parts(run.model, start_ms, end_ms, zone), _AT_ONCE))
    first_ms = calendar.hour_start_ms(start_ms, zone)
    hours = RunHours(connection, run, prices, first_ms, end_ms)
    for part in parts:
        hours.add(part, zone)
    return hours, parts[-1].end_ms if parts else end_ms


def _taken_back(
    connection: sqlite3.Connection, prices: Prices, run: Run, end_ms: int, zone: tzinfo
) -> tuple[RunHours, int]:
    """Takes away what was billed beyond its end, the last hours first, and down to where: a clock
    that was set back ends a run before its last heartbeat."""
    last = connection.execute(
        "SELECT hour_ms FROM run_hours WHERE run = ? AND hour_ms >= ?"
        " ORDER BY hour_ms DESC LIMIT ?",
        (run.id, calendar.hour_start_ms(end_ms, zone), _AT_ONCE),
    ).fetchall()
    first_ms = last[-1][0] if last else end_ms
    hours = RunHours(connection, run, prices, first_ms, LARGEST)
    reached_ms = max(end_ms, first_ms)
    for part in hours.parts():
        hours.take(part, zone)
    for part in hours.parts():
        if part.start_ms < reached_ms:
            hours.add(part._replace(end_ms=min(part.end_ms, reached_ms)), zone)
    return hours, reached_ms


def _price_some_hours(
    connection: sqlite3.Connection, configured: tzinfo, run: str, start_ms: int, end_ms: int
) -> tuple[int, int | None]:
    """How many it has priced, and from when on to go on."""
    state, prices, row = state_of(connection), Prices(connection), run_of(connection, run)
    require(state.move is None)
    starts = connection.execute(
        "SELECT hour_ms FROM run_hours WHERE run = ? AND price = 0 AND hour_ms >= ?"
        " AND hour_ms < ? ORDER BY hour_ms LIMIT ?",
        (run, start_ms, end_ms, _AT_ONCE),
    ).fetchall()
    if row is None or not starts:
        return 0, None
    zone = state.zone(configured)
    hours = RunHours(connection, row, prices, starts[0][0], starts[-1][0])
    changed = 0
    for part in hours.parts():
        now = list(prices.parts(row.model, part.start_ms, part.end_ms, zone))
        if part.price == 0 and any(piece.price for piece in now):
            hours.take(part, zone)
            for piece in now:
                hours.add(piece, zone)
            changed += 1
    with transaction(connection):
        require(state_of(connection) == state and prices.hold(connection))
        require(run_of(connection, run) == row)
        hours.write(connection)
    return changed, starts[-1][0] + 1

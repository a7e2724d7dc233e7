"""Moves all sums to the hours and days of another time zone."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import replace
from datetime import tzinfo

from jobs import tally
from jobs.ledger import (
    ADD_LATENCIES,
    ADD_REQUESTS,
    CELL,
    CLEAR_ROLLUPS,
    LARGEST,
    LATENCIES,
    NUMBER,
    SET_MARK,
    WHERE_CELL,
    Move,
    Part,
    Prices,
    Row,
    State,
    adding,
    again,
    are_there,
    priced,
    read,
    require,
    rollup_rows,
    state_of,
    teach,
    write_move,
    zone_of,
)
from jobs.run_hours import RunHours, run_of
from jobs.tally import Cell, Packed
from manager.billing import calendar
from manager.storage.maintenance import billed_seq, transaction
from manager.storage.schema import SUMS, SUMS_OF_RUNS

log = logging.getLogger("manager.worker")

_REQUESTS = 1500  # in one transaction
_HOURS = 100
_NOON_MS = 12 * calendar.HOUR_MS
_ALL_SUMS = (*SUMS, *SUMS_OF_RUNS)
_TABLES = {
    "rollups": (_ALL_SUMS, adding("rollups", _ALL_SUMS, NUMBER)),
    "latencies": (LATENCIES, ADD_LATENCIES),
}
_TAKE_LATENCIES = (
    "UPDATE latencies SET first = latency_taken(first, ?), whole = latency_taken(whole, ?)"
    f" WHERE {WHERE_CELL}"
)
_CLEAR_LATENCIES = f"DELETE FROM latencies WHERE {WHERE_CELL} AND whole = x''"


def rebuild(connection: sqlite3.Connection, zone: tzinfo) -> bool:
    """Moves all sums to the hours and days of `zone` where they are another's; says whether.

    Each piece takes some requests out of where they were added up and adds them to their hours and
    days in the new zone, so at each moment each is counted once. Killed, it goes on where it was
    when it is called again. What requests that retention has deleted have left stays in its hours;
    its days become those of the same dates. Nobody may delete a model's data meanwhile. Where the
    zone before cannot be read any more, what was added up stays where it is.
    """
    teach(connection)
    moved = False
    while again(lambda: _move_piece(connection, zone)):
        moved = True
    return moved


def _move_piece(connection: sqlite3.Connection, configured: tzinfo) -> bool:
    """Moves some of the sums; False when all are where they belong."""
    state = state_of(connection)
    if state.timezone is None or (state.move is None and state.timezone == str(configured)):
        return False
    try:
        old = zone_of(state.timezone, configured)
        new = zone_of(state.move.zone, configured) if state.move else configured
    except ValueError as error:
        # Such as the system's own zone, of a system that it was copied from.
        log.warning("what was added up so far stays in its hours and days: %s", error)
        _end_move(connection, state, str(configured))
        return True
    if state.move is None:
        _begin_move(connection, state, str(configured))
    elif state.move.seq < state.move.last:
        _move_requests(connection, state, old, new)
    elif not _move_hours(connection, state, old, new) and not _move_days(connection, state, new):
        _end_move(connection, state, state.move.zone)
    return True


def _begin_move(connection: sqlite3.Connection, state: State, zone: str) -> None:
    with transaction(connection):
        require(state_of(connection) == state)
        write_move(connection, Move(zone, billed_seq(connection)))


def _end_move(connection: sqlite3.Connection, state: State, zone: str) -> None:
    with transaction(connection):
        require(state_of(connection) == state)
        connection.execute(SET_MARK, ("timezone", zone))
        connection.execute("DELETE FROM marks WHERE name = 'move'")


def _move_requests(connection: sqlite3.Connection, state: State, old: tzinfo, new: tzinfo) -> None:
    move, prices = state.move, Prices(connection)
    assert move is not None
    batch = read(
        connection,
        "WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
        (move.seq, move.last, _REQUESTS),
    )
    seqs: list[int] = []
    sums: list[Row] = []
    before: dict[Cell, Packed] = {}
    after: dict[Cell, Packed] = {}
    if batch is not None:
        seqs = batch.seqs
        batch = priced(batch, prices.book(), False)
        change = tally.difference(
            tally.rollups(batch.frame, batch.names, old),
            tally.rollups(batch.frame, batch.names, new),
            tally.NUMBERS,
        )
        sums = rollup_rows(change, batch.names)
        before = tally.latencies(batch.frame, batch.names, old)
        after = tally.latencies(batch.frame, batch.names, new)
    taken = [(*packed, *cell) for cell, packed in before.items() if after.get(cell) != packed]
    added = [(*cell, *packed) for cell, packed in after.items() if before.get(cell) != packed]
    with transaction(connection):
        require(state_of(connection) == state and are_there(connection, seqs))
        require(prices.hold(connection))
        connection.executemany(ADD_REQUESTS, sums)
        connection.executemany(CLEAR_ROLLUPS, [row[: len(CELL)] for row in sums])
        connection.executemany(ADD_LATENCIES, added)
        connection.executemany(_TAKE_LATENCIES, taken)
        connection.executemany(_CLEAR_LATENCIES, [row[len(LATENCIES) :] for row in taken])
        write_move(connection, replace(move, seq=seqs[-1] if seqs else move.last))


def _move_hours(connection: sqlite3.Connection, state: State, old: tzinfo, new: tzinfo) -> bool:
    """Moves some hours of a run; False where there are none left."""
    move, prices = state.move, Prices(connection)
    assert move is not None
    rows = connection.execute(
        "SELECT DISTINCT run, hour_ms FROM run_hours WHERE (run, hour_ms) >= (?, ?)"
        " ORDER BY run, hour_ms LIMIT ?",
        (move.run, move.hour_ms, _HOURS),
    ).fetchall()
    if not rows:
        return False
    run, first_ms = rows[0]
    last_ms = max(hour_ms for name, hour_ms in rows if name == run)
    end_ms = calendar.next_hour_ms(last_ms, old)
    row = run_of(connection, run)
    if row is None:  # nobody knows any more whose it was
        with transaction(connection):
            require(state_of(connection) == state)
            write_move(connection, replace(move, run=run, hour_ms=LARGEST))
        return True
    # The hours of the new zone begin a little earlier and end a little later.
    hours = RunHours(connection, row, prices, first_ms - calendar.HOUR_MS, end_ms)
    parts = [part for part in hours.parts() if first_ms <= part.hour_ms < end_ms]
    for part in parts:
        hours.take(part, old)
    for part in parts:
        for hour_ms in calendar.hours(part.start_ms, part.end_ms, new):
            end = min(calendar.next_hour_ms(hour_ms, new), part.end_ms)
            hours.add(Part(hour_ms, max(hour_ms, part.start_ms), end, part.price), new)
    with transaction(connection):
        require(state_of(connection) == state and prices.hold(connection))
        require(run_of(connection, run) == row)
        hours.write(connection)
        write_move(connection, replace(move, run=run, hour_ms=end_ms))
    return True


def _move_days(connection: sqlite3.Connection, state: State, new: tzinfo) -> bool:
    """Moves a day of a model, of which no rows are left; False where there is none. Most of it is
    in the day that its noon is in."""
    start_ms = -1
    while True:
        (start_ms,) = connection.execute(
            "SELECT min(start_ms) FROM rollups WHERE span = 'day' AND start_ms > ?", (start_ms,)
        ).fetchone()
        if start_ms is None:
            return False
        if calendar.day_start_ms(start_ms, new) != start_ms:
            break
    (model,) = connection.execute(
        "SELECT min(model) FROM rollups WHERE span = 'day' AND start_ms = ?", (start_ms,)
    ).fetchone()
    day_ms = calendar.day_start_ms(start_ms + _NOON_MS, new)
    with transaction(connection):
        require(state_of(connection) == state)
        for table, (sums, adding) in _TABLES.items():
            cells = connection.execute(
                f"SELECT ?, ?, {', '.join((*CELL[2:], *sums))} FROM {table}"
                " WHERE span = 'day' AND start_ms = ? AND model = ?",
                ("day", day_ms, start_ms, model),
            ).fetchall()
            connection.executemany(adding, cells)
            connection.execute(
                f"DELETE FROM {table} WHERE span = 'day' AND start_ms = ? AND model = ?",
                (start_ms, model),
            )
    return True

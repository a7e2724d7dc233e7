"""Prices what is new and adds it up, beside the request path.

The server's rows wait for the same lock before a client has its last byte. So everything is read
and computed first, and written in one short transaction, which begins with a look at whether what
was read still holds: a kill at any moment leaves all of it or nothing, and of two workers at once
one begins anew. Rows are the truth, marks say how far their sums have come.

Sums are only ever added to: those of requests that retention has deleted cannot be made again.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import tzinfo
from itertools import groupby, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd

from jobs import tally
from jobs.tally import Book, Cell, Packed, Version, Who
from manager import calendar, latency
from manager.data import billed_seq, mark, transaction
from manager.pricing import PER_UNIT, Price, hour_cost, tiers_from_json
from manager.schema import SUMS, SUMS_OF_RUNS

BATCH = 6000
"""Requests that are added up together: the more, the fewer rows of sums are written."""

_PIECE = 1500  # requests that are changed in one transaction: what keeps it short
_HOURS = 100  # of a run's time in one transaction
_NOON_MS = 12 * calendar.HOUR_MS
_LARGEST = 2**63 - 1

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

_CELL = ("span", "start_ms", "model", "key", "mode", "scheme")


def _adding(table: str, sums: tuple[str, ...], added: str) -> str:
    """The statement that adds to a row of sums, and makes it where there is none."""
    columns = (*_CELL, *sums)
    changes = ", ".join(f"{name} = {added.format(name, f'excluded.{name}')}" for name in sums)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        f" ON CONFLICT DO UPDATE SET {changes}"
    )


# A sum of integers that is too large becomes a float: rather the largest integer.
_NUMBER = f"min({{}} + {{}}, {_LARGEST})"
_LATENCIES = ("first", "whole")
_ALL_SUMS = (*SUMS, *SUMS_OF_RUNS)
_ADD_REQUESTS = _adding("rollups", SUMS, _NUMBER)
_ADD_TIME = _adding("rollups", SUMS_OF_RUNS, _NUMBER)
_ADD_LATENCIES = _adding("latencies", _LATENCIES, "latency_added({}, {})")
_TABLES = {
    "rollups": (_ALL_SUMS, _adding("rollups", _ALL_SUMS, _NUMBER)),
    "latencies": (_LATENCIES, _ADD_LATENCIES),
}
_WHERE_CELL = " AND ".join(f"{name} = ?" for name in _CELL)
_CLEAR_ROLLUPS = (
    f"DELETE FROM rollups WHERE {_WHERE_CELL} AND requests = 0 AND run_ms = 0 AND cost_hours = 0"
)
_TAKE_LATENCIES = (
    "UPDATE latencies SET first = latency_taken(first, ?), whole = latency_taken(whole, ?)"
    f" WHERE {_WHERE_CELL}"
)
_CLEAR_LATENCIES = f"DELETE FROM latencies WHERE {_WHERE_CELL} AND whole = x''"
_PRICE = "UPDATE requests SET price = ?, tier = ?, cost = ? WHERE seq = ? AND price IS NULL AND"
_PRICE_NEW = f"{_PRICE} cost IS NULL"
_PRICE_UNPRICED = f"{_PRICE} cost = 0"
_SET_MARK = "INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)"


class _Changed(Exception):
    """What was read does not hold any more; nothing was written."""


@dataclass(frozen=True)
class _Move:
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
class _State:
    """What the sums are sums of, as the marks have it."""

    timezone: str | None
    move: _Move | None

    def zone(self, configured: tzinfo) -> tzinfo:
        """Where what is new goes. Raises ValueError where that zone cannot be read any more."""
        name = self.move.zone if self.move else self.timezone
        return configured if name is None else _zone(name, configured)


class _Prices:
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
        return self._by_id[price].effective_ms if price else -_LARGEST

    def parts(self, model: str, start_ms: int, end_ms: int, zone: tzinfo) -> Iterator[_Part]:
        """The stretches of a time, by hours and versions."""
        versions = [version for version in self._live if version.model == model]
        begins = [version.effective_ms for version in versions]
        while start_ms < end_ms:
            number = bisect_right(begins, start_ms)
            hour_ms = calendar.hour_start_ms(start_ms, zone)
            end = min(calendar.next_hour_ms(hour_ms, zone), end_ms, *begins[number : number + 1])
            price = versions[number - 1].id if number else 0
            yield _Part(hour_ms, start_ms, end, price)
            start_ms = end

    @staticmethod
    def _look(connection: sqlite3.Connection) -> tuple[int, ...]:
        seen: tuple[int, ...] = connection.execute(
            "SELECT count(*), count(replaced_ms), max(id), sum(created_ms) FROM prices"
        ).fetchone()
        return seen


@dataclass(frozen=True)
class _Batch:
    """Requests as numbers: `frame` has _NUMBERS, and `who` as a place in `names`."""

    frame: pd.DataFrame
    names: list[Who]

    @property
    def seqs(self) -> list[int]:
        return list(self.frame["seq"].tolist())


class _Part(NamedTuple):
    """A stretch of a run's time within an hour, under one version of the price (0: none)."""

    hour_ms: int
    start_ms: int
    end_ms: int
    price: int


class _Run(NamedTuple):
    """A row of runs."""

    id: str
    model: str
    mode: str
    scheme: str
    ready_ms: int
    ended_ms: int | None
    heartbeat_ms: int | None
    billed_ms: int | None


def price_new(connection: sqlite3.Connection, zone: tzinfo, limit: int = BATCH) -> int:
    """Prices the next requests and adds them to the sums; says how many, 0 when all are done.

    Where the sums are another zone's, they go to that one's until `rebuild`. Raises ValueError
    where that cannot be read any more.
    """
    return _again(lambda: _price_new(connection, zone, limit))


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
        while _again(lambda: _bill_run(connection, zone, run, now_ms)):  # noqa: B023 - called now
            pieces += 1
        billed += pieces > 0
    return billed


def price_unpriced(
    connection: sqlite3.Connection, zone: tzinfo, model: str, start_ms: int, end_ms: int
) -> int:
    """Prices what had no price then and has one now: requests that were begun from `start_ms` to
    `end_ms`, the end excluded, and hours of runs that begin there. Says how many of both.

    A version that has no tier for a request is a price too: nothing that has one is changed.
    """
    rebuild(connection, zone)
    runs = connection.execute("SELECT id FROM runs WHERE model = ?", (model,)).fetchall()
    return _price_requests(connection, zone, model, start_ms, end_ms) + sum(
        _price_hours(connection, zone, run, start_ms, end_ms) for (run,) in runs
    )


def rebuild(connection: sqlite3.Connection, zone: tzinfo) -> bool:
    """Moves all sums to the hours and days of `zone` where they are another's; says whether.

    Each piece takes some requests out of where they were added up and adds them to their hours and
    days in the new zone, so at each moment each is counted once. Killed, it goes on where it was
    when it is called again. What requests that retention has deleted have left stays in its hours;
    its days become those of the same dates. Nobody may delete a model's data meanwhile.
    Raises ValueError where the zone before cannot be read any more.
    """
    _teach(connection)
    moved = False
    while _again(lambda: _move_piece(connection, zone)):
        moved = True
    return moved


def _again(attempt: Callable[[], T]) -> T:
    """Its result; tries again where somebody has written meanwhile what it had read."""
    while True:
        with suppress(_Changed):
            return attempt()


def _price_new(connection: sqlite3.Connection, configured: tzinfo, limit: int) -> int:
    _teach(connection)
    state, prices, billed = _state(connection), _Prices(connection), billed_seq(connection)
    batch = _read(connection, "WHERE seq > ? ORDER BY seq LIMIT ?", (billed, limit))
    if batch is None:
        return 0
    zone, book = state.zone(configured), prices.book()
    new = batch.frame["new"].to_numpy() == 1
    batch = _priced(batch, book, new)
    updates = _updates(batch.frame[new])
    sums = _rollup_rows(tally.rollups(batch.frame, batch.names, zone), batch.names)
    taken = _latency_rows(tally.latencies(batch.frame, batch.names, zone))
    # A request that has its cost and is not in the sums yet is read again after a kill, and added
    # with the cost that it has.
    for start in range(0, len(updates), _PIECE):
        with transaction(connection):
            _require(prices.hold(connection))
            connection.executemany(_PRICE_NEW, updates[start : start + _PIECE])
    with transaction(connection):
        _require(_state(connection) == state and billed_seq(connection) == billed)
        _require(prices.hold(connection) and _are_there(connection, batch.seqs))
        connection.executemany(_ADD_REQUESTS, sums)
        connection.executemany(_ADD_LATENCIES, taken)
        connection.execute(_SET_MARK, ("billed_seq", str(batch.seqs[-1])))
        if state.timezone is None:
            connection.execute(_SET_MARK, ("timezone", str(zone)))
    return len(batch.seqs)


def _price_requests(
    connection: sqlite3.Connection, zone: tzinfo, model: str, start_ms: int, end_ms: int
) -> int:
    changed = 0
    least: bytes | None = _least_id(start_ms)
    while least is not None:
        after = least
        done, least = _again(
            lambda: _price_some(connection, zone, model, after, _least_id(end_ms))  # noqa: B023
        )
        changed += done
    return changed


def _price_some(
    connection: sqlite3.Connection, configured: tzinfo, model: str, least: bytes, end: bytes
) -> tuple[int, bytes | None]:
    """How many it has priced, and after which request to go on."""
    state, prices = _state(connection), _Prices(connection)
    _require(state.move is None)
    # What was imported has its cost from elsewhere.
    batch = _read(
        connection,
        "INDEXED BY requests_model WHERE model = ? AND id > ? AND id < ?"
        " AND price IS NULL AND cost = 0 ORDER BY id LIMIT ?",
        (model, least, end, _PIECE),
    )
    if batch is None:
        return 0, None
    last = connection.execute("SELECT id FROM requests WHERE seq = ?", (batch.seqs[-1],)).fetchone()
    _require(last is not None)
    zone, book = state.zone(configured), prices.book()
    before, after = _priced(batch, book, False), _priced(batch, book, True)
    change = tally.difference(
        tally.rollups(before.frame, batch.names, zone),
        tally.rollups(after.frame, batch.names, zone),
        tally.NUMBERS,
    )
    updates = _updates(after.frame[after.frame["price"] != 0])
    sums = _rollup_rows(change, batch.names)
    with transaction(connection):
        _require(_state(connection) == state and prices.hold(connection))
        for update in updates:
            # Where it is gone, or somebody else has priced it, nothing is added for it.
            _require(connection.execute(_PRICE_UNPRICED, update).rowcount == 1)
        connection.executemany(_ADD_REQUESTS, sums)
    return len(updates), bytes(last[0])


def _bill_run(connection: sqlite3.Connection, configured: tzinfo, run: str, now_ms: int) -> bool:
    """Bills a piece of its time; False where there is nothing to do."""
    state, prices, row = _state(connection), _Prices(connection), _run(connection, run)
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
        _require(_state(connection) == state and prices.hold(connection))
        _require(_run(connection, run) == row)
        hours.write(connection)
        connection.execute("UPDATE runs SET billed_ms = ? WHERE id = ?", (reached_ms, run))
        if state.timezone is None:
            connection.execute(_SET_MARK, ("timezone", str(zone)))
    return True


def _gone_on(
    connection: sqlite3.Connection,
    prices: _Prices,
    run: _Run,
    start_ms: int,
    end_ms: int,
    zone: tzinfo,
) -> tuple[_RunHours, int]:
    """Adds what it has taken since `start_ms`, and how far that goes."""
    parts = list(islice(prices.parts(run.model, start_ms, end_ms, zone), _HOURS))
    first_ms = calendar.hour_start_ms(start_ms, zone)
    hours = _RunHours(connection, run, prices, first_ms, end_ms)
    for part in parts:
        hours.add(part, zone)
    return hours, parts[-1].end_ms if parts else end_ms


def _taken_back(
    connection: sqlite3.Connection, prices: _Prices, run: _Run, end_ms: int, zone: tzinfo
) -> tuple[_RunHours, int]:
    """Takes away what was billed beyond its end, the last hours first, and down to where: a clock
    that was set back ends a run before its last heartbeat."""
    last = connection.execute(
        "SELECT hour_ms FROM run_hours WHERE run = ? AND hour_ms >= ?"
        " ORDER BY hour_ms DESC LIMIT ?",
        (run.id, calendar.hour_start_ms(end_ms, zone), _HOURS),
    ).fetchall()
    first_ms = last[-1][0] if last else end_ms
    hours = _RunHours(connection, run, prices, first_ms, _LARGEST)
    reached_ms = max(end_ms, first_ms)
    for part in hours.parts():
        hours.take(part, zone)
    for part in hours.parts():
        if part.start_ms < reached_ms:
            hours.add(part._replace(end_ms=min(part.end_ms, reached_ms)), zone)
    return hours, reached_ms


def _price_hours(
    connection: sqlite3.Connection, zone: tzinfo, run: str, start_ms: int, end_ms: int
) -> int:
    changed = 0
    at: int | None = start_ms
    while at is not None:
        after = at
        done, at = _again(
            lambda: _price_some_hours(connection, zone, run, after, end_ms)  # noqa: B023
        )
        changed += done
    return changed


def _price_some_hours(
    connection: sqlite3.Connection, configured: tzinfo, run: str, start_ms: int, end_ms: int
) -> tuple[int, int | None]:
    """How many it has priced, and from when on to go on."""
    state, prices, row = _state(connection), _Prices(connection), _run(connection, run)
    _require(state.move is None)
    starts = connection.execute(
        "SELECT hour_ms FROM run_hours WHERE run = ? AND price = 0 AND hour_ms >= ?"
        " AND hour_ms < ? ORDER BY hour_ms LIMIT ?",
        (run, start_ms, end_ms, _HOURS),
    ).fetchall()
    if row is None or not starts:
        return 0, None
    zone = state.zone(configured)
    hours = _RunHours(connection, row, prices, starts[0][0], starts[-1][0])
    changed = 0
    for part in hours.parts():
        now = list(prices.parts(row.model, part.start_ms, part.end_ms, zone))
        if part.price == 0 and any(piece.price for piece in now):
            hours.take(part, zone)
            for piece in now:
                hours.add(piece, zone)
            changed += 1
    with transaction(connection):
        _require(_state(connection) == state and prices.hold(connection))
        _require(_run(connection, run) == row)
        hours.write(connection)
    return changed, starts[-1][0] + 1


def _move_piece(connection: sqlite3.Connection, configured: tzinfo) -> bool:
    """Moves some of the sums; False when all are where they belong."""
    state = _state(connection)
    if state.timezone is None or (state.move is None and state.timezone == str(configured)):
        return False
    old = _zone(state.timezone, configured)
    if state.move is None:
        _begin_move(connection, state, str(configured))
        return True
    new = _zone(state.move.zone, configured)
    if state.move.seq < state.move.last:
        _move_requests(connection, state, old, new)
    elif not _move_hours(connection, state, old, new) and not _move_days(connection, state, new):
        with transaction(connection):
            _require(_state(connection) == state)
            connection.execute(_SET_MARK, ("timezone", state.move.zone))
            connection.execute("DELETE FROM marks WHERE name = 'move'")
    return True


def _begin_move(connection: sqlite3.Connection, state: _State, zone: str) -> None:
    with transaction(connection):
        _require(_state(connection) == state)
        _write_move(connection, _Move(zone, billed_seq(connection)))


def _move_requests(connection: sqlite3.Connection, state: _State, old: tzinfo, new: tzinfo) -> None:
    move, prices = state.move, _Prices(connection)
    assert move is not None
    batch = _read(
        connection,
        "WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
        (move.seq, move.last, _PIECE),
    )
    seqs: list[int] = []
    sums: list[Row] = []
    before: dict[Cell, Packed] = {}
    after: dict[Cell, Packed] = {}
    if batch is not None:
        seqs = batch.seqs
        batch = _priced(batch, prices.book(), False)
        change = tally.difference(
            tally.rollups(batch.frame, batch.names, old),
            tally.rollups(batch.frame, batch.names, new),
            tally.NUMBERS,
        )
        sums = _rollup_rows(change, batch.names)
        before = tally.latencies(batch.frame, batch.names, old)
        after = tally.latencies(batch.frame, batch.names, new)
    taken = [(*packed, *cell) for cell, packed in before.items() if after.get(cell) != packed]
    added = [(*cell, *packed) for cell, packed in after.items() if before.get(cell) != packed]
    with transaction(connection):
        _require(_state(connection) == state and _are_there(connection, seqs))
        _require(prices.hold(connection))
        connection.executemany(_ADD_REQUESTS, sums)
        connection.executemany(_CLEAR_ROLLUPS, [row[: len(_CELL)] for row in sums])
        connection.executemany(_ADD_LATENCIES, added)
        connection.executemany(_TAKE_LATENCIES, taken)
        connection.executemany(_CLEAR_LATENCIES, [row[len(_LATENCIES) :] for row in taken])
        _write_move(connection, replace(move, seq=seqs[-1] if seqs else move.last))


def _move_hours(connection: sqlite3.Connection, state: _State, old: tzinfo, new: tzinfo) -> bool:
    """Moves some hours of a run; False where there are none left."""
    move, prices = state.move, _Prices(connection)
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
    row = _run(connection, run)
    if row is None:  # nobody knows any more whose it was
        with transaction(connection):
            _require(_state(connection) == state)
            _write_move(connection, replace(move, run=run, hour_ms=_LARGEST))
        return True
    # The hours of the new zone begin a little earlier and end a little later.
    hours = _RunHours(connection, row, prices, first_ms - calendar.HOUR_MS, end_ms)
    parts = [part for part in hours.parts() if first_ms <= part.hour_ms < end_ms]
    for part in parts:
        hours.take(part, old)
    for part in parts:
        for hour_ms in calendar.hours(part.start_ms, part.end_ms, new):
            end = min(calendar.next_hour_ms(hour_ms, new), part.end_ms)
            hours.add(_Part(hour_ms, max(hour_ms, part.start_ms), end, part.price), new)
    with transaction(connection):
        _require(_state(connection) == state and prices.hold(connection))
        _require(_run(connection, run) == row)
        hours.write(connection)
        _write_move(connection, replace(move, run=run, hour_ms=end_ms))
    return True


def _move_days(connection: sqlite3.Connection, state: _State, new: tzinfo) -> bool:
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
        _require(_state(connection) == state)
        for table, (sums, adding) in _TABLES.items():
            cells = connection.execute(
                f"SELECT ?, ?, {', '.join((*_CELL[2:], *sums))} FROM {table}"
                " WHERE span = 'day' AND start_ms = ? AND model = ?",
                ("day", day_ms, start_ms, model),
            ).fetchall()
            connection.executemany(adding, cells)
            connection.execute(
                f"DELETE FROM {table} WHERE span = 'day' AND start_ms = ? AND model = ?",
                (start_ms, model),
            )
    return True


class _RunHours:
    """What run_hours has of a run for some hours, and changes of it that are written together
    with those of the rollups."""

    def __init__(
        self, connection: sqlite3.Connection, run: _Run, prices: _Prices, low_ms: int, high_ms: int
    ) -> None:
        self._run = run
        self._prices = prices
        self._range = (run.id, low_ms, high_ms)
        self._stored = self._read(connection)
        self._now = dict(self._stored)
        self._sums: dict[tuple[str, int], list[int]] = {}

    def parts(self) -> list[_Part]:
        """When the stored time was: in an hour, a version's time follows that of the one before."""
        parts = []
        for hour_ms, keys in groupby(sorted(self._stored), key=lambda key: key[0]):
            at = max(hour_ms, self._run.ready_ms)
            for _, price in sorted(keys, key=lambda key: self._prices.order(key[1])):
                ms, _ = self._stored[hour_ms, price]
                parts.append(_Part(hour_ms, at, at + ms, price))
                at += ms
        return parts

    def add(self, part: _Part, zone: tzinfo) -> None:
        """Its hour is one of the zone's."""
        ms, _ = self._now.get((part.hour_ms, part.price), (0, 0))
        self._put(part, ms + part.end_ms - part.start_ms, zone)

    def take(self, part: _Part, zone: tzinfo) -> None:
        """Takes a whole part away that was added in this zone."""
        self._put(part, 0, zone)

    def write(self, connection: sqlite3.Connection) -> None:
        """Inside of a transaction. Raises _Changed where others have written what was read."""
        _require(self._read(connection) == self._stored)
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
        connection.executemany(_CLEAR_ROLLUPS, [cell[: len(_CELL)] for cell in cells])

    def _put(self, part: _Part, ms: int, zone: tzinfo) -> None:
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


def _teach(connection: sqlite3.Connection) -> None:
    """Has SQLite know how to add and take packed latencies."""
    connection.create_function("latency_added", 2, latency.added, deterministic=True)
    connection.create_function("latency_taken", 2, latency.taken, deterministic=True)


def _require(holds: bool) -> None:
    if not holds:
        raise _Changed


def _zone(name: str, configured: tzinfo) -> tzinfo:
    for known in (configured, calendar.zone(None)):
        if str(known) == name:  # the system's may have a name that is none of IANA's
            return known
    return calendar.zone(name)


def _state(connection: sqlite3.Connection) -> _State:
    move = mark(connection, "move")
    return _State(mark(connection, "timezone"), _Move(**json.loads(move)) if move else None)


def _write_move(connection: sqlite3.Connection, move: _Move) -> None:
    connection.execute(_SET_MARK, ("move", json.dumps(asdict(move))))


def _run(connection: sqlite3.Connection, run: str) -> _Run | None:
    row = connection.execute(
        "SELECT id, model, mode, scheme, ready_ms, ended_ms, heartbeat_ms, billed_ms FROM runs"
        " WHERE id = ?",
        (run,),
    ).fetchone()
    return None if row is None else _Run(*row)


def _least_id(ms: int) -> bytes:
    """No request that was begun at this moment or later has a smaller id."""
    return max(ms, 0).to_bytes(6, "big")


def _read(connection: sqlite3.Connection, where: str, values: tuple[object, ...]) -> _Batch | None:
    rows = connection.execute(f"{_READ} {where}", values).fetchall()
    if not rows:
        return None
    model, key, mode, scheme, *numbers = zip(*rows, strict=True)
    places: dict[Who, int] = {}
    who = [
        places.setdefault(name, len(places)) for name in zip(model, key, mode, scheme, strict=True)
    ]
    columns = dict(zip(_NUMBERS, (np.array(column, np.int64) for column in numbers), strict=True))
    return _Batch(pd.DataFrame({**columns, "who": who}), list(places))


def _are_there(connection: sqlite3.Connection, seqs: list[int]) -> bool:
    """Whether none of the requests between the first and the last has been deleted."""
    if not seqs:
        return True
    (count,) = connection.execute(
        "SELECT count(*) FROM requests WHERE seq BETWEEN ? AND ?", (seqs[0], seqs[-1])
    ).fetchone()
    return bool(count == len(seqs))


def _priced(batch: _Batch, book: Book, which: np.ndarray | bool) -> _Batch:
    """With prices for those, and with what is unpriced of all."""
    frame = batch.frame.copy()
    found = book.price([model for model, *_ in batch.names], frame)
    for name in ("price", "tier", "cost"):
        frame[name] = np.where(which, found[name], frame[name])
    return _Batch(frame.assign(unpriced=book.unpriced(frame)), batch.names)


def _updates(frame: pd.DataFrame) -> list[Row]:
    """For _PRICE."""
    columns = (frame[name].tolist() for name in ("price", "tier", "cost", "seq"))
    return [
        (price or None, None if tier < 0 else tier, cost, seq)
        for price, tier, cost, seq in zip(*columns, strict=True)
    ]


def _rollup_rows(sums: pd.DataFrame, names: list[Who]) -> list[Row]:
    """For _ADD_REQUESTS."""
    columns = {name: sums[name].tolist() for name in tally.NUMBERS}
    money = zip(columns.pop("units"), columns.pop("billionths"), strict=True)
    columns["cost_tokens"] = [
        min(units * PER_UNIT + billionths, _LARGEST) for units, billionths in money
    ]
    return _rows(sums, tally.everyone(names), [columns[name] for name in SUMS])


def _latency_rows(latencies: dict[Cell, Packed]) -> list[Row]:
    """For _ADD_LATENCIES."""
    return sorted((*cell, *packed) for cell, packed in latencies.items())


def _rows(sums: pd.DataFrame, names: list[Who], columns: list[list[Any]]) -> list[Row]:
    # In the order of the tables' keys: neighbours are on the same page.
    cells = zip(sums["span"].tolist(), sums["start"].tolist(), sums["who"].tolist(), strict=True)
    return sorted(
        (span, start, *names[who], *values)
        for (span, start, who), values in zip(cells, zip(*columns, strict=True), strict=True)
    )

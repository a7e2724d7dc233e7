"""Prices what is new and adds it up, beside the request path; see `jobs.ledger`."""

from __future__ import annotations

import sqlite3
from datetime import tzinfo

import pandas as pd

from jobs import rezone, run_hours, tally
from jobs.ledger import (
    ADD_LATENCIES,
    ADD_REQUESTS,
    SET_MARK,
    Prices,
    Row,
    again,
    are_there,
    latency_rows,
    priced,
    read,
    require,
    rollup_rows,
    state_of,
    teach,
)
from manager.storage.maintenance import billed_seq, transaction

BATCH = 6000
"""Requests that are added up together: the more, the fewer rows of sums are written."""

_PIECE = 1500  # requests that are changed in one transaction: what keeps it short
_PRICE = "UPDATE requests SET price = ?, tier = ?, cost = ? WHERE seq = ? AND price IS NULL AND"
_PRICE_NEW = f"{_PRICE} cost IS NULL"
_PRICE_UNPRICED = f"{_PRICE} cost = 0"


def price_new(connection: sqlite3.Connection, zone: tzinfo, limit: int = BATCH) -> int:
    """Prices the next requests and adds them to the sums; says how many, 0 when all are done.

    Where the sums are another zone's, they go to that one's until `rezone.rebuild`. Raises
    ValueError where that cannot be read any more.
    """
    return again(lambda: _price_new(connection, zone, limit))


def price_unpriced(
    connection: sqlite3.Connection, zone: tzinfo, model: str, start_ms: int, end_ms: int
) -> int:
    """Prices what had no price then and has one now: requests that were begun from `start_ms` to
    `end_ms`, the end excluded, and hours of runs that begin there. Says how many of both.

    A version that has no tier for a request is a price too: nothing that has one is changed.
    """
    rezone.rebuild(connection, zone)
    runs = connection.execute("SELECT id FROM runs WHERE model = ?", (model,)).fetchall()
    return _price_requests(connection, zone, model, start_ms, end_ms) + sum(
        run_hours.price_unpriced(connection, zone, run, start_ms, end_ms) for (run,) in runs
    )


def _price_new(connection: sqlite3.Connection, configured: tzinfo, limit: int) -> int:
    teach(connection)
    state, prices, billed = state_of(connection), Prices(connection), billed_seq(connection)
    batch = read(connection, "WHERE seq > ? ORDER BY seq LIMIT ?", (billed, limit))
    if batch is None:
        return 0
    zone, book = state.zone(configured), prices.book()
    new = batch.frame["new"].to_numpy() == 1
    batch = priced(batch, book, new)
    updates = _updates(batch.frame[new])
    sums = rollup_rows(tally.rollups(batch.frame, batch.names, zone), batch.names)
    taken = latency_rows(tally.latencies(batch.frame, batch.names, zone))
    # A request that has its cost and is not in the sums yet is read again after a kill, and added
    # with the cost that it has.
    for start in range(0, len(updates), _PIECE):
        with transaction(connection):
            require(prices.hold(connection))
            connection.executemany(_PRICE_NEW, updates[start : start + _PIECE])
    with transaction(connection):
        require(state_of(connection) == state and billed_seq(connection) == billed)
        require(prices.hold(connection) and are_there(connection, batch.seqs))
        connection.executemany(ADD_REQUESTS, sums)
        connection.executemany(ADD_LATENCIES, taken)
        connection.execute(SET_MARK, ("billed_seq", str(batch.seqs[-1])))
        if state.timezone is None:
            connection.execute(SET_MARK, ("timezone", str(zone)))
    return len(batch.seqs)


def _price_requests(
    connection: sqlite3.Connection, zone: tzinfo, model: str, start_ms: int, end_ms: int
) -> int:
    changed = 0
    least: bytes | None = _least_id(start_ms)
    while least is not None:
        after = least
        done, least = again(
            lambda: _price_some(connection, zone, model, after, _least_id(end_ms))  # noqa: B023
        )
        changed += done
    return changed


def _price_some(
    connection: sqlite3.Connection, configured: tzinfo, model: str, least: bytes, end: bytes
) -> tuple[int, bytes | None]:
    """How many it has priced, and after which request to go on."""
    state, prices = state_of(connection), Prices(connection)
    require(state.move is None)
    # What was imported has its cost from elsewhere.
    batch = read(
        connection,
        "INDEXED BY requests_model WHERE model = ? AND id > ? AND id < ?"
        " AND price IS NULL AND cost = 0 AND seq <= ? ORDER BY id LIMIT ?",
        (model, least, end, billed_seq(connection), _PIECE),
    )
    if batch is None:
        return 0, None
    last = connection.execute("SELECT id FROM requests WHERE seq = ?", (batch.seqs[-1],)).fetchone()
    require(last is not None)
    zone, book = state.zone(configured), prices.book()
    before, after = priced(batch, book, False), priced(batch, book, True)
    change = tally.difference(
        tally.rollups(before.frame, batch.names, zone),
        tally.rollups(after.frame, batch.names, zone),
        tally.NUMBERS,
    )
    updates = _updates(after.frame[after.frame["price"] != 0])
    sums = rollup_rows(change, batch.names)
    with transaction(connection):
        require(state_of(connection) == state and prices.hold(connection))
        for update in updates:
            # Where it is gone, or somebody else has priced it, nothing is added for it.
            require(connection.execute(_PRICE_UNPRICED, update).rowcount == 1)
        connection.executemany(ADD_REQUESTS, sums)
    return len(updates), bytes(last[0])


def _updates(frame: pd.DataFrame) -> list[Row]:
    """For _PRICE."""
    columns = (frame[name].tolist() for name in ("price", "tier", "cost", "seq"))
    return [
        (price or None, None if tier < 0 else tier, cost, seq)
        for price, tier, cost, seq in zip(*columns, strict=True)
    ]


def _least_id(ms: int) -> bytes:
    """No request that was begun at this moment or later has a smaller id."""
    return max(ms, 0).to_bytes(6, "big")

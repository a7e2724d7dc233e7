"""Prices requests and adds them up, beside the request path; see `jobs.rollups`.

The cost of a request is `pricing.charge`, what it adds to the sums is `rollups.CONTRIBUTION`;
pandas only groups.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

import pandas as pd

from jobs import run_hours
from jobs.rollups import (
    SET_MARK,
    LatencyCells,
    PriceSnapshot,
    Row,
    add_requests,
    require,
    retry_on_conflict,
)
from manager.billing import pricing
from manager.storage import billed_seq, transaction
from manager.storage.rollups import (
    ALL,
    CONTRIBUTION,
    MAX_INTEGER,
    MONEY,
    QUARTER_MS,
    REQUEST_SUMS,
    SPANS,
)

BATCH = 6000
"""Requests that are added up together: the more, the fewer rows of sums are written."""

_PIECE = 1500  # requests that are priced in one transaction: what keeps it short
_PRICE = "UPDATE requests SET price = ?, tier = ?, cost = ? WHERE seq = ? AND price IS NULL AND"
_PRICE_NEW = f"{_PRICE} cost IS NULL"
_PRICE_UNPRICED = f"{_PRICE} cost = 0"

_WHO = ["model", "key", "mode", "scheme"]
_CELL = ["start_ms", *_WHO]
_READ = (
    f"SELECT started_ms / {QUARTER_MS} * {QUARTER_MS}, {', '.join(_WHO)}, {CONTRIBUTION}"
    " FROM requests WHERE seq"
)
_UNITS = "{} units"  # of money, which is added up in two parts
_MONEY = [name for name in REQUEST_SUMS if name in MONEY]


def price_new(connection: sqlite3.Connection, limit: int = BATCH) -> int:
    """Prices the next requests and adds them to the sums; says how many, 0 when all are done."""
    return retry_on_conflict(lambda: _price_new(connection, limit))


def price_unpriced(connection: sqlite3.Connection, model: str, start_ms: int, end_ms: int) -> int:
    """Prices what had no price then and has one now: requests that were begun from `start_ms` to
    `end_ms`, the end excluded, and hours of runs that begin there. Says how many of both.

    A version that has no tier for a request is a price too: nothing that has one is changed.
    """
    runs = connection.execute("SELECT id FROM runs WHERE model = ?", (model,)).fetchall()
    return _price_requests(connection, model, start_ms, end_ms) + sum(
        run_hours.price_unpriced(connection, run, start_ms, end_ms) for (run,) in runs
    )


def _price_new(connection: sqlite3.Connection, limit: int) -> int:
    prices, billed = PriceSnapshot(connection), billed_seq(connection)
    updates: list[Row] = []
    latencies = LatencyCells()
    seqs: list[int] = []
    for (
        seq,
        *who,
        started_ms,
        first_ms,
        ended_ms,
        prompt,
        cached,
        completion,
        is_new,
    ) in connection.execute(
        f"SELECT seq, {', '.join(_WHO)}, started_ms, first_byte_ms, ended_ms, prompt_tokens,"
        " cached_tokens, completion_tokens, cost IS NULL"
        " FROM requests WHERE seq > ? ORDER BY seq LIMIT ?",
        (billed, limit),
    ):
        seqs.append(seq)
        quarter_ms = started_ms // QUARTER_MS * QUARTER_MS
        latencies.count(tuple(who), quarter_ms, started_ms, first_ms, ended_ms)
        if is_new:
            versions = prices.of_model(who[0])
            tokens = (prompt, cached, completion)
            updates.append((*pricing.charge(versions, started_ms, *tokens), seq))
    if not seqs:
        return 0
    # A request that has its cost and is not in the sums yet is read again after a kill, and added
    # with the cost that it has.
    for start in range(0, len(updates), _PIECE):
        with transaction(connection):
            require(prices.still_hold(connection))
            connection.executemany(_PRICE_NEW, updates[start : start + _PIECE])
    read = connection.execute(f"{_READ} > ? AND seq <= ?", (billed, seqs[-1])).fetchall()
    sums = list(_rollups(_frame(read)))
    with transaction(connection):
        require(billed_seq(connection) == billed and _are_there(connection, seqs))
        add_requests(connection, sums)
        latencies.add_to(connection)
        connection.execute(SET_MARK, ("billed_seq", str(seqs[-1])))
    return len(seqs)


def _price_requests(connection: sqlite3.Connection, model: str, start_ms: int, end_ms: int) -> int:
    changed = 0
    least: bytes | None = _least_id(start_ms)
    while least is not None:
        after = least
        done, least = retry_on_conflict(
            lambda: _price_some(connection, model, after, _least_id(end_ms))  # noqa: B023
        )
        changed += done
    return changed


def _price_some(
    connection: sqlite3.Connection, model: str, least: bytes, end: bytes
) -> tuple[int, bytes | None]:
    """How many it has priced, and after which request to go on."""
    prices = PriceSnapshot(connection)
    versions = prices.of_model(model)
    updates: list[Row] = []
    # What was imported has its cost from elsewhere.
    found = connection.execute(
        "SELECT seq, id, started_ms, prompt_tokens, cached_tokens, completion_tokens"
        " FROM requests INDEXED BY requests_model WHERE model = ? AND id > ? AND id < ?"
        " AND price IS NULL AND cost = 0 AND seq <= ? ORDER BY id LIMIT ?",
        (model, least, end, billed_seq(connection), _PIECE),
    ).fetchall()
    if not found:
        return 0, None
    for seq, _, started_ms, *tokens in found:
        charge = pricing.charge(versions, started_ms, *tokens)
        if charge.version is not None:
            updates.append((*charge, seq))
    if updates:
        seqs = json.dumps([seq for *_, seq in updates])
        statement = f"{_READ} IN (SELECT value FROM json_each(?))"
        with transaction(connection):
            require(prices.still_hold(connection))
            before = connection.execute(statement, (seqs,)).fetchall()
            for update in updates:
                # Where it is deleted, or already priced, nothing is added for it.
                require(connection.execute(_PRICE_UNPRICED, update).rowcount == 1)
            after = connection.execute(statement, (seqs,)).fetchall()
            add_requests(connection, _rollups(_difference(_frame(before), _frame(after))))
    return len(updates), bytes(found[-1][1])


def _frame(rows: list[Row]) -> pd.DataFrame:
    """What _READ has found. Sums of money may be more than 64 bits hold: in two parts."""
    frame = pd.DataFrame.from_records(rows, columns=[*_CELL, *REQUEST_SUMS])
    for name in _MONEY:
        frame[_UNITS.format(name)] = frame[name] // pricing.PER_UNIT
        frame[name] %= pricing.PER_UNIT
    return frame


def _difference(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """What has to be added to sums that hold `before`, for them to hold `after`."""
    sums = before.columns.difference(_CELL)
    return pd.concat([before.assign(**{name: -before[name] for name in sums}), after])


def _rollups(frame: pd.DataFrame) -> Iterator[Row]:
    """Rows for `add_requests`: of each model and key, of each model with all keys, and of each key
    with all models."""
    frame = frame.groupby(_CELL, as_index=False, sort=False).sum()
    frame = pd.concat([frame, frame.assign(key=ALL), frame.assign(model=ALL, mode=ALL, scheme=ALL)])
    for span, length in SPANS.items():
        frame["start_ms"] = frame["start_ms"] // length * length
        frame = frame.groupby(_CELL, as_index=False, sort=False).sum()
        columns = {name: frame[name].tolist() for name in (*_CELL, *REQUEST_SUMS)}
        for name in _MONEY:
            units = frame[_UNITS.format(name)].tolist()
            columns[name] = [
                max(min(unit * pricing.PER_UNIT + rest, MAX_INTEGER), -MAX_INTEGER)
                for unit, rest in zip(units, columns[name], strict=True)
            ]
        yield from ((span, *row) for row in zip(*columns.values(), strict=True))


def _are_there(connection: sqlite3.Connection, seqs: list[int]) -> bool:
    """Whether none of the requests between the first and the last has been deleted."""
    (count,) = connection.execute(
        "SELECT count(*) FROM requests WHERE seq BETWEEN ? AND ?", (seqs[0], seqs[-1])
    ).fetchone()
    return bool(count == len(seqs))


def _least_id(ms: int) -> bytes:
    """No request that was begun at this moment or later has a smaller id."""
    return max(ms, 0).to_bytes(6, "big")

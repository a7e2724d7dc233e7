"""Care of what usage.db holds: how much of each model, deleting it, retention, copies, free space.

Whatever changes many rows does so in pieces of some milliseconds and rests in between: the
server's own writes wait for the same lock.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from manager.storage import data_dir, maintenance_tasks
from manager.storage.maintenance_tasks import Order
from manager.storage.rollups import ALL, CELL, SUM_COLUMNS
from manager.storage.schema import MIGRATIONS
from manager.storage.store import StoreError

RECORDED_UNTIL = "recorded_until"
"""The mark of how far usage.db has everything that bills are made of."""

_BUSY_SECONDS = 10.0
_GAP_SECONDS = 0.001
_AIM_SECONDS = 0.01  # that a piece takes
_FIRST_PIECE = 200  # rows or pages
_MAX_IN_PIECE = 5000
_BACKUP_SUFFIX = ".part"
_INCREMENTAL = 2  # of PRAGMA auto_vacuum

_IN_CELL = "span = :span AND start_ms = :start"
_MINUS = ", ".join(f"{name} = {name} + excluded.{name}" for name in SUM_COLUMNS)
_DELETE_SUMS = {
    "rollups": (
        # Taken out of the keys' sums, those of its own go. Only these can be without requests.
        f"INSERT INTO rollups ({', '.join((*CELL, *SUM_COLUMNS))})"
        f" SELECT span, start_ms, '{ALL}', key, '{ALL}', '{ALL}',"
        f" {', '.join(f'-{name}' for name in SUM_COLUMNS)} FROM rollups"
        f" WHERE {_IN_CELL} AND model = :model AND key != '{ALL}' AND mode != '{ALL}'"
        f" ON CONFLICT DO UPDATE SET {_MINUS}",
        f"DELETE FROM rollups WHERE {_IN_CELL} AND model = :model AND mode != '{ALL}'",
        f"DELETE FROM rollups WHERE {_IN_CELL} AND mode = '{ALL}'"
        " AND requests = 0 AND run_ms = 0 AND cost_hours = 0",
    ),
    "latencies": (
        f"DELETE FROM latencies WHERE {_IN_CELL} AND model = :model AND mode != '{ALL}'",
    ),
}
_DELETE_RUN = (
    "DELETE FROM run_hours WHERE run = :run",
    "UPDATE runs SET billed_ms = NULL WHERE id = :run",
    "DELETE FROM runs WHERE id = :run AND ended_ms IS NOT NULL",
)

Sleep = Callable[[float], None]


@dataclass(frozen=True)
class Stored:
    """What there is of a model. ``requests`` are single rows, ``billed_requests`` those that its
    rollups count, also after retention has taken their rows. Times are epoch ms."""

    model: str
    requests: int
    oldest_ms: int | None
    newest_ms: int | None
    billed_requests: int
    runs: int
    prices: int
    adjustments: int


def connect(path: Path) -> sqlite3.Connection:
    """usage.db, for work beside the server's: transactions begin and end where the caller says.

    Raises StoreError where there is none, or it is not of this version; sqlite3.Error.
    """
    if not path.exists():
        raise StoreError(f"{path} is missing: it is made when the program first runs")
    connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version != len(MIGRATIONS):
            raise StoreError(
                f"{path} is of schema {version}, this version of LLM-Manager knows"
                f" {len(MIGRATIONS)}: start the program once with the version that you want to use"
            )
        # What is committed survives the death of the process, as with the server's own writes.
        connection.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """What is written inside is written together or not at all. It takes the lock at once:
    a reader that becomes a writer is refused where somebody has written meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # SQLite ends it itself where the disk is full
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
    # Else who waits for the lock would hardly ever find it free between two of ours.
    time.sleep(_GAP_SECONDS)


def get_mark(connection: sqlite3.Connection, name: str) -> str | None:
    """A value of ``marks``."""
    row = connection.execute("SELECT value FROM marks WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def billed_seq(connection: sqlite3.Connection) -> int:
    """Requests up to this one are priced and in the rollups."""
    return int(get_mark(connection, "billed_seq") or 0)


def recorded_until(connection: sqlite3.Connection) -> int:
    """Up to when each request has its row and each run its time, epoch ms, as the program that
    runs on the folder has said last; 0 where none has."""
    return int(get_mark(connection, RECORDED_UNTIL) or 0)


def newest_seq(connection: sqlite3.Connection) -> int:
    """The request that was written last; 0 where there is none."""
    (seq,) = connection.execute("SELECT max(seq) FROM requests").fetchone()
    return seq or 0


def oldest_ms(connection: sqlite3.Connection) -> int | None:
    """The first moment that something is stored of, epoch ms; None where there is nothing."""
    (request,) = connection.execute("SELECT min(id) FROM requests").fetchone()
    first = [_ms_of(request)]
    for column, table in (
        ("start_ms", "rollups WHERE span = 'day'"),
        ("started_ms", "runs"),
        ("at_ms", "adjustments"),
    ):
        first += connection.execute(f"SELECT min({column}) FROM {table}").fetchone()
    return min((ms for ms in first if ms is not None), default=None)


def stored_by_model(connection: sqlite3.Connection) -> list[Stored]:
    """What there is of each model, also of those that are no longer configured, by name. It counts
    the index of all requests, about a second for ten million."""
    billed = _by_model(connection, "sum(requests)", f"rollups WHERE span = 'day' AND key = '{ALL}'")
    runs = _by_model(connection, "count(*)", "runs")
    prices = _by_model(connection, "count(*)", "prices")
    adjustments = _by_model(connection, "count(*)", "adjustments")
    # Jumps from one name to the next in the index.
    with_requests = [
        name
        for (name,) in connection.execute(
            "WITH RECURSIVE names (model) AS ("
            " SELECT min(model) FROM requests UNION ALL"
            " SELECT (SELECT min(model) FROM requests WHERE model > names.model) FROM names"
            " WHERE names.model IS NOT NULL)"
            " SELECT model FROM names WHERE model IS NOT NULL"
        )
    ]
    found = []
    for model in sorted({*with_requests, *billed, *runs, *prices, *adjustments}):
        requests, oldest, newest = connection.execute(
            "SELECT count(*), min(id), max(id) FROM requests WHERE model = ?", (model,)
        ).fetchone()
        found.append(
            Stored(
                model=model,
                requests=requests,
                oldest_ms=_ms_of(oldest),
                newest_ms=_ms_of(newest),
                billed_requests=billed.get(model, 0),
                runs=runs.get(model, 0),
                prices=prices.get(model, 0),
                adjustments=adjustments.get(model, 0),
            )
        )
    return found


def is_stored(connection: sqlite3.Connection, model: str) -> bool:
    """Whether there is anything that `delete_model` would delete."""
    return any(
        connection.execute(f"SELECT 1 FROM {table} WHERE model = ? LIMIT 1", (model,)).fetchone()
        for table in ("requests", "runs", "rollups")
    )


def delete_model(connection: sqlite3.Connection, order: Order, rest: Sleep = time.sleep) -> None:
    """Deletes what was recorded of a model: its requests, its ended runs and all that was added up
    from them. Its prices and what a person has put on its bills stay, and so does its part in how
    long the requests of a key took, which is not kept by model.

    All that is billed when it begins goes. Once it has begun (`is_begun`) nothing may be billed
    until it has ended: what comes meanwhile would be added to sums that are about to go.
    """
    model = order.subject
    if not is_begun(order):
        order = maintenance_tasks.save_progress(connection, order, up_to=billed_seq(connection))
    pace = _Pace(rest)
    for table, deletes in _DELETE_SUMS.items():
        starts = connection.execute(
            f"SELECT DISTINCT span, start_ms FROM {table} WHERE model = ?", (model,)
        ).fetchall()
        cells = [{"span": span, "start": start, "model": model} for span, start in starts]
        pace.each(connection, deletes, cells)
    runs = connection.execute("SELECT id FROM runs WHERE model = ?", (model,)).fetchall()
    # One that goes on is billed again: what was added up from it is deleted.
    pace.each(connection, _DELETE_RUN, [{"run": run} for (run,) in runs])
    pace.until_none(
        connection,
        "DELETE FROM requests WHERE seq IN"
        " (SELECT seq FROM requests WHERE model = ? AND seq <= ? LIMIT ?)",
        (model, order.notes["up_to"]),
    )


def is_begun(order: Order) -> bool:
    """Whether a part of a model's data may be deleted already."""
    return "up_to" in order.notes


def delete_requests_before(
    connection: sqlite3.Connection, before_ms: int, rest: Sleep = time.sleep
) -> int:
    """Deletes the billed requests that were begun before the moment, and says how many. What was
    added up from them stays."""
    return _Pace(rest).until_none(
        connection,
        "DELETE FROM requests WHERE seq IN"
        " (SELECT seq FROM requests WHERE id < ? AND seq <= ? ORDER BY id LIMIT ?)",
        (max(before_ms, 0).to_bytes(6, "big"), billed_seq(connection)),
    )


def vacuum(connection: sqlite3.Connection, rest: Sleep = time.sleep) -> int:
    """Gives free pages back to the file system, some at a time, and says how many bytes. SQLite's
    VACUUM would hold the lock until the whole file is copied.

    Raises StoreError for a file that cannot be shrunk so.
    """
    (mode,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    if mode != _INCREMENTAL:
        raise StoreError(
            "the database was made without incremental vacuum: stop the program and run"
            " `llm-manager backup FILE`, whose copy has no free pages, then use that copy"
        )
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    before = _free_pages(connection)
    pace = _Pace(rest)
    while free := _free_pages(connection):
        # Not `execute`, which stops after the first page.
        pace.piece(lambda rows: connection.executescript(f"PRAGMA incremental_vacuum({rows})"))
        if _free_pages(connection) >= free:
            break  # others make more of them than we give back
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
    return (before - _free_pages(connection)) * int(page_size)


def backup(source: Path, target: Path) -> int:
    """Copies the database as it is at this moment, while others use it, and says how many bytes.
    The target is there when the copy is whole, and replaces an earlier one; only its owner may
    read it. The variables that running models were started with are left out: they may be secrets.

    Raises StoreError where the source is missing or damaged or is the target, or the copy cannot
    be written; OSError.
    """
    if not source.is_file():
        raise StoreError(f"{source} is missing")
    if target.exists() and target.samefile(source):
        raise StoreError(f"{target} is the database itself; choose another file")
    if target.is_dir():
        raise StoreError(f"{target} is a folder; name a file in it")
    part = target.with_name(target.name + _BACKUP_SUFFIX)
    part.unlink(missing_ok=True)
    try:
        data_dir.make_private(part)
        uri = f"{source.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS)) as connection:
            if not connection.execute("PRAGMA auto_vacuum").fetchone()[0]:
                connection.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")  # the copy's
            connection.execute("VACUUM INTO ?", (str(part),))
        with closing(sqlite3.connect(part)) as copy:
            _forget_launches(copy)
            fault = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if fault != "ok":
            raise StoreError(f"the copy of {source} is damaged: {fault}")
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{source} cannot be copied to {target}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return target.stat().st_size


def _forget_launches(copy: sqlite3.Connection) -> None:
    columns = [name for _, name, *_ in copy.execute("PRAGMA table_info(runs)")]
    if "launch" in columns:  # not in a database of an earlier version
        copy.execute("PRAGMA secure_delete = ON")
        copy.execute("UPDATE runs SET launch = NULL WHERE launch IS NOT NULL")
        copy.commit()


class _Pace:
    """Does much in short transactions, and rests after each for as long as it took: so others get
    the lock, and half of the disk's time."""

    def __init__(self, rest: Sleep) -> None:
        self._rest = rest
        self._rows = _FIRST_PIECE

    def piece(self, work: Callable[[int], object]) -> None:
        """Calls it with the number of rows that a piece may have now."""
        began = time.monotonic()
        work(self._rows)
        took = time.monotonic() - began
        if took > 2 * _AIM_SECONDS:
            self._rows = max(self._rows // 2, 1)
        elif took < _AIM_SECONDS / 2:
            self._rows = min(self._rows * 2, _MAX_IN_PIECE)
        self._rest(max(took, 0.001))

    def each(
        self,
        connection: sqlite3.Connection,
        statements: Sequence[str],
        values: Sequence[Mapping[str, object]],
    ) -> None:
        """All statements for each of the values; a kill does not come between them."""
        at = 0

        def work(rows: int) -> None:
            nonlocal at
            with transaction(connection):
                for some in values[at : at + rows]:
                    for statement in statements:
                        connection.execute(statement, some)
            at += rows

        while at < len(values):
            self.piece(work)

    def until_none(
        self, connection: sqlite3.Connection, statement: str, values: tuple[object, ...]
    ) -> int:
        """``statement`` ends with a limit to its rows. Says how many there were."""
        total, last = 0, -1

        def work(rows: int) -> None:
            nonlocal total, last
            last = connection.execute(statement, (*values, rows)).rowcount
            total += last

        while last:
            self.piece(work)
        return total


def _by_model(connection: sqlite3.Connection, what: str, where: str) -> dict[str, int]:
    group = f"SELECT model, {what} FROM {where} GROUP BY model"
    return dict(connection.execute(group).fetchall())


def _ms_of(request: bytes | None) -> int | None:
    return None if request is None else int.from_bytes(request[:6], "big")


def _free_pages(connection: sqlite3.Connection) -> int:
    (pages,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(pages)

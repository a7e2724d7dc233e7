"""usage.db: its schema and the versions of it, one writer, queries.

Every write goes through one thread that commits in groups: SQLite takes one writer at a time
anyway, and a commit costs the same for one row as for a hundred.
"""

from __future__ import annotations

import json
import logging
import queue
import sqlite3
import threading
from collections.abc import Mapping
from concurrent import futures
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from manager.schema import MIGRATIONS

log = logging.getLogger(__name__)

_GROUP = 500
_BUSY_MS = 5000

_WRITE_TIMEOUT = 60.0  # seconds; a disk that takes longer than this will not come back

Write = tuple[str, tuple[object, ...]]


class StoreError(Exception):
    """The database cannot be used; says why and what to do."""


@dataclass(frozen=True)
class Run:
    """One life of a model's server, from its launch to its end. Times are epoch ms."""

    id: str
    model: str
    scheme: str
    fingerprint: str
    port: int
    pid: int | None
    pid_created: float | None
    started_ms: int
    ready_ms: int | None
    memory_mb: Mapping[str, int] = field(default_factory=dict)  # by device id


class Store:
    """The database file. ``write`` returns when what it wrote is safe on the disk."""

    def __init__(self, path: Path) -> None:
        """Opens and migrates. Raises StoreError; a file that is damaged or of a newer version
        is left as it is."""
        self._path = path
        self._queue: queue.SimpleQueue[tuple[Write, Future[None]] | None] = queue.SimpleQueue()
        try:
            if path.exists():
                _refuse_newer(path)
            # Made here, so that what is wrong with the file is known before the thread begins.
            self._connection = _connect(path)
            _migrate(self._connection)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error
        self._thread = threading.Thread(target=self._run, name="usage-writer", daemon=True)
        self._thread.start()

    def write(self, statement: str, values: tuple[object, ...]) -> None:
        """Executes it in the writer's thread and waits until it is committed.

        Raises sqlite3.Error where it or its commit fails.
        """
        future: Future[None] = Future()
        self._queue.put(((statement, values), future))
        try:
            future.result(_WRITE_TIMEOUT)
        except futures.TimeoutError:
            raise sqlite3.OperationalError(f"{self._path} takes no writes") from None

    def close(self) -> None:
        """Writes what is queued, then ends the writer."""
        self._queue.put(None)
        self._thread.join()

    def begin_run(self, run: Run) -> None:
        self.write(
            "INSERT INTO runs (id, model, scheme, fingerprint, port, started_ms, memory_mb)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                run.id,
                run.model,
                run.scheme,
                run.fingerprint,
                run.port,
                run.started_ms,
                json.dumps(dict(run.memory_mb)),
            ),
        )

    def run_launched(self, run: str, pid: int, created: float) -> None:
        self.write("UPDATE runs SET pid = ?, pid_created = ? WHERE id = ?", (pid, created, run))

    def run_ready(self, run: str, now_ms: int, pid: int, created: float) -> None:
        """The process is told again: the script may have handed over to another."""
        self.write(
            "UPDATE runs SET ready_ms = ?, pid = ?, pid_created = ? WHERE id = ?",
            (now_ms, pid, created, run),
        )

    def end_run(self, run: str, now_ms: int, reason: str) -> None:
        self.write(
            "UPDATE runs SET ended_ms = ?, end_reason = ? WHERE id = ? AND ended_ms IS NULL",
            (now_ms, reason, run),
        )

    def open_runs(self) -> list[Run]:
        """Runs with no end: at the program's start, those that an earlier one left behind.
        Raises StoreError."""
        try:
            with closing(_connect(self._path)) as connection:
                rows = connection.execute(
                    "SELECT id, model, scheme, fingerprint, port, pid, pid_created, started_ms,"
                    " ready_ms, memory_mb FROM runs WHERE ended_ms IS NULL ORDER BY started_ms"
                ).fetchall()
        except sqlite3.Error as error:
            raise _unusable(self._path, error) from error
        return [Run(*(*row[:-1], json.loads(row[-1]))) for row in rows]

    def _run(self) -> None:
        with closing(self._connection) as connection:
            while self._write_group(connection):
                pass

    def _write_group(self, connection: sqlite3.Connection) -> bool:
        """Commits what is queued, at least one write; False when told to end."""
        item = self._queue.get()
        written: list[Future[None]] = []
        try:
            if item is not None:
                connection.execute("BEGIN IMMEDIATE")
            while item is not None:
                (statement, values), future = item
                try:
                    connection.execute(statement, values)
                except (OverflowError, UnicodeEncodeError) as error:
                    # A value that SQLite cannot hold is told apart by Python, not by SQLite.
                    future.set_exception(sqlite3.DataError(str(error)))
                except sqlite3.Error as error:
                    if not connection.in_transaction:
                        raise  # as on a full disk, where SQLite takes back the whole group
                    future.set_exception(error)  # its neighbours are kept
                else:
                    written.append(future)
                if len(written) >= _GROUP or self._queue.empty():
                    break
                item = self._queue.get()
            if connection.in_transaction:
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            log.exception("writes to %s failed", self._path)
            _roll_back(connection)
            if item is not None and not item[1].done() and item[1] not in written:
                written.append(item[1])
            for future in written:
                future.set_exception(error)
        else:
            for future in written:
                future.set_result(None)
        return item is not None


def _roll_back(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except sqlite3.Error:
        # The disk is worse off than the group: the writer lives on and the next one is told.
        log.exception("a group of writes could not be taken back")


def _unusable(path: Path, error: sqlite3.Error) -> StoreError:
    return StoreError(
        f"{path} cannot be used: {error}. It was not changed; move it away or restore a backup"
    )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=_BUSY_MS / 1000, check_same_thread=False
    )
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL: a row that was reported as written survives a power cut as well.
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _refuse_newer(path: Path) -> None:
    """Raises StoreError where a newer version wrote the file. Only reads: to open it for writing
    would already change its journal, and move what is left in that into the file."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        version = _version(connection)
    finally:
        connection.close()
    if version > len(MIGRATIONS):
        raise StoreError(
            f"{path} was written by a newer version of LLM-Manager (schema {version}, this one"
            f" knows {len(MIGRATIONS)}). It was not changed; use that version again"
        )


def _migrate(connection: sqlite3.Connection) -> None:
    done = _version(connection)
    for number, script in enumerate(MIGRATIONS[done:], done + 1):
        connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version

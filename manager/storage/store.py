"""usage.db: its schema and the versions of it, one writer, queries.

Every write goes through one thread that commits in groups: SQLite takes one writer at a time
anyway, and a commit costs the same for one row as for a hundred.
"""

from __future__ import annotations

import itertools
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from manager.storage import data_dir
from manager.storage.rows import INSERT_REQUESTS, ONE_REQUEST, RequestRow
from manager.storage.schema import MIGRATIONS

log = logging.getLogger(__name__)

_SHRINKS = 3  # the version of the schema since which the file can shrink while it is used
_GROUP = 500
_BUSY_SECONDS = 5.0
_LOOK_AGAIN_SECONDS = 0.001

_WRITE_TIMEOUT = 60.0  # seconds; a disk that takes longer than this will not come back

Connection = sqlite3.Connection
DatabaseError = sqlite3.Error
"""Raised where usage.db cannot be read or written. Who uses the storage needs no SQLite."""

T = TypeVar("T")

Work = Callable[[sqlite3.Connection], object]
_Item = tuple[Work, "Future[Any]"]


class StoreError(Exception):
    """The database cannot be used; says why and what to do."""


# Rows in one statement: for each statement the thread releases the GIL and waits for it again.
_AT_ONCE = (32, 8, 1)


class Store:
    """The database file. ``write`` returns when what it wrote is safe on the disk."""

    def __init__(self, path: Path) -> None:
        """Opens and migrates. Raises StoreError; a file that is damaged or of a newer version
        is left as it is."""
        self.path = path
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        try:
            if path.exists():
                _refuse_newer(path)
            else:
                data_dir.make_private(path)  # SQLite's files beside it take after it
            # Made here, so that what is wrong with the file is known before the thread begins.
            self._connection = _connect(path)
            _migrate(self._connection)
            self._connection.execute("PRAGMA busy_timeout = 0")  # see _begin
        except (sqlite3.Error, OSError) as error:
            raise unusable(path, error) from error
        self._thread = threading.Thread(target=self._run, name="usage-writer", daemon=True)
        self._thread.start()

    def write(self, statement: str, values: tuple[object, ...]) -> None:
        """Executes it in the writer's thread and waits until it is committed.

        Raises sqlite3.Error where it or its commit fails.
        """

        def execute(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)  # its cursor is not to live until the commit

        self._commit(execute)

    def transact(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Calls the function with the connection, in the writer's thread, and waits until what it
        wrote is committed; nobody writes between what it reads and what it writes. It has to be
        quick: every other write waits for it.

        Raises what it raises, and then nothing of it was written; sqlite3.Error where the commit
        fails.
        """
        result: T = self._commit(lambda connection: _all_or_nothing(connection, function))
        return result

    def _commit(self, work: Work) -> Any:
        future: Future[Any] = Future()
        self._queue.put((work, future))
        try:
            return future.result(_WRITE_TIMEOUT)
        except futures.TimeoutError:
            raise sqlite3.OperationalError(f"{self.path} takes no writes") from None

    def close(self) -> None:
        """Writes what is queued, then ends the writer."""
        self._queue.put(None)
        self._thread.join()

    def add_requests(self, rows: Sequence[RequestRow]) -> None:
        """Writes requests' rows, all or none; those that are there already are left as they are.
        Raises sqlite3.Error; sqlite3.DataError for a value that the database cannot hold."""

        def add(connection: sqlite3.Connection) -> None:
            start = 0
            for count in _AT_ONCE:
                statement = INSERT_REQUESTS + ", ".join([ONE_REQUEST] * count)
                while len(rows) - start >= count:
                    some = itertools.chain.from_iterable(rows[start : start + count])
                    connection.execute(statement, list(some))
                    start += count

        self.transact(add)

    def _run(self) -> None:
        with closing(self._connection):
            while item := self._queue.get():
                self._write_group(item)

    def _write_group(self, first: _Item) -> None:
        """Commits this and what is queued behind it."""
        connection = self._connection
        written: dict[Future[Any], object] = {first[1]: None}
        try:
            _begin(connection)
            for work, future in itertools.chain([first], self._queued()):
                written[future] = None
                try:
                    written[future] = work(connection)
                except (OverflowError, UnicodeEncodeError) as error:
                    # A value that SQLite cannot hold is recognised by Python, not by SQLite.
                    written.pop(future)
                    future.set_exception(sqlite3.DataError(str(error)))
                except sqlite3.Error as error:
                    if not connection.in_transaction:
                        raise  # as on a full disk, where SQLite takes back the whole group
                    written.pop(future)
                    future.set_exception(error)  # its neighbours are kept
                except Exception as error:  # noqa: BLE001 - a transaction's own: its caller's
                    written.pop(future)
                    future.set_exception(error)
                if len(written) >= _GROUP:
                    break
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            log.error("writes to %s failed: %s", self.path, error)
            _roll_back(connection)
            # Those that wait would each find the same, one after the other.
            for future in [*written, *(future for _, future in self._queued())]:
                future.set_exception(error)
        else:
            for future, result in written.items():
                future.set_result(result)

    def _queued(self) -> Iterator[_Item]:
        """What waits, without waiting for more."""
        while not self._queue.empty():  # nobody else takes from it
            item = self._queue.get()
            if item is None:
                self._queue.put(None)  # for _run
                return
            yield item


def _begin(connection: sqlite3.Connection) -> None:
    """Takes the lock for writes. SQLite itself looks again after 1, 2, 5, 10, 15, 20 ms and so on:
    longer than the worker keeps the lock, and it would have it again by then. Raises sqlite3.Error.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_AGAIN_SECONDS)


def _all_or_nothing(
    connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]
) -> T:
    connection.execute("SAVEPOINT function")
    try:
        result = function(connection)
    except BaseException:
        if connection.in_transaction:  # not where SQLite has taken back the whole group
            connection.execute("ROLLBACK TO function")
            connection.execute("RELEASE function")
        raise
    connection.execute("RELEASE function")
    return result


@contextmanager
def read_connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads, and all its life sees the database as it was at the first
    read. Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(
        sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY_SECONDS)
    ) as connection:
        connection.execute("BEGIN")
        yield connection


@contextmanager
def sqlite_errors() -> Iterator[None]:
    """Raises StoreError for what SQLite raises inside, for callers that do not know SQLite."""
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"the database cannot be used: {error}") from error


def _roll_back(connection: sqlite3.Connection) -> None:
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except sqlite3.Error:
        # The disk is worse off than the group: the writer lives on and the next one gets its error.
        log.exception("a group of writes could not be taken back")


def unusable(path: Path, error: Exception) -> StoreError:
    """What to say of a database that cannot be opened or read."""
    return StoreError(
        f"{path} cannot be used: {error}. It was not changed; move it away or restore a backup"
    )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False
    )
    connection.execute("PRAGMA journal_mode = WAL")
    # What is committed survives the death of the program. A power cut may take the last moments:
    # FULL would keep these, and every answer would wait for the disk.
    connection.execute("PRAGMA synchronous = NORMAL")
    # What is emptied, such as a run's variables, is not to stay in its page. FAST costs no I/O.
    connection.execute("PRAGMA secure_delete = FAST")
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
    if done < _SHRINKS and connection.execute("PRAGMA auto_vacuum").fetchone()[0] != 2:
        # So that a file can give back in small steps what was deleted; set by VACUUM only.
        connection.execute("PRAGMA auto_vacuum = 2")
        connection.execute("VACUUM")
    for number, migration in enumerate(MIGRATIONS[done:], done + 1):
        if isinstance(migration, str):
            connection.executescript(f"BEGIN; {migration}; PRAGMA user_version = {number}; COMMIT;")
            continue
        connection.execute("BEGIN IMMEDIATE")
        try:
            migration(connection)
            connection.execute(f"PRAGMA user_version = {number}")
        except BaseException:
            _roll_back(connection)
            raise
        connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version

"""Rows of requests on their way to usage.db.

A client gets its last byte when its request's row is in a file here, which survives the death of
the program: to write a line takes some microseconds, a commit to the database many times that. A
thread commits the rows soon after, many at once. There are two files: one takes new rows while
those of the other are committed, after which it is emptied. What a dead program has left is
committed by the next one; a row that was committed already is there once.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from manager.storage import data_dir
from manager.storage.data_dir import DataDirInUse
from manager.storage.rows import RequestRow
from manager.storage.store import Store, StoreError

log = logging.getLogger(__name__)

_NAMES = ("requests-0.jsonl", "requests-1.jsonl")
_GROUP = 1000  # rows in one commit
_GAP_SECONDS = 0.05  # between commits, so that under load each has many rows
_WRITING_SECONDS = 0.001
_AGAIN_SECONDS = 1.0  # after one that failed
_MAX_HELD = 10_000  # rows of a file in memory, too
_MAX_KEPT = 100_000  # rows in memory, some 50 MB
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)  # as Windows needs

Commit = Callable[[Sequence[RequestRow]], None]


def has_uncommitted(folder: Path) -> bool:
    """Whether there are rows that are not in the database yet. Raises OSError."""
    return any(path.exists() and path.stat().st_size for path in map(folder.joinpath, _NAMES))


def commit_leftovers(folder: Path) -> None:
    """Commits what a killed program has left in its data folder; one that runs does that itself.
    Raises StoreError, OSError."""
    usage_db = folder / "usage.db"
    if not (usage_db.exists() and has_uncommitted(folder)):
        return
    try:
        claimed = data_dir.lock(folder)
    except DataDirInUse:
        return
    with claimed, closing(Store(usage_db)) as store:
        Spool(folder, store.add_requests).close()


class Spool:
    """``commit`` writes rows to the database and raises sqlite3.Error; its own thread,
    ``usage-spool``, calls it."""

    def __init__(self, folder: Path, commit: Commit) -> None:
        """Opens the files in the folder. Raises StoreError."""
        self._commit = commit
        try:
            self._taking, self._emptied = [_File(folder / name) for name in _NAMES]
        except OSError as error:
            raise StoreError(f"the rows of requests cannot be kept in {folder}: {error}") from error
        self._lock = threading.Lock()
        # Rounds of the thread: in each, one file is emptied, in turns.
        self._round_ended = threading.Condition(self._lock)
        self._round = 0  # that has begun last
        self._is_whole = False  # the last round emptied its file
        self._flushed = 0  # what was added before this round began is committed
        self._kept: deque[RequestRow] = deque(maxlen=_MAX_KEPT)
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._wake.set()  # for what a dead program has left
        self._thread = threading.Thread(target=self._run, name="usage-spool", daemon=True)
        self._thread.start()

    def add(self, row: RequestRow) -> None:
        """Returns when the row is in the file. One that the disk does not take is kept in memory,
        and written when it takes one again: an answer is not withheld from its client for that."""
        line = _line(row)
        with self._lock:
            file = self._taking
            file.writers += 1
        error = file.append(line)  # outside of the lock: the file is not emptied meanwhile
        with self._lock:
            file.writers -= 1
            if error is None:
                file.hold(row)
            else:
                self._kept.append(row)
        if error is not None:
            log.error("a request's row was not written and is kept: %s; %s", error, row)
        self._wake.set()

    def flush(self, seconds: float) -> bool:
        """Waits so long at most until all that was added before is committed; whether it is."""
        deadline = time.monotonic() + seconds
        with self._lock:
            wanted = self._round + 1
            while self._flushed < wanted:
                self._wake.set()
                left = deadline - time.monotonic()
                if left <= 0 or self._closing.is_set():
                    return False
                self._round_ended.wait(left)
        return True

    def close(self) -> None:
        """Commits what is there, as far as the database takes it, and ends the thread. The files
        stay open: a request that ends after this has its row there for the next program."""
        self._closing.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        has_failed = False
        while True:
            self._wake.wait()
            # First: what is added from here on is seen now or wakes us again.
            is_last = self._closing.is_set()
            self._wake.clear()
            try:
                for _ in range(2 if is_last else 1):
                    self._run_round()
            except (sqlite3.Error, OSError) as error:
                if not has_failed:
                    log.error("rows of requests wait for the database: %s", error)
                has_failed = True
                self._wake.set()
            else:
                if has_failed:
                    log.info("the database takes rows of requests again")
                has_failed = False
            if is_last:
                return
            self._closing.wait(_AGAIN_SECONDS if has_failed else _GAP_SECONDS)

    def _run_round(self) -> None:
        """Raises sqlite3.Error, OSError."""
        with self._lock:
            self._round += 1
        is_whole = False
        try:
            self._empty_one()
            is_whole = True
        finally:
            with self._lock:
                if is_whole and self._is_whole:
                    self._flushed = self._round - 1  # by the two of them
                self._is_whole = is_whole
                self._round_ended.notify_all()

    def _empty_one(self) -> None:
        """Commits the rows of one file, and those in memory. Raises sqlite3.Error, OSError."""
        with self._lock:
            self._taking, self._emptied = self._emptied, self._taking
        # Those who took it before may still be writing, some microseconds. (A condition would cost
        # each of them more than looking again costs us.)
        while self._emptied.writers:
            time.sleep(_WRITING_SECONDS)
        rows = self._emptied.rows()
        while group := list(islice(rows, _GROUP)):
            self._commit_fitting(group)
        self._emptied.clear()
        self._commit_kept()
        if self._taking.size():
            self._wake.set()  # what a dead program has left, or could not be committed before

    def _commit_kept(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, deque(maxlen=_MAX_KEPT)
        try:
            while group := list(islice(kept, _GROUP)):
                self._commit_fitting(group)
                for _ in group:
                    kept.popleft()
        finally:
            with self._lock:
                self._kept.extendleft(reversed(kept))

    def _commit_fitting(self, rows: list[RequestRow]) -> None:
        """One that the database cannot hold would keep the others from it."""
        try:
            self._commit(rows)
        except sqlite3.DataError:
            for row in rows:
                try:
                    self._commit([row])
                except sqlite3.DataError as error:
                    log.error("a request's row cannot be written: %s; %s", error, row)


class _File:
    """Lines of rows. Several threads may append at once."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._path = path
        self._number = os.open(path, _FLAGS, 0o600)
        self.writers = 0
        # The same rows: to read few of them again would be waste. None: the file has more.
        self._held: list[RequestRow] | None = None if self.size() else []

    def append(self, line: bytes) -> OSError | None:
        """Why not all of it was written, if it was not."""
        try:
            written = os.write(self._number, line)
        except OSError as error:
            return error
        if written < len(line):
            return OSError(f"{self._path} took {written} of {len(line)} bytes")
        return None

    def hold(self, row: RequestRow) -> None:
        """Remembers a row that was appended."""
        if self._held is not None:
            self._held.append(row)
            if len(self._held) > _MAX_HELD:
                self._held = None

    def rows(self) -> Iterator[RequestRow]:
        """Those that are whole; nobody may append meanwhile. Raises OSError."""
        if self._held is not None:
            yield from self._held
            return
        with self._path.open("rb") as lines:
            for line in lines:
                row = _row(line)
                if row is not None:
                    yield row

    def size(self) -> int:
        return os.fstat(self._number).st_size

    def clear(self) -> None:
        """Raises OSError."""
        os.ftruncate(self._number, 0)
        self._held = []


def _line(row: RequestRow) -> bytes:
    """Begins with an end of line: what a full disk took of the one before stays apart from it."""
    return f"\n{json.dumps([row.id.hex(), *row[1:]])}\n".encode()


def _row(line: bytes) -> RequestRow | None:
    """None for half a line: its client has not had its last byte, or it is written again."""
    if line == b"\n":
        return None
    try:
        number, *others = json.loads(line)
        if not all(isinstance(value, str | int | None) for value in others):
            raise TypeError
        return RequestRow(bytes.fromhex(number), *others)
    except (ValueError, TypeError):
        log.warning("half a row of a request was left out: %r", line[:200])
        return None

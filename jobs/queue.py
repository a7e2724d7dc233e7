"""The task queue: Huey on a file in the data folder.

A task is a name. It only says that there is work: what the work is stands in usage.db, so that
nothing is lost with a task, or with the whole queue.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from huey import Huey, SqliteHuey
from huey.registry import Message
from huey.serializer import Serializer

from jobs import tasks
from manager.storage import data_dir as datadir
from manager.storage import maintenance, maintenance_tasks, read_connection

log = logging.getLogger("manager.queue")

_FILE = "queue.db"
_TRY_AGAIN_SECONDS = 10.0
_BILL_SECONDS = 30.0
_MAX_WAITING = 50  # tasks; a further one would say nothing new


class TaskQueue:
    """The server's side: puts tasks in. A queue that fails is logged, and reported to nobody who
    asks for work: the next task finds it."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._lock = threading.Lock()
        self._tasks: dict[str, Any] | None = None
        self._huey: Huey | None = None
        self._failed_at: float | None = None
        self._billed_at = -_BILL_SECONDS

    def enqueue(self, task: str) -> None:
        """Adds a task, one of `tasks.NAMES`."""
        now = time.monotonic()
        with self._lock:
            if self._failed_at is not None and now < self._failed_at + _TRY_AGAIN_SECONDS:
                return
            try:
                self._put(task)
            except (sqlite3.Error, OSError) as error:
                self._failed(now, str(error))
            else:
                if self._failed_at is not None:
                    log.info("the task queue works again")
                self._failed_at = None

    def tick(self) -> None:
        """About once a second: has new rows and waiting orders seen to. Every half minute the
        worker looks for itself."""
        now = time.monotonic()
        if now >= self._billed_at + _BILL_SECONDS or self._has_work():
            self._billed_at = now
            self.enqueue("bill")

    def close(self) -> None:
        with self._lock:
            if self._huey is not None:
                self._huey.storage.close()

    def _has_work(self) -> bool:
        try:
            with read_connection(self._data_dir / "usage.db") as connection:
                return maintenance.newest_seq(connection) > maintenance.billed_seq(
                    connection
                ) or any(order.error is None for order in maintenance_tasks.load_all(connection))
        except sqlite3.Error:
            return True  # the worker runs into it as well, and says what it is

    def _put(self, task: str) -> None:
        if self._huey is None or self._tasks is None:
            self._huey = connect(self._data_dir)
            self._tasks = tasks.declare(self._huey, lambda _name: None)
        if self._huey.pending_count() < _MAX_WAITING:
            self._tasks[task]()

    def _failed(self, now: float, why: str) -> None:
        if self._failed_at is None:
            log.error("the task queue fails: %s. Bills wait until it works again", why)
        self._failed_at = now


class _Names(Serializer):  # type: ignore[misc]
    """A task as JSON. Huey's own way, pickle, would run whatever somebody puts into the queue."""

    def _serialize(self, data: Message) -> bytes:
        return json.dumps([data.id, data.name]).encode()

    def _deserialize(self, data: bytes) -> Message:
        number, name = json.loads(data)
        return Message(number, name)


def connect(data_dir: Path) -> Huey:
    """The queue of this data folder. Raises sqlite3.Error, OSError."""
    path = data_dir.resolve() / _FILE
    _remove_damaged(path)
    datadir.make_private(path)
    return SqliteHuey(
        name="llmmanager",
        filename=str(path),
        fsync=False,  # a power cut may take tasks, which are worth nothing
        results=False,
        serializer=_Names(),
    )


def _remove_damaged(path: Path) -> None:
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(path)) as connection:
            fault = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError:
        raise  # such as a lock, or rights: nothing is wrong with its content
    except sqlite3.DatabaseError as error:
        fault = str(error)
    if fault != "ok":
        log.warning("%s is damaged (%s) and is replaced: no work is lost with it", path, fault)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

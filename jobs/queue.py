"""The task queue: Huey on a file in the data folder, or on a Redis or PostgreSQL server.

A task is a name. It only says that there is work: what the work is stands in usage.db, so that
nothing is lost with a task, or with the whole queue.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import sqlite3
import threading
import time
import urllib.parse
from contextlib import closing
from pathlib import Path
from typing import Any

from huey import Huey, PostgresHuey, RedisHuey, SqliteHuey
from huey.exceptions import ConfigurationError
from huey.registry import Message
from huey.serializer import Serializer

from jobs import tasks
from manager.storage import data_dir as datadir
from manager.storage import maintenance, maintenance_tasks
from manager.storage.store import reading

log = logging.getLogger("manager.queue")

_FILE = "queue.db"
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 10  # more than a worker waits for a task
_TRY_AGAIN_SECONDS = 10.0
_BILL_SECONDS = 30.0
_MOST_WAITING = 50  # tasks; a further one would say nothing new


class QueueError(Exception):
    """The queue cannot be used; says why and what to do, and holds no password."""


class Discreet(logging.Formatter):
    """Takes the password of a queue's URL out of whatever is logged."""

    def __init__(self, form: str, url: str | None) -> None:
        super().__init__(form)
        self._url = url

    def format(self, record: logging.LogRecord) -> str:
        return _without_secrets(super().format(record), self._url)


class TaskQueue:
    """The server's side: puts tasks in. A queue that fails is told to the log, and to nobody who
    asks for work: the next task finds it."""

    def __init__(self, data_dir: Path, url: str | None) -> None:
        self._data_dir = data_dir
        self._url = url
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
            except QueueError as error:
                self._failed(now, str(error))
            except Exception as error:  # noqa: BLE001 - each server's driver has its own
                self._failed(now, _without_secrets(f"{error}", self._url))
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
            with reading(self._data_dir / "usage.db") as connection:
                return maintenance.newest_seq(connection) > maintenance.billed_seq(
                    connection
                ) or any(order.error is None for order in maintenance_tasks.orders(connection))
        except sqlite3.Error:
            return True  # the worker runs into it as well, and says what it is

    def _put(self, task: str) -> None:
        if self._huey is None or self._tasks is None:
            self._huey = connect(self._data_dir, self._url)
            self._tasks = tasks.declare(self._huey, lambda _name: None)
        if self._huey.pending_count() < _MOST_WAITING:
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


def connect(data_dir: Path, url: str | None) -> Huey:
    """The queue of this data folder. Raises QueueError."""
    folder = data_dir.resolve()
    name = hashlib.sha256(f"{socket.gethostname()}:{folder}".encode()).hexdigest()
    settings: dict[str, Any] = {
        "name": f"llmmanager{name[:12]}",  # programs that share a server keep apart
        "results": False,
        "serializer": _Names(),
    }
    try:
        if url is None:
            return _on_file(folder / _FILE, settings)
        if url.startswith("postgresql:"):
            return _on_postgresql(url, settings)
        return _on_redis(url, settings)
    except QueueError:
        raise
    except Exception as error:  # noqa: BLE001 - each server's driver has its own
        why = _without_secrets(f"{error}", url)
        raise QueueError(f"the task queue cannot be used: {why}") from None


def _on_file(path: Path, settings: dict[str, Any]) -> Huey:
    _remove_damaged(path)
    datadir.make_private(path)
    # Not flushed to the disk: a power cut may take tasks, which are worth nothing.
    return SqliteHuey(filename=str(path), fsync=False, **settings)


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
        log.warning("%s is damaged (%s) and made anew: no work is lost with it", path, fault)
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)


def _on_redis(url: str, settings: dict[str, Any]) -> Huey:
    try:
        from redis import ConnectionPool
    except ImportError:
        raise QueueError("queue is a redis:// URL: run `pip install redis`") from None
    pool = ConnectionPool.from_url(
        url, socket_connect_timeout=_CONNECT_SECONDS, socket_timeout=_ANSWER_SECONDS
    )
    return RedisHuey(connection_pool=pool, **settings)


def _on_postgresql(url: str, settings: dict[str, Any]) -> Huey:
    if re.search("%(?![0-9a-fA-F]{2})", url):
        # The driver's message would repeat a part of the password.
        raise QueueError("queue has a % that begins no %XX: write %25 for it")
    try:
        return PostgresHuey(
            dsn=url,
            connect_timeout=_CONNECT_SECONDS,
            tcp_user_timeout=_ANSWER_SECONDS * 1000,
            **settings,
        )
    except ConfigurationError:
        raise QueueError(
            "queue is a postgresql:// URL: run `pip install 'psycopg[binary]'`"
        ) from None


def _without_secrets(text: str, url: str | None) -> str:
    if url is None:
        return text
    parts = urllib.parse.urlsplit(url)
    query = urllib.parse.parse_qsl(parts.query)  # both servers' URLs may have it there, too
    secrets = [parts.password, *(value for name, value in query if "password" in name)]
    text = text.replace(url, f"{parts.scheme}://***")
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***").replace(urllib.parse.unquote(secret), "***")
    return text

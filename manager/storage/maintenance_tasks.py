"""What the worker was asked to do beside pricing: bills, corrections, clearing up.

An order is a row of ``marks`` until it is done, so that none is lost with a task or a process:
whoever works next carries it out. Its name is ``order:KIND:SUBJECT``, its value JSON: ``id``, new
each time it is placed, ``error`` where it could not be carried out, and what its work has noted.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manager.clock import Clock
from manager.storage.rows import uuid7
from manager.storage.store import Store, read_connection

KINDS = ("delete", "reprice", "export", "vacuum", "backup")
"""In the order in which they are carried out: a bill has what was re-priced before it."""

_LOOK_SECONDS = 0.05
_SET_MARK = "INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)"


@dataclass(frozen=True)
class Order:
    """``subject`` is the model, or the bill's period; ``error`` why it was given up, else None.
    ``asked_ms`` is epoch ms."""

    kind: str
    subject: str
    id: str
    error: str | None
    notes: dict[str, Any]

    @property
    def asked_ms(self) -> int:
        return int(self.id[:12], 16)


class MaintenanceTasks:
    """The server's side. ``notify`` is called with the kind of each task, when it is written."""

    def __init__(
        self, store: Store, path: Path, clock: Clock, notify: Callable[[str], None]
    ) -> None:
        self._store = store
        self._path = path
        self._clock = clock
        self._notify = notify

    def enqueue(self, kind: str, subject: str = "", **notes: Any) -> Order:
        """Asks for it, once more where it was asked for already; ``notes`` say it more closely.
        Raises sqlite3.Error."""
        order = self._new(kind, subject, notes)
        self._store.write(_SET_MARK, (_name(order), _value(order)))
        self._notify(kind)
        return order

    def enqueue_all(
        self, kind: str, subjects: Mapping[str, Mapping[str, Any]], marks: Mapping[str, str]
    ) -> None:
        """Asks for those of the subjects, each with its notes, and sets the marks, which say that
        it was asked for: all of it or nothing. Raises sqlite3.Error."""
        orders = [self._new(kind, subject, dict(notes)) for subject, notes in subjects.items()]
        rows = [*marks.items(), *((_name(order), _value(order)) for order in orders)]
        self._store.transact(lambda connection: connection.executemany(_SET_MARK, rows))
        if orders:
            self._notify(kind)

    def _new(self, kind: str, subject: str, notes: dict[str, Any]) -> Order:
        return Order(kind, subject, uuid7(self._clock.wall_ms()).hex(), None, notes)

    def load_all(self) -> list[Order]:
        """Those that wait or were given up. Raises sqlite3.Error."""
        with read_connection(self._path) as connection:
            return load_all(connection)

    def wait(self, order: Order, seconds: float, closing: Callable[[], bool]) -> Order | None:
        """What has become of it after so many seconds at most, sooner when it is done or given up
        or when the program closes: None when done. Raises sqlite3.Error."""
        deadline = time.monotonic() + seconds
        while True:
            now = {(o.kind, o.subject): o for o in self.load_all()}.get((order.kind, order.subject))
            if now is None or now.error is not None:
                return now
            if closing() or time.monotonic() > deadline:
                return now
            time.sleep(_LOOK_SECONDS)


def load_all(connection: sqlite3.Connection) -> list[Order]:
    """All orders, oldest first."""
    rows = connection.execute(
        "SELECT name, value FROM marks WHERE name >= 'order:' AND name < 'order;'"
    )
    return sorted((_order(*row) for row in rows), key=lambda order: order.id)


def pending(connection: sqlite3.Connection, kind: str) -> list[Order]:
    """The orders of a kind that are to be carried out, oldest first."""
    return [order for order in load_all(connection) if order.kind == kind and order.error is None]


def save_progress(connection: sqlite3.Connection, order: Order, **notes: Any) -> Order:
    """Records how far its work has come; after a crash it goes on from there."""
    noted = Order(order.kind, order.subject, order.id, order.error, {**order.notes, **notes})
    _replace(connection, order, noted)
    return noted


def complete(connection: sqlite3.Connection, order: Order) -> None:
    """Forgets it, unless it was placed again meanwhile."""
    connection.execute(
        "DELETE FROM marks WHERE name = ? AND json_extract(value, '$.id') = ?",
        (_name(order), order.id),
    )


def fail(connection: sqlite3.Connection, order: Order, error: str) -> None:
    """Records why it cannot be carried out; it is not tried again until it is placed again."""
    _replace(connection, order, Order(order.kind, order.subject, order.id, error, order.notes))


def _replace(connection: sqlite3.Connection, order: Order, by: Order) -> None:
    connection.execute(
        "UPDATE marks SET value = ? WHERE name = ? AND json_extract(value, '$.id') = ?",
        (_value(by), _name(order), order.id),
    )


def _name(order: Order) -> str:
    return f"order:{order.kind}:{order.subject}"


def _value(order: Order) -> str:
    return json.dumps({**order.notes, "id": order.id, "error": order.error}, ensure_ascii=False)


def _order(name: str, value: str) -> Order:
    _, kind, subject = name.split(":", 2)
    notes = json.loads(value)
    return Order(kind, subject, notes.pop("id"), notes.pop("error"), notes)

"""Runs: the lives of models' servers, each from its launch to its end, and why it ended.

What writes raises sqlite3.Error unless it says otherwise. Times are epoch milliseconds.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from manager.storage.rows import Launch, Run
from manager.storage.store import Store, read_connection, unusable

# The wall clock may have been set between any two of them.
_LAST_SEEN = "max(started_ms, coalesce(ready_ms, 0), coalesce(heartbeat_ms, 0))"


class PastRun(NamedTuple):
    """One life of a model's server, over or not. Times are epoch ms."""

    id: str
    scheme: str
    port: int
    pid: int | None
    started_ms: int
    ready_ms: int | None
    ended_ms: int | None
    end_reason: str | None


def begin(store: Store, run: Run) -> None:
    """Records a launch."""
    store.write(
        "INSERT INTO runs (id, model, scheme, fingerprint, port, started_ms, mode, memory_mb,"
        " launch) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            run.id,
            run.model,
            run.scheme,
            run.fingerprint,
            run.port,
            run.started_ms,
            run.mode,
            json.dumps(dict(run.memory_mb)),
            run.launch.to_json(),
        ),
    )


def launched(store: Store, run: str, pid: int | None, created: float | None) -> None:
    """Records the process, which was created at that moment (epoch seconds)."""
    store.write("UPDATE runs SET pid = ?, pid_created = ? WHERE id = ?", (pid, created, run))


def record_launch(store: Store, run: str, launch: Launch) -> None:
    """Records how the server is recognised, which is known once it answers."""
    store.write("UPDATE runs SET launch = ? WHERE id = ?", (launch.to_json(), run))


def ready(
    store: Store,
    run: str,
    ready_ms: int,
    pid: int | None,
    created: float | None,
    *,
    boot_id: str | None = None,
    clock_ms: int | None = None,
) -> None:
    """With the process once more: the script may have handed over to another. ``clock_ms`` is what
    the monotonic clock reads, which counts from the boot ``boot_id``."""
    store.write(
        "UPDATE runs SET ready_ms = max(?, started_ms), pid = ?, pid_created = ?, boot_id = ?,"
        " ready_clock_ms = ? WHERE id = ?",
        (ready_ms, pid, created, boot_id, clock_ms, run),
    )


def end(store: Store, run: str, now_ms: int, reason: str) -> None:
    """Not before it was last seen alive."""
    store.write(
        f"UPDATE runs SET ended_ms = max(?, {_LAST_SEEN}), end_reason = ?, launch = NULL"
        " WHERE id = ? AND ended_ms IS NULL",
        (now_ms, reason, run),
    )


def end_unseen(store: Store, run: str, reason: str) -> None:
    """Ends a run that nobody saw ending: when it was last seen alive."""
    store.write(
        f"UPDATE runs SET ended_ms = {_LAST_SEEN}, end_reason = ?, launch = NULL"
        " WHERE id = ? AND ended_ms IS NULL",
        (reason, run),
    )


def heartbeat(store: Store, alive: Mapping[str, int]) -> None:
    """Records that these runs are alive, each at its moment: what a crash can hide is the time
    since."""
    store.write(
        "UPDATE runs SET heartbeat_ms = max(coalesce(heartbeat_ms, 0),"
        " (SELECT value FROM json_each(?1) WHERE key = runs.id))"
        " WHERE ended_ms IS NULL AND id IN (SELECT key FROM json_each(?1))",
        (json.dumps(dict(alive)),),
    )


def unfinished(store: Store) -> list[Run]:
    """Runs with no end: at the program's start, those that an earlier one left behind.
    Raises StoreError."""
    try:
        return not_ended(store.path)
    except sqlite3.Error as error:
        raise unusable(store.path, error) from error


def not_ended(path: Path) -> list[Run]:
    """Runs with no end, the oldest first. Raises sqlite3.Error."""
    with read_connection(path) as connection:
        rows = connection.execute(
            "SELECT id, model, scheme, fingerprint, port, pid, pid_created, started_ms,"
            " ready_ms, mode, memory_mb, launch, heartbeat_ms, boot_id, ready_clock_ms"
            " FROM runs WHERE ended_ms IS NULL ORDER BY started_ms"
        ).fetchall()
    return [
        Run(*(*row[:10], json.loads(row[10]), Launch.from_json(row[11]), *row[12:])) for row in rows
    ]


def last_seen(connection: sqlite3.Connection) -> list[int]:
    """When each run that has not ended was last seen alive, those that are ready."""
    rows = connection.execute(
        f"SELECT {_LAST_SEEN} FROM runs WHERE ended_ms IS NULL AND ready_ms IS NOT NULL"
    )
    return [moment for (moment,) in rows]


def newest(path: Path, model: str, limit: int) -> list[PastRun]:
    """The last ones, the newest first. Raises sqlite3.Error."""
    with read_connection(path) as connection:
        rows = connection.execute(
            f"SELECT {', '.join(PastRun._fields)} FROM runs WHERE model = ?"
            " ORDER BY started_ms DESC LIMIT ?",
            (model, limit),
        ).fetchall()
    return [PastRun(*row) for row in rows]

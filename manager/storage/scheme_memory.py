"""How much memory each scheme of a model was measured to take."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from manager.storage.store import Store, read_connection

KEPT_RUNS = 5
"""Of a scheme. With more, what another program took at the time would count for long as its own,
where a driver reports no processes; with fewer, a run with little to do would count too much."""


class LaunchKey(NamedTuple):
    """A scheme as it is launched: ``fingerprint`` is a hash of its command."""

    model: str
    scheme: str
    fingerprint: str


def remember(
    store: Store, key: LaunchKey, run: str, peak_mb: Mapping[str, int], now_ms: int
) -> None:
    """The most that this run has taken, by the name of the device; forgets all but its scheme's
    last runs. Raises sqlite3.Error."""

    def replace(connection: sqlite3.Connection) -> None:
        connection.executemany(
            "INSERT OR REPLACE INTO scheme_memory"
            " (model, scheme, fingerprint, run, seen_ms, device, peak_mb)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(*key, run, now_ms, device, mb) for device, mb in peak_mb.items()],
        )
        connection.execute(
            "DELETE FROM scheme_memory WHERE (model, scheme, fingerprint) = (?1, ?2, ?3)"
            " AND run NOT IN (SELECT run FROM scheme_memory"
            "  WHERE (model, scheme, fingerprint) = (?1, ?2, ?3)"
            "  GROUP BY run ORDER BY max(seen_ms) DESC, run = ?4 DESC LIMIT ?5)",
            (*key, run, KEPT_RUNS),
        )

    store.transact(replace)


def remembered(path: Path) -> dict[LaunchKey, dict[str, dict[str, int]]]:
    """All of it: MB by run, the last one last, and the name of the device. Raises sqlite3.Error."""
    found: dict[LaunchKey, dict[str, dict[str, int]]] = {}
    with read_connection(path) as connection:
        for model, scheme, fingerprint, run, device, mb in connection.execute(
            "SELECT model, scheme, fingerprint, run, device, peak_mb FROM scheme_memory"
            " ORDER BY seen_ms"
        ):
            runs = found.setdefault(LaunchKey(model, scheme, fingerprint), {})
            runs.setdefault(run, {})[device] = mb
    return found

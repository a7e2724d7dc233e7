"""How much memory each scheme of a model was measured to take."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from manager.storage.store import Store, read_connection


class LaunchKey(NamedTuple):
    """A scheme as it is launched: ``fingerprint`` is a hash of its command."""

    model: str
    scheme: str
    fingerprint: str


def remember(store: Store, key: LaunchKey, peak_mb: Mapping[str, int]) -> None:
    """The most that it has taken, by the name of the device; never less than before. Raises
    sqlite3.Error."""

    def upsert(connection: sqlite3.Connection) -> None:
        connection.executemany(
            "INSERT INTO scheme_memory (model, scheme, fingerprint, device, peak_mb)"
            " VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET peak_mb = max(peak_mb, excluded.peak_mb)",
            [(*key, device, mb) for device, mb in peak_mb.items()],
        )

    store.transact(upsert)


def remembered(path: Path) -> dict[LaunchKey, dict[str, int]]:
    """All of it: MB by the name of the device. Raises sqlite3.Error."""
    found: dict[LaunchKey, dict[str, int]] = {}
    with read_connection(path) as connection:
        for model, scheme, fingerprint, device, mb in connection.execute(
            "SELECT model, scheme, fingerprint, device, peak_mb FROM scheme_memory"
        ):
            found.setdefault(LaunchKey(model, scheme, fingerprint), {})[device] = mb
    return found

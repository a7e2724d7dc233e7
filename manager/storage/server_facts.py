"""What models' servers said of their models, remembered for when none runs."""

from __future__ import annotations

from pathlib import Path

from manager.storage.store import Store, read_connection


def remember(store: Store, model: str, facts: str) -> None:
    """``facts`` is JSON. Raises sqlite3.Error."""
    store.write("INSERT OR REPLACE INTO server_facts (model, facts) VALUES (?, ?)", (model, facts))


def remembered(path: Path) -> dict[str, str]:
    """JSON by model. Raises sqlite3.Error."""
    with read_connection(path) as connection:
        return dict(connection.execute("SELECT model, facts FROM server_facts").fetchall())

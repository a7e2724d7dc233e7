"""What became of a model's servers: each from its launch to its end, and why it ended."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from manager.storage.store import reading


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


def newest(path: Path, model: str, limit: int) -> list[PastRun]:
    """The last ones, the newest first. Raises sqlite3.Error."""
    with reading(path) as connection:
        rows = connection.execute(
            f"SELECT {', '.join(PastRun._fields)} FROM runs WHERE model = ?"
            " ORDER BY started_ms DESC LIMIT ?",
            (model, limit),
        ).fetchall()
    return [PastRun(*row) for row in rows]

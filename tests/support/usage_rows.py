"""Rows of usage.db for tests, and what became of them."""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from manager.storage.rows import RequestRow, uuid7
from manager.storage.store import Store

NOON = 1_793_880_000_000  # 2026-11-05 12:00 UTC
DAY = 86_400_000
TIERS = (
    '[{"min_input":0,"max_input":-1,"min_output":0,"max_output":-1,"input":1000000000,'
    '"output":2000000000,"cache_read":0,"cache_write":0,"support_cache":false}]'
)
"""1 a million prompt tokens, 2 a million completion tokens."""


@functools.cache
def _empty() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "usage.db"
        Store(path).close()
        return path.read_bytes()


def new_store(path: Path) -> Store:
    """A new database as `Store` makes it, in a fifth of the time."""
    path.write_bytes(_empty())
    return Store(path)


def a_request(at_ms: int = NOON, model: str = "Qwen", **changes: Any) -> RequestRow:
    fields: dict[str, Any] = {
        "id": uuid7(at_ms),
        "model": model,
        "asked_for": model,
        "mode": "Chat",
        "scheme": "CPU",
        "key": "",
        "endpoint": "/v1/chat/completions",
        "streamed": False,
        "status": 200,
        "started_ms": at_ms,
        "leased_ms": at_ms + 1,
        "first_byte_ms": at_ms + 100,
        "ended_ms": at_ms + 1000,
        "prompt_tokens": 1000,
        "cached_tokens": 0,
        "completion_tokens": 500,
        "estimated": False,
        "error": None,
    }
    return RequestRow(**(fields | changes))


def add_request(store: Store, row: RequestRow) -> None:
    store.add_requests([row])


def add_price(store: Store, model: str = "Qwen", per_hour: int | None = None) -> None:
    store.write(
        "INSERT INTO prices (model, effective_ms, per_hour, tiers, created_ms)"
        " VALUES (?, 0, ?, ?, 0)",
        (model, per_hour, TIERS),
    )


def add_run(
    store: Store, name: str, ready_ms: int, ended_ms: int | None, model: str = "Qwen"
) -> None:
    store.write(
        "INSERT INTO runs (id, model, scheme, fingerprint, port, started_ms, mode, ready_ms,"
        " ended_ms, heartbeat_ms) VALUES (?, ?, 'CPU', 'f', 1, ?, 'Chat', ?, ?, ?)",
        (name, model, ready_ms, ready_ms, ended_ms, ended_ms or ready_ms),
    )


def query(path: Path, statement: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement, values).fetchall()


def sums_agree(path: Path) -> bool:
    """Whether the sums of models and those of keys are those of each model and key."""
    sums = "sum(requests), sum(cost_tokens), sum(cost_hours), sum(run_ms) FROM rollups"

    def by(name: str, where: str) -> list[Any]:
        return query(path, f"SELECT span, start_ms, {name}, {sums} WHERE {where} GROUP BY 1, 2, 3")

    each = "key != '*' AND mode != '*'"
    return by("model", each) == by("model", "key = '*'") and by("key", each) == by(
        "key", "mode = '*'"
    )


def billed(folder: Path) -> int:
    """How many requests are in the sums, each with its price."""
    sums = "SELECT ifnull(sum(requests), 0) FROM rollups WHERE span = 'hour' AND key = '*'"
    return int(one(folder / "usage.db", sums))


def one(path: Path, statement: str, *values: object) -> Any:
    """The only value of the only row."""
    return query(path, statement, *values)[0][0]

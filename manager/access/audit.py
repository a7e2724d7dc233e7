"""Who changed what: written with each change, never edited."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manager.config import MASK, is_secret_name

_MAX_DETAIL = 2000  # characters
_MAX_VALUE = 200  # characters


@dataclass(frozen=True)
class Entry:
    """``who`` is an account, a token, or a user of the machine's shell; ``action`` what was done,
    to which ``subject``; ``detail`` what was asked for."""

    id: int
    at_ms: int
    who: str
    address: str
    action: str
    subject: str
    detail: dict[str, Any]


def add(
    connection: sqlite3.Connection,
    now_ms: int,
    who: str,
    address: str,
    action: str,
    subject: str,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Secrets in the detail are redacted, long values truncated. Part of a transaction."""
    shown = _text(detail or {})
    if len(shown) > _MAX_DETAIL:
        shown = json.dumps({"size": len(shown)})
    # A lone surrogate, which JSON can spell and no database takes, must not prevent the entry.
    shown, subject = (text.encode("utf-8", "replace").decode() for text in (shown, subject))
    connection.execute(
        "INSERT INTO audit (at_ms, who, address, action, subject, detail)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (now_ms, who, address, action, subject[:_MAX_VALUE], shown),
    )


def page(
    connection: sqlite3.Connection, limit: int, before: int | None
) -> tuple[list[Entry], int | None]:
    """Entries, newest first, of those with an id below ``before``; and what to ask for the next
    ones with, None where there are no more."""
    rows = connection.execute(
        "SELECT id, at_ms, who, address, action, subject, detail FROM audit"
        " WHERE ?1 IS NULL OR id < ?1 ORDER BY id DESC LIMIT ?2",
        (before, limit + 1),
    ).fetchall()
    found = [Entry(*(*row[:-1], json.loads(row[-1]))) for row in rows[:limit]]
    return found, found[-1].id if len(rows) > limit else None


def _text(detail: Mapping[str, Any]) -> str:
    try:
        return json.dumps(_redacted(detail), ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):  # a call that takes no body was sent a strange one
        return "{}"


def _redacted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(name): MASK if _is_secret(str(name), item) else _redacted(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_redacted(item) for item in value]
    if isinstance(value, str) and len(value) > _MAX_VALUE:
        return f"{len(value)} characters"
    return value


def _is_secret(name: str, value: Any) -> bool:
    # Limits of tokens are no secrets, and nor is the name of a key. A config may hold many, and so
    # may a model's entry in it.
    is_config = name in ("text", "entry")
    return isinstance(value, str) and (is_config or (is_secret_name(name) and name != "key"))

"""API keys: their limits, and their rows in usage.db."""

from __future__ import annotations

import json
import sqlite3
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from manager.access import credentials
from manager.config import has_control
from manager.errors import ApiError
from manager.storage.rollups import ALL

MAX_NAME_LENGTH = 100
MAX_PRIORITY = 10
PERIODS = ("day", "month")
MAX_GRACE_HOURS = 24 * 90
# "me" is the client's own key, "none" stands for requests without a key; accounts that use a
# model begin with @.
_TAKEN_NAMES = (ALL, "me", "none", ".", "..")
_MAX_MODELS = 1000
_MAX_BUDGET = 10**18  # billionths, so that sums stay far below SQLite's integers
_COLUMNS = (
    *("name", "owner", "models", "requests_per_minute", "tokens_per_minute", "max_concurrency"),
    *("budget", "budget_period", "priority", "raw", "created_ms", "expires_ms", "revoked_ms"),
)


@dataclass(frozen=True)
class Budget:
    """So many billionths of the currency each local ``day`` or ``month``."""

    amount: int
    period: str


@dataclass(frozen=True)
class Secret:
    """A secret of a key, by its digest. Times are epoch ms; without ``valid_until_ms`` it is valid
    as long as its key."""

    digest: bytes
    hint: str
    created_ms: int
    valid_until_ms: int | None


@dataclass(frozen=True)
class Key:
    """Where a limit is None there is none. ``models`` are names or aliases. ``priority`` is 0 to
    10: a queued request is served before those of a lower one. ``raw``: it may use all of its
    models' servers, below /upstream, not their endpoints alone. Times are epoch ms."""

    name: str
    owner: str = ""
    models: tuple[str, ...] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrency: int | None = None
    budget: Budget | None = None
    priority: int = 0
    raw: bool = False
    created_ms: int = 0
    expires_ms: int | None = None
    revoked_ms: int | None = None
    secrets: tuple[Secret, ...] = ()

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether it may use a model with this name and these aliases."""
        return self.models is None or not set(self.models).isdisjoint(names)

    def state(self, now_ms: int) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked_ms is not None:
            return "revoked"
        return "expired" if self.expires_ms is not None and self.expires_ms <= now_ms else "active"


def validate(key: Key) -> Key:
    """The same key. Raises ApiError 400 for what a key cannot be."""
    name = key.name
    if not name.strip() or len(name) > MAX_NAME_LENGTH or has_control(name):
        raise _bad("name", f"a name has 1 to {MAX_NAME_LENGTH} characters, none of them a control")
    if name.strip() != name or any(unicodedata.category(c) == "Cf" for c in name):
        raise _bad("name", "a name does not begin or end with a blank, and all of it can be seen")
    if name in _TAKEN_NAMES or name.startswith("@"):
        raise _bad("name", f"a key cannot be named {name}: choose another name")
    if len(key.owner) > MAX_NAME_LENGTH or has_control(key.owner):
        raise _bad("owner", f"an owner has at most {MAX_NAME_LENGTH} characters")
    if key.models is not None:
        if not key.models:
            raise _bad("models", "a key without any model is of no use; leave models out for all")
        odd = any(not 0 < len(m) <= 2 * MAX_NAME_LENGTH or has_control(m) for m in key.models)
        if odd or len(key.models) > _MAX_MODELS:
            raise _bad("models", "models has to be a list of models' names")
    if not 0 <= key.priority <= MAX_PRIORITY:
        raise _bad("priority", f"priority is 0 to {MAX_PRIORITY}, the higher the sooner")
    if key.budget is not None:
        if key.budget.period not in PERIODS:
            raise _bad("budget", "a budget is for a day or a month")
        if not 0 <= key.budget.amount <= _MAX_BUDGET:
            raise _bad("budget", "a budget is 0 or more, and less than a thousand million")
    return key


def _bad(name: str, message: str) -> ApiError:
    return ApiError(400, "bad_parameter", message, param=name)


# --- its rows; each function below is part of a transaction ---------------------------------------


def load(connection: sqlite3.Connection) -> list[Key]:
    """All keys, those that are revoked as well, by name."""
    secrets: dict[str, list[Secret]] = {}
    for key, *rest in connection.execute(
        "SELECT key, digest, hint, created_ms, valid_until_ms FROM key_secrets ORDER BY created_ms"
    ):
        secrets.setdefault(key, []).append(Secret(*rest))
    rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM keys ORDER BY name")
    return [_key(dict(zip(_COLUMNS, row, strict=True)), secrets) for row in rows]


def find(connection: sqlite3.Connection, name: str) -> Key:
    """Raises ApiError 404."""
    for key in load(connection):
        if key.name == name:
            return key
    raise ApiError(404, "key_not_found", f"There is no key {name!r}")


def add(
    connection: sqlite3.Connection, key: Key, now_ms: int, secret: str | None = None
) -> tuple[Key, str]:
    """Makes the key and its first secret, which nobody can be shown again; or gives it a ``secret``
    that its owner has already. Raises ApiError 400, and 409 where a key had the name, or a key or a
    token the secret."""
    made = replace(validate(key), created_ms=now_ms, revoked_ms=None, secrets=())
    if connection.execute("SELECT 1 FROM keys WHERE name = ?", (made.name,)).fetchone():
        raise ApiError(
            409,
            "key_exists",
            f"There is a key {made.name!r}, or was one: what it has used stays under its name, so"
            " that none is given twice",
            param="name",
        )
    if secret is not None:
        credentials.check_secret(secret)
        digest = credentials.digest(secret)
        if connection.execute(
            "SELECT 1 FROM key_secrets WHERE digest = ?1"
            " UNION ALL SELECT 1 FROM tokens WHERE digest = ?1",
            (digest,),
        ).fetchone():
            raise secret_taken()
    _write(connection, made)
    return _with_secret(connection, made, now_ms, secret)


def secret_taken() -> ApiError:
    """409 for a secret that something else is known by; not by what."""
    message = "This secret is in use, or was, or is a token: each key has one of its own"
    return ApiError(409, "secret_taken", message, param="secret")


def change(connection: sqlite3.Connection, name: str, changes: Mapping[str, Any]) -> Key:
    """Sets fields of it other than its name. Raises ApiError 400 and 404, and 409 for one that is
    revoked."""
    key = validate(replace(_active(connection, name), **changes))
    _write(connection, key)
    return key


def rotate(
    connection: sqlite3.Connection, name: str, keep_old_ms: int, now_ms: int
) -> tuple[Key, str]:
    """A new secret; those before it are valid for so many more ms. Raises ApiError 404, 409."""
    key = _active(connection, name)
    until_ms = now_ms + keep_old_ms
    # Expired secrets are of no more use.
    connection.execute(
        "DELETE FROM key_secrets WHERE key = ? AND valid_until_ms <= ?", (name, now_ms)
    )
    connection.execute(
        "UPDATE key_secrets SET valid_until_ms = min(ifnull(valid_until_ms, ?1), ?1)"
        " WHERE key = ?2",
        (until_ms, name),
    )
    return _with_secret(connection, key, now_ms)


def revoke(connection: sqlite3.Connection, name: str, now_ms: int) -> Key:
    """Ends it for ever; once more changes nothing. Raises ApiError 404."""
    key = find(connection, name)
    if key.revoked_ms is None:
        key = replace(key, revoked_ms=now_ms)
        _write(connection, key)
    return key


def _active(connection: sqlite3.Connection, name: str) -> Key:
    key = find(connection, name)
    if key.revoked_ms is not None:
        raise ApiError(
            409, "key_revoked", f"The key {name!r} is revoked, and stays so: make another one"
        )
    return key


def _with_secret(
    connection: sqlite3.Connection, key: Key, now_ms: int, secret: str | None = None
) -> tuple[Key, str]:
    if secret is None:
        secret = credentials.new_secret(credentials.KEY_PREFIX)
    connection.execute(
        "INSERT INTO key_secrets (digest, key, hint, created_ms) VALUES (?, ?, ?, ?)",
        (credentials.digest(secret), key.name, credentials.hint(secret), now_ms),
    )
    return find(connection, key.name), secret


def _write(connection: sqlite3.Connection, key: Key) -> None:
    budget = key.budget
    values = (
        key.name,
        key.owner,
        None if key.models is None else json.dumps(key.models, ensure_ascii=False),
        key.requests_per_minute,
        key.tokens_per_minute,
        key.max_concurrency,
        None if budget is None else budget.amount,
        None if budget is None else budget.period,
        key.priority,
        key.raw,
        key.created_ms,
        key.expires_ms,
        key.revoked_ms,
    )
    connection.execute(
        f"INSERT OR REPLACE INTO keys ({', '.join(_COLUMNS)})"
        f" VALUES ({', '.join('?' * len(_COLUMNS))})",
        values,
    )


def _key(row: dict[str, Any], secrets: Mapping[str, Collection[Secret]]) -> Key:
    amount, period = row.pop("budget"), row.pop("budget_period")
    models, raw = row.pop("models"), row.pop("raw")
    return Key(
        **row,
        raw=bool(raw),
        models=None if models is None else tuple(json.loads(models)),
        budget=None if amount is None else Budget(amount, period),
        secrets=tuple(secrets.get(row["name"], ())),
    )

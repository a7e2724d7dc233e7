"""Accounts of people, tokens of scripts, and their rows in usage.db."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass, field

from manager.access import credentials
from manager.errors import ApiError

ADMIN = "admin"
VIEWER = "viewer"
ROLES = (ADMIN, VIEWER)
FIRST = "admin"
"""The name of the first account."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class Account:
    """A person. Sessions that were begun under another ``generation`` are over. Times are epoch
    ms."""

    name: str
    role: str
    password: str = field(repr=False)  # hashed
    generation: int
    created_ms: int


@dataclass(frozen=True)
class Token:
    """What a script signs in with. Times are epoch ms."""

    name: str
    role: str
    digest: bytes = field(repr=False)
    hint: str
    created_by: str
    created_ms: int
    expires_ms: int | None


# --- rows; each function below is part of a transaction -------------------------------------------


def accounts(connection: sqlite3.Connection) -> list[Account]:
    """By name."""
    rows = connection.execute(
        "SELECT name, role, password, generation, created_ms FROM accounts ORDER BY name"
    )
    return [Account(*row) for row in rows]


def tokens(connection: sqlite3.Connection) -> list[Token]:
    """By name."""
    rows = connection.execute(
        "SELECT name, role, digest, hint, created_by, created_ms, expires_ms FROM tokens"
        " ORDER BY name"
    )
    return [Token(*row) for row in rows]


def find(connection: sqlite3.Connection, name: str) -> Account:
    """Raises ApiError 404."""
    for account in accounts(connection):
        if account.name == name:
            return account
    raise ApiError(404, "account_not_found", f"There is no account {name!r}")


def add(
    connection: sqlite3.Connection, name: str, role: str, password: str, now_ms: int
) -> Account:
    """``password`` is hashed already. Raises ApiError 400 for a bad name or role, and for a first
    account that is no admin's; 409 for a name that is taken."""
    _check(name, role)
    if connection.execute("SELECT 1 FROM accounts WHERE name = ?", (name,)).fetchone():
        raise ApiError(409, "account_exists", f"There is an account {name!r} already", param="name")
    connection.execute(
        "INSERT INTO accounts (name, role, password, generation, created_ms)"
        " VALUES (?, ?, ?, ?, ?)",
        # The time: sessions of a removed account are not those of a later one of its name.
        (name, role, password, now_ms, now_ms),
    )
    _require_admin(connection)
    return find(connection, name)


def add_first(connection: sqlite3.Connection, name: str, password: str, now_ms: int) -> Account:
    """Adds the first account, an admin's. Raises ApiError 400, and 409 where there is one."""
    if accounts(connection):  # of two at once, one comes second
        raise ApiError(409, "password_is_set", "A password is set already: sign in")
    return add(connection, name, ADMIN, password, now_ms)


def set_password(connection: sqlite3.Connection, name: str, password: str) -> Account:
    """``password`` is hashed already; the account is signed out everywhere. Raises ApiError 404."""
    find(connection, name)
    connection.execute("UPDATE accounts SET password = ? WHERE name = ?", (password, name))
    return sign_out(connection, name)


def set_role(connection: sqlite3.Connection, name: str, role: str) -> Account:
    """Raises ApiError 400, 404, and 409 where no admin would be left."""
    _check(name, role)
    find(connection, name)
    connection.execute("UPDATE accounts SET role = ? WHERE name = ?", (role, name))
    _require_admin(connection)
    return find(connection, name)


def change(
    connection: sqlite3.Connection, name: str, role: str | None, password: str | None
) -> Account:
    """Sets the role and the hashed password, where there is one. Raises ApiError 400, 404, 409."""
    if role is not None:
        set_role(connection, name, role)
    if password is not None:
        set_password(connection, name, password)
    return find(connection, name)


def sign_out(connection: sqlite3.Connection, name: str) -> Account:
    """Ends all its sessions, wherever they are. Raises ApiError 404."""
    find(connection, name)
    connection.execute("UPDATE accounts SET generation = generation + 1 WHERE name = ?", (name,))
    return find(connection, name)


def remove(connection: sqlite3.Connection, name: str) -> None:
    """Raises ApiError 404, and 409 where no admin would be left."""
    find(connection, name)
    connection.execute("DELETE FROM accounts WHERE name = ?", (name,))
    _require_admin(connection)


def add_token(
    connection: sqlite3.Connection,
    name: str,
    role: str,
    created_by: str,
    expires_ms: int | None,
    now_ms: int,
) -> tuple[Token, str]:
    """Makes the token and its secret, which nobody can be shown again. Raises ApiError 400, and 409
    for a name that is taken."""
    _check(name, role)
    if connection.execute("SELECT 1 FROM tokens WHERE name = ?", (name,)).fetchone():
        raise ApiError(409, "token_exists", f"There is a token {name!r} already", param="name")
    secret = credentials.new_secret(credentials.TOKEN_PREFIX)
    made = Token(
        name,
        role,
        credentials.digest(secret),
        credentials.hint(secret),
        created_by,
        now_ms,
        expires_ms,
    )
    connection.execute(
        "INSERT INTO tokens (name, role, digest, hint, created_by, created_ms, expires_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (name, role, made.digest, made.hint, created_by, now_ms, expires_ms),
    )
    return made, secret


def remove_token(connection: sqlite3.Connection, name: str) -> None:
    """Raises ApiError 404."""
    if not connection.execute("DELETE FROM tokens WHERE name = ?", (name,)).rowcount:
        raise ApiError(404, "token_not_found", f"There is no token {name!r}")


def _check(name: str, role: str) -> None:
    if not _NAME.fullmatch(name):
        raise ApiError(
            400,
            "bad_parameter",
            "a name has up to 64 letters, digits and . _ @ - and begins with a letter or digit",
            param="name",
        )
    if name == "local":
        raise ApiError(
            400,
            "bad_parameter",
            "local stands for a user of this machine without an account",
            param="name",
        )
    if role not in ROLES:
        raise ApiError(400, "bad_parameter", f"a role is {' or '.join(ROLES)}", param="role")


def _require_admin(connection: sqlite3.Connection) -> None:
    # The change is rolled back with the transaction.
    if not connection.execute("SELECT 1 FROM accounts WHERE role = ?", (ADMIN,)).fetchone():
        raise ApiError(409, "last_admin", "There has to be an admin: nobody else could make one")

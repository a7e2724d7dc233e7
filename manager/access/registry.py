"""Keys, accounts and tokens in memory, for each request."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from manager.access import accounts, api_keys, credentials
from manager.access.accounts import Account, Token
from manager.access.api_keys import Key, Secret
from manager.clock import Clock
from manager.errors import ApiError
from manager.storage import Store, get_mark, read_connection

log = logging.getLogger(__name__)

_MARK = "access"

T = TypeVar("T")


@dataclass(frozen=True)
class AccessSnapshot:
    """All of it at one moment; ``version`` grows with each change."""

    version: int = 0
    keys: Mapping[str, Key] = field(default_factory=dict)
    accounts: Mapping[str, Account] = field(default_factory=dict)
    tokens: Mapping[str, Token] = field(default_factory=dict)
    _secrets: Mapping[bytes, tuple[Key, Secret]] = field(default_factory=dict, repr=False)
    _tokens: Mapping[bytes, Token] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, connection: sqlite3.Connection) -> AccessSnapshot:
        """Raises sqlite3.Error."""
        all_keys = api_keys.load(connection)
        tokens = accounts.tokens(connection)
        return cls(
            version(connection),
            {key.name: key for key in all_keys},
            {account.name: account for account in accounts.accounts(connection)},
            {token.name: token for token in tokens},
            {secret.digest: (key, secret) for key in all_keys for secret in key.secrets},
            {token.digest: token for token in tokens},
        )

    def requires_key(self, require_key: bool | None) -> bool:
        """Whether the models are for keys alone: as the config says, else once one was made. One
        that is revoked counts, so that to revoke the last does not admit everybody."""
        return bool(self.keys) if require_key is None else require_key

    def key(self, secret: str, now_ms: int) -> Key | None:
        """The key with this secret; None where none has it. Raises ApiError 401 for one that is
        revoked or expired, or was replaced."""
        digest = credentials.digest(secret)
        # A digest found by timing is still no secret; compared in constant time all the same, so
        # that nobody has to think about that.
        key, found = self._secrets.get(digest, (None, None))
        if key is None or found is None or not credentials.is_same(found.digest, digest):
            return None
        if key.revoked_ms is not None:
            raise invalid_key_error("The API key is revoked")
        if key.expires_ms is not None and key.expires_ms <= now_ms:
            raise invalid_key_error("The API key has expired")
        if found.valid_until_ms is not None and found.valid_until_ms <= now_ms:
            raise invalid_key_error("The API key was replaced by a new one")
        return key

    def is_key(self, secret: str) -> bool:
        """Whether it is or was a key's, valid or not."""
        return credentials.digest(secret) in self._secrets

    def token(self, secret: str, now_ms: int) -> Token | None:
        """The token with this secret, where it is valid."""
        digest = credentials.digest(secret)
        token = self._tokens.get(digest)
        if token is None or not credentials.is_same(token.digest, digest):
            return None
        return token if self.is_valid(token, now_ms) else None

    def is_valid(self, token: Token, now_ms: int) -> bool:
        """Whether it is there as it was, and has not expired."""
        is_there = self.tokens.get(token.name) == token
        return is_there and (token.expires_ms is None or token.expires_ms > now_ms)


def invalid_key_error(why: str) -> ApiError:
    """401 for a key that is of no use."""
    return ApiError(
        401,
        "invalid_api_key",
        f"{why}. Send a valid one as `Authorization: Bearer …`; who runs this LLM-Manager makes"
        " them on the page Keys, or with `llm-manager keys add NAME`",
    )


class AccessRegistry:
    """Holds the current ``snapshot``; each change and each ``refresh`` replaces it."""

    def __init__(self, store: Store, path: Path, clock: Clock) -> None:
        """Raises sqlite3.Error."""
        self._store = store
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._is_unreadable = False
        self.snapshot = AccessSnapshot()
        self.refresh()

    def change(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Calls it within a transaction, all of it or nothing, and returns when each request from
        then on sees what it has changed. Raises what it raises, sqlite3.Error."""

        def work(connection: sqlite3.Connection) -> tuple[T, AccessSnapshot]:
            result = function(connection)
            changed(connection)
            return result, AccessSnapshot.read(connection)

        result, read = self._store.transact(work)
        self._replace(read)
        return result

    def record(self, function: Callable[[sqlite3.Connection], object]) -> None:
        """Calls it within a transaction; it changes no permission. Raises
        sqlite3.Error."""
        self._store.transact(function)

    def refresh(self) -> None:
        """Sees what another process has changed, such as `llm-manager keys`. Raises
        sqlite3.Error."""
        with read_connection(self._path) as connection:
            known = (
                AccessSnapshot.read(connection)
                if version(connection) != self.snapshot.version
                else None
            )
        if known is not None:
            self._replace(known)

    def tick(self) -> None:
        """As `refresh`, for the scheduler: a database that cannot be read is logged, once."""
        try:
            self.refresh()
        except sqlite3.Error as error:
            if not self._is_unreadable:
                log.error("changes of keys and accounts are not seen: %s", error)
            self._is_unreadable = True
        else:
            self._is_unreadable = False

    def _replace(self, read: AccessSnapshot) -> None:
        # Two may have been read in one order and arrive here in the other.
        with self._lock:
            if read.version > self.snapshot.version:
                self.snapshot = read


def version(connection: sqlite3.Connection) -> int:
    """How often something was changed. Raises sqlite3.Error."""
    return int(get_mark(connection, _MARK) or 0)


def changed(connection: sqlite3.Connection) -> None:
    """Makes every process see that something has changed. Part of a transaction."""
    connection.execute(
        "INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)",
        (_MARK, str(version(connection) + 1)),
    )

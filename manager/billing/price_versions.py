"""The versions of each model's price, and what a person adds to a bill or takes off it."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timezone
from pathlib import Path

from manager.billing import calendar, pricing
from manager.billing.pricing import Price, PriceVersion, tiers_from_json, tiers_to_json
from manager.clock import Clock
from manager.errors import ApiError
from manager.storage import Store, read_connection
from manager.tokens import TokenUsage

log = logging.getLogger(__name__)

_FOR_EVER = 0  # ms; a price from the config holds for all that was before it


@dataclass(frozen=True)
class Adjustment:
    """A correction of a bill, or below zero a credit, in billionths. It belongs to the bill for
    ``at_ms``; an empty model or key is nobody's. Times are epoch ms."""

    id: int
    model: str
    key: str
    at_ms: int
    amount: int
    note: str
    created_ms: int


class PriceBook:
    """Prices and adjustments of usage.db. A version by which something was billed stays as it is,
    and so does all that was billed by it. Every method raises sqlite3.Error where the database
    cannot be used."""

    def __init__(self, store: Store, path: Path, clock: Clock) -> None:
        self._store = store
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._changes = 0
        self._known: dict[str, list[PriceVersion]] = {}

    def cost(self, model: str, at_ms: int, usage: TokenUsage) -> int:
        """What tokens of an answer cost that was asked for at that moment, in billionths; 0 where
        no price or no tier fits. It reads the database once a model and change of its price."""
        # Without the lock: each request comes here, and a dict's entry is there or it is not.
        known, changes = self._known.get(model), self._changes
        if known is None:
            known = self.versions(model)
            with self._lock:
                if changes == self._changes:  # else what was read may be older than the change
                    self._known[model] = known
        prompt = usage.prompt_tokens
        cached = min(usage.cached_tokens, prompt)
        return pricing.charge(known, at_ms, prompt, cached, usage.completion_tokens).cost

    def _forget(self) -> None:
        with self._lock:
            self._changes += 1
            self._known.clear()

    def versions(self, model: str | None = None) -> list[PriceVersion]:
        """The versions in force and to come, of one model or of all, oldest first."""
        with read_connection(self._path) as connection:
            return read_versions(connection, model)

    def set_price(self, model: str, price: Price, effective_ms: int | None = None) -> PriceVersion:
        """Makes a version that holds from `effective_ms`, or from now; one with the same moment
        is replaced.

        Raises ApiError 409 ``already_billed``, which says from when on it can hold, where
        something of that model was billed at that moment or after it.
        """
        now_ms = self._clock.wall_ms()

        def insert(connection: sqlite3.Connection) -> PriceVersion:
            start_ms = now_ms if effective_ms is None else effective_ms
            free_ms = _billed_until_ms(connection, model, start_ms)
            if free_ms is not None:
                if effective_ms is not None:
                    raise _already_billed(model, effective_ms, free_ms)
                start_ms = free_ms  # a clock that was set back has billed what is to come
            connection.execute(
                "UPDATE prices SET replaced_ms = ?"
                " WHERE model = ? AND effective_ms = ? AND replaced_ms IS NULL",
                (now_ms, model, start_ms),
            )
            return _insert(connection, model, start_ms, price, now_ms)

        made = self._store.transact(insert)
        self._forget()
        return made

    def seed_from_config(self, prices: Iterable[tuple[str, Price]]) -> None:
        """Gives each model that never had a price the one of its config, for ever. A config that
        has another one than any of a model's versions is logged: it changes nothing."""
        now_ms = self._clock.wall_ms()
        priced = list(prices)

        def seed(connection: sqlite3.Connection) -> list[str]:
            differ = []
            for model, price in priced:
                versions = _all_prices(connection, model)
                if not versions:
                    _insert(connection, model, _FOR_EVER, price, now_ms)
                elif price not in versions:
                    differ.append(model)
            return differ

        differ = self._store.transact(seed)
        self._forget()
        for model in differ:
            log.warning(
                "the price of %s in the config is not used: it had one before, and a later one is"
                " set by PUT /api/models/%s/price",
                model,
                model,
            )

    def add_adjustment(
        self, model: str, key: str, at_ms: int, amount: int, note: str
    ) -> Adjustment:
        """Adds to the bill for `at_ms`, or with an amount below zero takes off it. It stays: a
        wrong one is taken back by its opposite."""
        now_ms = self._clock.wall_ms()

        def insert(connection: sqlite3.Connection) -> Adjustment:
            values = (model, key, at_ms, amount, note, now_ms)
            cursor = connection.execute(
                "INSERT INTO adjustments (model, key, at_ms, amount, note, created_ms)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )
            return Adjustment(_id(cursor), *values)

        return self._store.transact(insert)

    def adjustments(
        self,
        model: str | None = None,
        key: str | None = None,
        start_ms: int | None = None,
        end_ms: int | None = None,
    ) -> list[Adjustment]:
        """Those of the bills from `start_ms` to `end_ms`, the end excluded, oldest first."""
        with read_connection(self._path) as connection:
            rows = connection.execute(
                "SELECT id, model, key, at_ms, amount, note, created_ms FROM adjustments"
                " WHERE (?1 IS NULL OR model = ?1) AND (?2 IS NULL OR key = ?2)"
                " AND (?3 IS NULL OR at_ms >= ?3) AND (?4 IS NULL OR at_ms < ?4)"
                " ORDER BY at_ms, id",
                (model, key, start_ms, end_ms),
            ).fetchall()
        return [Adjustment(*row) for row in rows]


def read_versions(
    connection: sqlite3.Connection, model: str | None = None, replaced: bool = False
) -> list[PriceVersion]:
    """The versions in force and to come, of one model or of all, oldest first; or those that were
    replaced. Raises sqlite3.Error."""
    rows = connection.execute(
        "SELECT id, model, effective_ms, per_hour, tiers, created_ms FROM prices"
        " WHERE (replaced_ms IS NOT NULL) = ?2 AND (?1 IS NULL OR model = ?1)"
        " ORDER BY model, effective_ms",
        (model, replaced),
    )
    return [
        PriceVersion(id_, name, effective_ms, Price(per_hour, tiers_from_json(tiers)), created_ms)
        for id_, name, effective_ms, per_hour, tiers, created_ms in rows
    ]


def _insert(
    connection: sqlite3.Connection, model: str, effective_ms: int, price: Price, now_ms: int
) -> PriceVersion:
    cursor = connection.execute(
        "INSERT INTO prices (model, effective_ms, per_hour, tiers, created_ms)"
        " VALUES (?, ?, ?, ?, ?)",
        (model, effective_ms, price.per_hour, tiers_to_json(price.tiers), now_ms),
    )
    return PriceVersion(_id(cursor), model, effective_ms, price, now_ms)


def _id(cursor: sqlite3.Cursor) -> int:
    assert cursor.lastrowid is not None  # of an INSERT that was just done
    return cursor.lastrowid


def _all_prices(connection: sqlite3.Connection, model: str) -> list[Price]:
    """Replaced versions too: who replaced one has set a price."""
    rows = connection.execute("SELECT per_hour, tiers FROM prices WHERE model = ?", (model,))
    return [Price(per_hour, tiers_from_json(tiers)) for per_hour, tiers in rows]


def _billed_until_ms(connection: sqlite3.Connection, model: str, start_ms: int) -> int | None:
    """The first moment after all that was billed of the model, where that is after `start_ms`."""
    (first_ms,) = connection.execute(
        "SELECT min(effective_ms) FROM prices WHERE model = ? AND replaced_ms IS NULL", (model,)
    ).fetchone()
    if first_ms is None:
        return None  # nothing is billed without a price
    # Nothing before the first price was billed: those rows, perhaps all, are not looked at.
    (request_ms,) = connection.execute(
        "SELECT max(started_ms) FROM (SELECT started_ms FROM requests INDEXED BY requests_model"
        " WHERE model = ? AND id >= ? AND price IS NOT NULL ORDER BY id DESC LIMIT 1)",
        (model, max(start_ms, first_ms, 0).to_bytes(6, "big") + bytes(10)),
    ).fetchone()
    # From a run's first billed moment on, all of it is billed up to billed_ms.
    (run_ms,) = connection.execute(
        "SELECT max(billed_ms) FROM runs WHERE model = ? AND billed_ms > ? AND EXISTS"
        " (SELECT 1 FROM run_hours WHERE run = runs.id AND price != 0)",
        (model, start_ms),
    ).fetchone()
    ends = ([] if request_ms is None else [request_ms + 1]) + ([] if run_ms is None else [run_ms])
    return max(ends, default=None)


def _already_billed(model: str, effective_ms: int, free_ms: int) -> ApiError:
    return ApiError(
        409,
        "already_billed",
        f"{model} was billed up to {_iso(free_ms)}: a price cannot hold from {_iso(effective_ms)}"
        f" on. The earliest moment from which it can is {_iso(free_ms)}",
        param="effective_from",
    )


def _iso(ms: int) -> str:
    return calendar.local(ms, timezone.utc).isoformat(timespec="milliseconds")

"""Makes a usage.db with as many requests as a busy machine has in two months."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import tzinfo
from pathlib import Path

import numpy as np

from jobs import billing, run_hours
from manager.billing.pricing import Price, Tier, tiers_to_json
from manager.storage import maintenance
from manager.storage.store import Store, uuid7

MODELS = 50
KEYS = 20
DAYS = 60
START_MS = 1_788_220_800_000  # 2026-09-01 in UTC

_MODES = (("Chat", "/v1/chat/completions"), ("Embedding", "/v1/embeddings"))
_SCHEMES = ("one-card", "two-cards")
_PIECE = 20_000  # rows in one transaction
_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
_INSERT = (
    "INSERT INTO requests (id, model, asked_for, mode, scheme, key, endpoint, streamed, status,"
    " started_ms, leased_ms, first_byte_ms, ended_ms, prompt_tokens, cached_tokens,"
    " completion_tokens, estimated, error)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


def fill(
    path: Path,
    rows: int,
    zone: tzinfo,
    rolled_up: bool = True,
    days: int = DAYS,
    start_ms: int = START_MS,
) -> None:
    """Makes the file with so many requests over `days` from `start_ms` on, and the runs and prices
    that belong to them; with `rolled_up` the worker's functions price and add them up.

    Few models and keys have most of the requests, the day has more than the night, and one in
    fifty fails. The same rows each time.
    """
    Store(path).close()
    with closing(maintenance.connect(path)) as connection:
        # What a crash leaves of a file that is made to be measured is of no use.
        connection.execute("PRAGMA synchronous = OFF")
        _prices_and_runs(connection, start_ms, days)
        chance = np.random.default_rng(1)
        hours = np.arange(days * 24)
        busy = 1.2 + np.sin((hours % 24 - 9) / 24 * 2 * np.pi)
        counts = chance.multinomial(rows, busy / busy.sum())
        for hour, count in zip(hours, counts, strict=True):
            for piece in range(0, count, _PIECE):
                part = start_ms + int(hour) * _HOUR_MS + _HOUR_MS * piece // max(count, 1)
                length = _HOUR_MS * min(_PIECE, count - piece) // count
                _insert(connection, chance, part, length, min(_PIECE, count - piece))
        if rolled_up:
            while billing.price_new(connection, zone):
                pass
            run_hours.bill_runs(connection, zone, start_ms + days * _DAY_MS)


def _prices_and_runs(connection: sqlite3.Connection, start_ms: int, days: int) -> None:
    tiers = [
        Tier(0, 32000, 0, -1, 2_400_000_000, 9_600_000_000, 240_000_000, 600_000_000, True),
        Tier(32000, -1, 0, -1, 4_800_000_000, 14_400_000_000, 0, 0, False),
    ]
    price = Price(500_000_000, tuple(tiers))
    with maintenance.transaction(connection):
        for number in range(MODELS):
            connection.execute(
                "INSERT INTO prices (model, effective_ms, per_hour, tiers, created_ms)"
                " VALUES (?, 0, ?, ?, 0)",
                (name_of(number), price.per_hour, tiers_to_json(price.tiers)),
            )
            for day in range(days):
                ready = start_ms + day * _DAY_MS + number * 60_000
                connection.execute(
                    "INSERT INTO runs (id, model, scheme, mode, fingerprint, port, started_ms,"
                    " ready_ms, ended_ms, end_reason) VALUES (?, ?, ?, ?, '', 0, ?, ?, ?, 'idle')",
                    (
                        uuid7(ready).hex(),
                        *(name_of(number), scheme_of(number), mode_of(number)[0]),
                        *(ready, ready, ready + 20 * _HOUR_MS),
                    ),
                )


def _insert(
    connection: sqlite3.Connection,
    chance: np.random.Generator,
    start_ms: int,
    length_ms: int,
    count: int,
) -> None:
    started = start_ms + np.sort(chance.integers(0, max(length_ms, 1), count))
    models = _few_have_most(chance, MODELS, count)
    keys = _few_have_most(chance, KEYS, count)
    prompt = np.exp(chance.normal(6.5, 1.4, count)).astype(np.int64).clip(1, 200_000)
    cached = (prompt * chance.random(count) * (chance.random(count) < 0.4)).astype(np.int64)
    completion = np.exp(chance.normal(5.3, 1.0, count)).astype(np.int64).clip(1, 16_000)
    failed = chance.random(count) < 0.02
    streamed = chance.random(count) < 0.7
    first = started + np.exp(chance.normal(5.5, 0.8, count)).astype(np.int64)
    ended = first + completion * chance.integers(8, 30, count)
    chances = chance.bytes(10 * count)
    columns = (models, keys, prompt, cached, completion, failed, streamed, started, first, ended)
    with maintenance.transaction(connection):
        connection.executemany(
            _INSERT,
            (
                (
                    _id(begun, chances[10 * at : 10 * at + 10]),
                    *(name_of(model), name_of(model), mode_of(model)[0], scheme_of(model)),
                    *(f"key-{key}", mode_of(model)[1], stream, 502 if bad else 200),
                    *(begun, begun, None if bad else byte, byte if bad else end),
                    *((0, 0, 0) if bad else (tokens, hit, answer)),
                    *(0, "upstream_error" if bad else None),
                )
                for at, (model, key, tokens, hit, answer, bad, stream, begun, byte, end) in (
                    enumerate(zip(*(column.tolist() for column in columns), strict=True))
                )
            ),
        )


def _few_have_most(chance: np.random.Generator, of: int, count: int) -> np.ndarray:
    """The first a third as often as the third, as with words (Zipf's law)."""
    share = 1 / np.arange(1, of + 1)
    return chance.choice(of, count, p=share / share.sum())


def _id(ms: int, chance: bytes) -> bytes:
    """A UUID of version 7, as `manager.store.uuid7` makes them, of chances that are given."""
    return (
        ms.to_bytes(6, "big")
        + bytes([0x70 | chance[0] & 0x0F, chance[1], 0x80 | chance[2] & 0x3F])
        + chance[3:]
    )


def name_of(number: int) -> str:
    return f"model-{number:02}"


def mode_of(number: int) -> tuple[str, str]:
    return _MODES[number % 5 == 4]


def scheme_of(number: int) -> str:
    return _SCHEMES[number % 3 == 2]

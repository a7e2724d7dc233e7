"""What the worker makes of requests and runs: prices, sums, each once, whatever is killed when."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs import billing, run_hours
from manager.billing import pricing
from manager.billing.pricing import MAX_AMOUNT, PER_UNIT, Price, Tier, tiers_to_json
from manager.storage import latency
from manager.storage.rows import INSERT_REQUESTS, ONE_REQUEST, uuid7
from manager.tokens import MAX_TOKENS
from tests.support.usage_rows import a_request, new_store

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR

Sums = dict[tuple[Any, ...], tuple[int, ...]]


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


AUTUMN = ms("2026-10-25T00:00:00+00:00")

TIER = Tier(0, 1000, 0, -1, 3_000_000_000, 7_000_000_000, 500_000_001, 100_000_000, True)
LARGE = Tier(1000, -1, 0, 50_000, 999_999_999, 1_234_567, 0, 0, False)
BOTH = Price(360_000_000, (TIER, LARGE))
DEARER = Price(720_000_001, (replace(TIER, input=5_000_000_000),))
BY_HOUR = Price(100_000_007, ())


@dataclass
class Request:
    started_ms: int
    model: str = "qwen"
    key: str = ""
    prompt: int = 10
    cached: int = 0
    completion: int = 20
    status: int = 200
    streamed: bool = True
    first_ms: int | None = 30  # after started_ms
    took_ms: int = 500
    estimated: bool = False
    cost: int | None = None  # of one that was imported

    mode = "Chat"
    scheme = "one-card"


@dataclass
class Version:
    price: Price
    effective_ms: int = 0
    model: str = "qwen"
    id: int = 0


@dataclass
class Run:
    ready_ms: int | None
    ended_ms: int | None = None
    heartbeat_ms: int | None = None
    ready_clock_ms: int | None = None
    model: str = "qwen"
    id: str = field(default_factory=lambda: uuid7(0).hex())


@dataclass
class Database:
    path: Path

    def __post_init__(self) -> None:
        new_store(self.path).close()
        self.connection = self.connect()

    def connect(self, factory: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=10, factory=factory)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    def copy(self, name: object) -> Database:
        """Another one, of that name, with all that is in this one."""
        other = Database(self.path.with_name(f"{name}.db"))
        self.connection.backup(other.connection)
        return other

    def clear(self) -> None:
        for table in ("requests", "runs", "run_hours", "prices", "rollups", "latencies", "marks"):
            self.connection.execute(f"DELETE FROM {table}")

    def prices(self, *versions: Version) -> None:
        for version in versions:
            version.id = self.connection.execute(
                "INSERT INTO prices (model, effective_ms, per_hour, tiers, created_ms)"
                " VALUES (?, ?, ?, ?, 0)",
                (
                    version.model,
                    version.effective_ms,
                    version.price.per_hour,
                    tiers_to_json(version.price.tiers),
                ),
            ).lastrowid

    def requests(self, *requests: Request) -> None:
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(
            INSERT_REQUESTS + ONE_REQUEST,
            [
                a_request(
                    one.started_ms,
                    one.model,
                    mode=one.mode,
                    scheme=one.scheme,
                    key=one.key,
                    streamed=one.streamed,
                    status=one.status,
                    first_byte_ms=None if one.first_ms is None else one.started_ms + one.first_ms,
                    ended_ms=one.started_ms + one.took_ms,
                    prompt_tokens=one.prompt,
                    cached_tokens=one.cached,
                    completion_tokens=one.completion,
                    estimated=one.estimated,
                    cost=one.cost,
                )
                for one in requests
            ],
        )
        self.connection.execute("COMMIT")

    def runs(self, *runs: Run) -> None:
        self.connection.executemany(
            "INSERT OR REPLACE INTO runs (id, model, scheme, mode, fingerprint, port, started_ms,"
            " ready_ms, ended_ms, heartbeat_ms, ready_clock_ms, billed_ms)"
            " VALUES (?, ?, 'one-card', 'Chat', '', 0, 0, ?, ?, ?, ?,"
            " (SELECT billed_ms FROM runs WHERE id = ?))",
            [
                (
                    *(run.id, run.model, run.ready_ms, run.ended_ms, run.heartbeat_ms),
                    *(run.ready_clock_ms, run.id),
                )
                for run in runs
            ],
        )

    def price_all(self, limit: int = billing.BATCH) -> None:
        while billing.price_new(self.connection, limit):
            pass

    def rows(self, statement: str) -> list[Any]:
        return self.connection.execute(statement).fetchall()

    def costs(self) -> list[tuple[int | None, int | None, int | None]]:
        return self.rows("SELECT price, tier, cost FROM requests ORDER BY seq")

    def rollups(self) -> Sums:
        """Sums by model and key; those of a model and those of a key say the same."""
        rows = self.rows(
            "SELECT span, start_ms, model, key, mode, scheme, requests, errors, prompt_tokens,"
            " cached_tokens, completion_tokens, estimated, unpriced, cost_tokens, generated_tokens,"
            " generated_ms, run_ms, cost_hours FROM rollups"
        )
        found = {row[:6]: row[6:] for row in rows}
        each = {cell: row for cell, row in found.items() if "*" not in cell}
        merged: Sums = {}
        for (span, start, model, key, mode, scheme), row in each.items():
            for who in ((model, "*", mode, scheme), ("*", key, "*", "*")):
                before = merged.get((span, start, *who), (0,) * len(row))
                sums = (min(a + b, 2**63 - 1) for a, b in zip(before, row, strict=True))
                merged[(span, start, *who)] = tuple(sums)
        assert found == each | merged
        return each

    def latencies(self) -> Counter[tuple[Any, ...]]:
        """Histograms by cell, and whether they are of the first byte or of the whole answer."""
        found: Counter[tuple[Any, ...]] = Counter()
        for *cell, first, whole in self.rows(
            "SELECT span, start_ms, model, key, mode, scheme, first, whole FROM latencies"
        ):
            found[(*cell, "first")] = latency.unpack(first)
            found[(*cell, "whole")] = latency.unpack(whole)
        return found

    def total(self, column: str, span: str = "hour") -> int:
        return self.rows(
            f"SELECT ifnull(sum({column}), 0) FROM rollups WHERE span = '{span}' AND key = '*'"
        )[0][0]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "usage.db")
    with closing(database.connection):
        yield database


# The same in plain Python, one after the other.


def in_force(versions: list[Version], model: str, at_ms: int) -> Version | None:
    possible = [one for one in versions if one.model == model and one.effective_ms <= at_ms]
    return max(possible, key=lambda one: one.effective_ms, default=None)


def cost_of(versions: list[Version], one: Request) -> tuple[int | None, int | None, int]:
    if one.cost is not None:
        return None, None, one.cost
    version = in_force(versions, one.model, one.started_ms)
    if version is None:
        return None, None, 0
    tier = pricing.tier_of(version.price, one.prompt, one.completion)
    if tier is None:
        return version.id, None, 0
    tokens = (one.prompt, one.cached, one.completion)
    return version.id, tier, pricing.token_cost(version.price.tiers[tier], *tokens)


SPANS = {"quarter": 15 * MINUTE, "hour": HOUR, "day": DAY}


def starts(at_ms: int) -> list[tuple[str, int]]:
    return [(span, at_ms // length * length) for span, length in SPANS.items()]


def sums_of(versions: list[Version], requests: list[Request]) -> Sums:
    by_id = {version.id: version.price for version in versions}
    sums: dict[tuple[Any, ...], list[int]] = {}
    for one in requests:
        price, tier, cost = cost_of(versions, one)
        flagged = one.prompt + one.completion > 0 and tier is None and one.cost is None
        flagged = flagged and (price is None or bool(by_id[price].tiers))
        streamed = one.streamed and one.first_ms is not None
        numbers = [
            *(1, one.status >= 400, one.prompt, one.cached, one.completion, one.estimated),
            *(flagged, cost, one.completion if streamed else 0),
            max(one.took_ms - (one.first_ms or 0), 0) if streamed else 0,
            *(0, 0),
        ]
        for start in starts(one.started_ms):
            cell = sums.setdefault((*start, one.model, one.key, one.mode, one.scheme), [0] * 12)
            cell[:] = [a + b for a, b in zip(cell, numbers, strict=True)]
    return {cell: tuple(numbers) for cell, numbers in sums.items()}


def latencies_of(requests: list[Request]) -> Counter[tuple[Any, ...]]:
    counts: Counter[tuple[Any, ...]] = Counter()
    for one in requests:
        for start in starts(one.started_ms):
            for cell in (
                (*start, one.model, "*", one.mode, one.scheme),
                (*start, "*", one.key, "*", "*"),
            ):
                counts[(*cell, "whole")] += latency.histogram(one.took_ms)
                if one.first_ms is not None:
                    counts[(*cell, "first")] += latency.histogram(one.first_ms)
    return counts


def run_hours_of(versions: list[Version], runs: list[Run]) -> Counter[Any]:
    """Milliseconds by run, hour and version: looked at minute by minute, so give whole minutes."""
    found: Counter[Any] = Counter()
    for run in runs:
        for at_ms in range(run.ready_ms or 0, max(run.ended_ms or 0, run.ready_ms or 0), MINUTE):
            version = in_force(versions, run.model, at_ms)
            hour = at_ms // HOUR * HOUR
            found[run.id, hour, version.id if version else 0] += MINUTE
    return found


def check_runs(database: Database, versions: list[Version], runs: list[Run]) -> None:
    stored = database.rows("SELECT run, hour_ms, price, ms, cost FROM run_hours")
    assert {row[:3]: row[3] for row in stored} == run_hours_of(versions, runs)
    prices = {version.id: version.price.per_hour for version in versions}
    costs: Counter[Any] = Counter()
    for _, hour_ms, price, length, cost in stored:
        assert cost == pricing.hour_cost(prices.get(price), length)
        for span, start in starts(hour_ms)[1:]:  # quarters have a part of it
            costs[span, start] += cost
    times: Counter[Any] = Counter()
    for run in runs:
        for at_ms in range(run.ready_ms or 0, max(run.ended_ms or 0, run.ready_ms or 0), MINUTE):
            times.update(dict.fromkeys(starts(at_ms), MINUTE))
    found_costs: Counter[Any] = Counter()
    found_times: Counter[Any] = Counter()
    for (span, start, *_), numbers in database.rollups().items():
        found_times[span, start] += numbers[-2]
        found_costs[(span, start) if span != "quarter" else span] += numbers[-1]
    quarters = found_costs.pop("quarter", 0)
    assert +found_times == +times
    assert +found_costs == +costs
    assert quarters == sum(cost for *_, cost in stored)


tokens = st.integers(0, 3000)
requests = st.builds(
    Request,
    started_ms=st.integers(AUTUMN - HOUR, AUTUMN + 30 * HOUR),
    model=st.sampled_from(["qwen", "llama", ""]),
    key=st.sampled_from(["", "anna"]),
    prompt=tokens,
    completion=tokens | st.just(60_000),
    cached=st.just(0),
    status=st.sampled_from([200, 200, 404, 502]),
    streamed=st.booleans(),
    first_ms=st.none() | st.integers(-10, 5000),
    took_ms=st.integers(-10, 100_000),
    estimated=st.booleans(),
    cost=st.none() | st.none() | st.integers(1, 10**9),
)
VERSIONS = [
    Version(BOTH, AUTUMN),
    Version(DEARER, AUTUMN + 5 * HOUR),
    Version(BY_HOUR, AUTUMN + 20 * HOUR),
    Version(BOTH, 0, "llama"),
]


# Prices of requests.


def test_a_request_has_the_price_that_held_when_it_began(database: Database) -> None:
    old, new = Version(BOTH, 1000), Version(DEARER, 2000)
    database.prices(old, new)
    database.requests(*(Request(at_ms) for at_ms in (999, 1000, 1999, 2000)))
    database.price_all()
    assert database.costs() == [
        (None, None, 0),
        (old.id, 0, 171_000),  # 10 * (3 + 0.1) + 20 * 7, a million
        (old.id, 0, 171_000),
        (new.id, 0, 191_000),
    ]
    assert database.total("unpriced") == 1


def test_a_version_that_was_replaced_is_not_used(database: Database) -> None:
    database.prices(Version(BOTH, 0))
    database.connection.execute("UPDATE prices SET replaced_ms = 5")
    right = Version(DEARER, 0)
    database.prices(right)
    database.requests(Request(1000))
    database.price_all()
    assert database.costs()[0][0] == right.id


def test_tokens_that_no_tier_fits_cost_nothing_and_are_flagged(database: Database) -> None:
    database.prices(Version(Price(None, (replace(TIER, max_input=5),))))
    database.requests(
        Request(1, prompt=6), Request(1, prompt=5), Request(1, prompt=0, completion=0)
    )
    database.price_all()
    assert [tier for _, tier, _ in database.costs()] == [None, 0, 0]
    assert database.costs()[0][2] == 0
    assert database.total("unpriced") == 1


def test_tokens_of_a_model_that_is_paid_by_the_hour_are_not_flagged(database: Database) -> None:
    version = Version(BY_HOUR)
    database.prices(version)
    database.requests(Request(1))
    database.price_all()
    assert database.costs() == [(version.id, None, 0)]
    assert database.total("unpriced") == 0


def test_a_cost_that_is_there_already_is_kept(database: Database) -> None:
    database.prices(Version(BOTH))
    database.requests(Request(1, cost=77))
    database.price_all()
    assert database.costs() == [(None, None, 77)]
    assert (database.total("cost_tokens"), database.total("unpriced")) == (77, 0)


def test_costs_that_are_too_large_to_add_up_stop_nobody(database: Database) -> None:
    dear = Tier(0, -1, 0, -1, *[MAX_AMOUNT * PER_UNIT] * 4, True)
    database.prices(Version(Price(None, (dear,))))
    huge = Request(1, prompt=MAX_TOKENS, completion=MAX_TOKENS)
    database.requests(huge, huge, huge)
    database.price_all(limit=2)
    assert {cost for _, _, cost in database.costs()} == {3 * MAX_TOKENS * PER_UNIT}
    assert database.total("cost_tokens") == 2**63 - 1


# Sums.


@given(
    given_requests=st.lists(requests, max_size=12),
    limits=st.lists(st.integers(1, 5), min_size=1, max_size=6),
)
@example([Request(AUTUMN + 2 * HOUR), Request(AUTUMN + 3 * HOUR)], [1])
@settings(max_examples=30)
def test_however_requests_come_the_sums_are_those_of_the_rows(
    database: Database, given_requests: list[Request], limits: list[int]
) -> None:
    database.clear()
    versions = [replace(version) for version in VERSIONS]
    database.prices(*versions)
    left = list(given_requests)
    for limit in limits:  # some come, late ones among them, while others are worked on
        database.requests(*left[:3])
        del left[:3]
        billing.price_new(database.connection, limit)
    database.requests(*left)
    database.price_all(limits[0])
    assert database.costs() == [cost_of(versions, one) for one in given_requests]
    assert database.rollups() == sums_of(versions, given_requests)
    assert database.latencies() == latencies_of(given_requests)
    assert billing.price_new(database.connection) == 0


def test_the_database_keeps_names_as_they_are(database: Database) -> None:
    names = ["通义千问", 'a "b", c', "=1+1", "nul'l"]
    database.requests(*(Request(1, model=name, key=name) for name in names))
    database.price_all()
    assert {cell[2:4] for cell in database.rollups()} == {(name, name) for name in names}


# Runs.


def bill(database: Database, now_ms: int = 2**53) -> int:
    return run_hours.bill_runs(database.connection, now_ms)


def test_a_run_costs_from_ready_to_its_end(database: Database) -> None:
    version = Version(Price(3_600_000_000, ()))
    database.prices(version)
    run = Run(ready_ms=HOUR - 10_000, ended_ms=HOUR + 5_000)
    database.runs(run)
    assert bill(database) == 1
    assert database.rows("SELECT hour_ms, price, ms, cost FROM run_hours") == [
        (0, version.id, 10_000, 10_000_000),
        (HOUR, version.id, 5_000, 5_000_000),
    ]
    assert (database.total("run_ms"), database.total("cost_hours", "day")) == (15_000, 15_000_000)
    assert bill(database) == 0


def test_a_run_that_goes_on_costs_up_to_its_last_heartbeat(database: Database) -> None:
    database.prices(Version(BY_HOUR))
    run = Run(ready_ms=1000)
    for heartbeat_ms, total in ((None, 0), (31_000, 30_000), (31_000, 30_000), (61_000, 60_000)):
        database.runs(replace(run, heartbeat_ms=heartbeat_ms))
        bill(database)
        assert database.total("run_ms") == total
    database.runs(replace(run, heartbeat_ms=61_000, ended_ms=70_000))
    bill(database)
    assert database.total("run_ms") == 69_000


def test_time_that_has_not_come_costs_nothing(database: Database) -> None:
    """Of a run of an earlier version, whose heartbeats are a wall clock's that may be ahead."""
    database.runs(Run(ready_ms=1000, heartbeat_ms=10 * HOUR))
    bill(database, now_ms=5000)
    assert database.total("run_ms") == 4000


def test_time_that_the_monotonic_clock_has_counted_costs_while_the_wall_clock_is_set_back(
    database: Database,
) -> None:
    database.runs(Run(ready_ms=1000, heartbeat_ms=10 * HOUR, ready_clock_ms=77))
    bill(database, now_ms=5000)
    assert database.total("run_ms") == 10 * HOUR - 1000


@pytest.mark.parametrize("run", [Run(None, 5000), Run(5000, 5000), Run(5000, 4000)])
def test_a_run_without_ready_time_costs_nothing_and_is_done(database: Database, run: Run) -> None:
    database.runs(run)
    bill(database)
    assert database.rollups() == {}
    assert bill(database) == 0


minutes = st.integers(-2 * 60, 27 * 60).map(lambda minute: AUTUMN + minute * MINUTE)


@given(
    spans=st.lists(st.tuples(minutes, minutes), min_size=1, max_size=2),
    heartbeats=st.lists(st.integers(AUTUMN - 2 * HOUR, AUTUMN + 27 * HOUR), max_size=5),
    effective=st.lists(minutes, max_size=2, unique=True),
)
@example([(AUTUMN, AUTUMN + 5 * HOUR)], [AUTUMN + 20 * HOUR], [AUTUMN + HOUR])
@settings(max_examples=30)
def test_however_often_a_run_is_billed_it_costs_its_time(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    spans: list[tuple[int, int]],
    heartbeats: list[int],
    effective: list[int],
) -> None:
    monkeypatch.setattr(run_hours, "_AT_ONCE", 3)
    database.clear()
    versions = [Version(BOTH if at % (2 * MINUTE) else BY_HOUR, at) for at in effective]
    database.prices(*versions)
    runs = [Run(ready_ms, ended_ms) for ready_ms, ended_ms in spans]
    for heartbeat_ms in heartbeats:  # some of them beyond its end, as clocks jump
        open_ = [replace(run, ended_ms=None, heartbeat_ms=heartbeat_ms) for run in runs]
        database.runs(*open_)
        bill(database)
    database.runs(*runs)
    bill(database)
    check_runs(database, versions, runs)
    assert bill(database) == 0


# Prices for what had none.


def test_what_had_no_price_gets_one_on_request(database: Database) -> None:
    moments = (MINUTE - 1, MINUTE, 2 * MINUTE)
    rows = [Request(at_ms, model) for model in ("qwen", "llama") for at_ms in moments]
    database.requests(*rows, Request(MINUTE, cost=9))
    database.runs(run := Run(ready_ms=0, ended_ms=2 * HOUR))
    database.price_all()
    bill(database)
    versions = [Version(BOTH, MINUTE)]
    database.prices(*versions)
    assert billing.price_unpriced(database.connection, "qwen", MINUTE, 2 * MINUTE) == 1
    assert [cost > 0 for _, _, cost in database.costs()] == [False, True, *[False] * 4, True]
    assert database.total("cost_tokens") == cost_of(versions, rows[1])[2] + 9

    # An hour begins before that, and the next one within it.
    assert billing.price_unpriced(database.connection, "qwen", 0, 2 * HOUR) == 1 + 2
    check_runs(database, versions, [run])
    qwen = [(None, None, 0), *(cost_of(versions, row) for row in rows[1:3])]
    assert database.costs() == [*qwen, *[(None, None, 0)] * 3, (None, None, 9)]
    assert database.total("cost_tokens") == sum(cost for _, _, cost in database.costs())
    assert database.total("unpriced") == 4
    assert billing.price_unpriced(database.connection, "qwen", 0, 2 * HOUR) == 0


def test_what_has_a_price_keeps_it(database: Database) -> None:
    database.prices(Version(replace(BOTH, tiers=(replace(TIER, max_input=5),)), 1000))
    database.requests(Request(1500), Request(1500, prompt=4))
    database.runs(Run(ready_ms=1000, ended_ms=HOUR))
    database.price_all()
    bill(database)
    before = (database.costs(), database.rollups(), database.rows("SELECT * FROM run_hours"))
    database.prices(Version(DEARER, 500), Version(DEARER, 1200))
    assert billing.price_unpriced(database.connection, "qwen", 0, 2**46) == 0
    assert before == (
        database.costs(),
        database.rollups(),
        database.rows("SELECT * FROM run_hours"),
    )


@given(given_requests=st.lists(requests, max_size=8))
@settings(max_examples=20)
def test_priced_later_it_costs_what_it_would_have_cost(
    database: Database, given_requests: list[Request]
) -> None:
    database.clear()
    database.requests(*given_requests)
    database.price_all()
    versions = [replace(version) for version in VERSIONS]
    database.prices(*versions)
    for model in ("qwen", "llama", ""):
        billing.price_unpriced(database.connection, model, 0, 2**46)
    assert database.costs() == [cost_of(versions, one) for one in given_requests]
    assert database.rollups() == sums_of(versions, given_requests)


# Killed, and at the same time.


class Failed(Exception):
    pass


class Failing(sqlite3.Connection):
    """Fails before its statement number `fail_at`, as a process that is killed there."""

    fail_at = 10**9
    done = 0

    def _count(self) -> None:
        self.done += 1
        if self.done > self.fail_at:
            raise Failed

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        if arguments[0] != "ROLLBACK":
            self._count()
        return super().execute(*arguments)

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        self._count()
        return super().executemany(*arguments)


MANY = [
    Request(AUTUMN + at * 700_000, ("qwen", "llama")[at % 2], prompt=at * 17 % 1500)
    for at in range(60)
]
LIVES = [
    Run(AUTUMN - MINUTE, AUTUMN + 6 * HOUR),
    Run(AUTUMN + HOUR, AUTUMN + 3 * HOUR, model="llama"),
]


def work(connection: sqlite3.Connection, limit: int = 9) -> None:
    """All that the worker does."""
    while billing.price_new(connection, limit):
        pass
    run_hours.bill_runs(connection, 2**53)
    billing.price_unpriced(connection, "qwen", 0, 2**46)


def half_done(database: Database) -> list[Version]:
    """Half of it is billed, some of that without a price."""
    late = Version(BOTH, 0, "llama")
    database.prices(late)
    database.requests(*MANY[:30])
    database.runs(*(replace(run, ended_ms=None, heartbeat_ms=AUTUMN + 2 * HOUR) for run in LIVES))
    database.price_all()
    bill(database)
    database.runs(*LIVES)
    versions = [Version(BOTH, 0), Version(DEARER, AUTUMN + 5 * HOUR)]
    database.prices(*versions)
    database.requests(*MANY[30:])
    return [late, *versions]


def check_done(database: Database, versions: list[Version]) -> None:
    assert database.costs() == [cost_of(versions, one) for one in MANY]
    sums = {
        cell: (*numbers[:-2], 0, 0) for cell, numbers in database.rollups().items() if numbers[0]
    }
    assert sums == sums_of(versions, MANY)
    assert database.latencies() == latencies_of(MANY)
    check_runs(database, versions, LIVES)


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_hours, "_AT_ONCE", 2)
    monkeypatch.setattr(billing, "BATCH", 16)
    monkeypatch.setattr(billing, "_PIECE", 5)


@pytest.mark.usefixtures("small_pieces")
def test_whatever_statement_it_dies_before_everything_is_billed_once(database: Database) -> None:
    versions = half_done(database)
    whole = database.copy("whole")
    with closing(whole.connection), closing(whole.connect(Failing)) as counting:
        work(counting)
        check_done(whole, versions)
    # All of them would take a minute: every so manieth, from a different one on each time.
    step = max(counting.done // 12, 1)
    for fail_at in range(random.randrange(step), counting.done, step):
        again = database.copy(fail_at)
        with closing(again.connection):
            failing = again.connect(Failing)
            failing.fail_at = fail_at
            with closing(failing), pytest.raises(Failed):
                work(failing)
            work(again.connection)
            check_done(again, versions)


def in_processes(*functions: Callable[[], None]) -> list[multiprocessing.Process]:
    # Forked, so that pandas is there already.
    context: Any = multiprocessing.get_context("fork")
    processes = [context.Process(target=function, daemon=True) for function in functions]
    for process in processes:
        process.start()
    return processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.usefixtures("small_pieces")
def test_killed_again_and_again_it_bills_everything_once(database: Database) -> None:
    versions = half_done(database)
    kills = 0
    chance = random.Random()

    def life() -> None:
        with closing(database.connect()) as connection:
            work(connection, limit=2)

    for _ in range(100):
        (process,) = in_processes(life)
        time.sleep(chance.random() * 0.03)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            break
    assert kills > 5
    work(database.connection)
    check_done(database, versions)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.usefixtures("small_pieces")
def test_two_workers_at_once_bill_everything_once(database: Database) -> None:
    versions = half_done(database)

    def life() -> None:
        with closing(database.connect()) as connection:
            work(connection, limit=1)

    processes = in_processes(life, life, life)
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    check_done(database, versions)


class Overtaken(sqlite3.Connection):
    """Somebody else writes between what it has read and a transaction, the first unless told."""

    transaction = 1
    overtaken_by: Callable[[], object] | None = None

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        self.transaction -= arguments[0] == "BEGIN IMMEDIATE"
        if self.transaction == 0 and self.overtaken_by:
            first, self.overtaken_by = self.overtaken_by, None
            first()
        return super().execute(*arguments)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "task",
    [
        lambda connection: billing.price_new(connection, 9),
        lambda connection: run_hours.bill_runs(connection, 2**53),
        lambda connection: billing.price_unpriced(connection, "qwen", 0, 2**46),
    ],
    ids=["price_new", "bill_runs", "price_unpriced"],
)
def test_a_worker_that_is_overtaken_by_another_does_nothing_twice(
    database: Database, task: Callable[[sqlite3.Connection], object]
) -> None:
    """Before whichever of its transactions; the other does the same."""
    versions = half_done(database)
    twice = database.copy("twice")
    with closing(twice.connection):
        task(twice.connection)
        task(twice.connection)
        expected = (twice.costs(), twice.rollups(), twice.latencies())
    for transaction in itertools.count(1):
        again = database.copy(transaction)
        with closing(again.connection), closing(again.connect(Overtaken)) as connection:
            connection.transaction = transaction
            connection.overtaken_by = partial(task, again.connection)
            task(connection)
            if connection.overtaken_by:
                break  # it has not so many
            assert (again.costs(), again.rollups(), again.latencies()) == expected
            work(again.connection)
            check_done(again, versions)
    assert transaction > 2


def test_a_price_that_comes_while_it_computes_is_the_price(database: Database) -> None:
    right = Version(DEARER, 5)
    database.prices(Version(BOTH))
    database.requests(Request(10))
    with closing(database.connect(Overtaken)) as connection:
        connection.overtaken_by = lambda: database.prices(right)
        assert billing.price_new(connection) == 1
    assert database.costs() == [cost_of([right], Request(10))]


def test_requests_that_go_while_it_computes_are_in_no_sum(database: Database) -> None:
    database.requests(Request(10), Request(11, "llama"))
    with closing(database.connect(Overtaken)) as connection:
        connection.overtaken_by = lambda: database.rows("DELETE FROM requests WHERE model = 'qwen'")
        assert billing.price_new(connection) == 1
    assert {cell[2] for cell in database.rollups()} == {"llama"}


def test_a_run_that_ends_while_it_computes_is_billed_to_its_end(database: Database) -> None:
    run = Run(ready_ms=0, heartbeat_ms=9000)
    database.runs(run)
    with closing(database.connect(Overtaken)) as connection:
        connection.overtaken_by = lambda: database.runs(replace(run, ended_ms=4000))
        run_hours.bill_runs(connection, 2**53)
    assert database.total("run_ms") == 4000


def test_a_run_that_goes_while_it_computes_is_in_no_sum(database: Database) -> None:
    database.runs(Run(ready_ms=0, ended_ms=4000))
    with closing(database.connect(Overtaken)) as connection:
        connection.overtaken_by = lambda: database.rows("DELETE FROM runs")
        run_hours.bill_runs(connection, 2**53)
    assert database.rollups() == {}

"""What keys may do at a time: never more than their limits, whoever asks at once."""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from manager.access.api_keys import Budget, Key
from manager.access.limits import KeyLimits, Permit, Window, duration
from manager.billing.price_versions import PriceBook
from manager.clock import Clock
from manager.errors import ApiError
from manager.tokens import TokenUsage
from manager.usage.reports import Reports
from tests.support.usage_rows import a_request, add_price, add_request, new_store

NOON = 1_795_435_200_000  # 2026-11-23T12:00:00Z
HOUR = 3_600_000
UTC = timezone.utc


class Counter:
    """Limits on a clock of our own; a token costs one billionth."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.clock = Clock(lambda: self.seconds, lambda: NOON / 1000 + self.seconds)
        self.limits = KeyLimits(self.clock, lambda: UTC, self.cost)

    @staticmethod
    def cost(_model: str, _at_ms: int, usage: TokenUsage) -> int:
        return usage.prompt_tokens + usage.completion_tokens

    def begin(self, key: Key, size: int = 40, max_tokens: int | None = 10) -> Permit:
        return self.limits.admit(key, "m", size, max_tokens)

    def refusal(self, key: Key, **asked: Any) -> ApiError:
        with pytest.raises(ApiError) as caught:
            self.begin(key, **asked)
        assert caught.value.status == 429
        assert caught.value.retry_after is not None
        return caught.value

    def end(self, permit: Permit, tokens: int = 20) -> None:
        permit.end("m", self.clock.wall_ms(), TokenUsage(tokens, 0, 0))


@pytest.fixture
def counter() -> Counter:
    return Counter()


def test_a_key_without_limits_is_never_refused(counter: Counter) -> None:
    permits = [counter.begin(Key("a")) for _ in range(1000)]
    assert counter.limits.view("a").in_flight == 1000
    assert permits[0].headers == []
    for permit in permits:
        counter.end(permit)
    view = counter.limits.view("a")
    assert (view.in_flight, view.requests, view.tokens) == (0, 1000, 20_000)


def test_in_any_sixty_seconds_there_are_no_more_requests_than_the_limit(counter: Counter) -> None:
    key = Key("a", requests_per_minute=2)
    counter.begin(key)
    counter.seconds = 50
    counter.begin(key)
    refused = counter.refusal(key)
    assert (refused.code, refused.retry_after) == ("rate_limited", 10)
    counter.seconds = 60  # a new minute of the clock admits no two more
    counter.begin(key)
    assert counter.refusal(key).retry_after == 50
    assert counter.limits.headers(key) == [
        ("X-Ratelimit-Limit-Requests", "2"),
        ("X-Ratelimit-Remaining-Requests", "0"),
        ("X-Ratelimit-Reset-Requests", "1m0s"),
    ]


def test_a_refused_request_does_not_count(counter: Counter) -> None:
    key = Key("a", requests_per_minute=1)
    counter.begin(key)
    for _ in range(5):
        counter.seconds += 10
        counter.refusal(key)
    counter.seconds += 10
    counter.begin(key)


def test_one_key_does_not_use_up_anothers_limit(counter: Counter) -> None:
    first, second = Key("a", requests_per_minute=1), Key("b", requests_per_minute=1)
    counter.begin(first)
    counter.begin(second)
    counter.refusal(first)


def test_concurrent_requests_count_until_they_end(counter: Counter) -> None:
    key = Key("a", max_concurrency=2)
    first, second = counter.begin(key), counter.begin(key)
    assert counter.refusal(key).retry_after == 1
    counter.end(first)
    counter.end(first)  # a second call changes nothing
    third = counter.begin(key)
    counter.refusal(key)
    for permit in (second, third):
        counter.end(permit)
    assert counter.limits.view("a").in_flight == 0


def test_tokens_count_when_they_came_and_estimates_until_then(counter: Counter) -> None:
    key = Key("a", tokens_per_minute=100)
    permit = counter.begin(key, size=40, max_tokens=90)  # ten and ninety
    assert counter.refusal(key).retry_after == 1  # until it has ended
    assert dict(permit.headers)["X-Ratelimit-Remaining-Tokens"] == "0"
    counter.end(permit, 30)
    counter.seconds = 10
    counter.end(counter.begin(key), 500)  # one that was let in is finished
    refused = counter.refusal(key)
    assert refused.code == "rate_limited"
    assert refused.retry_after == 60
    counter.seconds = 69.9
    counter.refusal(key)
    counter.seconds = 70
    counter.begin(key)


def test_what_a_model_usually_answers_is_learned(counter: Counter) -> None:
    key = Key("a", tokens_per_minute=1000)
    first = counter.begin(key, size=0, max_tokens=None)
    second = counter.begin(key, size=0, max_tokens=None)  # five hundred each
    counter.refusal(key, size=0, max_tokens=None)
    for permit in (first, second):
        permit.end("m", NOON, TokenUsage(0, 0, 10))
    for _ in range(98):
        counter.begin(key, size=0, max_tokens=None)  # ten each, with what was used
    counter.refusal(key, size=0, max_tokens=None)


def test_a_budget_that_is_used_up_refuses_until_its_end(counter: Counter) -> None:
    key = Key("a", budget=Budget(100, "day"))
    counter.end(counter.begin(key), 99)
    counter.end(counter.begin(key), 500)  # finished, though it passes the budget
    refused = counter.refusal(key)
    assert refused.code == "budget_exceeded"
    assert "2026-11-24T00:00:00" in refused.message
    assert refused.retry_after == 12 * 3600
    counter.seconds = 12 * 3600
    counter.begin(key)
    assert counter.limits.view("a").spent == {"day": 0, "month": 599}


def test_a_budget_of_a_month_is_not_renewed_by_a_day(counter: Counter) -> None:
    key = Key("a", budget=Budget(100, "month"))
    counter.end(counter.begin(key), 100)
    counter.seconds = 36 * 3600
    assert counter.refusal(key).retry_after == 6 * 24 * 3600  # the first of December
    counter.seconds = 7.5 * 24 * 3600
    counter.begin(key)


def test_what_is_in_flight_may_not_be_spent_by_others(counter: Counter) -> None:
    key = Key("a", budget=Budget(100, "day"))
    permits = [counter.begin(key) for _ in range(5)]  # twenty each
    refused = counter.refusal(key)
    assert (refused.code, refused.retry_after) == ("budget_exceeded", 1)
    assert "in flight" in refused.message
    for permit in permits:
        counter.end(permit, 10)
    counter.begin(key)


def test_a_request_belongs_to_the_day_in_which_it_started(counter: Counter) -> None:
    key = Key("a", budget=Budget(100, "day"))
    permit = counter.begin(key)
    began_ms = counter.clock.wall_ms()
    counter.seconds = 13 * 3600
    permit.end("m", began_ms, TokenUsage(70, 0, 0))
    assert counter.limits.view("a").spent == {"day": 0, "month": 70}


def test_a_clock_that_is_set_back_and_right_again_forgets_nothing(counter: Counter) -> None:
    key = Key("a", budget=Budget(100, "day"))
    counter.end(counter.begin(key), 100)
    counter.seconds = -24 * 3600
    counter.begin(key)
    counter.seconds = 0
    counter.refusal(key)


def test_a_credit_lowers_what_was_spent_and_a_charge_raises_it(counter: Counter) -> None:
    key = Key("a", budget=Budget(100, "day"))
    counter.end(counter.begin(key), 100)
    counter.refusal(key)
    counter.limits.apply_adjustment("a", NOON, -50)
    counter.end(counter.begin(key), 0)
    counter.limits.apply_adjustment("a", NOON, 60)
    counter.refusal(key)
    counter.limits.apply_adjustment("a", NOON - 24 * HOUR, -1000)  # of yesterday's bill
    counter.refusal(key)


def test_a_cost_that_cannot_be_read_is_logged_and_blocks_nothing(
    counter: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_model: str, _at_ms: int, _usage: TokenUsage) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    limits = KeyLimits(counter.clock, lambda: UTC, fail)
    permit = limits.admit(Key("a"), "m", 0, 0)
    permit.end("m", NOON, TokenUsage(1, 0, 1))
    assert limits.view("a").in_flight == 0
    assert "disk I/O error" in caplog.text


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        ({"requests_per_minute": 100}, {}),
        ({"max_concurrency": 100}, {}),
        ({"tokens_per_minute": 2000}, {}),
        ({"budget": Budget(2000, "day")}, {}),
    ],
)
def test_of_two_hundred_at_once_a_hundred_pass_and_never_one_more(
    counter: Counter,
    limit: dict[str, Any],
    asked: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    key = Key("a", **limit)
    interval = sys.getswitchinterval()
    request.addfinalizer(lambda: sys.setswitchinterval(interval))
    sys.setswitchinterval(1e-6)  # seconds: threads come between any two steps of each other
    for _ in range(10):
        counter.seconds += 1_000_000
        together = threading.Barrier(200)

        def ask(gate: threading.Barrier = together) -> Permit | None:
            gate.wait(20)
            try:
                return counter.begin(key, **asked)
            except ApiError:
                return None

        with ThreadPoolExecutor(200) as pool:
            permits = [f.result() for f in [pool.submit(ask) for _ in range(200)]]
        passed = [permit for permit in permits if permit is not None]
        assert len(passed) == 100
        for permit in passed:
            counter.end(permit)


# --- over a restart -------------------------------------------------------------------------------


class Books:
    """A usage.db that a program before has left."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "usage.db"
        self.store = new_store(self.path)
        add_price(self.store, "m")
        self.now_ms = NOON
        self.clock = Clock(lambda: self.now_ms / 1000, lambda: self.now_ms / 1000)
        self.prices = PriceBook(self.store, self.path, self.clock)

    def row(self, before_ms: int, tokens: int = 10, **fields: Any) -> None:
        started_ms = self.now_ms - before_ms
        row = a_request(
            started_ms,
            "m",
            ended_ms=fields.pop("ended_ms", started_ms),
            prompt_tokens=tokens,
            **{"key": "a", "completion_tokens": 0, "cached_tokens": 0, "status": 200, **fields},
        )
        add_request(self.store, row)

    def start(self) -> KeyLimits:
        limits = KeyLimits(self.clock, lambda: UTC, self.prices.cost)
        limits.load(self.path, Reports(self.path))
        return limits


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(tmp_path)
    yield books
    books.store.close()


def test_a_restart_forgets_neither_requests_nor_tokens_of_the_last_minute(books: Books) -> None:
    for before_ms in (61_000, 59_000, 30_000):
        books.row(before_ms)
    books.row(10_000, tokens=0, status=429, leased_ms=None)  # was refused
    books.row(10_000, key="b")
    books.row(600_000, ended_ms=NOON - 5_000, tokens=500)  # a long answer
    limits = books.start()
    view = limits.view("a")
    assert (view.requests, view.tokens) == (2, 520)
    with pytest.raises(ApiError) as caught:
        limits.admit(Key("a", requests_per_minute=2), "m", 0, 0)
    assert caught.value.retry_after == 1
    books.now_ms += 1_000
    limits.admit(Key("a", requests_per_minute=2), "m", 0, 0)


def test_after_a_restart_under_a_clock_that_was_set_back_no_hour_counts_as_the_last_minute(
    books: Books,
) -> None:
    for before_ms in (-30 * 60_000, -1, 30_000):
        books.row(before_ms)
    view = books.start().view("a")
    assert (view.requests, view.tokens) == (1, 10)


def test_a_restart_forgets_nothing_that_was_spent_priced_or_not(books: Books) -> None:
    books.row(1 * HOUR, tokens=7)
    books.row(13 * HOUR, tokens=100)  # yesterday
    books.row(24 * 40 * HOUR, tokens=1000)  # last month
    books.prices.add_adjustment("m", "a", NOON - HOUR, 3, "a charge")
    assert books.start().view("a").spent == {"day": 7_003, "month": 107_003}


# --- what holds whatever comes --------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 100)), max_size=30), st.floats(0, 200))
def test_a_window_holds_the_last_sixty_seconds(
    steps: list[tuple[float, int]], later: float
) -> None:
    window, now, all_ = Window(), 0.0, []
    for step, amount in steps:
        now += step
        window.add(now, amount)
        all_.append((now, amount))
    now += later
    window.drop_old(now)
    assert window.total == sum(amount for at, amount in all_ if at > now - 60)
    for below in (1, 50, 500):
        wait = window.seconds_until(below, now)
        then = sum(amount for at, amount in all_ if at > now - 60 and at > now + wait - 60 + 1e-6)
        assert then < below
        if wait > 1e-3:
            assert sum(amount for at, amount in all_ if at > now + wait - 60 - 1e-3) >= below


class Using(RuleBasedStateMachine):
    """One key, of which requests come and go as they like."""

    KEY = Key("a", requests_per_minute=7, tokens_per_minute=300, max_concurrency=3)

    def __init__(self) -> None:
        super().__init__()
        self.counter = Counter()
        self.open: deque[Permit] = deque()
        self.let_in: list[float] = []

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.counter.seconds += seconds

    @rule(size=st.integers(0, 400), most=st.none() | st.integers(0, 300))
    def ask(self, size: int, most: int | None) -> None:
        try:
            permit = self.counter.begin(self.KEY, size, most)
        except ApiError:
            return
        self.let_in.append(self.counter.seconds)
        self.open.append(permit)

    @precondition(lambda self: self.open)
    @rule(tokens=st.integers(0, 300), first=st.booleans())
    def answer(self, tokens: int, first: bool) -> None:
        permit = self.open.popleft() if first else self.open.pop()
        self.counter.end(permit, tokens)

    @invariant()
    def holds(self) -> None:
        now = self.counter.seconds
        view = self.counter.limits.view("a")
        assert view.in_flight == len(self.open) <= 3
        recent = [at for at in self.let_in if at > now - 60]
        assert view.requests == len(recent) <= 7


TestUsing = Using.TestCase
TestUsing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize(
    ("seconds", "spelled"),
    [(0, "0ms"), (0.02, "20ms"), (1, "1s"), (1.5, "1.5s"), (60, "1m0s"), (86.4, "1m26.4s")],
)
def test_a_duration_is_in_openais_format(seconds: float, spelled: str) -> None:
    assert duration(seconds) == spelled

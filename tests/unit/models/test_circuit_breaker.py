"""The breaker: a model that fails to start again and again is left alone for a while."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from manager.models.circuit_breaker import CircuitBreaker


def breaker_after(*failures: float) -> CircuitBreaker:
    breaker = CircuitBreaker()
    for moment in failures:
        breaker.record_failure(moment)
    return breaker


def test_a_model_may_be_started_at_first_and_after_one_failure_and_after_two() -> None:
    assert CircuitBreaker().seconds_until_retry(0) == 0
    assert breaker_after(1).seconds_until_retry(1) == 0
    assert breaker_after(1, 2).seconds_until_retry(2) == 0


def test_three_failures_in_a_minute_forbid_a_start_for_ten_seconds() -> None:
    breaker = breaker_after(100, 130, 160)
    assert breaker.seconds_until_retry(160) == 10
    assert breaker.seconds_until_retry(169) == 1
    assert breaker.seconds_until_retry(170) == 0
    assert breaker.seconds_until_retry(1000) == 0


def test_three_failures_in_more_than_a_minute_forbid_nothing() -> None:
    assert breaker_after(100, 130, 161).seconds_until_retry(161) == 0


def test_failures_long_ago_are_forgotten_one_by_one() -> None:
    assert breaker_after(0, 50, 100).seconds_until_retry(100) == 0
    assert breaker_after(0, 50, 100, 110).seconds_until_retry(110) == 10


def test_each_further_failure_doubles_the_wait_up_to_five_minutes() -> None:
    breaker = breaker_after(0, 0)
    waits, now = [], 0.0
    for _ in range(8):
        breaker.record_failure(now)
        waits.append(breaker.seconds_until_retry(now))
        now += waits[-1]
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]


def test_a_success_or_a_manual_start_resets_it() -> None:
    breaker = breaker_after(0, 1, 2, 3)
    breaker.close()
    assert breaker.seconds_until_retry(3) == 0
    breaker.record_failure(4)
    breaker.record_failure(5)
    assert breaker.seconds_until_retry(5) == 0
    breaker.record_failure(6)
    assert breaker.seconds_until_retry(6) == 10


class AsAPlainModel(RuleBasedStateMachine):
    """The breaker beside the sentence that describes it, for any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = CircuitBreaker()
        self.now = 0.0
        self.failures: list[float] = []  # since the last close
        self.waits: list[float] = []  # that were imposed since then
        self.until = 0.0

    @rule(seconds=st.one_of(st.integers(0, 400), st.floats(0, 100, allow_nan=False)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_is_over(self) -> None:
        self.now = max(self.now, self.until)

    @rule()
    def start_fails(self) -> None:
        self.breaker.record_failure(self.now)
        self.failures.append(self.now)
        lately = [moment for moment in self.failures[-3:] if self.now - moment <= 60]
        if self.waits or len(lately) == 3:
            self.waits.append(min(10 * 2 ** len(self.waits), 300))
            self.until = self.now + self.waits[-1]

    @rule()
    def start_succeeds(self) -> None:
        self.breaker.close()
        self.failures, self.waits, self.until = [], [], 0.0

    @invariant()
    def agree(self) -> None:
        assert self.breaker.seconds_until_retry(self.now) == pytest.approx(
            max(0.0, self.until - self.now)
        )


TestAsAPlainModel = AsAPlainModel.TestCase

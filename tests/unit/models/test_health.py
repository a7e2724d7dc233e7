"""When a server that lives is asked whether it serves, and when it is restarted."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from manager.errors import CLIENT_CLOSED_REQUEST
from manager.models.health import ServerHealth, Stage, failure_of
from manager.relay import Outcome


def health_after(*failures: float, timed_out: bool = False) -> ServerHealth:
    health = ServerHealth()
    for moment in failures:
        health.failed("reset", moment, timed_out=timed_out)
    return health


def restarted(now: float) -> ServerHealth:
    """One whose server is restarted at that moment."""
    health = health_after(now - 6, now - 3, now)
    assert health.begin(0) is Stage.HEALTH
    assert health.answered(Stage.HEALTH, None, now) is None
    assert health.begin(0) is Stage.REQUEST
    assert health.answered(Stage.REQUEST, "got 500", now)
    return health


# --- what counts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(500),
        Outcome(503),
        Outcome(502, error="the connection to the model's server broke"),
        Outcome(504, error="the model's server was silent for 600 seconds"),
        Outcome(500, streamed=True, error="CUDA error: out of memory"),
    ],
)
def test_5xx_time_outs_resets_and_truncated_answers_count(outcome: Outcome) -> None:
    assert failure_of(outcome)


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome(200),
        Outcome(400),
        Outcome(404),
        Outcome(429),
        Outcome(400, streamed=True, error="the context is exceeded"),
        Outcome(CLIENT_CLOSED_REQUEST, error="the client disconnected"),
    ],
)
def test_a_bad_request_and_a_client_that_disconnected_never_count(outcome: Outcome) -> None:
    assert failure_of(outcome) is None


# --- when it is checked -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "stage"),
    [
        ((0, 9), Stage.NONE),  # only two
        ((0, 1, 2, 3, 4.9), Stage.NONE),  # within less than five seconds
        ((0, 1, 5), Stage.HEALTH),
        ((0, 0, 0, 0, 5), Stage.HEALTH),
        ((0, 300, 600), Stage.HEALTH),
    ],
)
def test_three_failures_in_a_row_over_five_seconds_begin_a_check(
    failures: tuple[float, ...], stage: Stage
) -> None:
    assert health_after(*failures).stage is stage


def test_a_success_in_between_begins_the_count_again() -> None:
    health = health_after(0, 3)
    health.served()
    for moment in (6, 9, 10):
        health.failed("reset", moment)
    assert health.stage is Stage.NONE
    health.failed("reset", 11)
    assert health.stage is Stage.HEALTH


def test_its_health_is_asked_at_once_and_a_token_once_nothing_is_in_flight() -> None:
    health = health_after(0, 3, 6)
    assert health.begin(in_flight=4) is Stage.HEALTH
    health.answered(Stage.HEALTH, "/health answered 503", 6)
    assert not health.is_due(in_flight=4)
    assert health.begin(in_flight=4) is None
    assert health.begin(in_flight=0) is Stage.REQUEST


@pytest.mark.parametrize("fault", [None, "/health answered 503"])
def test_a_server_that_answers_one_token_is_not_restarted_whatever_its_health(
    fault: str | None,
) -> None:
    health = health_after(0, 3, 6)
    health.answered(Stage.HEALTH, fault, 6)
    assert health.begin(0) is Stage.REQUEST
    assert health.answered(Stage.REQUEST, None, 6) is None
    assert (health.stage, health.holds_leases) == (Stage.NONE, False)


def test_the_reason_of_a_restart_has_all_that_was_seen() -> None:
    health = health_after(0, 3, 6)
    health.answered(Stage.HEALTH, "/health answered 503", 6)
    health.begin(0)
    reason = health.answered(Stage.REQUEST, "a one-token request got 500", 7)
    assert reason is not None
    for part in ("3 requests in a row", "reset", "/health answered 503", "one-token request got"):
        assert part in reason


def test_an_answer_that_comes_after_a_request_was_served_is_of_no_account() -> None:
    health = health_after(0, 3, 6)
    assert health.begin(1) is Stage.HEALTH
    health.served()
    assert health.answered(Stage.HEALTH, "/health: silent", 11) is None
    assert (health.stage, health.holds_leases) == (Stage.NONE, False)


# --- which requests are queued meanwhile ------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "timed_out", "holds"),
    [
        (None, False, False),  # one client's requests may be to blame: the others go on
        ("/health answered 503", False, True),
        (None, True, True),  # under steady load something silent would always be in flight
    ],
)
def test_requests_are_queued_where_nothing_speaks_for_the_server(
    fault: str | None, timed_out: bool, holds: bool
) -> None:
    health = health_after(0, 3, 6, timed_out=timed_out)
    assert not health.holds_leases  # while its health is asked
    health.answered(Stage.HEALTH, fault, 6)
    assert health.holds_leases is holds
    health.begin(0)
    assert health.holds_leases  # while one token is asked for
    health.answered(Stage.REQUEST, None, 6)
    assert not health.holds_leases


def test_a_time_out_during_the_wait_has_requests_queued() -> None:
    health = health_after(0, 3, 6)
    health.answered(Stage.HEALTH, None, 6)
    health.failed("silent", 9, timed_out=True)
    assert health.holds_leases
    health.served()
    assert not health.holds_leases


# --- at most one restart in five minutes ------------------------------------------------


def test_a_second_series_within_five_minutes_is_noted_and_begins_no_check() -> None:
    health = restarted(100)
    for moment in (110, 113, 116):
        assert health.note is None
        health.failed("reset", moment)
    assert health.stage is Stage.NONE
    assert health.note is not None
    assert "16 seconds ago" in health.note
    health.served()
    assert health.note is None


def test_the_first_failure_after_five_minutes_begins_a_check() -> None:
    health = restarted(100)
    for moment in (110, 113, 116, 399):
        health.failed("reset", moment)
    assert health.stage is Stage.NONE
    health.failed("reset", 400)
    assert (health.stage, health.note) == (Stage.HEALTH, None)


class AsItIsDescribed(RuleBasedStateMachine):
    """The check beside the sentences that describe it, for any order of events."""

    def __init__(self) -> None:
        super().__init__()
        self.health = ServerHealth()
        self.now = 1000.0
        self.in_flight = 0
        self.failures: list[tuple[float, bool]] = []  # since the last sign that it serves
        self.fault: str | None = None  # of its health, in this check
        self.restarts: list[float] = []

    @rule(seconds=st.one_of(st.sampled_from([0.5, 5, 300]), st.floats(0, 400, allow_nan=False)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: not self.health.holds_leases)
    @rule()
    def request_comes(self) -> None:
        self.in_flight += 1

    @precondition(lambda self: self.in_flight)
    @rule(timed_out=st.booleans())
    def request_fails(self, timed_out: bool) -> None:
        before = self.health.stage
        self.in_flight -= 1
        self.health.failed("failure", self.now, timed_out=timed_out)
        self.failures.append((self.now, timed_out))
        is_series = len(self.failures) >= 3 and self.now - self.failures[0][0] >= 5
        may_restart = not self.restarts or self.now - self.restarts[-1] >= 300
        if before is Stage.NONE:
            begins = is_series and may_restart
            assert self.health.stage is (Stage.HEALTH if begins else Stage.NONE)
            assert bool(self.health.note) is (is_series and not may_restart)
        else:
            assert self.health.stage is before

    @precondition(lambda self: self.in_flight)
    @rule(is_over=st.booleans())
    def answer_has_bytes(self, is_over: bool) -> None:
        self.in_flight -= is_over
        self.serves()

    @precondition(lambda self: self.in_flight)
    @rule()
    def client_is_to_blame(self) -> None:
        self.in_flight -= 1

    @precondition(lambda self: self.health.is_due(self.in_flight))
    @rule(fault=st.sampled_from([None, "a fault"]), served_meanwhile=st.booleans())
    def worker_asks(self, fault: str | None, served_meanwhile: bool) -> None:
        asked = self.health.begin(self.in_flight)
        assert asked in (Stage.HEALTH, Stage.REQUEST)
        if asked is Stage.HEALTH and served_meanwhile:
            self.serves()
        if asked is Stage.REQUEST:
            assert self.in_flight == 0
        reason = self.health.answered(asked, fault, self.now)
        if asked is Stage.REQUEST and fault is not None:
            assert reason
            assert not self.restarts or self.now - self.restarts[-1] >= 300
            self.restarts.append(self.now)
        else:
            assert reason is None
        if asked is Stage.REQUEST:
            self.failures = []
        elif self.health.stage is Stage.DRAIN:
            self.fault = fault

    def serves(self) -> None:
        self.health.served()
        self.failures = []
        assert (self.health.stage, self.health.note) == (Stage.NONE, None)

    @invariant()
    def no_request_is_queued_without_a_check_to_come(self) -> None:
        if self.health.stage in (Stage.NONE, Stage.HEALTH):
            assert not self.health.holds_leases
        if self.health.stage is Stage.DRAIN:
            has_timed_out = any(timed_out for _, timed_out in self.failures)
            assert self.health.holds_leases is (has_timed_out or self.fault is not None)
        if self.health.holds_leases and not self.in_flight:
            assert self.health.is_due(0)


TestAsItIsDescribed = AsItIsDescribed.TestCase


# --- servers that others start ------------------------------------------------------------


def test_health_alone_decides_about_a_server_that_others_start() -> None:
    health = health_after(0, 3, 6)
    assert health.begin(9) is Stage.HEALTH
    reason = health.answered(Stage.HEALTH, "/health: refused", 6, is_remote=True)
    assert reason is not None
    assert "3 requests in a row failed" in reason
    assert "/health: refused" in reason
    assert health.is_quiet


def test_a_server_that_others_start_and_that_is_well_is_asked_for_no_token() -> None:
    health = health_after(0, 3, 6)
    assert health.begin(0) is Stage.HEALTH
    assert health.answered(Stage.HEALTH, None, 6, is_remote=True) is None
    assert health.begin(0) is None
    assert health.is_quiet


def test_health_can_be_asked_without_a_failure_and_a_served_request_ends_that() -> None:
    health = ServerHealth()
    health.ask()
    assert (health.begin(0), health.holds_leases) == (Stage.HEALTH, False)
    health.served()
    assert health.answered(Stage.HEALTH, "refused", 1, is_remote=True) is None

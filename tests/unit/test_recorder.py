"""What is recorded of a request, and when."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from manager.clock import Clock
from manager.errors import CLIENT_CLOSED_REQUEST
from manager.events import Events
from manager.metrics import Metrics
from manager.recorder import Recorder, RequestRecord
from manager.relay.forward import Outcome
from manager.storage.store import RequestRow
from manager.tokens import TokenUsage
from manager.usage.activity import Activity

WALL_MS = 1_795_400_000_000


class Rows(list[RequestRow]):
    add = list.append


class Permit:
    def __init__(self, has_budget: bool = False) -> None:
        self.has_budget = has_budget
        self.ends: list[tuple[Any, ...]] = []

    def end(self, *end: Any) -> None:
        self.ends.append(end)


class Desk:
    """A recorder over a clock that is set by hand."""

    def __init__(self) -> None:
        self.tracked: tuple[str, ...] | None = ("Chat",)
        self.now = 100.0
        self.rows = Rows()
        self.metrics = Metrics()
        clock = Clock(monotonic=lambda: self.now, wall=lambda: WALL_MS / 1000)
        self.activity = Activity(clock, Events())
        rows: Any = self.rows
        self.recorder = Recorder(clock, self.activity, rows, self.metrics, lambda: self.tracked)

    def begin(self, mode: str = "Chat") -> RequestRecord:
        record = self.recorder.begin("/v1/chat/completions", "ann", "192.0.2.7")
        record.request.asked_for, record.request.model = "alias", "Qwen"
        record.request.mode = mode
        return record


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_a_request_is_one_row_with_its_moments_and_tokens(desk: Desk) -> None:
    record = desk.begin()
    record.permit = permit = Permit()
    desk.now += 2
    record.leased("GPU")
    desk.now += 1
    outcome = Outcome(200, TokenUsage(10, 4, 5), streamed=True, first_byte_at=102.5)
    record.close(outcome)
    record.close(Outcome(500))
    (row,) = desk.rows
    assert (row.model, row.asked_for, row.scheme, row.key) == ("Qwen", "alias", "GPU", "ann")
    assert (row.status, row.streamed, row.error) == (200, True, None)
    assert [row.started_ms, row.leased_ms, row.first_byte_ms, row.ended_ms] == [
        WALL_MS + after for after in (0, 2000, 2500, 3000)
    ]
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens) == (10, 4, 5)
    assert permit.ends == [("Qwen", WALL_MS, outcome.usage)]
    assert desk.activity.requests() == []


def test_a_mode_that_is_not_tracked_has_no_row_but_counts(desk: Desk) -> None:
    record = desk.begin("Reranker")
    record.permit = permit = Permit()
    record.close(Outcome(200, TokenUsage(3)))
    assert desk.rows == []
    assert permit.ends == [("Qwen", WALL_MS, TokenUsage(3))]
    counted = desk.metrics.registry.get_sample_value(
        "llm_manager_requests_total", {"model": "Qwen", "status": "200"}
    )
    assert counted == 1


def test_a_request_of_a_key_with_a_budget_has_a_row_in_every_mode(desk: Desk) -> None:
    """Else the budget would forget it at the next start of the program."""
    record = desk.begin("Reranker")
    record.permit = Permit(has_budget=True)
    record.close(Outcome(200, TokenUsage(3)))
    assert [(row.mode, row.prompt_tokens) for row in desk.rows] == [("Reranker", 3)]


def test_every_mode_has_rows_where_none_is_named(desk: Desk) -> None:
    desk.tracked = None
    desk.begin("Poems").close(Outcome(200, TokenUsage(3)))
    assert [row.mode for row in desk.rows] == ["Poems"]


def test_a_stream_that_fails_in_the_middle_pays_for_its_prompt_and_for_what_was_produced(
    desk: Desk,
) -> None:
    middle, start = desk.begin(), desk.begin()
    for record in (middle, start):
        record.size = 4000
        record.leased("GPU")
    produced = TokenUsage(completion_tokens=2, estimated=True)
    middle.close(Outcome(500, produced, streamed=True, error="out of memory"))
    start.close(Outcome(500, None, streamed=True, error="out of memory"))
    assert [(row.prompt_tokens, row.completion_tokens, row.estimated) for row in desk.rows] == [
        (1000, 2, True),
        (0, 0, False),
    ]


def test_a_client_that_disconnects_early_pays_for_an_estimate_of_its_prompt(desk: Desk) -> None:
    early, late = desk.begin(), desk.begin()
    for record in (early, late):
        record.size = 4000
    late.leased("GPU")
    early.close(Outcome(CLIENT_CLOSED_REQUEST))
    late.close(Outcome(CLIENT_CLOSED_REQUEST))
    assert [(row.prompt_tokens, row.estimated) for row in desk.rows] == [(0, False), (1000, True)]


def test_an_error_is_kept_to_its_first_line_and_500_characters(desk: Desk) -> None:
    desk.begin().close(Outcome(502, error="x" * 600 + "\nsecond"))
    assert desk.rows[0].error == "x" * 500


def test_an_error_that_no_database_takes_loses_no_row(desk: Desk) -> None:
    desk.begin().close(Outcome(502, error="lone \ud800 surrogate"))
    assert desk.rows[0].error == "lone ? surrogate"


def test_the_line_in_the_log_has_the_clients_address(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "manager.requests"):
        desk.begin().close(Outcome(200, TokenUsage(10, 4, 5)))
        desk.begin().close(Outcome(500, error="\x1b[2Jit failed \ud800\nmore"))
    good, bad = (record.getMessage() for record in caplog.records)
    assert good.startswith("/v1/chat/completions Qwen as 'alias' from 192.0.2.7: 200 in 0.000 s,")
    assert bad.endswith("first byte -, no usage, it failed ?")

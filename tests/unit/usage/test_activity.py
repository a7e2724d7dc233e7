"""What is under way, and how fast tokens come."""

from __future__ import annotations

from typing import Any

import pytest

from manager.clock import Clock
from manager.events import Events
from manager.tokens import TokenUsage
from manager.usage.activity import SECONDS_KEPT, ActiveRequest, Activity


class Stream:
    """A stream that so many chunks have come of."""

    chunks = 0


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
def activity(events: Events) -> Activity:
    return Activity(Clock(lambda: 0.0, lambda: 1_800_000_000.0), events)


def begin(activity: Activity, number: int = 1, model: str = "Qwen") -> ActiveRequest:
    request = ActiveRequest(bytes([number] * 16), "/v1/chat/completions", 0.0, 1_800_000_000_000)
    request.model = request.asked_for = model
    activity.begin(request)
    return request


def lease(request: ActiveRequest, stream: Stream | None = None) -> None:
    request.leased_ms = request.began_ms + 5
    request.stream, request.answered = stream, stream is not None


def speeds(activity: Activity) -> list[int]:
    tokens: list[int] = activity.history()["completion_tokens"]
    return tokens


def test_a_request_is_shown_from_its_arrival_to_its_end(activity: Activity) -> None:
    request = begin(activity)
    assert [one["state"] for one in activity.requests()] == ["waiting"]
    lease(request)
    assert [one["state"] for one in activity.requests()] == ["processing"]
    lease(request, Stream())
    (shown,) = activity.requests()
    assert shown["state"] == "answering"
    assert shown["started_at"] == "2027-01-15T08:00:00.000+00:00"
    assert shown["leased_at"] == "2027-01-15T08:00:00.005+00:00"
    activity.end(request, 200, None)
    assert activity.requests() == []


def test_requests_are_counted_where_they_are(activity: Activity) -> None:
    lease(begin(activity, 1))
    begin(activity, 2)
    begin(activity, 3, model="")  # of a name that is no model's
    now = activity.throughput()
    assert (now["in_flight"], now["waiting"]) == (1, 1)
    assert now["models"] == {
        "Qwen": {"in_flight": 1, "waiting": 1, "completion_tokens_per_second": 0.0}
    }


def test_a_streams_tokens_are_counted_as_they_come(activity: Activity) -> None:
    stream, request = Stream(), begin(activity)
    lease(request, stream)
    for chunks in (10, 30, 30):
        stream.chunks = chunks
        activity.tick()
    assert speeds(activity) == [10, 20, 0]
    assert activity.throughput()["completion_tokens_per_second"] == 6.0
    activity.end(request, 200, TokenUsage(prompt_tokens=7, completion_tokens=34))
    activity.tick()
    assert speeds(activity) == [10, 20, 0, 4]
    assert activity.history()["prompt_tokens"] == [0, 0, 0, 7]


def test_an_answer_that_comes_whole_is_counted_at_its_end(activity: Activity) -> None:
    request = begin(activity)
    lease(request)
    activity.tick()
    activity.end(request, 200, TokenUsage(prompt_tokens=7, completion_tokens=9))
    activity.end(request, 200, TokenUsage(prompt_tokens=7, completion_tokens=9))
    activity.tick()
    assert speeds(activity) == [0, 9]
    assert activity.history()["requests"] == [0, 1]
    assert activity.throughput()["second"]["requests"] == 1


def test_what_failed_is_counted_as_failed(activity: Activity) -> None:
    activity.end(begin(activity), 503, None)
    activity.tick()
    history = activity.history()
    assert (history["requests"], history["errors"]) == ([1], [1])


def test_no_stream_takes_back_what_was_counted(activity: Activity) -> None:
    stream, request = Stream(), begin(activity)
    lease(request, stream)
    stream.chunks = 12  # the role and the reason of the end among them
    activity.tick()
    activity.end(request, 200, TokenUsage(completion_tokens=10))
    activity.tick()
    assert speeds(activity) == [12, 0]


def test_the_last_ten_minutes_are_kept_and_no_more(activity: Activity) -> None:
    for _ in range(SECONDS_KEPT + 5):
        activity.tick()
    assert len(speeds(activity)) == SECONDS_KEPT


def test_the_list_is_told_when_it_changes_and_only_to_who_asked(
    activity: Activity, events: Events
) -> None:
    all_of_it, some = events.subscribe(("requests",)), events.subscribe(("throughput",))
    activity.tick()
    request = begin(activity)
    activity.tick()
    activity.tick()
    activity.end(request, 200, None)
    activity.tick()

    def ids(requests: Any) -> list[str]:
        return [one["id"] for one in requests]

    told = [ids(event.data) for event in all_of_it.take(0)]
    assert told == [["01010101-0101-0101-0101-010101010101"], []]
    assert {event.kind for event in some.take(0)} == {"throughput"}

"""Events: whoever wants to know is told, and nobody else is kept waiting."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.events import MAX_PENDING, Events, Subscription

PATIENCE = 20.0


def publish(events: Events, data: object) -> None:
    events.publish("model", lambda: data)


def pending(subscription: Subscription) -> list[object]:
    found = []
    while event := subscription.get(0):
        found.append(event[1])
    return found


@given(st.lists(st.integers(), max_size=20), st.integers(0, 3))
def test_every_subscriber_gets_every_event_in_order(sent: list[int], readers: int) -> None:
    events = Events()
    subscriptions = [events.subscribe() for _ in range(readers)]
    for value in sent:
        publish(events, value)
    assert [pending(subscription) for subscription in subscriptions] == [sent] * readers


def test_an_event_comes_with_its_kind() -> None:
    events = Events()
    subscription = events.subscribe()
    publish(events, {"name": "Qwen"})
    assert subscription.get(0) == ("model", {"name": "Qwen"})


def test_only_what_comes_after_the_subscription_is_told() -> None:
    events = Events()
    publish(events, 1)
    subscription = events.subscribe()
    publish(events, 2)
    assert pending(subscription) == [2]


def test_a_reader_that_waits_is_woken_by_an_event() -> None:
    events = Events()
    subscription = events.subscribe()
    found: list[object] = []
    reader = threading.Thread(
        target=lambda: found.append(subscription.get(PATIENCE * 10)), daemon=True
    )
    reader.start()
    publish(events, 1)
    reader.join(PATIENCE)
    assert found == [("model", 1)]


def test_a_reader_that_waits_is_woken_by_the_end_of_its_subscription() -> None:
    events = Events()
    subscription = events.subscribe()
    found: list[object] = []
    reader = threading.Thread(
        target=lambda: found.append(subscription.get(PATIENCE * 10)), daemon=True
    )
    reader.start()
    events.unsubscribe(subscription)
    reader.join(PATIENCE)
    assert found == [None]
    assert subscription.closed


def test_with_nothing_to_tell_a_reader_is_let_go_after_its_time() -> None:
    assert Events().subscribe().get(0.01) is None


def test_who_has_left_is_told_no_more() -> None:
    events = Events()
    left, stays = events.subscribe(), events.subscribe()
    events.unsubscribe(left)
    events.unsubscribe(left)
    publish(events, 1)
    assert left.get(0) is None
    assert pending(stays) == [1]


def test_a_reader_too_slow_loses_the_oldest_and_holds_up_nobody() -> None:
    events = Events()
    slow, quick = events.subscribe(), events.subscribe()
    read = []
    for number in range(MAX_PENDING + 5):
        publish(events, number)
        read += pending(quick)
    assert read == list(range(MAX_PENDING + 5))
    assert pending(slow) == list(range(5, MAX_PENDING + 5))


@pytest.mark.parametrize("writers", [1, 4])
def test_events_of_many_threads_all_arrive_and_each_threads_in_order(writers: int) -> None:
    events = Events()
    subscription = events.subscribe()
    count = MAX_PENDING // writers

    def write(writer: int) -> None:
        for number in range(count):
            publish(events, (writer, number))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    found: list[tuple[int, int]] = []
    while len(found) < count * writers and (event := subscription.get(PATIENCE)):
        found.append(event[1])
    for thread in threads:
        thread.join()
    for writer in range(writers):
        assert [number for which, number in found if which == writer] == list(range(count))


def test_what_nobody_listens_to_is_not_even_made() -> None:
    events = Events()
    asked: list[int] = []

    def tell() -> int:
        asked.append(1)
        return 7

    events.publish("model", tell)
    assert asked == []
    first, second = events.subscribe(), events.subscribe()
    events.publish("model", tell)
    assert asked == [1]
    assert pending(first) == pending(second) == [7]

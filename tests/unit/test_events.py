"""Events: whoever wants to know is told, and nobody else is kept waiting."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.events import MAX_PENDING, Event, Events, Subscription

PATIENCE = 20.0


def publish(events: Events, data: object) -> None:
    events.publish("model", lambda: data)


def pending(subscription: Subscription) -> list[object]:
    return [event.data for event in subscription.take(0)]


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
    (event,) = subscription.take(0)
    assert (event.kind, event.data) == ("model", {"name": "Qwen"})
    assert event.message == b'event: model\ndata: {"name": "Qwen"}\n\n'


def test_only_what_comes_after_the_subscription_is_told() -> None:
    events = Events()
    publish(events, 1)
    subscription = events.subscribe()
    publish(events, 2)
    assert pending(subscription) == [2]


def test_a_reader_that_waits_is_woken_by_an_event() -> None:
    events = Events()
    subscription = events.subscribe()
    found: list[Event] = []
    reader = threading.Thread(
        target=lambda: found.extend(subscription.take(PATIENCE * 10)), daemon=True
    )
    reader.start()
    publish(events, 1)
    reader.join(PATIENCE)
    assert [event.data for event in found] == [1]


def test_a_reader_that_waits_is_woken_by_the_end_of_its_subscription() -> None:
    events = Events()
    subscription = events.subscribe()
    found: list[Event] = []
    reader = threading.Thread(
        target=lambda: found.extend(subscription.take(PATIENCE * 10)), daemon=True
    )
    reader.start()
    events.unsubscribe(subscription)
    reader.join(PATIENCE)
    assert found == []
    assert subscription.closed


def test_with_nothing_to_tell_a_reader_is_let_go_after_its_time() -> None:
    assert Events().subscribe().take(0.01) == []


def test_who_has_left_is_told_no_more() -> None:
    events = Events()
    left, stays = events.subscribe(), events.subscribe()
    events.unsubscribe(left)
    events.unsubscribe(left)
    publish(events, 1)
    assert left.take(0) == []
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
def test_takenof_many_threads_all_arrive_and_each_threads_in_order(writers: int) -> None:
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
    while len(found) < count * writers and (taken := subscription.take(PATIENCE)):
        found += [event.data for event in taken]
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


def test_a_reader_gets_only_the_kinds_that_it_asked_for() -> None:
    events = Events()
    some, none = events.subscribe(("throughput", "devices")), events.subscribe(())
    for kind in ("model", "devices", "throughput"):
        events.publish(kind, lambda kind=kind: kind)
    assert pending(some) == ["devices", "throughput"]
    assert pending(none) == []
    assert events.has_subscribers("devices")
    assert not events.has_subscribers("model")


def test_a_name_with_half_a_character_does_not_end_the_stream() -> None:
    assert Event("model", {"name": "\ud800"}).message.startswith(b"event: model")


def test_what_comes_each_second_is_found_at_the_next_look_and_wakes_nobody() -> None:
    events = Events()
    subscription = events.subscribe()
    woken: list[Event] = []
    reader = threading.Thread(
        target=lambda: woken.extend(subscription.take(PATIENCE * 10)), daemon=True
    )
    reader.start()
    events.publish("throughput", lambda: 1, wakes=False)
    events.publish("model", lambda: 2)
    reader.join(PATIENCE)
    assert [event.data for event in woken] == [1, 2]
    events.publish("throughput", lambda: 3, wakes=False)
    assert pending(subscription) == [3]

"""Threads for long answers, and those that are kept for all the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.errors import ApiError
from routes.http.slots import RESERVED, Slots


def taken(take: Callable[[], Callable[[], None]]) -> list[Callable[[], None]]:
    """All that can be had, as what gives them back."""
    found: list[Callable[[], None]] = []
    with pytest.raises(ApiError) as refusal:
        found.extend(take() for _ in range(10_000))
    assert (refusal.value.status, refusal.value.code) == (503, "busy")
    assert refusal.value.retry_after
    return found


def test_32_threads_are_kept_for_pages_and_health() -> None:
    assert RESERVED == 32
    assert len(taken(Slots(512).acquire)) == 480


def test_a_slot_that_is_given_back_can_be_taken_again() -> None:
    slots = Slots(RESERVED + 2)
    first, _ = taken(slots.acquire)
    first()
    assert len(taken(slots.acquire)) == 1


def test_open_pages_hold_no_more_than_their_part() -> None:
    slots = Slots(RESERVED + 100)
    assert len(taken(slots.acquire_stream)) == 25
    assert len(taken(slots.acquire)) == 75


def test_requests_may_take_what_no_page_holds() -> None:
    slots = Slots(RESERVED + 100)
    requests = taken(slots.acquire)
    assert len(requests) == 100
    assert taken(slots.acquire_stream) == []
    requests[0]()
    assert len(taken(slots.acquire_stream)) == 1


def test_on_the_smallest_machine_one_page_may_still_be_open() -> None:
    assert len(taken(Slots(RESERVED + 1).acquire_stream)) == 1


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 50))))
def test_in_any_order_no_more_is_held_than_there_is_and_all_comes_back(
    capacity: int, steps: list[tuple[bool, bool, int]]
) -> None:
    slots = Slots(RESERVED + capacity)
    held: list[tuple[bool, Callable[[], None]]] = []
    limit = max(1, capacity // 4)
    for is_take, is_watcher, which in steps:
        if not is_take and held:
            held.pop(which % len(held))[1]()
        elif is_take:
            watchers = sum(one[0] for one in held)
            has_room = len(held) < capacity and not (is_watcher and watchers >= limit)
            try:
                held.append((is_watcher, slots.acquire_stream() if is_watcher else slots.acquire()))
            except ApiError:
                assert not has_room
            else:
                assert has_room
    for _, give_back in held:
        give_back()
    assert len(taken(slots.acquire)) == capacity


def test_many_threads_never_hold_more_than_there_is() -> None:
    slots = Slots(RESERVED + 3)
    lock = threading.Lock()
    held = most = 0

    def use(_: int) -> None:
        nonlocal held, most
        try:
            give_back = slots.acquire()
        except ApiError:
            return
        with lock:
            held += 1
            most = max(most, held)
        with lock:
            held -= 1
        give_back()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, range(2000)))
    assert most <= 3
    assert len(taken(slots.acquire)) == 3


@pytest.mark.parametrize("threads", [RESERVED, 1])
def test_with_too_few_threads_every_request_is_refused_and_none_hangs(threads: int) -> None:
    assert taken(Slots(threads).acquire) == []
    assert taken(Slots(threads).acquire_stream) == []

"""Who waits for free memory, in which order, and who yields: played models and readings."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from manager.clock import Clock
from manager.config.settings import Model as Settings
from manager.config.settings import Scheme
from manager.errors import ApiError, ClientDisconnected
from manager.placement.planner import PRIORITY_STEP_SECONDS, YIELD_AFTER_SECONDS
from manager.placement.types import Action, Evictability
from tests.support.played_machine import (
    H100,
    OTHER_V100,
    V100,
    Build,
    Eventually,
    Model,
    in_a_thread,
    position,
    position_in_json,
    real_model,
    runs,
)
from tests.support.servers import PATIENCE as LONG

BUSY, IDLE = Evictability.BUSY, Evictability.IDLE


# --- the queue --------------------------------------------------------------------------


def test_a_full_model_is_used_by_priority_then_first_come(eventually: Eventually) -> None:
    now = [1000.0]
    model = real_model(Settings("Narrow", max_concurrency=1), clock=Clock(lambda: now[0]))
    runs(model)
    used: list[str] = []

    def use(name: str, priority: int) -> None:
        with model.lease(lambda: False, priority):
            used.append(name)

    waiting = []
    with model.lease(lambda: False):
        for seconds, name, priority in [
            (0, "first", 0),
            (1, "second", 0),
            (1, "urgent", 3),
            (1, "more urgent", 4),
            (40, "urgent, but late", 3),
        ]:
            now[0] += seconds
            waiting.append(in_a_thread(lambda name=name, priority=priority: use(name, priority)))
            eventually(lambda: len(model._queue) == len(waiting))
    for each in waiting:
        each.result(LONG)
    assert used == ["more urgent", "urgent", "first", "second", "urgent, but late"]


def test_a_request_of_higher_priority_moves_its_model_up_in_the_queue(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    one.runs(Model("Busy", BUSY), {H100: 9000})
    leases, models = [], []
    try:
        for name in ("First", "Second"):
            scheme = Scheme("Default", ("h100",), None, ("server",), {"h100": 9000}, {}, Path())
            model = real_model(Settings(name, schemes=(scheme,)), one.placement, one.monitor.clock)
            models.append(model)
            leases.append(in_a_thread(lambda model=model: model.lease(lambda: False)))
            eventually(lambda model=model: position_in_json(model) == len(models))
            one.monitor.now += 5
        first, second = models
        disconnected = threading.Event()
        leases.append(in_a_thread(lambda: second.lease(disconnected.is_set, 1)))
        eventually(lambda: (position_in_json(second), position_in_json(first)) == (1, 2))
        disconnected.set()

        def is_moved_back() -> bool:
            second._shared.watch.poll()
            one.placement.wake()
            return (position_in_json(first), position_in_json(second)) == (1, 2)

        eventually(is_moved_back)
    finally:
        for model in models:
            model.close("the test has ended", lambda: ApiError(503, "shutting_down", "ended"))
            model.join()
    assert [type(lease.exception(LONG)) for lease in leases] == [
        ApiError,
        ApiError,
        ClientDisconnected,
    ]


def test_ten_seconds_in_the_queue_outweigh_a_step_of_priority(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    one.runs(Model("Busy", BUSY), {H100: 9000})
    first = one.start(Model("First"), 9000, "h100")
    eventually(lambda: position(first) == 1)
    one.monitor.now += 19.9
    sooner = one.start(Model("Sooner", priority=2), 9000, "h100")
    eventually(lambda: (position(sooner), position(first)) == (1, 2))
    one.monitor.now += 0.1
    later = one.start(Model("Later", priority=2), 9000, "h100")
    eventually(lambda: (position(sooner), position(first), position(later)) == (1, 2, 3))


def test_memory_that_was_freed_for_a_model_is_not_taken_by_a_more_urgent_one(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    reservation = one.runs(Model("Idle"), {H100: 9000})
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: one.evictions == ["Idle"])
    urgent = one.start(Model("Urgent", priority=10), 9000, "h100")
    eventually(lambda: (position(start), position(urgent)) == (1, 2))
    one.stops(reservation)
    assert start.assignment().memory_mb == {H100: 9000}
    eventually(lambda: position(urgent) == 1)


def test_a_model_that_runs_again_takes_requests_though_others_wait_for_its_device(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    returning, lasting = Model("Returning", BUSY, priority=5), Model("Lasting", BUSY)
    reservation = one.runs(returning, {H100: 8000})
    one.runs(lasting, {H100: 8000})
    large = one.start(Model("Large"), 16000, "h100")
    eventually(lambda: large.action() is Action.QUEUE)
    one.later(YIELD_AFTER_SECONDS)
    eventually(lambda: returning.yielding and lasting.yielding)
    one.stops(reservation)  # it has crashed
    eventually(lambda: not returning.yielding)
    reservation, _ = one.start(returning, 8000, "h100").future.result(LONG)
    assert not returning.yielding
    one.placement.mark_ready(reservation)
    one.later(YIELD_AFTER_SECONDS)
    eventually(lambda: returning.yielding)


def test_two_models_of_the_highest_priority_cannot_keep_out_one_of_the_lowest_for_ever(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    running, other = (Model(name, BUSY, priority=10) for name in ("One", "Other"))
    reservation = one.runs(running, {H100: 9000})
    lowest = one.start(Model("Lowest"), 9000, "h100")
    eventually(lambda: position(lowest) == 1)
    began = one.monitor.now
    for evictions in range(20):
        # Requests come to both all the time: the one that was stopped is queued again at once.
        waits = one.start(other, 9000, "h100")
        eventually(waits.action)
        one.later(YIELD_AFTER_SECONDS)
        eventually(lambda model=running: model.yielding)
        running.evictability = IDLE
        one.placement.wake()
        eventually(lambda evictions=evictions: len(one.evictions) == evictions + 1)
        one.stops(reservation)
        eventually(lambda waits=waits: waits.future.done() or lowest.future.done())
        if lowest.future.done():
            break
        running, other = other, running
        running.evictability = BUSY
        reservation, _ = waits.future.result()
        one.placement.mark_ready(reservation)
        one.monitor.read({H100: 9000})
    waited = one.monitor.now - began
    assert (
        10 * PRIORITY_STEP_SECONDS < waited < 10 * PRIORITY_STEP_SECONDS + 2 * YIELD_AFTER_SECONDS
    )


def test_a_waiting_start_goes_on_though_it_is_woken_all_the_time(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    busy = Model("Busy", BUSY)
    one.runs(busy, {H100: 9000})
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: start.action() is Action.QUEUE)
    busy.evictability = IDLE

    def evicted() -> bool:
        one.placement.wake()
        return one.evictions == ["Busy"]

    eventually(evicted)


def test_a_cancelled_start_leaves_the_queue_and_those_behind_it_move_up(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    one.runs(Model("Busy", BUSY), {H100: 9000})
    first = one.start(Model("First"), 9000, "h100")
    eventually(lambda: first.action() is Action.QUEUE)
    second = one.start(Model("Second"), 9000, "h100")
    eventually(lambda: second.waits and second.waits.number == 2)
    first.cancelled.set()
    one.placement.wake()
    assert first.error().code == "cancelled"
    assert first.waits is None
    eventually(lambda: second.waits and second.waits.number == 1)
    assert one.holders() == {"Busy"}


def test_a_start_that_is_cancelled_just_when_it_is_placed_releases_its_memory(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    reservation = one.runs(Model("Busy", BUSY), {H100: 9000})
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: start.action() is Action.QUEUE)
    one.monitor.listeners.clear()
    one.monitor.read({})
    with one.placement._lock:
        # As another start's thread does it, while that of this one is about to wake.
        one.placement._ledger.reservations.remove(reservation)
        one.placement._plan_queue()
        assert len(one.placement._ledger.reservations) == 1
        start.cancelled.set()
    assert start.error().code == "cancelled"
    assert one.holders() == set()


def test_busy_models_are_asked_to_yield_after_ten_seconds_and_not_before(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    busy = Model("Busy", BUSY)
    reservation = one.runs(busy, {H100: 9000})
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: start.action() is Action.QUEUE)
    one.later(YIELD_AFTER_SECONDS - 0.1)
    late = one.start(Model("Elsewhere"), 9000)  # the whole queue was decided for it
    late.assignment()
    assert busy.calls == []
    one.later(0.1)
    eventually(lambda: busy.calls == ["yields"])
    busy.evictability = IDLE
    one.placement.wake()
    eventually(lambda: one.evictions == ["Busy"])
    one.stops(reservation)
    start.assignment()
    assert busy.calls[-1] == "stops yielding"
    [(model, seconds, outcome)] = one.waits
    assert (model, outcome) == ("Next", "placed")
    assert seconds >= YIELD_AFTER_SECONDS


def test_a_model_that_has_only_just_started_has_its_ten_seconds_as_well(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    busy = Model("Busy", BUSY)
    reservation, _ = one.start(busy, 9000, "h100").future.result(LONG)
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: start.action() is Action.QUEUE)
    one.later(8)
    one.placement.mark_ready(reservation)
    one.monitor.read({H100: 9000})  # a second later
    one.later(YIELD_AFTER_SECONDS - 2)
    one.start(Model("Elsewhere"), 9000).assignment()  # the whole queue was decided for it
    assert busy.calls == []
    one.later(1)
    eventually(lambda: busy.calls == ["yields"])


def test_a_model_yields_until_the_last_that_needs_it_is_served(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    busy = Model("Busy", BUSY)
    one.runs(busy, {H100: 9000, V100: 9000, OTHER_V100: 9000})
    first = one.start(Model("First"), 9000, "h100")
    second = one.start(Model("Second"), 9000)
    for start in (first, second):
        eventually(lambda start=start: start.action() is Action.QUEUE)
    one.later(YIELD_AFTER_SECONDS)
    eventually(lambda: len(busy.calls) == 2)
    first.cancelled.set()
    one.placement.wake()
    first.error()
    assert busy.yielding
    second.cancelled.set()
    one.placement.wake()
    second.error()
    assert not busy.yielding


def test_after_queue_timeout_the_error_names_the_models_in_the_way_and_nobody_yields(
    machine: Build, eventually: Eventually
) -> None:
    one = machine(queue_timeout=60)
    busy = Model("Busy", BUSY)
    one.runs(busy, {H100: 9000})
    start = one.start(Model("Late"), 9000, "h100")
    eventually(lambda: start.action() is Action.QUEUE)
    one.later(60)
    error = start.error()
    assert error.code == "queue_timeout"
    assert "within 60 seconds" in str(error)
    assert "in the way: Busy" in str(error)
    assert not busy.yielding
    assert one.waits == [("Late", 60.0, "failed")]
    assert not one.placement.has_waiting()


@pytest.mark.parametrize("others", [4000, 0])
def test_a_waiting_start_goes_on_when_other_programs_free_memory(
    machine: Build, eventually: Eventually, others: int
) -> None:
    one = machine()
    one.monitor.read({H100: 4000})
    one.runs(Model("Busy", BUSY), {H100: 8000})
    start = one.start(Model("Next"), 7000, "h100")
    eventually(lambda: start.action() is Action.QUEUE)
    one.monitor.read({H100: 8000 + others})
    if others:
        assert not start.future.done()
    else:
        assert start.assignment().memory_mb == {H100: 7000}


def test_a_start_is_rejected_with_the_devices_that_are_online(machine: Build) -> None:
    error = machine().start(Model("Model"), 4000, "rtx 4060").error()
    assert error.code == "no_matching_scheme"
    assert "rtx 4060 is not online" in str(error)
    assert f"Online: {V100}, {OTHER_V100}, {H100}" in str(error)

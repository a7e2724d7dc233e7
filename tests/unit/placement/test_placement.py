"""Whom placement stops and what readings mean, at moments that real processes cannot be held."""

from __future__ import annotations

import pytest

from manager.config.settings import Model as Settings
from manager.devices import Snapshot
from manager.errors import ApiError
from manager.placement.memory_return import RELEASE_SECONDS
from manager.placement.planner import YIELD_AFTER_SECONDS
from manager.placement.types import Action, Evictability, SchemeOption
from tests.support.played_machine import (
    H100,
    OTHER_V100,
    TOTAL,
    V100,
    Build,
    Eventually,
    Model,
    in_a_thread,
    on_h100,
    real_model,
    runs,
)
from tests.support.servers import PATIENCE as LONG

BUSY, IDLE = Evictability.BUSY, Evictability.IDLE


# --- evictions ------------------------------------------------------------------------


def test_no_model_is_stopped_when_a_request_comes_to_one_of_them_meanwhile(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    left, right = Model("Left"), Model("Right")
    for model in (left, right):
        one.runs(model, {H100: 7000})
    # A request to whichever comes second, when the eviction of the first has begun.
    for model, other in ((left, right), (right, left)):
        model.crossing.append(
            lambda model=model, other=other: (
                setattr(model, "evictability", BUSY) if other.calls else None
            )
        )
    start = one.start(Model("Big"), 14000, "h100")
    eventually(lambda: start.action() is Action.QUEUE)
    assert sorted([left.calls, right.calls]) == [[], ["eviction begun", "eviction cancelled"]]
    assert one.evictions == []

    left.evictability = right.evictability = IDLE
    one.placement.wake()
    eventually(lambda: sorted(one.evictions) == ["Left", "Right"])


def test_others_are_stopped_at_once_where_a_request_has_crossed(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    asked, other = Model("Asked"), Model("Other")
    one.runs(asked, {H100: 8000})
    one.runs(other, {H100: 8000})
    first = (
        asked if one.placement.preview(Model("M"), on_h100(8000)).models == ("Asked",) else other
    )
    first.crossing.append(lambda: setattr(first, "evictability", BUSY))
    one.start(Model("Next"), 8000, "h100")
    second = other if first is asked else asked
    eventually(lambda: one.evictions == [second.name])
    assert first.calls == []


def test_no_second_model_is_stopped_while_the_first_is_stopping(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    stopping, busy = Model("Stopping"), Model("Busy", BUSY)
    reservation = one.runs(stopping, {V100: 9000})
    one.runs(busy, {OTHER_V100: 9000})
    start = one.start(Model("Next"), 9000)
    eventually(lambda: one.evictions == ["Stopping"])
    busy.evictability = IDLE
    one.placement.wake()
    eventually(lambda: start.action() is Action.AWAIT_MEMORY)
    assert busy.calls == []
    one.stops(reservation)
    assert start.assignment().memory_mb == {V100: 9000}
    assert one.evictions == ["Stopping"]


def test_an_eviction_for_which_the_system_has_no_thread_is_tried_again(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    idle = Model("Idle")
    idle.fault = ApiError(503, "busy", "no further thread")
    reservation = one.runs(idle, {H100: 9000})
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: one.evictions == ["Idle"])
    reason = "evicted to free memory for Next"
    assert idle.calls == ["eviction begun", "eviction cancelled", "eviction begun", reason]
    one.stops(reservation)
    assert start.assignment().scheme == "Default"


def test_a_request_that_came_during_a_cancelled_eviction_is_served_though_there_is_no_thread(
    eventually: Eventually,
) -> None:
    model = real_model(Settings("Idle"))
    runs(model)
    assert model.begin_eviction()
    asked = in_a_thread(lambda: model.lease(lambda: False))
    eventually(lambda: model._queue)

    def no_thread() -> None:
        raise ApiError(503, "busy", "no further thread")

    model._worker.wake = no_thread  # type: ignore[method-assign]
    try:
        model.cancel_eviction()
        assert asked.result(LONG).scheme == "Default"
    finally:
        with model._lock:
            model._queue.reject_all(lambda: ApiError(503, "shutting_down", "the test has ended"))


# --- readings ---------------------------------------------------------------------------


def test_memory_by_process_is_waited_for_until_the_driver_lists_the_process_no_more(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    processes = {4711}
    reservation = one.runs(Model("Model"), {H100: 9000}, lambda: processes)
    one.placement.pids()
    one.monitor.read({H100: 9000}, {4711: 9000})
    one.placement.mark_stopping(reservation, ended=False)
    processes.clear()  # it has ended; the driver still lists it
    one.placement.pids()
    released = in_a_thread(lambda: one.placement.release(reservation))
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: start.action() is Action.AWAIT_MEMORY)
    assert not released.done()
    one.monitor.read({})
    released.result(LONG)
    start.assignment()


def test_the_memory_of_a_container_is_waited_for_though_its_processes_are_not_known(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    reservation = one.runs(Model("Container"), {H100: 9000})
    one.placement.pids()
    one.monitor.read({H100: 9000}, {4711: 9000})  # of which nobody knows that it is a model's
    one.placement.mark_stopping(reservation, ended=False)
    released = in_a_thread(lambda: one.placement.release(reservation))
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: start.action() is Action.AWAIT_MEMORY)
    assert not released.done()
    one.monitor.read({}, {})
    released.result(LONG)
    start.assignment()


def test_memory_taken_since_the_last_reading_is_waited_for_as_well(machine: Build) -> None:
    one = machine()
    reservation, _ = one.start(Model("Short-lived"), 9000, "h100").future.result(LONG)
    one.monitor.now += 1
    one.placement.mark_ready(reservation)
    one.monitor.true_use = {H100: 9000}
    one.placement.mark_stopping(reservation, ended=False)
    released = in_a_thread(lambda: one.placement.release(reservation))
    one.monitor.true_use = {}
    one.monitor.now += 1
    released.result(LONG)
    assert one.placement.preview(Model("M"), on_h100(TOTAL)).action is Action.START


def test_with_a_hung_driver_memory_of_models_started_since_is_not_free(machine: Build) -> None:
    one = machine()
    one.monitor.read({H100: 6000})  # by other programs
    one.monitor.hang()
    reservation, _ = one.start(Model("First"), 4000, "h100").future.result(LONG)
    one.monitor.now += 1
    one.placement.mark_ready(reservation)
    assert one.placement.preview(Model("M"), on_h100(6000)).action is Action.START
    assert one.placement.preview(Model("M"), on_h100(6001)).action is Action.EVICT


def test_with_a_hung_driver_idle_models_are_still_stopped_for_others(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    stopping = Model("Stopping")
    reservation = one.runs(stopping, {H100: 9000})
    one.monitor.read({H100: 10000})
    one.monitor.hang()
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: one.evictions == ["Stopping"])
    one.stops(reservation)
    assert start.assignment().memory_mb == {H100: 9000}
    # 1,000 MB of other programs are still where they were read.
    assert one.placement.preview(Model("M"), on_h100(6001)).action > Action.START
    one.monitor.read({H100: 1000})
    assert one.placement.preview(Model("M"), on_h100(6000)).action is Action.START


def test_a_model_that_takes_more_and_more_can_be_stopped_for_it(machine: Build) -> None:
    one = machine()
    growing = Model("Growing")
    start = one.start(growing, 4000)
    start.assignment()
    reservation = start.future.result()[0]
    one.placement.mark_ready(reservation)
    one.monitor.read({V100: 4000})
    one.monitor.read({V100: 10000})
    option = SchemeOption("Default", ("v100",), {"v100": 12000})
    decision = one.placement.preview(Model("Large"), [SchemeOption("s", ("h100",), {"h100": 1})])
    assert decision.action is Action.START
    one.monitor.read({V100: 10000, OTHER_V100: 15000})
    decision = one.placement.preview(Model("Large"), [option])
    assert (decision.action, decision.models) == (Action.EVICT, ("Growing",))


def test_a_model_that_has_moved_to_another_card_takes_requests_again(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    moving, lasting = Model("Moving", BUSY), Model("Lasting", BUSY)
    reservation = one.runs(moving, {H100: 8000})
    one.runs(lasting, {H100: 8000})
    start = one.start(Model("Waiting"), 16000, "h100")
    eventually(lambda: start.action() is Action.QUEUE)
    one.later(YIELD_AFTER_SECONDS)
    eventually(lambda: moving.yielding and lasting.yielding)
    one.stops(reservation)
    one.runs(moving, {V100: 8000})
    one.placement.wake()
    eventually(lambda: not moving.yielding)
    assert lasting.yielding


def test_memory_that_is_never_freed_is_waited_for_five_seconds_and_then_other_programs_use_it(
    machine: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = machine()
    reservation, _ = one.start(Model("Ended"), 9000, "h100").future.result(LONG)
    reservation.pids = lambda: {4711}
    one.placement.mark_ready(reservation)
    one.monitor.read({H100: 9000})
    began = one.monitor.now

    def take_a_second(_since: float, _timeout: float) -> Snapshot:
        one.monitor.read({H100: 9000})
        return one.monitor.snapshot

    monkeypatch.setattr(one.monitor, "wait_for_reading", take_a_second)
    one.placement.mark_stopping(reservation, ended=False)
    one.placement.release(reservation)
    assert RELEASE_SECONDS <= one.monitor.now - began <= RELEASE_SECONDS + 3
    assert "Ended has ended, and its memory was not freed within 5 seconds" in caplog.text
    decision = one.placement.preview(Model("Next"), on_h100(9000))
    assert decision.code == "insufficient_memory"
    numbers = "7000 of 16000 MB are free (held: other programs 9000 MB)"
    assert numbers in decision.passed_over["Default"]

"""Placement at the moments that real processes cannot be held at: played models and readings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manager.clock import Clock
from manager.config.settings import Model as Settings
from manager.config.settings import Program, Scheme
from manager.devices import Device, Reading, Snapshot
from manager.errors import ApiError, ClientDisconnected
from manager.events import Events
from manager.models.model import Model as RealModel
from manager.models.model import State
from manager.placement.placement import DeviceAssignment, Placement, PlacementError, QueuePosition
from manager.placement.planner import (
    PRIORITY_STEP_SECONDS,
    YIELD_AFTER_SECONDS,
    Action,
    Evictability,
    SchemeOption,
)
from manager.placement.reservation import EvictionStatus, Reservation
from manager.relay.watcher import Watcher
from tests.support.servers import PATIENCE as LONG

V100, OTHER_V100, H100 = "Tesla V100 #0", "Tesla V100 #1", "NVIDIA H100 #0"
TOTAL = 16000

Eventually = Callable[[Callable[[], Any]], Any]


class Monitor:
    """What is known of three cards is what the test last said; a poll finds ``true_use`` where
    that is set. ``now`` is the time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(monotonic=lambda: self.now)
        self.listeners: list[Callable[[Snapshot], None]] = []
        self.true_use: Mapping[str, int] | None = None
        self.read({})

    def read(self, used: Mapping[str, int], pids: Mapping[int, int] | None = None) -> None:
        """A new reading: MB that are used, by card, and what each process holds of each."""
        self.now += 1
        devices = []
        for card in (V100, OTHER_V100, H100):
            name, _, index = card.rpartition(" #")
            reading = Reading(name, "nvidia", int(index), TOTAL, used.get(card, 0), held_mb=pids)
            devices.append(Device(reading, self.now, stale=False))
        self.snapshot = Snapshot(tuple(devices))
        for listener in self.listeners:
            listener(self.snapshot)

    def hang(self) -> None:
        """From now on there is only what was read last."""
        devices = (Device(d.reading, d.read_at, stale=True) for d in self.snapshot.devices)
        self.snapshot = Snapshot(tuple(devices), {"nvidia": "has not answered"})

    def add_listener(self, listener: Callable[[Snapshot], None]) -> None:
        self.listeners.append(listener)

    def wait_for_reading(self, since: float, _timeout: float) -> Snapshot:
        if self.true_use is not None and since > self.snapshot.devices[0].read_at:
            self.read(self.true_use)
        return self.snapshot

    def touch(self) -> None: ...

    def refresh(self) -> None: ...

    def set_enabled(self, _enabled: bool) -> None: ...


class Model:
    """Stands as the test says, and keeps what it is told."""

    def __init__(
        self, name: str, evictability: Evictability = Evictability.IDLE, *, priority: int = 0
    ) -> None:
        self.name = name
        self.evictability = evictability
        self.crossing: list[Callable[[], None]] = []  # requests that come just before an eviction
        self.fault: ApiError | None = None  # of the next eviction
        self.yielding = False
        self.priority = priority  # the highest of those that wait for it
        self.told: list[str] = []

    def eviction_status(self) -> EvictionStatus:
        return EvictionStatus(self.evictability, None, None, 1.0, self.yielding)

    def waiting_priority(self) -> int:
        return self.priority

    def begin_eviction(self) -> bool:
        while self.crossing:
            self.crossing.pop()()
        if self.evictability is not Evictability.IDLE:
            return False
        self.evictability = Evictability.STOPPING
        self.told.append("claimed")
        return True

    def cancel_eviction(self) -> None:
        self.evictability = Evictability.IDLE
        self.told.append("unclaimed")

    def evict(self, reason: str) -> None:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        self.told.append(reason)

    def set_yielding(self, yielding: bool) -> None:
        self.yielding = yielding
        self.told.append("yields" if yielding else "yields no more")


def in_a_thread(function: Callable[[], Any]) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return future


def real_model(settings: Settings, placement: Any = None, clock: Clock | None = None) -> RealModel:
    """One that starts nothing, unless a placement has room for it."""
    placement = placement or SimpleNamespace(wake=lambda: None)
    shared: Any = SimpleNamespace(
        clock=clock or Clock(), events=Events(), watch=Watcher(), placement=placement
    )
    interface: Any = None
    return RealModel(settings, Program(), interface, shared, set)


def runs(model: RealModel) -> None:
    """Has it ready, without a server."""
    server: Any = SimpleNamespace(
        in_flight=0, interface=None, scheme="Default", settings=model.settings, start_seconds=1.0
    )
    model.to_json = dict  # type: ignore[method-assign]
    model._state, model._server = State.READY, server


def place_in_line(model: RealModel) -> int | None:
    waits_for = model.to_json()["waits_for"]
    return waits_for["place_in_line"] if waits_for else None


class Start:
    """A start in a thread of its own, as a model's worker makes it."""

    def __init__(self, placement: Placement, model: Model, options: list[SchemeOption]) -> None:
        self.cancelled = threading.Event()
        self.waits: QueuePosition | None = None
        self.future: Future[tuple[Reservation, DeviceAssignment]] = in_a_thread(
            lambda: placement.reserve(model, options, self.cancelled.is_set, self._tell)
        )

    def _tell(self, waits: QueuePosition | None) -> None:
        self.waits = waits

    def place(self) -> DeviceAssignment:
        return self.future.result(LONG)[1]

    def refusal(self) -> PlacementError:
        error = self.future.exception(LONG)
        assert isinstance(error, PlacementError)
        return error

    def action(self) -> Action | None:
        return self.waits.decision.action if self.waits else None


def place(start: Start) -> int | None:
    return start.waits.number if start.waits else None


class Machine:
    """A placement with its monitor; counts as its observer."""

    def __init__(self, **settings: Any) -> None:
        self.monitor = Monitor()
        self.evictions: list[str] = []
        self.waits: list[tuple[str, float, str]] = []
        monitor: Any = self.monitor
        program = Program(**settings)
        self.placement = Placement(monitor, self.monitor.clock, Events(), self, program)
        self.starts: list[Start] = []

    def record_eviction(self, model: str) -> None:
        self.evictions.append(model)

    def record_wait(self, model: str, seconds: float, outcome: str) -> None:
        self.waits.append((model, seconds, outcome))

    def start(self, model: Model, mb: int, device: str = "v100") -> Start:
        option = SchemeOption("Default", (device,), {device: mb})
        self.starts.append(Start(self.placement, model, [option]))
        return self.starts[-1]

    def runs(
        self,
        model: Model,
        memory_mb: Mapping[str, int],
        pids: Callable[[], Collection[int]] = tuple,
    ) -> Reservation:
        """The seat of a model that runs, as the cards show."""
        reservation = self.placement.reserve_running(model, memory_mb, pids)
        self.monitor.read({c: mb + memory_mb.get(c, 0) for c, mb in self._used().items()})
        return reservation

    def goes(self, reservation: Reservation) -> None:
        """Its server ends, and the cards have its memory back."""
        self.placement.mark_stopping(reservation)
        if not self.monitor.snapshot.faults:
            self.monitor.read(
                {c: mb - reservation.memory_mb.get(c, 0) for c, mb in self._used().items()}
            )
        self.placement.release(reservation)

    def _used(self) -> dict[str, int]:
        readings = [device.reading for device in self.monitor.snapshot.devices]
        return {reading.id: reading.used_mb or 0 for reading in readings}

    def later(self, seconds: float) -> None:
        self.monitor.now += seconds
        self.placement.wake()

    def holders(self) -> set[str]:
        return {holding.model for holding in self.placement.snapshot()[1]}


@pytest.fixture
def machine() -> Iterator[Callable[..., Machine]]:
    machines: list[Machine] = []

    def machine(**settings: Any) -> Machine:
        machines.append(Machine(**settings))
        return machines[-1]

    yield machine
    for each in machines:
        for start in each.starts:
            start.cancelled.set()
        each.monitor.now += 1000  # and nobody waits for memory any more
        each.placement.wake()


Build = Callable[..., Machine]
BUSY, IDLE = Evictability.BUSY, Evictability.IDLE


# --- whom it stops ----------------------------------------------------------------------


def test_of_those_to_be_stopped_none_is_when_a_request_comes_to_one_meanwhile(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    left, right = Model("Left"), Model("Right")
    for model in (left, right):
        one.runs(model, {H100: 7000})
    # A request to whichever is claimed second, when the first is claimed already.
    for model, other in ((left, right), (right, left)):
        model.crossing.append(
            lambda model=model, other=other: (
                setattr(model, "evictability", BUSY) if other.told else None
            )
        )
    start = one.start(Model("Big"), 14000, "h100")
    eventually(lambda: start.action() is Action.QUEUE)
    assert sorted([left.told, right.told]) == [[], ["claimed", "unclaimed"]]
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
        asked if one.placement.preview(Model("M"), _on_h100(8000)).models == ("Asked",) else other
    )
    first.crossing.append(lambda: setattr(first, "evictability", BUSY))
    one.start(Model("Next"), 8000, "h100")
    second = other if first is asked else asked
    eventually(lambda: one.evictions == [second.name])
    assert first.told == []


def _on_h100(mb: int) -> list[SchemeOption]:
    return [SchemeOption("Default", ("h100",), {"h100": mb})]


def test_no_second_model_is_stopped_while_the_first_is_on_its_way_out(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    stopping, busy = Model("Going"), Model("Busy", BUSY)
    reservation = one.runs(stopping, {V100: 9000})
    one.runs(busy, {OTHER_V100: 9000})
    start = one.start(Model("Next"), 9000)
    eventually(lambda: one.evictions == ["Going"])
    busy.evictability = IDLE
    one.placement.wake()
    eventually(lambda: start.action() is Action.AWAIT_MEMORY)
    assert busy.told == []
    one.goes(reservation)
    assert start.place().memory_mb == {V100: 9000}
    assert one.evictions == ["Going"]


def test_an_eviction_for_which_the_system_has_no_thread_is_tried_again(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    idle = Model("Idle")
    idle.fault = ApiError(503, "busy", "no further thread")
    reservation = one.runs(idle, {H100: 9000})
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: one.evictions == ["Idle"])
    reason = "evicted to make room for Next"
    assert idle.told == ["claimed", "unclaimed", "claimed", reason]
    one.goes(reservation)
    assert start.place().scheme == "Default"


def test_a_request_that_came_to_a_claimed_model_is_served_though_there_is_no_thread(
    eventually: Eventually,
) -> None:
    model = real_model(Settings("Idle"))
    runs(model)
    assert model.begin_eviction()
    asked = in_a_thread(lambda: model.lease(lambda: False))
    eventually(lambda: model._queue)

    def no_thread() -> None:
        raise ApiError(503, "busy", "no further thread")

    model._wake_worker = no_thread  # type: ignore[method-assign]
    try:
        model.cancel_eviction()
        assert asked.result(LONG).scheme == "Default"
    finally:
        with model._lock:
            model._queue.reject_all(lambda: ApiError(503, "shutting_down", "the test has ended"))


# --- the line ---------------------------------------------------------------------------


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


def test_a_request_of_higher_priority_moves_its_model_up_in_the_line(
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
            eventually(lambda model=model: place_in_line(model) == len(models))
            one.monitor.now += 5
        first, second = models
        has_left = threading.Event()
        leases.append(in_a_thread(lambda: second.lease(has_left.is_set, 1)))
        eventually(lambda: (place_in_line(second), place_in_line(first)) == (1, 2))
        has_left.set()

        def is_moved_back() -> bool:
            second._shared.watch.poll()
            one.placement.wake()
            return (place_in_line(first), place_in_line(second)) == (1, 2)

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


def test_in_the_line_for_room_ten_seconds_of_waiting_outweigh_a_step_of_priority(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    one.runs(Model("Busy", BUSY), {H100: 9000})
    first = one.start(Model("First"), 9000, "h100")
    eventually(lambda: place(first) == 1)
    one.monitor.now += 19.9
    sooner = one.start(Model("Sooner", priority=2), 9000, "h100")
    eventually(lambda: (place(sooner), place(first)) == (1, 2))
    one.monitor.now += 0.1
    later = one.start(Model("Later", priority=2), 9000, "h100")
    eventually(lambda: (place(sooner), place(first), place(later)) == (1, 2, 3))


def test_the_room_of_models_that_were_stopped_for_one_is_not_taken_by_a_more_urgent_one(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    reservation = one.runs(Model("Idle"), {H100: 9000})
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: one.evictions == ["Idle"])
    urgent = one.start(Model("Urgent", priority=10), 9000, "h100")
    eventually(lambda: (place(start), place(urgent)) == (1, 2))
    one.goes(reservation)
    assert start.place().memory_mb == {H100: 9000}
    eventually(lambda: place(urgent) == 1)


def test_a_model_that_has_its_turn_again_lets_its_requests_in_though_others_wait_for_its_card(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    turning, lasting = Model("Turning", BUSY, priority=5), Model("Lasting", BUSY)
    reservation = one.runs(turning, {H100: 8000})
    one.runs(lasting, {H100: 8000})
    large = one.start(Model("Large"), 16000, "h100")
    eventually(lambda: large.action() is Action.QUEUE)
    one.later(YIELD_AFTER_SECONDS)
    eventually(lambda: turning.yielding and lasting.yielding)
    one.goes(reservation)  # it has crashed
    eventually(lambda: not turning.yielding)
    reservation, _ = one.start(turning, 8000, "h100").future.result(LONG)
    assert not turning.yielding
    one.placement.mark_ready(reservation)
    one.later(YIELD_AFTER_SECONDS)
    eventually(lambda: turning.yielding)


def test_models_of_the_highest_priority_that_take_turns_let_one_of_the_lowest_in_at_last(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    running, other = (Model(name, BUSY, priority=10) for name in ("One", "Other"))
    reservation = one.runs(running, {H100: 9000})
    lowest = one.start(Model("Lowest"), 9000, "h100")
    eventually(lambda: place(lowest) == 1)
    began = one.monitor.now
    for turns in range(20):
        # Requests come to both all the time: who has had its turn is back in line at once.
        waits = one.start(other, 9000, "h100")
        eventually(waits.action)
        one.later(YIELD_AFTER_SECONDS)
        eventually(lambda model=running: model.yielding)
        running.evictability = IDLE
        one.placement.wake()
        eventually(lambda turns=turns: len(one.evictions) == turns + 1)
        one.goes(reservation)
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


def test_news_that_come_all_the_time_are_looked_at(machine: Build, eventually: Eventually) -> None:
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


def test_a_cancelled_start_leaves_the_line_and_those_behind_it_move_up(
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
    assert first.refusal().code == "cancelled"
    assert first.waits is None
    eventually(lambda: second.waits and second.waits.number == 1)
    assert one.holders() == {"Busy"}


def test_a_start_that_is_cancelled_just_when_it_has_its_place_gives_it_back(
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
        one.placement._reservations.remove(reservation)
        one.placement._plan_queue()
        assert len(one.placement._reservations) == 1
        start.cancelled.set()
    assert start.refusal().code == "cancelled"
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
    late = one.start(Model("Elsewhere"), 9000)  # a whole round, for which the line was decided
    late.place()
    assert busy.told == []
    one.later(0.1)
    eventually(lambda: busy.told == ["yields"])
    busy.evictability = IDLE
    one.placement.wake()
    eventually(lambda: one.evictions == ["Busy"])
    one.goes(reservation)
    start.place()
    assert busy.told[-1] == "yields no more"
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
    one.start(Model("Elsewhere"), 9000).place()  # the line was gone through
    assert busy.told == []
    one.later(1)
    eventually(lambda: busy.told == ["yields"])


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
    eventually(lambda: len(busy.told) == 2)
    first.cancelled.set()
    one.placement.wake()
    first.refusal()
    assert busy.yielding
    second.cancelled.set()
    one.placement.wake()
    second.refusal()
    assert not busy.yielding


def test_after_queue_timeout_a_start_is_told_who_is_in_its_way_and_nobody_yields_for_it(
    machine: Build, eventually: Eventually
) -> None:
    one = machine(queue_timeout=60)
    busy = Model("Busy", BUSY)
    one.runs(busy, {H100: 9000})
    start = one.start(Model("Late"), 9000, "h100")
    eventually(lambda: start.action() is Action.QUEUE)
    one.later(60)
    refusal = start.refusal()
    assert refusal.code == "queue_timeout"
    assert "within 60 seconds" in str(refusal)
    assert "in the way: Busy" in str(refusal)
    assert not busy.yielding
    assert one.waits == [("Late", 60.0, "failed")]
    assert not one.placement.has_waiting()


# --- readings ---------------------------------------------------------------------------


def test_memory_by_process_is_waited_for_until_the_driver_lists_the_process_no_more(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    processes = {4711}
    reservation = one.runs(Model("Model"), {H100: 9000}, lambda: processes)
    one.placement.pids()
    one.monitor.read({H100: 9000}, {4711: 9000})
    one.placement.mark_stopping(reservation)
    processes.clear()  # it has ended; the driver still lists it
    one.placement.pids()
    left = in_a_thread(lambda: one.placement.release(reservation))
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: start.action() is Action.AWAIT_MEMORY)
    assert not left.done()
    one.monitor.read({})
    left.result(LONG)
    start.place()


def test_what_a_model_took_since_the_last_reading_is_waited_for_as_well(machine: Build) -> None:
    one = machine()
    reservation, _ = one.start(Model("Short-lived"), 9000, "h100").future.result(LONG)
    one.monitor.now += 1
    one.placement.mark_ready(reservation)
    one.monitor.true_use = {H100: 9000}
    one.placement.mark_stopping(reservation)
    left = in_a_thread(lambda: one.placement.release(reservation))
    one.monitor.true_use = {}
    one.monitor.now += 1
    left.result(LONG)
    assert one.placement.preview(Model("M"), _on_h100(TOTAL)).action is Action.START


def test_with_a_hung_driver_what_was_started_since_is_no_room_for_others(machine: Build) -> None:
    one = machine()
    one.monitor.read({H100: 6000})  # by other programs
    one.monitor.hang()
    reservation, _ = one.start(Model("First"), 4000, "h100").future.result(LONG)
    one.monitor.now += 1
    one.placement.mark_ready(reservation)
    assert one.placement.preview(Model("M"), _on_h100(6000)).action is Action.START
    assert one.placement.preview(Model("M"), _on_h100(6001)).action is Action.EVICT


def test_with_a_hung_driver_models_still_take_turns(machine: Build, eventually: Eventually) -> None:
    one = machine()
    stopping = Model("Going")
    reservation = one.runs(stopping, {H100: 9000})
    one.monitor.read({H100: 10000})
    one.monitor.hang()
    start = one.start(Model("Next"), 9000, "h100")
    eventually(lambda: one.evictions == ["Going"])
    one.goes(reservation)
    assert start.place().memory_mb == {H100: 9000}
    # 1,000 MB of other programs are still where they were read.
    assert one.placement.preview(Model("M"), _on_h100(6001)).action > Action.START
    one.monitor.read({H100: 1000})
    assert one.placement.preview(Model("M"), _on_h100(6000)).action is Action.START


def test_a_model_that_takes_more_and_more_can_be_stopped_for_it(machine: Build) -> None:
    one = machine()
    growing = Model("Growing")
    start = one.start(growing, 4000)
    start.place()
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
    one.goes(reservation)
    one.runs(moving, {V100: 8000})
    one.placement.wake()
    eventually(lambda: not moving.yielding)
    assert lasting.yielding

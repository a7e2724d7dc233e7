"""The memory of a server that sleeps, and what it takes to wake it: played cards, no process."""

from __future__ import annotations

import pytest

from manager.config.settings import Program
from manager.devices import Snapshot
from manager.placement.planner import plan
from manager.placement.reservation import Reservation
from manager.placement.types import (
    Action,
    Allocation,
    Basis,
    DeviceBudget,
    Evictability,
    SchemeOption,
    StartRequest,
)
from tests.support.played_machine import (
    H100,
    TOTAL,
    V100,
    Build,
    Eventually,
    Machine,
    Model,
    Start,
    on_h100,
)
from tests.support.servers import PATIENCE as LONG

IDLE = Evictability.IDLE
RAM = "CPU + RAM #0"


def sleeps(one: Machine, model: Model, mb: int, keeps: int) -> Reservation:
    """It has run on the card, and sleeps."""
    one.monitor.ram = (64000, 8000)
    reservation = one.runs(model, {H100: mb})
    assert one.placement.sleep.begin(reservation) is None
    one.monitor.read({H100: keeps})
    one.placement.sleep.mark_asleep(reservation)
    return reservation


def test_it_holds_what_is_left_on_the_card_and_the_rest_of_the_machine_s_memory(
    machine: Build,
) -> None:
    one = machine()
    reservation = sleeps(one, Model("Sleeper"), 12000, 1500)
    assert reservation.memory_mb == {H100: 1500, RAM: 10500}
    assert one.placement.preview(Model("M"), on_h100(TOTAL - 1500)).action is Action.START
    assert one.placement.preview(Model("M"), on_h100(TOTAL - 1499)).models == ("Sleeper",)


def test_to_wake_it_waits_for_what_it_lacks_on_its_own_card(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    sleeper = Model("Sleeper")
    reservation = sleeps(one, sleeper, 12000, 1500)
    other = one.runs(Model("Other"), {H100: 6000})
    start = Start(one.placement, sleeper, [], reservation)
    one.starts.append(start)
    eventually(lambda: one.evictions == ["Other"])
    one.stops(other)
    found, _ = start.future.result(LONG)
    assert found is reservation
    assert reservation.memory_mb == {H100: 12000}
    assert reservation.ready_at is None  # until it answers
    # Another program takes 3,000 MB meanwhile, and this one has not taken its own yet.
    one.monitor.read({H100: 4500})
    assert one.placement.preview(Model("M"), on_h100(1000)).action is Action.START
    assert one.placement.preview(Model("M"), on_h100(1001)).action is not Action.START


def test_a_wake_that_is_cancelled_leaves_it_asleep(machine: Build) -> None:
    one = machine()
    sleeper = Model("Sleeper")
    reservation = sleeps(one, sleeper, 12000, 1500)
    waiter = one.placement.enqueue(sleeper, [], reservation)
    one.placement.dequeue(waiter, placed=False)
    assert reservation.memory_mb == {H100: 1500, RAM: 10500}
    assert one.holders() == {"Sleeper"}


def test_a_wake_that_is_cancelled_once_it_has_its_memory_leaves_it_asleep(machine: Build) -> None:
    one = machine()
    sleeper = Model("Sleeper")
    reservation = sleeps(one, sleeper, 12000, 1500)
    for _ in range(2):
        waiter = one.placement.enqueue(sleeper, [], reservation)
        one.placement.decide()  # as another start does that waits
        assert reservation.memory_mb == {H100: 12000}
        one.placement.dequeue(waiter, placed=False)
        assert reservation.memory_mb == {H100: 1500, RAM: 10500}
        assert one.holders() == {"Sleeper"}
    assert one.placement.preview(Model("M"), on_h100(TOTAL - 1500)).action is Action.START
    assert one.placement.preview(sleeper, [], reservation).action is Action.START


@pytest.mark.parametrize("first", ["launched", "falls asleep"])
def test_a_launch_beside_one_that_falls_asleep_is_not_taken_for_either(
    machine: Build, first: str
) -> None:
    one = machine()
    one.monitor.ram = (64000, 8000)
    sleeper = one.runs(Model("Sleeper"), {H100: 6000})
    if first == "falls asleep":
        assert one.placement.sleep.begin(sleeper) is None
    launched = one.start(Model("Launched"), 5000, "h100").future.result(LONG)[0]
    if first == "launched":
        assert one.placement.sleep.begin(sleeper) is None
    one.monitor.read({H100: 600 + 5000})
    one.placement.sleep.mark_asleep(sleeper)
    assert sleeper.memory_mb[H100] == 600
    one.placement.mark_ready(launched)
    one.monitor.read({H100: 600 + 5000})
    free = TOTAL - 600 - 5000
    assert one.placement.preview(Model("M"), on_h100(free)).action is Action.START
    assert one.placement.preview(Model("M"), on_h100(free + 1)).action is not Action.START


def test_a_launch_beside_one_that_wakes_is_not_taken_for_more_than_it_is(machine: Build) -> None:
    one = machine()
    reservation = sleeps(one, Model("Sleeper"), 6000, 600)
    launched = one.start(Model("Launched"), 5000, "h100").future.result(LONG)[0]
    one.placement.enqueue(reservation.evictable, [], reservation)
    one.placement.decide()
    one.monitor.read({H100: 6000 + 5000})
    one.placement.mark_ready(launched)
    one.placement.mark_served(launched)
    one.monitor.read({H100: 6000 + 5000})
    assert one.placement.peak_mb(launched) == {}  # nothing is learned of it


def test_one_that_has_a_whole_card_has_what_it_needs_once_it_serves_after_a_sleep(
    machine: Build,
) -> None:
    one = machine()
    one.monitor.ram = (64000, 8000)
    sleeper = Model("Sleeper")
    placement = one.placement
    pids = [4711]
    reservation = placement.reserve_running(sleeper, {H100: TOTAL}, lambda: pids, Basis.WHOLE)
    placement.pids()
    one.monitor.read({H100: 9000}, {4711: 9000})
    assert placement.sleep.begin(reservation) is None
    one.monitor.read({H100: 900}, {4711: 900})
    placement.sleep.mark_asleep(reservation)
    placement.mark_served(reservation)  # of a request that ended just before
    one.monitor.read({H100: 900}, {4711: 900})
    assert reservation.memory_mb[H100] == 900

    waiter = placement.enqueue(sleeper, [], reservation)
    placement.decide()
    assert waiter.assignment is not None
    one.monitor.read({H100: 5000}, {4711: 5000})  # while it wakes
    assert reservation.memory_mb == {H100: TOTAL}
    placement.mark_ready(reservation)
    one.monitor.read({H100: 9000}, {4711: 9000})
    assert reservation.memory_mb == {H100: 9000}


@pytest.mark.parametrize(
    ("ram", "fault"),
    [
        ((64000, 8000), None),
        ((64000, 50000), "the machine has 10800 MB of memory to spare, and it may need 12000"),
        (None, "nobody knows how much of the machine's memory is free"),
    ],
)
def test_it_is_put_to_sleep_only_where_the_machine_s_memory_is_enough(
    machine: Build, ram: tuple[int, int] | None, fault: str | None
) -> None:
    one = machine()
    one.monitor.ram = ram
    reservation = one.runs(Model("Sleeper"), {H100: 12000})
    assert one.placement.sleep.begin(reservation) == fault


def test_two_that_fall_asleep_at_once_do_not_count_on_the_same_memory(machine: Build) -> None:
    one = machine()
    one.monitor.ram = (64000, 40800)  # 20,000 MB to spare
    first, second = (one.runs(Model(name), {H100: 8000}) for name in ("First", "Second"))
    third = one.runs(Model("Third"), {V100: 9000})
    assert one.placement.sleep.begin(first) is None
    assert one.placement.sleep.begin(second) is None
    fault = "the machine has 4000 MB of memory to spare, and it may need 9000"
    assert one.placement.sleep.begin(third) == fault
    one.placement.sleep.mark_asleep(first)  # and the reading has what it took
    assert one.placement.sleep.begin(third) is None


def test_where_nobody_reads_devices_nothing_sleeps(machine: Build) -> None:
    one = machine(disable_gpu_monitoring=True)
    one.monitor.snapshot = Snapshot()
    assert one.placement.sleep.begin(Reservation(Model("Sleeper"))) is not None


def test_where_devices_are_read_no_longer_one_that_sleeps_wakes_at_once(machine: Build) -> None:
    one = machine()
    sleeper = Model("Sleeper")
    reservation = sleeps(one, sleeper, 12000, 1500)
    one.runs(Model("Other", Evictability.BUSY), {H100: 14000})
    waits = Start(one.placement, sleeper, [], reservation)
    one.starts.append(waits)
    one.placement.configure(Program(disable_gpu_monitoring=True))
    assert waits.future.result(LONG)[0] is reservation
    assert reservation.memory_mb == {H100: 12000}

    one.placement.sleep.mark_asleep(reservation)
    assert one.placement.preview(sleeper, [], reservation).action is Action.START
    assert Start(one.placement, sleeper, [], reservation).future.result(LONG)[0] is reservation
    assert reservation.memory_mb == {H100: 12000}


def wakes(need: int, **held: int) -> tuple[Action, tuple[str, ...]]:
    """What happens with one that sleeps and needs so much more of a card of 16,000 MB."""
    allocations = [
        Allocation(name, {"A #0": mb}, IDLE, cost=len(held) - at)
        for at, (name, mb) in enumerate(reversed(held.items()))
    ]
    option = SchemeOption("", ("A #0",), on={"A #0": need})
    used = sum(held.values())
    [decision] = plan(
        [StartRequest("sleeper", (option,))], [DeviceBudget("A #0", "A", 16000, used)], allocations
    )
    return decision.action, decision.models


def test_it_is_not_stopped_to_wake_itself() -> None:
    assert wakes(12000, sleeper=1500) == (Action.START, ())
    assert wakes(12000, sleeper=1500, other=3000) == (Action.EVICT, ("other",))
    assert wakes(15000, sleeper=1500)[0] is Action.REJECT


def test_a_pinned_one_is_woken_that_needs_all_of_its_card() -> None:
    sleeper = Allocation("sleeper", {"A #0": 1500}, Evictability.PINNED)
    option = SchemeOption("", ("A #0",), on={"A #0": 14500})
    budgets = [DeviceBudget("A #0", "A", 16000, 1500)]
    [decision] = plan([StartRequest("sleeper", (option,))], budgets, [sleeper])
    assert decision.action is Action.START


def test_on_a_card_whose_memory_nobody_knows_it_is_woken_as_it_has_all_of_it() -> None:
    sleeper = Allocation("sleeper", {"A #0": 900}, IDLE)
    option = SchemeOption("", ("A #0",), on={"A #0": 8100})
    [decision] = plan(
        [StartRequest("sleeper", (option,))], [DeviceBudget("A #0", "A", None)], [sleeper]
    )
    assert decision.action is Action.START


def test_on_a_card_that_is_lost_it_is_not_woken() -> None:
    option = SchemeOption("", ("B #0",), on={"B #0": 100})
    [decision] = plan([StartRequest("sleeper", (option,))], [DeviceBudget("A #0", "A", 16000)], [])
    assert (decision.action, decision.passed_over) == (
        Action.REJECT,
        {"": "B #0 is not online"},
    )

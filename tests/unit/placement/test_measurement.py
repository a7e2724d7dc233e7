"""What a model was seen to take counts where nobody has declared it: played cards, no process."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from manager.devices import Device, Reading, Snapshot
from manager.placement.device_state import memory_variables
from manager.placement.ledger import Ledger
from manager.placement.reservation import Reservation
from manager.placement.types import Action, Basis, DeviceBudget, SchemeOption
from tests.support.played_machine import H100, TOTAL, V100, Build, Machine, Model, Start
from tests.support.servers import PATIENCE as LONG

WHOLE = SchemeOption("Default", ("h100",), {}, None, Basis.WHOLE)


def starts(one: Machine, model: Model, option: SchemeOption) -> Reservation:
    """It is placed, and answers; nothing is read since."""
    start = Start(one.placement, model, [option])
    one.starts.append(start)
    reservation, _ = start.future.result(LONG)
    one.monitor.now += 1
    one.placement.mark_ready(reservation)
    return reservation


def asks(one: Machine, mb: int) -> Action:
    return one.placement.preview(
        Model("next"), [SchemeOption("Default", ("h100",), {"h100": mb})]
    ).action


@pytest.mark.parametrize(("basis", "mb"), [(Basis.WHOLE, {}), (Basis.ESTIMATED, {"h100": 12000})])
def test_what_nobody_declared_is_what_was_measured_once_it_has_served(
    machine: Build, basis: Basis, mb: Mapping[str, int]
) -> None:
    one = machine()
    option = SchemeOption("Default", ("h100",), mb, None, basis)
    reservation = starts(one, Model("New"), option)
    one.monitor.read({H100: 5000})
    assert asks(one, 9000) is Action.EVICT  # it may take more for its first request
    one.placement.mark_served(reservation)
    one.monitor.read({H100: 6000})
    assert one.placement.peak_mb(reservation) == {H100: 6000}
    assert asks(one, TOTAL - 6000) is Action.START
    one.monitor.read({H100: 5500})
    assert one.placement.peak_mb(reservation) == {H100: 6000}
    assert asks(one, TOTAL - 5900) is Action.EVICT


@pytest.mark.parametrize("basis", [Basis.DECLARED, Basis.MEASURED])
def test_what_is_known_is_held_though_it_takes_less(machine: Build, basis: Basis) -> None:
    one = machine()
    option = SchemeOption("Default", ("h100",), {"h100": 9000}, None, basis)
    reservation = starts(one, Model("Known"), option)
    one.placement.mark_served(reservation)
    one.monitor.read({H100: 4000})
    assert one.placement.peak_mb(reservation) == {H100: 4000}
    assert asks(one, 8000) is Action.EVICT


def test_what_other_models_take_is_never_measured_as_its_own(machine: Build) -> None:
    one = machine()
    reservation = starts(one, Model("New"), WHOLE)
    one.placement.mark_served(reservation)
    one.monitor.read({H100: 5000})
    starts(one, Model("Second"), SchemeOption("Default", ("h100",), {"h100": 4000}))
    one.monitor.read({H100: 9000})
    assert one.placement.peak_mb(reservation) == {H100: 5000}


def test_a_container_is_measured_by_what_is_used_though_the_driver_lists_processes(
    machine: Build,
) -> None:
    one = machine()
    one.monitor.read({H100: 300}, {})
    reservation = starts(one, Model("Container"), WHOLE)
    one.placement.mark_served(reservation)
    one.monitor.read({H100: 7300}, {4711: 7000})
    assert one.placement.peak_mb(reservation) == {H100: 7000}


def test_what_launches_a_container_is_not_measured_as_the_model(machine: Build) -> None:
    one = machine()
    one.runs(Model("Other"), {H100: 2000}, lambda: {17})
    client = {4711}
    option = SchemeOption("Default", ("h100",), {"h100": 9000})
    start = Start(one.placement, Model("Container"), [option])
    one.starts.append(start)
    reservation, _ = start.future.result(LONG)
    reservation.pids = lambda: client
    one.placement.pids()
    one.monitor.read({H100: 2040}, {17: 2000, 4711: 40})
    client.clear()  # it answers, and the client is none of its processes
    one.monitor.now += 1
    one.placement.mark_ready(reservation)
    one.placement.mark_served(reservation)
    one.placement.pids()
    one.monitor.read({H100: 9000}, {17: 2000})
    assert one.placement.peak_mb(reservation) == {H100: 7000}


def test_a_run_that_is_stopped_at_once_was_measured_by_the_reading_before_its_stop() -> None:
    reservation = Reservation(
        Model("Short"), {H100: 9000}, ready_at=1.0, served_at=2.0, used_before={H100: 300}
    )
    ledger = Ledger()
    ledger.reservations.append(reservation)
    reading = Reading("NVIDIA H100", "nvidia", 0, TOTAL, 5500)
    ledger.mark_stopping(reservation, Snapshot((Device(reading, 3.0, stale=False),)), ended=False)
    assert reservation.peak_mb == {H100: 5200}


def test_the_machine_s_own_memory_is_known_of_a_model_that_reserves_none(machine: Build) -> None:
    one = machine()
    reservation = one.runs(Model("Model"), {V100: 4000}, lambda: {1, 2})
    one.placement.pids()
    ram = Reading("CPU + RAM", "cpu", 0, 64000, 9000, held_mb={1: 300, 2: 200, 3: 5000})
    one.monitor.now += 1
    for listener in one.monitor.listeners:
        listener(Snapshot((Device(ram, one.monitor.now, stale=False),)))
    assert reservation.ram_mb == 500
    assert reservation.measured_mb == {}


# --- what a command is given ------------------------------------------------------------


def variables(
    memory_mb: Mapping[str, int], basis: Basis = Basis.DECLARED, budget: int | None = None
) -> Mapping[str, str]:
    """On a card of 16,000 MB, of which models may have the budget, a larger one, one that does not
    report its memory, and the machine's own memory."""
    totals = {"A": 16000, "B": 24000, "unknown": None, "CPU + RAM": 64000}
    readings = [
        Reading(name, "cpu" if "CPU" in name else "nvidia", 0, mb) for name, mb in totals.items()
    ]
    snapshot = Snapshot(tuple(Device(reading, 0.0, stale=False) for reading in readings))
    budgets = [DeviceBudget(each.id, each.name, budget or each.total_mb) for each in readings]
    return memory_variables(
        {f"{on} #0": mb for on, mb in memory_mb.items()}, budgets, snapshot, basis
    )


@pytest.mark.parametrize(
    ("memory_mb", "given"),
    [
        ({"A": 8000}, ("8000", "0.5")),
        ({"A": 5555}, ("5555", "0.347")),  # never more than was planned
        ({"A": 8000, "B": 8000}, ("8000", "0.333")),
        ({"A": 16000}, ("16000", "1")),
        ({"A": 8000, "CPU + RAM": 1000}, ("8000", "0.5")),
        ({"CPU + RAM": 16000}, ("16000", "0.25")),
        ({"A": 4000, "unknown": 1}, ("4000", "0.25")),
    ],
)
def test_a_command_is_given_the_memory_that_is_planned_for_it(
    memory_mb: Mapping[str, int], given: tuple[str, str]
) -> None:
    mb, fraction = given
    assert variables(memory_mb) == {"MEMORY_MB": mb, "MEMORY_FRACTION": fraction}


def test_the_share_is_one_of_the_whole_card_also_where_only_a_part_may_be_used() -> None:
    assert variables({"A": 4000}, budget=8000)["MEMORY_FRACTION"] == "0.25"


def test_a_card_that_is_taken_whole_is_not_filled_to_the_last_mb() -> None:
    assert variables({"A": 16000}, Basis.WHOLE) == {
        "MEMORY_MB": "14400",
        "MEMORY_FRACTION": "0.9",
    }
    assert variables({"A": 12000}, Basis.WHOLE)["MEMORY_FRACTION"] == "0.75"


def test_where_no_memory_is_known_nothing_is_given() -> None:
    assert variables({"unknown": 1}) == {}
    assert variables({}) == {}

"""What a model's hours are, in usage.db: a real server, and two clocks that the test moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manager.billing import calendar
from tests.support.machine import HOUR, NOON, Machine, ready, stopped


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


@pytest.mark.parametrize("set_by", [-HOUR, 8 * HOUR])
def test_hours_are_those_that_a_model_ran_whatever_is_done_to_the_wall_clock(
    machine: Machine, set_by: int
) -> None:
    fleet = machine.program()
    ready(fleet)
    machine.passes(30_000)
    fleet.heartbeat()
    assert machine.times() == (NOON, 30_000, None)
    machine.passes(30_000, set_by)
    fleet.heartbeat()
    assert machine.times() == (NOON, 60_000, None)
    machine.passes(5_000)
    stopped(fleet)
    assert machine.times() == (NOON, 60_000, 65_000)


@pytest.mark.parametrize("set_by", [-HOUR, 8 * HOUR])
def test_a_program_that_takes_a_model_over_counts_on(machine: Machine, set_by: int) -> None:
    ready(machine.program())
    machine.passes(30_000, set_by)  # the program was killed, and the model answered on
    fleet = machine.program()
    model = ready(fleet)
    assert machine.times() == (NOON, 30_000, None)  # also where it is killed again at once
    assert model.to_json()["started_at"] == calendar.iso(NOON + set_by)  # 30 seconds ago
    machine.passes(1_000)
    stopped(fleet)
    assert machine.times() == (NOON, 30_000, 31_000)


def test_one_of_an_earlier_version_is_counted_on_by_the_wall_clock(machine: Machine) -> None:
    ready(machine.program())
    machine.store.write("UPDATE runs SET boot_id = NULL, ready_clock_ms = NULL", ())
    machine.passes(30_000, HOUR)
    fleet = machine.program()
    ready(fleet)
    machine.passes(1_000, -HOUR)
    stopped(fleet)
    assert machine.times() == (NOON, HOUR + 30_000, HOUR + 31_000)


def test_what_answers_after_the_system_was_started_again_is_not_the_run_of_before(
    machine: Machine, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    """Such as a container that the system has started with itself."""
    first = machine.program()
    ready(first)
    machine.passes(30_000)
    first.heartbeat()
    machine.boot, machine.monotonic_ms, machine.wall_ms = "second boot", 60_000, NOON + 9 * HOUR
    machine.program()
    eventually(lambda: machine.times()[2] is not None)
    assert machine.times() == (NOON, 30_000, 30_000)


def test_a_model_that_is_left_over_is_billed_until_it_is_stopped(
    machine: Machine, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    ready(machine.program())
    machine.store.write("UPDATE runs SET model = 'Removed'", ())
    machine.passes(30_000, -HOUR)
    machine.program()
    eventually(lambda: machine.times()[2] is not None)
    assert machine.times() == (NOON, 30_000, 30_000)

"""What a model's hours are, in usage.db: a real server, and two clocks that the test moves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from manager.billing import calendar
from manager.clock import Clock
from manager.config.settings import Config, Program, Scheme
from manager.config.settings import Model as Settings
from manager.devices import Monitor
from manager.events import Events
from manager.interfaces import BUILT_IN
from manager.metrics import Metrics
from manager.models import Fleet, ModelDependencies, Ports
from manager.placement import Placement
from manager.relay import Watcher
from manager.storage import ModelLogs
from manager.storage.store import Store
from tests.support.program import FAKE
from tests.support.servers import PATIENCE
from tests.support.usage_rows import query

NOON = 1_793_880_000_000
HOUR = 3_600_000


@dataclass
class Machine:
    """A data folder, and one program after the other on it."""

    folder: Path
    monotonic_ms: int = 5_000_000
    wall_ms: int = NOON
    boot: str | None = "first boot"

    def __post_init__(self) -> None:
        self.store = Store(self.folder / "usage.db")
        self.watchers: list[Watcher] = []
        self.fleets: list[Fleet] = []

    def program(self) -> Fleet:
        """A program that has just started; an earlier one is as if it had been killed."""
        for watcher in self.watchers:
            watcher.stop()
        self.watchers = [Watcher()]
        self.watchers[0].start()
        clock = Clock(lambda: self.monotonic_ms / 1000, lambda: self.wall_ms / 1000, self.boot)
        events, metrics, program = Events(), Metrics(), Program(disable_gpu_monitoring=True)
        monitor = Monitor([], clock, pids=list, watched=lambda: False)
        monitor.set_enabled(False)
        dependencies = ModelDependencies(
            store=self.store,
            logs=ModelLogs(self.folder / "logs"),
            events=events,
            watch=self.watchers[0],
            ports=Ports(),
            placement=Placement(monitor, clock, events, metrics, program),
            clock=clock,
            connections=4,
        )
        command = (sys.executable, str(FAKE))
        scheme = Scheme("CPU", (), None, command, {}, {}, self.folder)
        model = Settings("Model", mode="Chat", schemes=(scheme,), alive_time=0, stop_timeout=5)
        config = Config(self.folder / "config.yaml", program, {"Model": model})
        fleet = Fleet(config, {"Chat": BUILT_IN[0]()}, dependencies)
        fleet.adopt()
        self.fleets.append(fleet)
        return fleet

    def passes(self, ms: int, set_by: int = 0) -> None:
        """Time that passes, and how far the wall clock is set beside that."""
        self.monotonic_ms += ms
        self.wall_ms += ms + set_by

    def times(self) -> tuple[int, int | None, int | None]:
        """When the run was ready, then its last heartbeat and its end since that."""
        ((ready, heartbeat, ended),) = query(
            self.folder / "usage.db", "SELECT ready_ms, heartbeat_ms, ended_ms FROM runs"
        )
        return ready, heartbeat and heartbeat - ready, ended and ended - ready


def ready(fleet: Fleet) -> Any:
    model = fleet.find("Model")
    if model.state.value == "stopped":
        model.start()
    model.wait_idle(PATIENCE)
    assert model.state.value == "ready", model.to_json()
    return model


def stopped(fleet: Fleet) -> None:
    model = fleet.find("Model")
    model.stop()
    model.wait_idle(PATIENCE)
    assert model.state.value == "stopped"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    for fleet in machine.fleets:
        fleet.close()
    for watcher in machine.watchers:
        watcher.stop()
    machine.store.close()


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
    fleet.heartbeat()
    assert machine.times() == (NOON, 30_000, None)
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
    assert machine.times() == (NOON, None, HOUR + 31_000)


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
    assert machine.times() == (NOON, None, 30_000)

"""A machine whose two clocks a test moves, and one program after the other on it, with one model of
a real server."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manager.clock import Clock
from manager.config.settings import Config, Program, Scheme
from manager.config.settings import Model as Settings
from manager.devices import Monitor
from manager.events import Events
from manager.interfaces import BUILT_IN
from manager.metrics import Metrics
from manager.models import Fleet, ModelDependencies, Ports, SchemeMemory
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

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.monotonic_ms / 1000, lambda: self.wall_ms / 1000, self.boot)

    def program(self) -> Fleet:
        """A program that has just started; an earlier one is as if it had been killed."""
        for watcher in self.watchers:
            watcher.stop()
        self.watchers = [Watcher()]
        self.watchers[0].start()
        clock = self.clock
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
            memory=SchemeMemory(self.store, clock, monitor),
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

    def close(self) -> None:
        for fleet in self.fleets:
            fleet.close()
        for watcher in self.watchers:
            watcher.stop()
        self.store.close()

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

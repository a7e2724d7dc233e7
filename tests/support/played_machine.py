"""Placement on played cards: a monitor, models and starts that do as a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from manager.clock import Clock
from manager.config.settings import Model as Settings
from manager.config.settings import Program
from manager.devices import Device, Reading, Snapshot
from manager.errors import ApiError
from manager.events import Events
from manager.models.model import Model as RealModel
from manager.models.model import State
from manager.models.run_clock import RunClock
from manager.models.server import Launched, Server
from manager.placement.placement import Placement
from manager.placement.reservation import EvictionStatus, Reservation
from manager.placement.types import Action, Evictability, SchemeOption
from manager.placement.waiter import DeviceAssignment, PlacementError, QueuePosition
from manager.relay.watcher import Watcher
from tests.support.servers import PATIENCE as LONG

V100, OTHER_V100, H100 = "Tesla V100 #0", "Tesla V100 #1", "NVIDIA H100 #0"
TOTAL = 16000

Eventually = Callable[[Callable[[], Any]], Any]


class Monitor:
    """What is known of three cards is what the test last said; a poll finds ``true_use`` where
    that is set. ``now`` is the time, ``ram`` the MB that the machine has itself, and has in use."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(monotonic=lambda: self.now)
        self.listeners: list[Callable[[Snapshot], None]] = []
        self.true_use: Mapping[str, int] | None = None
        self.ram: tuple[int, int] | None = None
        self.read({})

    def read(self, used: Mapping[str, int], pids: Mapping[int, int] | None = None) -> None:
        """A new reading: MB that are used, by card, and what each process holds of each."""
        self.now += 1
        devices = []
        for card in (V100, OTHER_V100, H100):
            name, _, index = card.rpartition(" #")
            reading = Reading(name, "nvidia", int(index), TOTAL, used.get(card, 0), held_mb=pids)
            devices.append(Device(reading, self.now, stale=False))
        if self.ram is not None:
            reading = Reading("CPU + RAM", "cpu", 0, *self.ram, held_mb=pids)
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
    """Has the status that the test sets, and records what is called."""

    def __init__(
        self, name: str, evictability: Evictability = Evictability.IDLE, *, priority: int = 0
    ) -> None:
        self.name = name
        self.evictability = evictability
        self.crossing: list[Callable[[], None]] = []  # requests that come just before an eviction
        self.fault: ApiError | None = None  # of the next eviction
        self.yielding = False
        self.priority = priority  # the highest of those that wait for it
        self.calls: list[str] = []

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
        self.calls.append("eviction begun")
        return True

    def cancel_eviction(self) -> None:
        self.evictability = Evictability.IDLE
        self.calls.append("eviction cancelled")

    def evict(self, reason: str) -> None:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        self.calls.append(reason)

    def set_yielding(self, yielding: bool) -> None:
        self.yielding = yielding
        self.calls.append("yields" if yielding else "stops yielding")


def in_a_thread(function: Callable[[], Any]) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(function)
    pool.shutdown(wait=False)
    return future


class DeclaredMemory:
    """Nothing is known of a scheme but what it declares."""

    def options(self, settings: Settings) -> tuple[SchemeOption, ...]:
        return tuple(
            SchemeOption(scheme.name, scheme.required_devices, scheme.memory_mb)
            for scheme in settings.schemes
        )

    def to_json(self, _settings: Settings) -> list[Any]:
        return []


def real_model(
    settings: Settings,
    placement: Any = None,
    clock: Clock | None = None,
    program: Program | None = None,
) -> RealModel:
    """One that starts nothing, unless a placement has free memory for it."""
    placement = placement or SimpleNamespace(
        wake=lambda: None, configure=lambda _program: None, mark_served=lambda _reservation: None
    )
    shared: Any = SimpleNamespace(
        clock=clock or Clock(),
        events=Events(),
        watch=Watcher(),
        placement=placement,
        memory=DeclaredMemory(),
    )
    interface: Any = None
    return RealModel(settings, program or Program(), interface, shared, set)


def runs(model: RealModel) -> None:
    """Has it ready, without a server."""
    model._state, model._server = State.READY, played_server(model.settings)
    model._knows_server = True


def played_server(settings: Settings, interface: Any = None, upstream: Any = None) -> Server:
    """A server that no process stands for."""
    reservation: Any = SimpleNamespace(ram_mb=None)
    process: Any = SimpleNamespace(pid=4711, has_ended=lambda: False)
    return Server(
        launched=Launched("run", RunClock(0, 0), process, reservation, 21000),
        settings=settings,
        interface=interface,
        scheme="Default",
        passed_over={},
        upstream=upstream,
        started_at=0.0,
        start_seconds=1.0,
    )


def position_in_json(model: RealModel) -> int | None:
    waits_for = model.to_json()["waits_for"]
    return waits_for["place_in_line"] if waits_for else None


class Start:
    """A start in a thread of its own, as a model's worker makes it."""

    def __init__(
        self,
        placement: Placement,
        model: Model,
        options: list[SchemeOption],
        asleep: Reservation | None = None,
    ) -> None:
        self.cancelled = threading.Event()
        self.waits: QueuePosition | None = None
        self.future: Future[tuple[Reservation, DeviceAssignment]] = in_a_thread(
            lambda: placement.reserve(model, options, self.cancelled.is_set, self._report, asleep)
        )

    def _report(self, waits: QueuePosition | None) -> None:
        self.waits = waits

    def assignment(self) -> DeviceAssignment:
        return self.future.result(LONG)[1]

    def error(self) -> PlacementError:
        error = self.future.exception(LONG)
        assert isinstance(error, PlacementError)
        return error

    def action(self) -> Action | None:
        return self.waits.decision.action if self.waits else None


def position(start: Start) -> int | None:
    return start.waits.number if start.waits else None


class Machine:
    """A placement with its monitor, and its metrics."""

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
        """The reservation of a model that runs, as the cards show."""
        reservation = self.placement.reserve_running(model, memory_mb, pids)
        self.monitor.read({c: mb + memory_mb.get(c, 0) for c, mb in self._used().items()})
        return reservation

    def stops(self, reservation: Reservation) -> None:
        """Its server ends, and its memory on the cards is free."""
        self.placement.mark_stopping(reservation, ended=False)
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
        return {each.model for each in self.placement.snapshot()[1]}


def on_h100(mb: int) -> list[SchemeOption]:
    return [SchemeOption("Default", ("h100",), {"h100": mb})]


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

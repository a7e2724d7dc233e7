"""Models that sleep are stopped where the machine's memory is short; no process and no card."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from manager.clock import Clock
from manager.config.settings import Model as Settings
from manager.config.settings import Program
from manager.models import Fleet, Model, State
from manager.models import model as model_module
from manager.models.server import StartCancelledError
from manager.models.sleep import Wake
from manager.models.worker import bring_up
from manager.placement import Action, Decision, DeviceAssignment, QueuePosition
from manager.relay import UpstreamRefused
from manager.relay.watcher import Watcher
from tests.support.played_machine import played_server, real_model, runs
from tests.support.servers import PATIENCE as LONG


class Sleepers:
    """A fleet of models that sleep, by since when."""

    def __init__(self, spare_ram_mb: int | None, **asleep_since: float) -> None:
        self.models: dict[str, Model] = {}
        self.reads = 0
        sleep = SimpleNamespace(spare_ram_mb=lambda: spare_ram_mb, refresh=self.read)
        placement = SimpleNamespace(sleep=sleep, wake=lambda: None)
        for name, since in asleep_since.items():
            model: Any = real_model(Settings(name, sleep=True, alive_time=15))
            runs(model)
            model._state, model._server.asleep_since = State.SLEEPING, since
            model._worker.wake = lambda: None  # nothing stops it here
            self.models[name] = model
        self.fleet: Any = Fleet.__new__(Fleet)
        self.fleet._models = self.models
        self.fleet._shared = SimpleNamespace(placement=placement)

    def read(self) -> None:
        self.reads += 1

    def stopped(self) -> list[str]:
        self.fleet.stop_idle()
        return [name for name, model in self.models.items() if model.state is State.STOPPING]


def now() -> float:
    found: float = real_model(Settings("M"))._clock.monotonic()
    return found


def test_the_one_that_has_slept_longest_is_stopped_where_memory_is_short() -> None:
    one = Sleepers(-100, Late=now() - 10, Early=now() - 60, Latest=now())
    assert one.stopped() == ["Early"]
    assert one.reads == 1  # so that the next sweep knows what is free then


@pytest.mark.parametrize("spare", [0, 5000, None])
def test_none_is_stopped_where_there_is_enough_or_nobody_knows(spare: int | None) -> None:
    assert Sleepers(spare, One=now() - 60).stopped() == []


def test_without_any_that_sleeps_nothing_is_read() -> None:
    one = Sleepers(-100)
    assert one.stopped() == []
    assert one.reads == 0


def test_one_that_has_slept_for_twelve_times_its_alive_time_is_stopped() -> None:
    hours = 12 * 15 * 60
    one = Sleepers(5000, Long=now() - hours - 1, Short=now() - hours + 60)
    assert one.stopped() == ["Long"]


# --- waking -------------------------------------------------------------------------------


class Upstream:
    """A server that answers everything with 200, and records what it is asked."""

    host, port, where = "127.0.0.1", 21000, "on port 21000"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def send(self, exchange: Any) -> Any:
        self.asked.append(exchange.target)
        return SimpleNamespace(status=200, iter_bytes=lambda: [b""])


def asleep(settings: Settings, upstream: Any, **placement: Any) -> Any:
    """A model that sleeps, with a placement that does as the test says."""
    nothing = {"wake": lambda: None, "mark_ready": lambda _reservation: None}
    model: Any = real_model(settings, SimpleNamespace(**{**nothing, **placement}))
    runs(model)
    model._state, model._server.asleep_since = State.SLEEPING, now()
    model._server.upstream = upstream
    model._server.launched.process.alive = lambda: True
    return model


def test_one_that_nobody_waits_for_once_it_has_its_memory_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits, woken = threading.Event(), threading.Event()

    def reserve(_model: Any, _options: Any, cancelled: Any, report: Any, asleep: Any) -> Any:
        report(QueuePosition(1, 0.0, Decision("M", Action.QUEUE)))
        waits.set()
        assert woken.wait(LONG)
        assert cancelled()  # at the moment when its memory comes
        return asleep, DeviceAssignment("", {}, {}, {})

    stopped: list[str] = []
    monkeypatch.setattr(model_module, "bring_down", lambda name, *_: stopped.append(name))
    model = asleep(Settings("M", sleep=True), Upstream(), reserve=reserve, wake=woken.set)
    request = model.await_lease(lambda: False, every=0)
    assert next(request) is None
    assert waits.wait(LONG)
    request.close()
    model.join()
    assert stopped == ["M"]
    assert model.state is State.STOPPED


def test_it_is_asked_for_its_health_as_when_it_was_launched() -> None:
    upstream = Upstream()
    assignment = DeviceAssignment("", {}, {}, {})
    settings = Settings("M", sleep=True, health="/before")
    model = asleep(settings, upstream, reserve=lambda *call: (call[-1], assignment))
    model.configure(Settings("M", sleep=True, health="/after"), Program(), None)
    model.start()
    model.join()
    assert model.state is State.READY
    assert upstream.asked == ["/wake_up", "/before"]


def test_one_taken_over_that_does_not_say_whether_it_sleeps_is_taken_for_awake() -> None:
    def refuse(_exchange: Any) -> Any:
        raise UpstreamRefused("nothing takes connections")

    server = played_server(Settings("M", sleep=True), upstream=SimpleNamespace(send=refuse))
    start: Any = SimpleNamespace(take_over=lambda *_: server, cancelled=False)
    adoption: Any = (None, None, None)
    shared: Any = SimpleNamespace(watch=Watcher(), clock=Clock())
    assert bring_up("M", start, adoption, shared) is server
    assert server.asleep_since is None


def test_one_that_is_started_by_hand_and_evicted_in_its_sleep_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_waking = threading.Event()
    server: Any = played_server(Settings("M"), upstream=Upstream())
    server.launched.process.alive = lambda: True

    def brought_up(_name: str, start: Any, *_: Any) -> Any:
        if not isinstance(start, Wake):
            return server
        is_waking.set()
        assert start._cancelled.wait(LONG)
        return StartCancelledError()

    monkeypatch.setattr(model_module, "bring_up", brought_up)
    monkeypatch.setattr(model_module, "bring_down", lambda *_: None)
    monkeypatch.setattr(model_module.facts, "learn", lambda *_: None)
    model = asleep(Settings("M", sleep=True), Upstream())
    model.start()
    assert is_waking.wait(LONG)
    assert model.begin_eviction()
    model.evict("evicted to free memory for another")
    model.join()
    assert (model.state, model.server) == (State.READY, server)

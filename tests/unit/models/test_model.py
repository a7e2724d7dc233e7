"""A model's states and its requests, without a process: a played server and clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manager.clock import Clock
from manager.config.settings import Config, Program, Scheme
from manager.config.settings import Model as Settings
from manager.errors import ApiError, ClientDisconnected
from manager.models import facts
from manager.models import model as model_module
from manager.models.fleet import Fleet
from manager.models.model import State
from manager.placement.types import Evictability
from tests.support.played_machine import (
    H100,
    Build,
    Eventually,
    Machine,
    Model,
    in_a_thread,
    real_model,
    runs,
)
from tests.support.servers import PATIENCE as LONG


def connected() -> bool:
    return False


def on_h100(name: str, mb: int = 9000) -> Settings:
    scheme = Scheme("Default", ("h100",), None, ("server",), {"h100": mb}, {}, Path())
    return Settings(name, schemes=(scheme,))


def end(*models: Any) -> None:
    for model in models:
        model.close("the test has ended", lambda: ApiError(503, "shutting_down", "ended"))
        model.join()


def test_a_request_that_waits_longer_than_queue_timeout_gets_503() -> None:
    model = real_model(Settings("Narrow", max_concurrency=1), program=Program(queue_timeout=0))
    runs(model)
    with model.lease(connected), pytest.raises(ApiError) as caught:
        model.lease(connected)
    assert (caught.value.status, caught.value.code) == (503, "queue_timeout")
    assert caught.value.retry_after
    model.lease(connected).release()


def test_a_lease_that_comes_when_nobody_waits_any_more_is_released() -> None:
    model = real_model(Settings("Narrow", max_concurrency=1))
    runs(model)
    before = model.lease(connected)
    wait = model.await_lease(connected, every=0)
    assert next(wait) is None
    before.release()  # and who waits has the lease now
    assert model.to_json()["in_flight"] == 1
    wait.close()
    assert model.to_json()["in_flight"] == 0


def test_a_model_is_not_idle_while_it_answers() -> None:
    now = [1000.0]
    model = real_model(Settings("Idle", alive_time=1), clock=Clock(lambda: now[0]))
    runs(model)
    lease = model.lease(connected)
    now[0] += 600
    model.stop_if_idle()
    assert model.state is State.READY
    assert model.to_json()["idle_stop_at"] is None
    lease.release()
    now[0] += 59
    model.stop_if_idle()
    assert model.state is State.READY
    assert model.to_json()["idle_stop_at"] is not None


class Used:
    """A running model, used by whom a test says, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        monkeypatch.setattr(model_module, "bring_down", lambda *_: None)
        self.now = 1000.0
        self.model = real_model(Settings("Used", **settings), clock=Clock(lambda: self.now))
        runs(self.model)

    def by(self, user: str) -> None:
        self.model.lease(connected, user=user).release()

    def is_stopped(self) -> bool:
        self.model.wait_idle(LONG)
        return self.model.state is State.STOPPED


def test_who_alone_has_used_a_model_may_unload_it(monkeypatch: pytest.MonkeyPatch) -> None:
    used = Used(monkeypatch, alive_time=1)
    used.by("ann")
    assert used.model.unload("ann")
    assert used.is_stopped()
    assert used.model.unload("ann")  # it does not run


def test_a_model_that_somebody_else_has_used_within_its_alive_time_is_not_unloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = Used(monkeypatch, alive_time=1)
    used.by("eve")
    used.now += 30
    used.by("ann")
    used.now += 29
    assert not used.model.unload("ann")
    assert not used.model.unload("bob")
    used.now += 1
    assert used.model.unload("ann")
    assert used.is_stopped()


def test_a_model_that_is_never_idle_for_too_long_is_kept_for_all_who_have_used_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = Used(monkeypatch, alive_time=0)
    used.by("eve")
    used.now += 1e6
    assert not used.model.unload("ann")
    assert used.model.unload("eve")


def test_a_busy_and_a_pinned_model_are_not_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    used = Used(monkeypatch)
    with used.model.lease(connected, user="ann"):
        assert not used.model.unload("ann")
    assert not Used(monkeypatch, pinned=True).model.unload("ann")


def test_who_has_waited_for_a_model_has_used_it(
    monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    used = Used(monkeypatch, max_concurrency=1)
    under_way = used.model.lease(connected, user="ann")
    late = in_a_thread(lambda: used.model.lease(connected, user="eve"))
    eventually(lambda: used.model.to_json()["waiting"] == 1)
    under_way.release()
    assert late.result(LONG).user == "eve"
    late.result(LONG).release()
    assert not used.model.unload("ann")


def test_a_model_that_yields_ends_its_requests_and_then_can_be_stopped(
    eventually: Eventually,
) -> None:
    model = real_model(Settings("Busy"))
    runs(model)
    under_way = model.lease(connected)
    model.set_yielding(True)
    late = in_a_thread(lambda: model.lease(connected))
    eventually(lambda: model.to_json()["waiting"] == 1)
    assert model.eviction_status().evictability is Evictability.BUSY
    under_way.release()
    assert model.eviction_status().evictability is Evictability.IDLE
    assert not late.done()
    model.set_yielding(False)
    late.result(LONG).release()


def test_a_start_that_waits_too_long_for_memory_fails_with_a_time_to_retry(
    machine: Build, eventually: Eventually
) -> None:
    one = machine(queue_timeout=60)
    one.runs(Model("Busy", Evictability.BUSY), {H100: 9000})
    model = real_model(on_h100("Late"), one.placement, one.monitor.clock)
    late = in_a_thread(lambda: model.lease(connected))
    eventually(lambda: model.to_json()["waits_for"])
    one.later(60)
    error = late.exception(LONG)
    assert isinstance(error, ApiError)
    assert (error.status, error.code) == (503, "queue_timeout")
    assert error.retry_after
    assert "in the way: Busy" in str(error.message)
    assert model.to_json()["state"] == "failed"


def test_a_model_that_waits_for_memory_can_be_stopped(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    one.runs(Model("Busy", Evictability.BUSY), {H100: 9000})
    model = real_model(on_h100("Waiting"), one.placement, one.monitor.clock)
    asked = in_a_thread(lambda: model.lease(connected))
    eventually(lambda: model.to_json()["waits_for"])
    assert model.state is State.QUEUED
    model.stop()
    model.wait_idle(LONG)
    assert (model.state, model.to_json()["waits_for"]) == (State.STOPPED, None)
    error = asked.exception(LONG)
    assert isinstance(error, ApiError)
    assert "was stopped while you waited" in error.message


def test_nothing_is_stopped_for_a_client_that_has_disconnected(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    busy = Model("Busy", Evictability.BUSY)
    one.runs(busy, {H100: 9000})
    model = real_model(on_h100("Waiting"), one.placement, one.monitor.clock)
    disconnected = [False]
    asked = in_a_thread(lambda: model.lease(lambda: disconnected[0]))
    eventually(lambda: model.to_json()["waits_for"])
    disconnected[0] = True
    model._shared.watch.poll()
    assert isinstance(asked.exception(LONG), ClientDisconnected)
    model.wait_idle(LONG)
    shown = model.to_json()
    assert (shown["state"], shown["waiting"], shown["last_error"]) == ("stopped", 0, None)
    busy.evictability = Evictability.IDLE
    one.placement.wake()
    assert one.evictions == []
    assert not one.placement.has_waiting()


def test_a_model_that_starts_with_the_program_stops_no_other_until_it_is_requested(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    one.runs(Model("Running"), {H100: 9000})
    model = real_model(on_h100("AutoStart"), one.placement, one.monitor.clock)
    model.start(manual=False)
    model.wait_idle(LONG)
    assert model.state is State.FAILED
    error = model.to_json()["last_error"]
    assert "nothing is stopped for a model that nobody has asked for" in error
    assert one.evictions == []
    asked = in_a_thread(lambda: model.lease(connected))
    eventually(lambda: one.evictions == ["Running"])
    end(model)
    assert isinstance(asked.exception(LONG), ApiError)


def test_the_end_of_the_program_rejects_those_that_wait_for_memory(
    machine: Build, eventually: Eventually
) -> None:
    one = machine()
    one.runs(Model("Busy", Evictability.BUSY), {H100: 9000})
    model = real_model(on_h100("Waiting"), one.placement, one.monitor.clock)
    asked = in_a_thread(lambda: model.lease(connected))
    eventually(lambda: model.to_json()["waits_for"])
    end(model)
    error = asked.exception(LONG)
    assert isinstance(error, ApiError)
    assert error.code == "shutting_down"


def test_requests_that_wait_for_a_model_that_leaves_the_config_get_404(
    machine: Build, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "remembered", lambda _shared: {})
    one: Machine = machine()
    one.runs(Model("Busy", Evictability.BUSY), {H100: 9000})
    settings = on_h100("Removed")
    shared: Any = real_model(settings, one.placement, one.monitor.clock)._shared
    interface: Any = None
    config = Config(Path("config.yaml"), Program(), {"Removed": settings})
    fleet = Fleet(config, {"Chat": interface}, shared)
    model = fleet.find("Removed")
    asked = in_a_thread(lambda: model.lease(connected))
    eventually(lambda: model.to_json()["waits_for"])
    fleet.apply(Config(Path("config.yaml"), Program(), {}))
    error = asked.exception(LONG)
    assert isinstance(error, ApiError)
    assert (error.status, error.code) == (404, "model_not_found")
    fleet.close()

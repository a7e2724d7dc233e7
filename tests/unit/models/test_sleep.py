"""Models that sleep are stopped where the machine's memory is short; no process and no card."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from manager.config.settings import Model as Settings
from manager.models import Fleet, Model, State
from tests.support.played_machine import real_model, runs


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

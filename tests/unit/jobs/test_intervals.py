"""What is done every so often goes on, whatever is done to the wall clock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import pairwise

import pytest
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.base import BaseScheduler

from jobs.intervals import IntervalScheduler
from manager.clock import Clock

HOUR, DAY = 3600.0, 86_400.0
START = datetime(2026, 11, 5, 12, tzinfo=timezone.utc)


class Machine:
    """A scheduler without its thread, on two clocks that the test moves."""

    def __init__(self) -> None:
        self.monotonic = 100.0
        self.set_by = 0.0  # seconds
        machine = self

        class Now(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return machine.wall.astimezone(tz)

        self.datetime = Now

    @property
    def wall(self) -> datetime:
        return START + timedelta(seconds=self.monotonic - 100 + self.set_by)

    def begin(self) -> None:
        clock = Clock(monotonic=lambda: self.monotonic, wall=lambda: self.wall.timestamp())
        self.scheduler = IntervalScheduler(clock)
        self.scheduler.remove_executor("default")
        self.scheduler.add_executor(DebugExecutor(), "default")
        self.scheduler._event = threading.Event()
        BaseScheduler.start(self.scheduler)

    def job(self, seconds: float, **options: bool) -> Callable[[], list[float]]:
        """When it was done since the last look, in seconds since the beginning."""
        done: list[float] = []
        self.scheduler.every(
            seconds, lambda: done.append(self.monotonic - 100), f"{seconds}", **options
        )

        def look() -> list[float]:
            found, done[:] = [*done], []
            return found

        return look

    def passes(self, seconds: float) -> None:
        """Time that passes by both clocks."""
        end = self.monotonic + seconds
        while self.monotonic < end:
            wait = self.scheduler._process_jobs()
            assert 0 <= wait <= 1  # however the clock was set meanwhile
            self.monotonic += max(wait, 0.001)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    machine = Machine()
    for module in ("apscheduler.schedulers.base", "jobs.intervals"):
        monkeypatch.setattr(f"{module}.datetime", machine.datetime)
    machine.begin()
    yield machine
    BaseScheduler.shutdown(machine.scheduler)


@pytest.mark.parametrize("set_by", [-10 * 365 * DAY, -HOUR, -2, 2, HOUR, 8 * HOUR, 10 * 365 * DAY])
def test_a_clock_that_is_set_neither_holds_up_a_job_nor_hurries_it(
    machine: Machine, set_by: float
) -> None:
    sweep, heartbeat, clean = machine.job(1), machine.job(30), machine.job(DAY, at_once=True)
    machine.passes(65)
    assert len(sweep()) in (64, 65)
    assert len(heartbeat()) == 2
    assert len(clean()) == 1
    machine.set_by = set_by
    machine.passes(60)
    assert len(sweep()) in (59, 60, 61)
    assert len(heartbeat()) == 2
    assert clean() == []  # what is old is not deleted by a clock that is ahead for a moment
    machine.set_by = 0
    machine.passes(60)
    assert len(sweep()) in (59, 60, 61)
    assert len(heartbeat()) == 2
    machine.passes(3)
    assert len(sweep()) in (2, 3, 4)


def test_a_job_that_is_resumed_under_a_clock_that_was_just_set_comes_after_its_interval(
    machine: Machine,
) -> None:
    poll = machine.job(1, paused=True)
    machine.passes(10)
    assert poll() == []
    for set_by in (8 * HOUR, -HOUR):
        machine.set_by = set_by
        machine.scheduler.resume_job("1")  # before the scheduler has seen that it was set
        machine.passes(3)
        assert len(poll()) in (2, 3)
        machine.scheduler.pause_job("1")
        machine.passes(3)
        assert poll() == []


def test_a_machine_that_slept_does_each_job_once_and_not_once_for_each_second(
    machine: Machine,
) -> None:
    sweep = machine.job(1)
    machine.passes(5)
    sweep()
    machine.set_by = 8 * HOUR
    machine.passes(1.5)
    assert len(sweep()) <= 2


def test_a_clock_that_is_slowed_until_it_is_right_changes_nothing(machine: Machine) -> None:
    sweep = machine.job(1)
    for _ in range(100):
        machine.set_by -= 0.05
        machine.passes(1)
    done = sweep()
    assert all(0.8 < later - earlier < 1.2 for earlier, later in pairwise(done))

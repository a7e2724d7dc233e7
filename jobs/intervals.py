"""APScheduler on a wall clock that may be set: what is done every so often goes on all the same.

APScheduler keeps when a job is due as a date. Set back an hour, its clock would let every job wait
for that hour.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.job import Job
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger

from manager.clock import Clock

_MAX_WAIT_SECONDS = 1.0  # until the next comparison of the two clocks
_MIN_JUMP_SECONDS = 0.1
_THREADS = 2


class Interval(BaseTrigger):  # type: ignore[misc]
    """Every so many seconds; times that were missed are not made up for."""

    def __init__(self, seconds: float) -> None:
        self._length = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        latest = now + self._length
        following = latest if previous is None else previous + self._length
        return following if now < following < latest else latest


class IntervalScheduler(BackgroundScheduler):  # type: ignore[misc]
    """Runs jobs whose trigger is an `Interval`, by the monotonic clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(
            timezone=timezone.utc,
            executors={"default": ThreadPoolExecutor(_THREADS, {"thread_name_prefix": "schedule"})},
            # A job that comes late is done once, however often it was due.
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        self._clock = clock
        self._ahead = self._wall_ahead()

    def every(
        self,
        seconds: float,
        function: Callable[[], object],
        name: str,
        *,
        at_once: bool = False,
        paused: bool = False,
    ) -> Job:
        """Adds a job that is done every so many seconds; ``at_once`` for the first time."""
        first: dict[str, datetime | None] = {}
        if at_once or paused:
            first["next_run_time"] = datetime.now(self.timezone) if at_once else None
        return self.add_job(function, Interval(seconds), id=name, **first)

    def _process_jobs(self) -> float:
        """A round of APScheduler's thread; the seconds until the next one."""
        self._follow_wall_clock()
        seconds = super()._process_jobs()
        # Set back in the middle of a round, the wall clock would make this wait a long one.
        return _MAX_WAIT_SECONDS if seconds is None else min(seconds, _MAX_WAIT_SECONDS)

    def _follow_wall_clock(self) -> None:
        """Moves the dates of all jobs by as much as the wall clock was set since the last round."""
        ahead = self._wall_ahead()
        jump = timedelta(seconds=ahead - self._ahead)
        if abs(jump) < timedelta(seconds=_MIN_JUMP_SECONDS):
            return
        self._ahead = ahead
        with self._jobstores_lock:
            now = datetime.now(self.timezone)
            for job in self.get_jobs():
                if job.next_run_time is not None:  # else it is paused
                    # One that was resumed since then has a date of the new time already.
                    latest = job.trigger.get_next_fire_time(None, now)
                    job.modify(next_run_time=min(job.next_run_time + jump, latest))

    def _wall_ahead(self) -> float:
        return self._clock.wall() - self._clock.monotonic()

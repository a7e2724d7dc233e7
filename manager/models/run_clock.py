"""The time of a run: dated once by the wall clock, and counted on by the monotonic one.

So a clock that is set, or a machine that slept, changes nothing of what a run has taken.
"""

from __future__ import annotations

from typing import NamedTuple

from manager.clock import Clock
from manager.storage import Run


class RunClock(NamedTuple):
    """The moment ``epoch_ms`` of a run, when the monotonic clock read ``clock_ms``."""

    epoch_ms: int
    clock_ms: int

    @classmethod
    def begin(cls, clock: Clock) -> RunClock:
        """Of a run that begins now."""
        return cls(clock.wall_ms(), clock.monotonic_ms())

    @classmethod
    def resume(cls, run: Run, clock: Clock) -> RunClock:
        """Of a run that an earlier program left behind, counted on from when it was ready. The
        wall clock has to do for a run of an earlier version, and where boots have no names."""
        now_ms = clock.monotonic_ms()
        begun_ms = run.started_ms if run.ready_ms is None else run.ready_ms
        if (
            run.ready_clock_ms is not None
            and run.boot_id is not None
            and run.boot_id == clock.boot_id
            and run.ready_clock_ms <= now_ms
        ):
            return cls(begun_ms, run.ready_clock_ms)
        return cls(max(clock.wall_ms(), begun_ms, run.heartbeat_ms or 0), now_ms)

    def at_ms(self, clock_ms: int) -> int:
        """Epoch ms of when the monotonic clock read that, as if the wall clock had not been set."""
        return self.epoch_ms + clock_ms - self.clock_ms

    def now_ms(self, clock: Clock) -> int:
        return self.at_ms(clock.monotonic_ms())


def is_before_boot(run: Run, clock: Clock) -> bool:
    """Whether the system was started again since the run was ready: nothing of it is left then,
    whatever listens on its port."""
    return None not in (run.boot_id, clock.boot_id) and run.boot_id != clock.boot_id

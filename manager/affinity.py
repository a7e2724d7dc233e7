"""On which processor the program's threads run: all on one, where the system lets us choose.

Python runs one thread at a time. To pass the GIL from one processor to another takes longer than
most of what a thread does between two system calls: on one there are twice as many answers a
second. What the program starts runs where it likes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

_STAT = Path("/proc/stat")
_TASKS = Path("/proc/self/task")
_CROWDED = 0.25  # of a processor's time, used by others
_GAIN = 0.25  # of a processor's time that another must have more

Times = Mapping[int, tuple[int, int]]
"""Idle and all ticks of each processor, since the boot."""


class Affinity:
    """``bind`` is called once, in the main thread before it makes others, which inherit it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: set[int] = set()  # threads that are not bound for now
        self._allowed: set[int] = set()
        self._bound_to: int | None = None
        self._times: Times = {}
        self._used, self._at = 0.0, 0.0

    def bind(self) -> None:
        if not hasattr(os, "sched_setaffinity") or not _TASKS.is_dir():
            return
        self._allowed = os.sched_getaffinity(0)
        if len(self._allowed) > 1:
            self._bound_to = max(self._allowed)  # the first one has most of the interrupts
            os.sched_setaffinity(0, {self._bound_to})

    @contextlib.contextmanager
    def free(self) -> Iterator[None]:
        """Lets this thread, and the process that it starts inside, run on all processors."""
        if self._bound_to is None:
            yield
            return
        thread = threading.get_native_id()
        with self._lock:
            self._free.add(thread)
            os.sched_setaffinity(0, self._allowed)
        try:
            yield
        finally:
            with self._lock:
                self._free.discard(thread)
                os.sched_setaffinity(0, {self._bound_to})

    def tick(self) -> None:
        """Every few seconds: moves to another processor where ours is used by others, such as a
        model that computes on it and is bound to it. The system does not move us then."""
        if self._bound_to is None:
            return
        now, used, times = time.monotonic(), time.process_time(), read_times(_STAT.read_text())
        own = (used - self._used) / max(0.001, now - self._at)
        chosen = choose(self._bound_to, self._allowed, idle_shares(self._times, times), own)
        self._times, self._used, self._at = times, used, now
        if chosen == self._bound_to:
            return
        threads = {int(task.name) for task in _TASKS.iterdir()}
        with self._lock:
            self._bound_to = chosen
            for thread in threads - self._free:  # what those start is not to be bound
                with contextlib.suppress(OSError):  # the thread has ended
                    os.sched_setaffinity(thread, {chosen})
        log.debug("the program runs on processor %d now", chosen)


def read_times(stat: str) -> Times:
    """From the text of ``/proc/stat``."""
    times = {}
    for line in stat.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            ticks = [int(field) for field in fields[:8]]  # guests are in user time already
            times[int(name[3:])] = (ticks[3] + ticks[4], sum(ticks))
    return times


def idle_shares(before: Times, after: Times) -> dict[int, float]:
    """Which share of the time between two readings each processor had nothing to do."""
    shares = {}
    for number, (idle, all_ticks) in after.items():
        if number in before and all_ticks > before[number][1]:
            shares[number] = (idle - before[number][0]) / (all_ticks - before[number][1])
    return shares


def choose(current: int, allowed: set[int], idle: Mapping[int, float], own: float) -> int:
    """The processor to be on; ``own`` is what we used of ours."""
    ours = min(1.0, idle.get(current, 1.0) + own)
    others = {number: share for number, share in idle.items() if number in allowed}
    if 1.0 - ours < _CROWDED or not others:
        return current
    best = max(others, key=lambda number: others[number])
    return best if others[best] >= ours + _GAIN else current


PROGRAM = Affinity()
"""That of this process."""

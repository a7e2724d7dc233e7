"""Waits until the devices show that a stopped server's memory is free."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from manager.clock import Clock
from manager.devices import Monitor, Reading
from manager.placement.reservation import Reservation

log = logging.getLogger(__name__)

READING_TIMEOUT_SECONDS = 3.5  # a poll that takes longer hangs, and the last reading has to do
RELEASE_SECONDS = 5.0  # that a driver may take to free an ended process's memory
POLL_SECONDS = 0.1
STEADY_SECONDS = 1.0  # without change, where nobody knows how much memory is to be freed


def await_memory_return(
    reservation: Reservation,
    monitor: Monitor,
    clock: Clock,
    is_returned: Callable[[Sequence[Reading]], bool],
) -> None:
    """Until the readings show that the memory is free, by ``is_returned``, or do not change any
    more where nobody knows how much it was; for five seconds at most, which the log then says.
    To be called without a lock."""
    began = clock.monotonic()
    pause = threading.Event()
    last: dict[str, int | None] = {}
    last_change = began
    while (now := clock.monotonic()) < began + RELEASE_SECONDS:
        snapshot = monitor.wait_for_reading(now, READING_TIMEOUT_SECONDS)
        readings = [
            device.reading
            for device in snapshot.devices
            if device.reading.id in reservation.used_when_stopping and not device.stale
        ]
        if is_returned(readings):
            return
        used = {reading.id: reading.used_mb for reading in readings}
        if used != last:
            last, last_change = used, clock.monotonic()
        # Of one that ended by itself nobody may know what it used: it may be free already.
        unknown = reservation.ended or all(on not in reservation.measured_mb for on in used)
        if unknown and clock.monotonic() >= last_change + STEADY_SECONDS:
            return
        pause.wait(POLL_SECONDS)
    log.warning(
        "%s has ended, and its memory was not freed within %g seconds",
        reservation.evictable.name,
        RELEASE_SECONDS,
    )

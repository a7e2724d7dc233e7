"""The memory of servers that sleep: what they free, what they still hold, what wakes them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from manager.clock import Clock
from manager.devices import Monitor
from manager.placement.ledger import Ledger
from manager.placement.memory_return import READING_TIMEOUT_SECONDS
from manager.placement.reservation import Reservation
from manager.placement.types import SchemeOption

KEPT_RAM = 0.05  # of the machine's memory, that no server which sleeps may take


class Sleep:
    """Has the placement's lock and its ledger; ``changed`` is called with the lock held. Every
    method may be called from any thread, without the lock."""

    def __init__(
        self,
        monitor: Monitor,
        clock: Clock,
        lock: threading.Lock,
        ledger: Ledger,
        changed: Callable[[], None],
    ) -> None:
        self._monitor = monitor
        self._clock = clock
        self._lock = lock
        self._ledger = ledger
        self._changed = changed

    def begin(self, reservation: Reservation) -> str | None:
        """The server is about to free its cards, and to hold its model in the machine's memory.
        Returns why it must not."""
        snapshot = self._monitor.wait_for_reading(self._clock.monotonic(), READING_TIMEOUT_SECONDS)
        with self._lock:
            needed = self._ledger.begin_sleep(reservation, snapshot)
            spare = self.spare_ram_mb()
            if spare is None:
                return "nobody knows how much of the machine's memory is free"
            # Others that fall asleep at this moment may not have taken theirs yet.
            spare -= sum(each.moving_mb for each in self._ledger.reservations)
            if spare < needed:
                return (
                    f"the machine has {max(0, spare)} MB of memory to spare, and it may need"
                    f" {needed}"
                )
            reservation.moving_mb = needed
        return None

    def mark_asleep(self, reservation: Reservation) -> None:
        """The server sleeps: from now on it holds what a new reading shows."""
        snapshot = self._monitor.wait_for_reading(self._clock.monotonic(), READING_TIMEOUT_SECONDS)
        with self._lock:
            self._ledger.mark_asleep(reservation, snapshot)
            self._changed()

    def spare_ram_mb(self) -> int | None:
        """How much of the machine's memory servers that sleep may take, by the last reading; below
        0 where it is short, None where nothing reads it."""
        for device in self._monitor.snapshot.devices:
            total, used = device.reading.total_mb, device.reading.used_mb
            if device.reading.kind == "cpu" and total and used is not None:
                return total - used - int(total * KEPT_RAM)
        return None

    def refresh(self) -> None:
        """Has the devices read, without waiting."""
        self._monitor.refresh()


def to_wake(asleep: Reservation) -> SchemeOption:
    """What its server needs beyond what it holds asleep. With the placement's lock held."""
    holds = asleep.asleep_mb or {}
    on = {device: max(0, mb - holds.get(device, 0)) for device, mb in asleep.awake_mb.items()}
    return SchemeOption("", tuple(on), basis=asleep.basis, on=on)

"""The two clocks, in one place so that a test can inject its own.

The monotonic clock counts from the boot of the system, for all of its processes. On Linux and macOS
it stands still while the machine is suspended; on Windows it does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str | None:
    """A name of the system's current boot that no other has; None where it has none, as all but
    Linux. Raises OSError where the system is out of descriptors."""
    try:
        return _BOOT_ID.read_text().strip()
    except (FileNotFoundError, PermissionError):
        return None


@dataclass(frozen=True)
class Clock:
    """``monotonic`` measures durations, ``wall`` dates things; both in seconds. ``boot_id`` names
    the boot that the monotonic clock counts from, None where the system has no name for it."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    boot_id: str | None = field(default_factory=boot_id)

    def wall_ms(self) -> int:
        return int(self.wall() * 1000)

    def monotonic_ms(self) -> int:
        return int(self.monotonic() * 1000)

    def iso(self, monotonic: float | None) -> str | None:
        """A monotonic moment as ISO 8601 in UTC."""
        if monotonic is None:
            return None
        moment = self.wall() + (monotonic - self.monotonic())
        return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds")

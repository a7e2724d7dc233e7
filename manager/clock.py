"""The two clocks, in one place so that a test can inject its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone


@dataclass(frozen=True)
class Clock:
    """``monotonic`` measures durations, ``wall`` dates things; both in seconds."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time

    def wall_ms(self) -> int:
        return int(self.wall() * 1000)

    def iso(self, monotonic: float | None) -> str | None:
        """A monotonic moment as ISO 8601 in UTC."""
        if monotonic is None:
            return None
        moment = self.wall() + (monotonic - self.monotonic())
        return datetime.fromtimestamp(moment, timezone.utc).isoformat(timespec="milliseconds")

"""When not to start a model again yet. Pure: time is an argument."""

from __future__ import annotations

from collections import deque

FAILURES = 3
WINDOW_SECONDS = 60.0  # in which they count together
FIRST_WAIT_SECONDS = 10.0
MAX_WAIT_SECONDS = 300.0


class CircuitBreaker:
    """Three failed starts in a minute open it; each further failure doubles the wait.

    While it is open nobody tries. Then one start is let through: success closes it.
    Times are seconds on any one clock.
    """

    def __init__(self) -> None:
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._wait = 0.0
        self._open_until = 0.0

    def record_failure(self, now: float) -> None:
        self._failures.append(now)
        is_full = len(self._failures) == FAILURES
        if self._wait or (is_full and now - self._failures[0] <= WINDOW_SECONDS):
            self._wait = min(self._wait * 2 or FIRST_WAIT_SECONDS, MAX_WAIT_SECONDS)
            self._open_until = now + self._wait

    def close(self) -> None:
        """A start succeeded, or a person asks for one."""
        self._failures.clear()
        self._wait = 0.0
        self._open_until = 0.0

    def seconds_until_retry(self, now: float) -> float:
        """Seconds until a start may be tried; 0 when it may be now."""
        return max(0.0, self._open_until - now)

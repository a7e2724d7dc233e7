"""How many threads the long answers may hold, so that some are left for all the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable

from manager.errors import ApiError

# Threads kept for pages, health and the refusals themselves.
RESERVED = 32
# Of the others, the part that open pages may hold with their streams of events.
_WATCHERS_SHARE = 4


class Slots:
    """Counts the threads that proxied requests and event streams hold.

    waitress hands every request to a thread, and one without a thread is not even read. So a
    request that may last takes a slot first; when none is left it is refused at once.
    """

    def __init__(self, threads: int) -> None:
        self.capacity = threads - RESERVED
        self._lock = threading.Lock()
        self._taken = 0
        self._watchers = 0

    def acquire(self) -> Callable[[], None]:
        """A slot for a proxied request; call what it returns to give it back, once.

        Raises ApiError 503 ``busy``.
        """
        with self._lock:
            if self._taken >= self.capacity:
                raise _busy(f"All {self.capacity} places for requests are taken")
            self._taken += 1
        return self._give_back

    def acquire_stream(self) -> Callable[[], None]:
        """A slot for a stream that lasts as long as a page is open. Raises ApiError 503."""
        limit = max(1, self.capacity // _WATCHERS_SHARE)
        with self._lock:
            if self._watchers >= limit or self._taken >= self.capacity:
                raise _busy(f"All {limit} places for live pages are taken")
            self._watchers += 1
            self._taken += 1
        return self._give_back_watcher

    def _give_back(self) -> None:
        with self._lock:
            self._taken -= 1

    def _give_back_watcher(self) -> None:
        with self._lock:
            self._taken -= 1
            self._watchers -= 1


def _busy(message: str) -> ApiError:
    return ApiError(503, "busy", f"{message}; try again in a moment", retry_after=1)

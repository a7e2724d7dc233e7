"""How many threads long responses may hold, so that some are left for all other requests."""

from __future__ import annotations

import threading
from collections.abc import Callable

from manager.errors import ApiError

# Threads kept for pages, health and the errors themselves.
RESERVED = 32
# One of so many slots may be held by a page's stream of events.
_STREAMS_SHARE = 4


class Slots:
    """Counts the threads that proxied requests and event streams hold.

    waitress hands every request to a thread, and one without a thread is not even read. So a
    request takes a slot before it waits in its thread; when none is left it is rejected at once.
    """

    def __init__(self, threads: int) -> None:
        self.capacity = threads - RESERVED
        self._lock = threading.Lock()
        self._taken = 0
        self._streams = 0

    def acquire(self) -> Callable[[], None]:
        """A slot for a proxied request; call what it returns to release it, once.

        Raises ApiError 503 ``busy``.
        """
        with self._lock:
            if self._taken >= self.capacity:
                raise _busy(f"All {self.capacity} slots for requests are taken")
            self._taken += 1
        return self._release

    def one(self) -> Slot:
        """For a request that may come to need one."""
        return Slot(self)

    def acquire_stream(self) -> Callable[[], None]:
        """A slot for a stream that lasts as long as a page is open. Raises ApiError 503."""
        limit = max(1, self.capacity // _STREAMS_SHARE)
        with self._lock:
            if self._streams >= limit or self._taken >= self.capacity:
                raise _busy(f"All {limit} slots for live pages are taken")
            self._streams += 1
            self._taken += 1
        return self._release_stream

    def _release(self) -> None:
        with self._lock:
            self._taken -= 1

    def _release_stream(self) -> None:
        with self._lock:
            self._taken -= 1
            self._streams -= 1


class Slot:
    """At most one, for one request."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._release: Callable[[], None] | None = None

    def take(self) -> None:
        """From here on the request holds its thread. Raises ApiError 503 ``busy``."""
        if self._release is None:
            self._release = self._slots.acquire()

    def try_take(self) -> bool:
        try:
            self.take()
        except ApiError:
            return False
        return True

    def release(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()


def _busy(message: str) -> ApiError:
    return ApiError(503, "busy", f"{message}; try again in a moment", retry_after=1)

"""Who wants to know that something changed: subscribers with a bounded memory each."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

MAX_PENDING = 1000


class Subscription:
    """One reader's events, oldest first. Close it, from any thread, to wake its reader."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pending: deque[tuple[str, Any]] = deque(maxlen=MAX_PENDING)
        self._closed = False

    def put(self, kind: str, data: Any) -> None:
        with self._changed:
            self._pending.append((kind, data))  # a reader too slow loses the oldest
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    @property
    def closed(self) -> bool:
        return self._closed

    def get(self, timeout: float) -> tuple[str, Any] | None:
        """The next event, or None after ``timeout`` seconds or when it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed, timeout)
            return None if self._closed or not self._pending else self._pending.popleft()


class Events:
    """Hands every event to every subscriber; publishing never blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: set[Subscription] = set()

    def publish(self, kind: str, tell: Callable[[], Any]) -> None:
        """``tell`` makes the event's data; it is only asked where somebody listens."""
        with self._lock:
            subscriptions = list(self._subscriptions)
        if subscriptions:
            data = tell()
            for subscription in subscriptions:
                subscription.put(kind, data)

    def has_subscribers(self) -> bool:
        return bool(self._subscriptions)

    def subscribe(self) -> Subscription:
        subscription = Subscription()
        with self._lock:
            self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions.discard(subscription)
        subscription.close()

"""Notifies subscribers that something changed; each has a bounded buffer."""

from __future__ import annotations

import functools
import json
import threading
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

MAX_PENDING = 1000


class Event:
    """What happened. ``data`` is JSON and must not change any more."""

    def __init__(self, kind: str, data: Any) -> None:
        self.kind = kind
        self.data = data

    @functools.cached_property
    def message(self) -> bytes:
        """It as a server-sent event; made once, however many pages are open."""
        text = json.dumps(self.data, ensure_ascii=False)
        # A name may hold half a character, which no UTF-8 has.
        return f"event: {self.kind}\ndata: {text}\n\n".encode("utf-8", "replace")


class Subscription:
    """One reader's events, oldest first. Close it, from any thread, to wake its reader."""

    def __init__(self, kinds: Collection[str] | None) -> None:
        self._kinds = kinds
        self._changed = threading.Condition()
        self._pending: deque[Event] = deque(maxlen=MAX_PENDING)
        self._is_woken = False
        self._closed = False

    def accepts(self, kind: str) -> bool:
        return self._kinds is None or kind in self._kinds

    def put(self, event: Event, wakes: bool) -> None:
        with self._changed:
            self._pending.append(event)  # a reader too slow loses the oldest
            if wakes:
                self._is_woken = True
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    @property
    def closed(self) -> bool:
        return self._closed

    def take(self, timeout: float) -> list[Event]:
        """All pending events, once one has come that wakes, or after ``timeout`` seconds; none
        when it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_woken or self._closed, timeout)
            taken = [] if self._closed else list(self._pending)
            self._pending.clear()
            self._is_woken = False
        return taken


class Events:
    """Hands every event to all subscribers of its kind; publishing never blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: set[Subscription] = set()

    def publish(self, kind: str, make_data: Callable[[], Any], *, wakes: bool = True) -> None:
        """``make_data`` makes the event's data; it is only called where somebody has subscribed.

        With ``wakes=False``, for what comes each second, readers are not woken: a hundred threads
        that wake at one moment contend for the GIL. Each finds it the next time that it wakes.
        """
        subscriptions = self._subscribers_of(kind)
        if subscriptions:
            event = Event(kind, make_data())
            for subscription in subscriptions:
                subscription.put(event, wakes)

    def has_subscribers(self, kind: str) -> bool:
        """Whether somebody has subscribed to this kind."""
        return bool(self._subscribers_of(kind))

    def subscribe(self, kinds: Collection[str] | None = None) -> Subscription:
        """From now on; of these kinds, or of all."""
        subscription = Subscription(kinds)
        with self._lock:
            self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions.discard(subscription)
        subscription.close()

    def _subscribers_of(self, kind: str) -> list[Subscription]:
        with self._lock:
            return [one for one in self._subscriptions if one.accepts(kind)]

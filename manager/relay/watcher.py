"""Polls for what sends no notification: disconnected clients, dead processes."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.2  # what happened is noticed within a second


class Watcher:
    """Polls every registered condition a few times a second, in one thread named ``watch``.

    Once a condition is true its action is called, once, and the entry is removed. Both are
    called in that thread and must not block.
    """

    def __init__(self) -> None:
        self._tokens = itertools.count()
        self._entries: dict[int, tuple[Callable[[], bool], Callable[[], None]]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def add(self, condition: Callable[[], bool], action: Callable[[], None]) -> int:
        """Registers them; ``remove`` takes the returned token. Dict operations are atomic, so
        that the request path takes no lock here."""
        token = next(self._tokens)
        self._entries[token] = (condition, action)
        return token

    def remove(self, token: int) -> None:
        self._entries.pop(token, None)

    def poll(self) -> None:
        """One round: what the thread does at each interval."""
        for token, (condition, action) in list(self._entries.items()):
            try:
                # pop: the entry may have been removed meanwhile, and then no action is wanted.
                if condition() and self._entries.pop(token, None) is not None:
                    action()
            except Exception:
                # One faulty condition must not stop the polling of all others.
                self._entries.pop(token, None)
                log.exception("a watched condition failed")

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL_SECONDS):
            self.poll()

"""Sees what tells nobody that it happened: clients that went away, processes that died."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

INTERVAL = 0.2  # seconds; a departure is noticed within a second with room to spare


class Watcher:
    """Asks every registered question a few times a second, in one thread named ``watch``.

    When a question answers True its action is called, once, and it is forgotten. Both are
    called in the watching thread and must not block.
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

    def add(self, happened: Callable[[], bool], act: Callable[[], None]) -> int:
        """Begins to watch; the token ends it again. Dict operations are atomic, so that the
        request path takes no lock here."""
        token = next(self._tokens)
        self._entries[token] = (happened, act)
        return token

    def remove(self, token: int) -> None:
        self._entries.pop(token, None)

    def poll(self) -> None:
        """One round: what the thread does at each interval."""
        for token, (happened, act) in list(self._entries.items()):
            try:
                # pop: the entry may have been removed meanwhile, and then nobody wants to know.
                if happened() and self._entries.pop(token, None) is not None:
                    act()
            except Exception:
                # One faulty question must not end the watch over all others.
                self._entries.pop(token, None)
                log.exception("watching failed")

    def _run(self) -> None:
        while not self._stopped.wait(INTERVAL):
            self.poll()

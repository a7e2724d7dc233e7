"""How far usage.db has everything that bills are made of.

The mark ``recorded_until`` of usage.db, epoch ms: each request that was begun before has its row
there, and each run its time. A bill of a period that ends later is of a part.
"""

from __future__ import annotations

import logging
import sqlite3
from typing import NamedTuple

from manager.clock import Clock
from manager.models import Fleet
from manager.storage import RECORDED_UNTIL, Spool, Store
from manager.usage import Activity

log = logging.getLogger("manager.bills")

MAX_WAIT_SECONDS = 86_400
"""For a request that has been under way for longer no bill waits, nor for a run that is dated so
far back."""

_FLUSH_SECONDS = 5.0
_MARGIN_MS = 1000  # between the date of a request or of a start, and when others can see it


class Recorded(NamedTuple):
    """Everything up to ``until_ms`` is in usage.db; ``waits_for`` says why not more is, and is
    empty where that is all there is by now."""

    until_ms: int
    waits_for: str


class Watermark:
    """Writes heartbeats, and sets the mark by what is under way. Any thread may call it."""

    def __init__(
        self, fleet: Fleet, activity: Activity, spool: Spool, store: Store, clock: Clock
    ) -> None:
        self._fleet = fleet
        self._activity = activity
        self._spool = spool
        self._store = store
        self._clock = clock
        self._until_ms = 0
        self._said: set[object] = set()  # what bills do not wait for

    def tick(self) -> None:
        """Twice a minute."""
        try:
            self.advance()
        except sqlite3.Error as error:
            log.error("that models are alive was not written: %s", error)

    def advance(self) -> Recorded:
        """Records what there is by now. Raises sqlite3.Error."""
        now_ms = self._clock.wall_ms() - _MARGIN_MS
        # Requests first: the row of one that has ended meanwhile is among those that are flushed.
        requests = self._requests()
        if not self._spool.flush(_FLUSH_SECONDS):
            return Recorded(self._until_ms, "rows of requests that the database has not taken yet")
        runs = self._runs(now_ms)
        until_ms = min([now_ms, *requests, *runs])
        if until_ms != self._until_ms:
            self._store.write(
                "INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)",
                (RECORDED_UNTIL, str(until_ms)),
            )
            self._until_ms = until_ms
        waits_for = ""
        if until_ms in requests:
            waits_for = f"requests that are under way ({len(requests)})"
        elif until_ms < now_ms:
            waits_for = "a run that is being taken over or stopped, or whose clock is behind"
        return Recorded(until_ms, waits_for)

    def _requests(self) -> list[int]:
        """When those began that are under way."""
        latest = self._clock.monotonic() - MAX_WAIT_SECONDS
        active = self._activity.active_requests()
        for request in active:
            if request.began < latest:
                self._say(
                    request.id,
                    f"a request of {request.model} has been under way for more than a day: bills no"
                    " longer wait for it",
                )
        return [request.began_ms for request in active if request.began >= latest]

    def _runs(self, now_ms: int) -> list[int]:
        """Up to when those are recorded that are not over."""
        recorded = self._fleet.heartbeat()
        first_ms = now_ms - MAX_WAIT_SECONDS * 1000
        for run, until_ms in recorded.items():
            if until_ms < first_ms:
                self._say(
                    run,
                    f"the hours of run {run} are dated more than a day before the wall clock, which"
                    " was set or stood still since the model was started: bills do not wait for"
                    " them; restart the model",
                )
        return [until_ms for until_ms in recorded.values() if until_ms >= first_ms]

    def _say(self, what: object, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning("%s", message)

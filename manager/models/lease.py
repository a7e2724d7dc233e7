"""A request's right to use a model, and the queue of those that wait for one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from manager.interfaces import Interface
from manager.models.server import Server
from manager.placement import planner
from manager.relay import Outcome, Upstream


class Lease:
    """A right to send one request to a ready model, which counts as busy meanwhile.

    A context manager; ``release`` ends it and may be called more than once. ``produced`` is set
    with each piece of its answer that comes; ``user`` names who holds it.
    """

    def __init__(
        self,
        server: Server,
        upstream_timeout: float,
        user: str,
        on_release: Callable[[Lease, Outcome | None], None],
    ) -> None:
        self.server = server
        self.user = user
        self.produced = False
        self._on_release = on_release
        self._held = True
        # What the server was launched with: a reload changes that at its next start.
        self.interface: Interface = server.interface
        self.scheme = server.scheme
        self.served_model_name = server.settings.served_model_name
        self.ask_usage = server.settings.ask_usage
        self.upstream_timeout = upstream_timeout

    @property
    def upstream(self) -> Upstream:
        return self.server.upstream

    def release(self, outcome: Outcome | None = None) -> None:
        """``outcome`` is what the request came to, where it was sent."""
        if self._held:
            self._held = False
            self._on_release(self, outcome)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()


class Ticket:
    """A waiting request, with a condition of its own on the model's lock: a slot that is released
    wakes the request that gets it, not all that wait."""

    def __init__(
        self, lock: threading.Lock, arrival: float, priority: int, user: str, *, behind: bool
    ) -> None:
        self.ready = threading.Condition(lock)
        self.priority = priority
        self.user = user
        self.rank = planner.queue_rank(arrival, priority)
        self.behind = behind  # other models, which its own yields to
        self.lease: Lease | None = None
        self.error: Exception | None = None

    def resolve(self, lease: Lease | None = None, error: Exception | None = None) -> None:
        """With the lock held: ends the wait, well or badly."""
        self.lease, self.error = lease, error
        self.ready.notify()


class RequestQueue:
    """The requests that wait for one model, in the order of their ranks. Every method is called
    with the model's lock held.

    While the model yields to others, requests that come wait behind these, whatever their
    priority, until the model does not yield any more.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        # Among those of one priority the order is that of arrival, also of those behind others.
        self._by_priority: dict[int, OrderedDict[Ticket, None]] = {}
        self.yielding = False

    def __len__(self) -> int:
        return sum(map(len, self._by_priority.values()))

    @property
    def priority(self) -> int | None:
        """The highest that waits; None where nobody does."""
        return max(self._by_priority, default=None)

    def enqueue(self, arrival: float, priority: int, user: str = "") -> Ticket:
        """``arrival`` is monotonic, in seconds, and not before that of the last one."""
        ticket = Ticket(self._lock, arrival, priority, user, behind=self.yielding)
        self._by_priority.setdefault(priority, OrderedDict())[ticket] = None
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Does nothing where it is not in the queue any more."""
        equals = self._by_priority.get(ticket.priority)
        if equals is not None and ticket in equals:
            del equals[ticket]
            if not equals:
                del self._by_priority[ticket.priority]

    def wait(self, ticket: Ticket, seconds: float) -> Lease | None:
        """The ticket's lease; None if it has none within so many seconds. Raises what the wait was
        ended with."""
        deadline = time.monotonic() + seconds
        while ticket.lease is None and ticket.error is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            ticket.ready.wait(left)
        if ticket.error is not None:
            raise ticket.error
        return ticket.lease

    def is_blocked(self) -> bool:
        """Whether the next that has come or will come waits behind others."""
        return self.yielding and (not self._by_priority or self._next().behind)

    def pop(self) -> Ticket:
        ticket = self._next()
        self.remove(ticket)
        return ticket

    def reject_all(self, make: Callable[[], Exception]) -> None:
        """Ends every wait with an exception, a new one for each: a traceback belongs to one
        thread."""
        all_waiting, self._by_priority = self._by_priority, {}
        for equals in all_waiting.values():
            for ticket in equals:
                ticket.resolve(error=make())

    def stop_yielding(self) -> None:
        """The model does not yield any more."""
        self.yielding = False
        for equals in self._by_priority.values():
            for ticket in equals:
                ticket.behind = False

    def _next(self) -> Ticket:
        firsts = (next(iter(equals)) for equals in self._by_priority.values())
        return min(firsts, key=lambda ticket: (ticket.behind, ticket.rank))

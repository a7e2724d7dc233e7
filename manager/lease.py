"""A request's right to use a model, and the line of those that wait for one."""

from __future__ import annotations

import threading
from collections.abc import Callable

from manager.interfaces import Interface
from manager.server import Server
from manager.upstream import Upstream


class Lease:
    """A right to send one request to a ready model, which counts as busy meanwhile.

    A context manager; ``release`` gives the place back and may be called more than once.
    """

    def __init__(
        self, server: Server, upstream_timeout: float, give_back: Callable[[Server], None]
    ) -> None:
        self._server = server
        self._give_back = give_back
        self._held = True
        # What the server was launched with: a reload changes that at its next start.
        self.interface: Interface = server.interface
        self.scheme = server.scheme
        self.served_model_name = server.settings.served_model_name
        self.ask_usage = server.settings.ask_usage
        self.upstream_timeout = upstream_timeout

    @property
    def upstream(self) -> Upstream:
        return self._server.upstream

    def release(self) -> None:
        if self._held:
            self._held = False
            self._give_back(self._server)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()


class Ticket:
    """A waiting request's place in the line, with a condition of its own on the model's lock:
    a place that becomes free wakes the one whose turn it is, not all that wait."""

    def __init__(self, lock: threading.Lock) -> None:
        self.turn = threading.Condition(lock)
        self.behind = False  # other models, which this one makes room for
        self.lease: Lease | None = None
        self.error: Exception | None = None

    def settle(self, lease: Lease | None = None, error: Exception | None = None) -> None:
        """With the lock held: ends the wait, well or badly."""
        self.lease, self.error = lease, error
        self.turn.notify()


class Line:
    """The requests that wait for one model, in the order of their arrival. Every method is
    called with the model's lock held.

    While the model yields to others, those that come wait behind these: their turn is not before
    the model yields no more.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._tickets: dict[Ticket, None] = {}
        self.yielding = False

    def __len__(self) -> int:
        return len(self._tickets)

    def join(self) -> Ticket:
        ticket = Ticket(self._lock)
        ticket.behind = self.yielding
        self._tickets[ticket] = None
        return ticket

    def leave(self, ticket: Ticket) -> None:
        self._tickets.pop(ticket, None)

    def is_held_back(self) -> bool:
        """Whether the next that has come or will come waits behind others."""
        return self.yielding and (not self._tickets or next(iter(self._tickets)).behind)

    def take_next(self) -> Ticket:
        ticket = next(iter(self._tickets))
        del self._tickets[ticket]
        return ticket

    def refuse(self, make: Callable[[], Exception]) -> None:
        """Ends every wait with an exception, made anew for each: a traceback belongs to one
        thread."""
        tickets, self._tickets = self._tickets, {}
        for ticket in tickets:
            ticket.settle(error=make())

    def let_in_again(self) -> None:
        """The model yields no more."""
        self.yielding = False
        for ticket in self._tickets:
            ticket.behind = False

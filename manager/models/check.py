"""The check of one model's server: fed by the ends of its requests, run by the model's worker."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from manager.errors import CLIENT_CLOSED_REQUEST, ApiError
from manager.models.health import TIMED_OUT, ServerHealth, Stage, failure_of
from manager.models.lease import Lease
from manager.models.probe import find_fault
from manager.models.server import ModelDependencies, Server
from manager.relay import Outcome

log = logging.getLogger(__name__)


class HealthCheck:
    """Guarded by the model's lock, which is held wherever nothing else is said.

    ``ready_server`` is the model's server while the model is ready, else None. ``wake`` has the
    model's worker ask for its next step, ``resume`` has queued requests go on, and ``restart``
    has the server stopped and started again, for the reason that it takes; one that others start it
    has taken for failed.
    """

    def __init__(
        self,
        model: str,
        lock: threading.Lock,
        shared: ModelDependencies,
        ready_server: Callable[[], Server | None],
        wake: Callable[[], None],
        resume: Callable[[], None],
        restart: Callable[[str], None],
    ) -> None:
        self._model = model
        self._lock = lock
        self._shared = shared
        self._ready_server = ready_server
        self._wake = wake
        self._resume = resume
        self._restart = restart
        self._health = ServerHealth()
        self._timeout = 0.0

    @property
    def holds_leases(self) -> bool:
        return self._health.holds_leases

    @property
    def note(self) -> str | None:
        """Why a server whose requests fail is not checked now."""
        return self._health.note if self._ready_server() is not None else None

    def ask(self) -> None:
        """Asks for the server's health, though no request has failed."""
        self._wake()
        self._health.ask()

    def reset(self) -> None:
        """The server is another one."""
        self._health.served()

    def record_end(self, lease: Lease, outcome: Outcome | None) -> bool:
        """What the end of a lease says of the server; whether the note is another one now."""
        if outcome is not None and outcome.status < 400 and self._health.is_quiet:
            return False  # as nearly all do
        note, server = self._health.note, lease.server
        if outcome is not None and server is self._ready_server():
            failure = failure_of(outcome)
            is_disconnected = outcome.status == CLIENT_CLOSED_REQUEST
            if failure is not None:
                self._record_failure(failure, lease, outcome)
            elif outcome.status < 400 or (lease.produced and is_disconnected):
                self._end()
        if self.is_due():
            try:
                self._wake()
            except ApiError as error:
                log.error("%s is not checked: %s", self._model, error)
                self._end()  # further failures begin the next
        return self._health.note != note

    def is_due(self) -> bool:
        """Whether ``run`` has something to ask."""
        server = self._ready_server()
        return server is not None and self._health.is_due(server.in_flight)

    def run(self) -> None:
        """Asks the next question, in the worker, whose next step admits what was queued for it.
        Without the lock."""
        with self._lock:
            server, timeout = self._ready_server(), self._timeout
            asked = self._health.begin(server.in_flight) if server is not None else None
        if server is None or asked is None:
            return
        if asked is Stage.HEALTH:
            if self._health.failures:
                log.warning("%s is checked: its requests fail", self._model)
            self._shared.watch.add(
                lambda: server.has_produced() or self._is_over(server),
                lambda: self._bytes_came(server),
            )
        fault = find_fault(asked, server, self._shared, timeout, lambda: self._is_over(server))
        with self._lock:
            if self._ready_server() is not server:
                return  # it is stopped, evicted or has crashed
            now, is_remote = self._shared.clock.monotonic(), server.launched is None
            reason = self._health.answered(asked, fault, now, is_remote=is_remote)
            if reason is not None:
                self._restart(reason)

    def _is_over(self, server: Server) -> bool:
        """Whether there is nothing to find out about it any more. Needs no lock."""
        return self._ready_server() is not server or self._health.stage is Stage.NONE

    def _record_failure(self, failure: str, lease: Lease, outcome: Outcome) -> None:
        if lease.server.has_produced():  # another answer goes on
            self._end()
            lease.server.forget_produced()
        note, now = self._health.note, self._shared.clock.monotonic()
        self._timeout = lease.upstream_timeout
        self._health.failed(failure, now, timed_out=outcome.status == TIMED_OUT)
        if self._health.note and not note:
            log.error("%s: %s", self._model, self._health.note)

    def _end(self) -> None:
        """The server serves: a check of it ends, and what this has queued goes on."""
        held = self._health.holds_leases
        self._health.served()
        if held:
            self._resume()

    def _bytes_came(self, server: Server) -> None:
        """From the watch, without the lock: an answer in flight goes on, or the check has ended."""
        with self._lock:
            if server is self._ready_server() and server.has_produced():
                self._end()

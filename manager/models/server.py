"""One run of a model's server: what it is, how it ends."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manager.clock import Clock
from manager.config import loader
from manager.events import Events
from manager.interfaces import Interface
from manager.models.ports import Ports
from manager.models.run_clock import RunClock
from manager.models.scheme_memory import SchemeMemory
from manager.models.server_process import ServerProcess
from manager.placement import Placement, Reservation
from manager.relay import RemoteUpstream, Upstream, Watcher
from manager.storage import DatabaseError, ModelLogs, Store, runs

if TYPE_CHECKING:
    from manager.models.lease import Lease

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelDependencies:
    """What all models share. ``connections`` is how many are kept to one server."""

    store: Store
    logs: ModelLogs
    events: Events
    watch: Watcher
    ports: Ports
    placement: Placement
    memory: SchemeMemory
    clock: Clock
    connections: int


class StartFailedError(Exception):
    """A start did not lead to a ready model; ``status`` and ``code`` are those of the error table,
    and ``what`` is what the model did not do."""

    status = 503
    what = "did not start"

    def __init__(self, message: str, code: str = "start_failed") -> None:
        super().__init__(message)
        self.code = code


class NotPlacedError(StartFailedError):
    """Nothing was launched, for want of a device or of memory: that is no fault of the model."""


class NotAnsweringError(StartFailedError):
    """A server that others start does not answer."""

    status = 502
    what = "does not answer"

    def __init__(self, message: str) -> None:
        super().__init__(message, "upstream_error")


class LeftoverError(StartFailedError):
    """A start that failed, or a server that was not taken over, and something of it runs on."""


class DeviceLostError(StartFailedError):
    """A device that the model was placed on was lost meanwhile."""


class StartCancelledError(StartFailedError):
    """The start was stopped half-way."""

    def __init__(self) -> None:
        super().__init__("it was stopped while it was starting")


@dataclass(frozen=True)
class Launched:
    """What a server is and holds that was launched here."""

    run: str
    clock: RunClock
    process: ServerProcess
    reservation: Reservation
    port: int


@dataclass(eq=False)
class Server:
    """A model's running server. ``leases`` belong to the model and its lock."""

    launched: Launched | None  # None: others have started it
    settings: loader.Model  # those that it was launched with
    interface: Interface
    scheme: str
    passed_over: Mapping[str, str]  # the schemes before it, and why they were not used
    upstream: Upstream
    started_at: float  # monotonic
    start_seconds: float
    leases: set[Lease] = field(default_factory=set)  # those in flight
    served: bool = False  # whether one has ended
    failed_stops: int = 0
    watch_token: int = field(default=-1)
    asleep_since: float | None = None  # monotonic; of its own sleep mode

    @property
    def in_flight(self) -> int:
        return len(self.leases)

    def cut(self) -> None:
        """Ends the requests in flight where the server's own end does not."""
        if isinstance(self.upstream, RemoteUpstream):
            self.upstream.cut()

    def describe(self) -> str:
        """Where it runs, for the log."""
        if self.launched is None:
            return self.upstream.where
        pid = self.launched.process.pid
        how = "detached" if pid is None else f"pid {pid}"
        return f"{self.upstream.where}, scheme {self.scheme}, {how}"

    def has_produced(self) -> bool:
        """Whether a byte of an answer in flight has come since ``forget_produced``. Needs no lock:
        copying a set is atomic."""
        return any(lease.produced for lease in list(self.leases))

    def forget_produced(self) -> None:
        for lease in self.leases:
            lease.produced = False


def stop_server(server: Server, shared: ModelDependencies, grace: float, reason: str) -> str | None:
    """Ends the server; None once all of it has ended, else why it has not. Until then the run has
    not ended, and its port and its memory are not free."""
    launched = server.launched
    if launched is None:
        return None  # others do; the last request that has a lease on it goes on
    server.upstream.close()
    shared.placement.mark_stopping(launched.reservation, ended=launched.process.has_ended())
    record_memory(server, shared)
    if fault := launched.process.stop(grace):
        return fault
    end_run(shared, launched.run, reason, launched.clock)
    shared.ports.release(launched.port)
    shared.placement.release(launched.reservation)
    return None


def record_memory(server: Server, shared: ModelDependencies) -> None:
    """Remembers how much the server was seen to take until now."""
    if (launched := server.launched) is not None:
        peak_mb = shared.placement.peak_mb(launched.reservation)
        shared.memory.record(server.settings, server.scheme, launched.run, peak_mb)


def end_run(shared: ModelDependencies, run: str, reason: str, clock: RunClock | None) -> None:
    """Records the end, now by the run's clock; without one nobody saw it ending, and it is when
    the run was last seen alive. A run whose end cannot be recorded is found and closed at the next
    start of the program, so that here a fault of the disk must not keep anything alive."""
    first_line = (reason.splitlines() or [""])[0][:500]
    try:
        if clock is None:
            runs.end_unseen(shared.store, run, first_line)
        else:
            runs.end(shared.store, run, clock.now_ms(shared.clock), first_line)
    except DatabaseError as error:
        log.error("the end of run %s was not recorded: %s", run, error)


def record_alive(shared: ModelDependencies, run: str, clock: RunClock) -> None:
    """Records that a run which was found goes on: what the program was off for is billed, however
    soon the program is killed again. Where the disk does not take it, the next heartbeat says as
    much."""
    try:
        runs.heartbeat(shared.store, {run: clock.now_ms(shared.clock)})
    except DatabaseError as error:
        log.error("that run %s is alive was not recorded: %s", run, error)

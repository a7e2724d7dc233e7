"""One model: its lock and its states.

What a call does in each state:

===========  ============================  ==========================  ====================
state        a request                     start                       stop
===========  ============================  ==========================  ====================
stopped      is queued, starts             starts                      nothing
queued       is queued                     nothing                     cancels the start
starting     is queued                     nothing                     cancels the start
ready        a lease, or is queued         nothing                     drains, then stops
sleeping     is queued, wakes              wakes                       stops
stopping     is queued; started again      started again when stopped  nothing
             when stopped
failed       as stopped, unless the        starts, closes the breaker  becomes stopped
             breaker is open
===========  ============================  ==========================  ====================

The queue's order is by priority and arrival, see ``planner.queue_rank``. Only this module changes
a model's state, under the model's lock, and never does I/O while it holds it. One worker thread
at a time, see ``worker``, does what the state asks for, so that two starts can never overlap and
no client that disconnects can break one. A ready server whose requests fail is checked, see
``health``; one that no longer serves is stopped and started again.

A server that can sleep (``sleep``) is put to sleep where it would be stopped for being idle or for
another model, if the machine's memory is enough for that. It keeps its process, and what it still
holds; to wake it, memory is waited for as for a start. One that cannot be woken is stopped and
started again.

A server that others start is never stopped: it is ready, or failed while it does not answer, and
a request tries it all the same. Only a removed model, or one with new settings, leaves it.
"""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakSet

from manager.config import Model as ModelSettings
from manager.config import Program
from manager.errors import ApiError, ClientDisconnected
from manager.interfaces import Interface
from manager.models import facts, views
from manager.models.check import HealthCheck
from manager.models.circuit_breaker import CircuitBreaker
from manager.models.facts import ServerFacts
from manager.models.last_use import LastUse
from manager.models.lease import Lease, RequestQueue, Ticket
from manager.models.remote import RemoteStart
from manager.models.server import (
    LeftoverError,
    ModelDependencies,
    NotAnsweringError,
    NotPlacedError,
    Server,
    StartCancelledError,
    StartFailedError,
)
from manager.models.server_process import ServerProcess
from manager.models.sleep import MAX_SLEEP, Wake, put_to_sleep
from manager.models.startup import Start
from manager.models.worker import Adoption, Step, Worker, bring_down, bring_up
from manager.placement import Action, Decision, Evictability, EvictionStatus, update_mean_gap
from manager.relay import Outcome
from manager.storage import Run

log = logging.getLogger(__name__)

WAVE_REQUESTS = 16  # about as many as are sent on within the pause
WAVE_PAUSE_SECONDS = 0.01
STOP_RETRY_SECONDS = 0.5  # longer each time
MAX_STOP_RETRY_SECONDS = 30.0
MAX_STOPS_AT_EXIT = 3
RETRY_AFTER_SECONDS = 5.0  # for those whose time in the queue has run out


class State(str, enum.Enum):
    """Where a model is in its life."""

    STOPPED = "stopped"
    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    SLEEPING = "sleeping"
    STOPPING = "stopping"
    FAILED = "failed"


class Model:
    """One model of the config. Every public method may be called from any thread."""

    def __init__(
        self,
        settings: ModelSettings,
        program: Program,
        interface: Interface,
        shared: ModelDependencies,
        avoid_ports: Callable[[], set[int]],
    ) -> None:
        self.settings = settings
        self.program = program
        self.starts = 0  # that led to a ready model, since the program began
        self.failed_starts = 0
        self.restarts = 0  # of servers that no longer served
        self.facts = ServerFacts()  # what its server said, the last one where none runs
        self._interface = interface
        self._shared = shared
        self._clock = shared.clock
        self._avoid_ports = avoid_ports
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._announcing = threading.Lock()  # taken before _lock, never after
        self._state = State.STOPPED
        self._queue = RequestQueue(self._lock)
        self._start: Start | None = None
        self._adoption: Adoption | None = None
        self._server: Server | None = None
        self._worker = Worker(settings.name, self._changed, self._next_step, self._announce)
        self._check = HealthCheck(
            settings.name,
            self._lock,
            shared,
            self._ready_server,
            self._worker.wake,
            self._admit_again,
            self._restart_for,
        )
        self._breaker = CircuitBreaker()
        self._last_used: float | None = None
        self._last_use = LastUse()  # of leases alone, by whoever held them
        self._last_error: str | None = None
        self._restart_reason: str | None = None  # of a restart under way
        self._passed_over: Mapping[str, str] = {}  # in the last start
        self._mean_gap: float | None = None
        self._manual = False  # the start under way was asked for by a person
        self._evicting = False
        self._may_sleep = False  # the stop under way may be a sleep
        self._end_reason = ""
        self._crashed = False
        self._knows_server = False  # whether the ready one was asked
        self._start_again = False
        self._capture_until = -math.inf  # monotonic
        self._closed: Callable[[], ApiError] | None = None
        self._predecessors: list[Model] = []
        self._remote_servers: WeakSet[Server] = WeakSet()  # that may have requests in flight

    # --- requests -----------------------------------------------------------------------

    def lease(
        self,
        client_disconnected: Callable[[], bool],
        priority: int = 0,
        hold_thread: Callable[[], None] = lambda: None,
        user: str = "",
    ) -> Lease:
        """A lease on the ready model, at once or after waiting for a start or in the queue.

        ``hold_thread`` is called before that and may raise; ``client_disconnected`` is polled
        meanwhile; a higher ``priority`` waits less; ``user`` is who asks, for ``unload``. Raises
        ApiError (429, 503) and ClientDisconnected.
        """
        wait = self.await_lease(client_disconnected, priority, hold_thread, user)
        return next(lease for lease in wait if lease is not None)

    def await_lease(
        self,
        client_disconnected: Callable[[], bool],
        priority: int = 0,
        hold_thread: Callable[[], None] = lambda: None,
        user: str = "",
        every: float = math.inf,
    ) -> Generator[Lease | None, None, None]:
        """As ``lease``: yields it once it is there, and None each time that it was waited for
        ``every`` seconds. To close it ends the wait."""
        with self._lock:
            self._record_gap()
            lease = self._grant_at_once(user)
        if lease is None:
            hold_thread()
            with self._lock:
                lease = self._grant_at_once(user)  # there is some capacity since
                if lease is None:
                    highest = self._queue.priority
                    moves_up = self._state is State.QUEUED and (
                        highest is None or priority > highest
                    )
                    ticket = self._enqueue(priority, user)
        if lease is not None:
            yield lease
            return
        self._announce()
        if moves_up:
            self._shared.placement.wake()
        token = self._shared.watch.add(client_disconnected, lambda: self._abandon(ticket))
        try:
            for lease in self._waits(ticket, every):
                yield lease
        except GeneratorExit:
            if lease is None:
                self._abandon(ticket)
            raise
        finally:
            self._shared.watch.remove(token)
            with self._lock:
                self._queue.remove(ticket)
            if lease is None and ticket.lease is not None:
                ticket.lease.release()  # it came when nobody waited any more

    def _release(self, lease: Lease, outcome: Outcome | None) -> None:
        """A lease has ended; the next request in the queue gets one."""
        server = lease.server
        with self._lock:
            server.leases.discard(lease)
            is_first, server.served = not server.served, True
            self._record_use(lease.user)
            has_news = self._check.record_end(lease, outcome)
            self._admit(1)
            is_idle = not server.in_flight
            if is_idle:
                self._changed.notify_all()  # a stop may be draining
        if has_news:
            self._announce()
        if is_first and server.launched is not None:
            self._shared.placement.mark_served(server.launched.reservation)
        if is_idle:
            self._shared.placement.wake()

    def _record_gap(self) -> None:
        """A request has come: if the model was not used, that was a gap."""
        is_used = self._queue or (self._server is not None and self._server.in_flight)
        if not is_used and self._last_used is not None:
            gap = self._clock.monotonic() - self._last_used
            self._mean_gap = update_mean_gap(self._mean_gap, gap)

    def _enqueue(self, priority: int, user: str) -> Ticket:
        if self._closed:
            raise self._closed()
        if len(self._queue) >= self.settings.max_waiting:
            raise ApiError(
                429,
                "too_many_waiting",
                f"{len(self._queue)} requests wait for {self.settings.name} already",
                retry_after=1,
            )
        if self._server is not None and self._server.failed_stops:
            raise self._unstopped()
        if self._state in (State.STOPPED, State.FAILED):
            if wait := self._breaker.seconds_until_retry(self._clock.monotonic()):
                raise ApiError(
                    503,
                    "start_failed",
                    f"{self.settings.name} failed to start several times and is not tried again"
                    f" for {wait:.0f} seconds, unless it is started manually. {self._last_error}",
                    retry_after=wait,
                )
            self._begin_start()
        elif self._state is State.SLEEPING:
            self._begin_start()
        return self._queue.enqueue(self._clock.monotonic(), priority, user)

    def _waits(self, ticket: Ticket, every: float) -> Iterator[Lease | None]:
        # A start is bounded by its own time-outs; waiting in the queue by the queue's.
        seconds = self.program.queue_timeout
        if self._state is not State.READY:
            seconds += self.settings.start_timeout + 3 * self.settings.stop_timeout
        deadline = time.monotonic() + seconds
        lease: Lease | None = None
        while lease is None:
            left = deadline - time.monotonic()
            with self._lock:
                lease = self._queue.wait(ticket, min(every, left))
            if lease is None and left <= every:
                message = f"{self.settings.name} had no free slot for {seconds:g} seconds"
                raise ApiError(503, "queue_timeout", message, retry_after=RETRY_AFTER_SECONDS)
            yield lease

    def _abandon(self, ticket: Ticket) -> None:
        abandoned: Start | None = None
        with self._lock:
            if ticket.lease is None:
                self._queue.remove(ticket)
                ticket.resolve(error=ClientDisconnected())
            start = self._start
            waits = start is not None and start.waiting is not None
            if waits and self._state is State.QUEUED and not self._queue and not self._manual:
                abandoned = start
                self._begin_stop("nobody waits for it any more", start_again=False, sleep=True)
        if abandoned is not None:
            self._end_stop(abandoned)

    def _has_capacity(self) -> bool:
        if self._state is not State.READY or self._server is None or self._check.holds_leases:
            return False
        if self._closed or self._evicting or self._queue.is_blocked():
            return False
        limit = self.settings.max_concurrency
        return limit is None or self._server.in_flight < limit

    def _grant_at_once(self, user: str) -> Lease | None:
        return self._grant(user) if not self._queue and self._has_capacity() else None

    def _grant(self, user: str) -> Lease:
        assert self._server is not None
        self._record_use(user)
        lease = Lease(self._server, self.program.upstream_timeout, user, self._release)
        self._server.leases.add(lease)
        return lease

    def _record_use(self, user: str) -> None:
        self._last_used = now = self._clock.monotonic()
        self._last_use.record(user, now)

    def _admit(self, most: int) -> None:
        while most and self._queue and self._has_capacity():
            most -= 1
            ticket = self._queue.pop()
            ticket.resolve(lease=self._grant(ticket.user))

    # --- starting and stopping --------------------------------------------------------------

    def start(self, *, manual: bool = True) -> None:
        """Begins a start where there is none; closes the breaker. One that is not ``manual``
        stops no other model to free memory."""
        with self._lock:
            if self._closed:
                raise self._closed()
            self._breaker.close()
            if self._state is not State.READY:
                self._manual |= manual
            if self._state in (State.STOPPED, State.FAILED, State.SLEEPING):
                self._begin_start()
            elif self._state is State.STOPPING:
                self._start_again = True
        self._announce()

    def stop(self, *, start_again: bool = False) -> None:
        """Begins to stop. Requests in flight have ``stop_timeout`` to finish; those that wait are
        rejected, unless it is to start again. Raises ApiError 409 where others start the server."""
        with self._lock:
            if self._closed:
                raise self._closed()
            if self.is_remote and not start_again:
                message = f"{self.settings.name} is not stopped here: others start its server"
                raise ApiError(409, "not_started_here", message)
            self._breaker.close()
            self._manual = start_again
            self._begin_stop("stopped manually", start_again)
            start = self._start
            message = f"{self.settings.name} was stopped while you waited for it"
            if not start_again:
                self._queue.reject_all(lambda: ApiError(503, "start_failed", message))
        self._end_stop(start)

    def close(self, reason: str, refusal: Callable[[], ApiError]) -> None:
        """Rejects everything from now on and begins to stop; ``join`` waits for the end."""
        with self._lock:
            self._closed = refusal
            self._changed.notify_all()  # a stop may be waiting to be tried again
            self._begin_stop(reason, start_again=False)
            start = self._start
            self._queue.reject_all(refusal)
        if start is not None:
            start.give_up()
        self._end_stop(start)

    def join(self) -> None:
        """Waits until nothing is being started or stopped; that is bounded. What goes on then at a
        server that others start is ended."""
        self._worker.join()
        for server in list(self._remote_servers):
            server.cut()

    def stop_if_idle(self) -> None:
        """Stops the model, or puts it to sleep, if it has been idle for its ``alive_time``; stops
        one that has slept for too long."""
        with self._lock:
            due = self._idle_stop_at()
            if due is None or self._clock.monotonic() < due:
                return
            sleeps = self._state is State.SLEEPING
            reason = "it has slept for too long" if sleeps else "idle"
            self._begin_stop(reason, start_again=False, sleep=not sleeps)
        self._announce()

    def stop_sleeping(self, reason: str) -> None:
        """Stops the model if it sleeps and nobody waits for it."""
        with self._lock:
            if self._state is not State.SLEEPING or self._queue:
                return
            self._begin_stop(reason, start_again=False)
        self._announce()

    def unload(self, user: str) -> bool:
        """Stops the model for ``user``, if it is idle and not pinned and nobody else has used it
        within its ``alive_time``. Returns whether it stops or does not run. Raises ApiError 503
        where the system has no thread."""
        with self._lock:
            if self._state in (State.STOPPED, State.STOPPING, State.FAILED):
                return True
            if self.is_remote or self._evictability() is not Evictability.IDLE or self._queue:
                return False
            used, alive = self._last_use.by_others(user), self.settings.alive_time * 60
            # With an alive_time of 0 it is never idle for long enough.
            if used is not None and (not alive or self._clock.monotonic() - used < alive):
                return False
            self._begin_stop("unloaded by its only user", start_again=False)
        self._announce()
        return True

    def watch_remote(self) -> None:
        """Asks whether a server that others start answers, where no request is about to show it."""
        with self._lock:
            if not self.is_remote or self._closed:
                return
            if self._state in (State.STOPPED, State.FAILED):
                self._begin_start()
            elif (server := self._ready_server()) is not None and not server.in_flight:
                self._check.ask()
        self._announce()

    def configure(self, settings: ModelSettings, program: Program, interface: Interface) -> None:
        """Takes new settings: limits at once, what is launched at the next start."""
        with self._lock:
            self.settings, self.program, self._interface = settings, program, interface
            self._renew_remote()
            self._admit_again()
        self._announce()

    def wait_for_predecessors(self, removed: list[Model]) -> None:
        """Before the next start, waits for the end of models that a reload has removed and
        that have the same name or port."""
        with self._lock:
            self._predecessors += removed

    def adopt(self, run: Run, process: ServerProcess) -> bool:
        """Begins to take over a server that an earlier program left running; False where the
        model has one already. One that is not healthy is stopped."""
        # Its memory is its own from the first moment, whoever is to be started meanwhile.
        memory_mb, basis = self._shared.memory.reserved(self.settings, run.scheme, run.memory_mb)
        reservation = self._shared.placement.reserve_running(self, memory_mb, process.pids, basis)
        with self._lock:
            is_taken = self._state is not State.STOPPED or self.is_remote
            if not is_taken:
                self._adoption = (run, process, reservation)
                self._begin_start()
        if is_taken:
            self._shared.placement.release(reservation)
            return False
        self._announce()
        return True

    def preview(self) -> dict[str, Any]:
        """What ``start`` would do now, which changes nothing."""
        with self._lock:
            state, settings, server = self._state, self.settings, self._server
        decision = None
        if settings.url is not None and state in (State.STOPPED, State.FAILED):
            decision = Decision(settings.name, Action.START)
        elif state is State.SLEEPING and server is not None and server.launched is not None:
            decision = self._shared.placement.preview(self, (), server.launched.reservation)
            decision = replace(decision, scheme=server.scheme)
        elif state not in (State.QUEUED, State.STARTING, State.READY):
            decision = self._shared.placement.preview(self, self._shared.memory.options(settings))
        return views.preview_to_json(settings.name, state.value, decision)

    # --- as placement sees it --------------------------------------------------------------

    @property
    def name(self) -> str:
        return self.settings.name

    def eviction_status(self) -> EvictionStatus:
        """Whether it may be stopped, and what that would cost."""
        with self._lock:
            start_seconds = self._server.start_seconds if self._server else 0.0
            return EvictionStatus(
                self._evictability(),
                self._last_used,
                self._mean_gap,
                start_seconds,
                self._queue.yielding,
            )

    def waiting_priority(self) -> int | None:
        with self._lock:
            highest = self._queue.priority
            return 0 if highest is None and self._manual else highest

    def begin_eviction(self) -> bool:
        with self._lock:
            self._evicting = self._evictability() is Evictability.IDLE
            return self._evicting

    def cancel_eviction(self) -> None:
        with self._lock:
            self._evicting = False
            self._admit_again()

    def evict(self, reason: str) -> None:
        with self._lock:
            start = self._start
            if self._evicting and self._is_asleep():  # those who wait for it get a new server
                self._begin_stop(reason, start_again=bool(self._queue) or self._manual)
            elif self._evicting and self._state is State.READY:
                self._begin_stop(reason, start_again=False, sleep=True)
            self._evicting = False
        self._end_stop(start)

    def set_yielding(self, yielding: bool) -> None:
        with self._lock:
            if yielding:
                self._queue.yielding = True
            else:
                self._queue.stop_yielding()
                self._admit_again()

    def _evictability(self) -> Evictability:
        server = self._server
        if self._state is State.STOPPING or self._evicting:
            return Evictability.STOPPING
        if self.settings.pinned:
            return Evictability.PINNED
        if self._is_asleep():  # also while it waits to be woken: else two of them block each other
            return Evictability.IDLE
        is_quiet = not self._queue or self._queue.is_blocked()
        if self._state is State.READY and server is not None and not server.in_flight and is_quiet:
            return Evictability.IDLE
        return Evictability.BUSY

    def _admit_again(self) -> None:
        if self._queue and self._has_capacity():
            try:
                self._worker.wake()
            except ApiError as error:
                # Without the thread then some at once; each that ends admits the next.
                log.error("%s: %s", self.settings.name, error)
                self._admit(WAVE_REQUESTS)

    def wait_idle(self, timeout: float) -> None:
        """Waits until no start and no stop is under way, or for ``timeout`` seconds."""
        with self._lock:
            self._changed.wait_for(lambda: not self._worker.is_running, timeout)

    def to_json(self) -> dict[str, Any]:
        """As in ``/api/models``."""
        with self._lock:
            return views.model_to_json(
                self.settings,
                self._clock,
                state=self._state.value,
                server=self._server,
                start=self._start,
                passed_over=self._passed_over,
                waiting=len(self._queue),
                last_used=self._last_used,
                idle_stop_at=self._idle_stop_at(),
                last_error=self._check.note or self._last_error,
                capture_until=self._capture_until if self.is_captured else None,
                memory=self._shared.memory.to_json(self.settings),
            )

    def capture(self, seconds: float) -> None:
        """Its requests and answers are to be kept whole for so long from now on."""
        self._capture_until = self._clock.monotonic() + seconds
        self._announce()

    @property
    def is_captured(self) -> bool:
        return self._clock.monotonic() < self._capture_until

    @property
    def interface(self) -> Interface:
        """The mode it has now: that of the running server, else that of the next one."""
        server = self._server
        return server.interface if server is not None else self._interface

    def serves(self, path: str) -> bool:
        """Whether requests at this path are for it."""
        return path in self.interface.endpoints or path in self.settings.endpoints

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The paths that it is served at: those of its mode first."""
        return tuple(dict.fromkeys((*self.interface.endpoints, *self.settings.endpoints)))

    @property
    def context_length(self) -> int | None:
        """In tokens, as the config or its server says."""
        return self.settings.context_length or self.facts.context_length

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What it can do, as the config says, or its endpoints and its server."""
        if self.settings.capabilities:
            return self.settings.capabilities
        interface = self.interface
        named = (interface.endpoint(path).capability for path in self.endpoints)
        return tuple(dict.fromkeys([*filter(None, named), *self.facts.capabilities]))

    @property
    def asleep_since(self) -> float | None:
        """Since when it sleeps, monotonic."""
        server = self._server
        return server.asleep_since if server is not None else None

    @property
    def server(self) -> Server | None:
        """Its server, if one is ready or being stopped."""
        return self._server

    @property
    def is_remote(self) -> bool:
        """Whether others start its server."""
        server = self._server
        return server.launched is None if server is not None else self.settings.url is not None

    @property
    def state(self) -> State:
        return self._state

    @property
    def is_at_work(self) -> bool:
        """Whether a start or a stop is under way."""
        return self._worker.is_running

    @property
    def is_busy(self) -> bool:
        """Whether a start or a stop is under way, or a server runs."""
        return self._worker.is_running or self._server is not None

    def _idle_stop_at(self) -> float | None:
        server = self._server
        if server is None or not self.settings.alive_time:
            return None
        if self._state is State.SLEEPING and server.asleep_since is not None and not self._evicting:
            return server.asleep_since + MAX_SLEEP * self.settings.alive_time * 60
        if self._state is not State.READY:
            return None
        if server.in_flight or self._queue or self._evicting or self._last_used is None:
            return None
        if server.launched is None:
            return None
        return self._last_used + self.settings.alive_time * 60

    # --- states; all of these are called with the lock held -------------------------------

    def _begin_start(self) -> None:
        self._worker.wake()
        asleep = self._server
        is_remote = asleep is None and self.settings.url is not None
        self._state = State.STARTING if is_remote else State.QUEUED  # it needs no memory here
        self._start_again = False
        kind = RemoteStart if is_remote else Start if asleep is None else Wake
        self._start = start = kind(
            self,
            self.settings if asleep is None else asleep.settings,
            self._interface,
            self._shared,
            self._avoid_ports(),
            self._start_changed,
        )
        if isinstance(start, Wake) and asleep is not None:
            start.server = asleep
            self._shared.watch.remove(asleep.watch_token)  # its end is seen by the start now

    def _is_asleep(self) -> bool:
        """Whether its server sleeps, and is not being woken yet."""
        return self.asleep_since is not None and self._state in (State.SLEEPING, State.QUEUED)

    def _ready_server(self) -> Server | None:
        return self._server if self._state is State.READY else None

    def _restart_for(self, reason: str) -> None:
        """Of a server that no longer serves."""
        if self.is_remote:
            self._begin_stop(reason, start_again=False)
            self._crashed = True
            return
        log.error("%s is restarted: %s", self.settings.name, reason)
        self.restarts += 1
        self._begin_stop(reason, start_again=not self._evicting)
        self._last_error = self._restart_reason = reason

    def _renew_remote(self) -> None:
        """A server that others start is used as the settings are now; requests in flight go on."""
        server = self._ready_server()
        if server is not None and server.launched is None and server.settings != self.settings:
            self._begin_stop("its settings have changed", start_again=self.settings.url is not None)

    def _begin_stop(self, reason: str, start_again: bool, *, sleep: bool = False) -> None:
        self._start_again = start_again
        self._may_sleep = sleep and self.settings.sleep
        self._restart_reason = None
        if self._state is State.FAILED:
            self._state = State.STOPPED
        if self._state is State.STOPPED and start_again:
            self._begin_start()
        elif self._state in (State.QUEUED, State.STARTING, State.READY, State.SLEEPING):
            self._worker.wake()
            self._state = State.STOPPING
            self._end_reason = reason
            if self._server is not None:
                self._shared.watch.remove(self._server.watch_token)

    def _end_stop(self, start: Start | None) -> None:
        """Not under the lock: the other half of a stop, which may wake a probe's socket."""
        if start is not None and self._state is State.STOPPING:
            start.cancel()
        self._announce()

    def _server_ended(self, server: Server) -> None:
        """From the watch: the server has ended by itself."""
        with self._lock:
            is_on = self._state in (State.READY, State.SLEEPING)
            if self._server is not server or not is_on:
                return
            self._worker.wake()
            self._state = State.STOPPING
            self._crashed = True
        self._announce()

    def _start_changed(self) -> None:
        """From the start: what it waits for, or whether its process exists now."""
        with self._lock:
            start = self._start
            if start is not None and self._state in (State.QUEUED, State.STARTING):
                # Queued again where a device was lost while its process started.
                self._state = State.QUEUED if start.pid is None else State.STARTING
        self._announce()

    # --- the worker's steps; each takes the lock itself -------------------------------------

    def _next_step(self) -> Step | None:
        """With the lock held."""
        if self._start is not None:
            return self._run_start
        if self._server is not None and self._state is State.STOPPING:
            return self._run_stop
        if self._queue and self._has_capacity():
            return self._admit_waves
        if self._check.is_due():
            return self._check.run
        if self._state is State.READY and not self._knows_server:
            return self._ask_server
        if self._state is State.STOPPING:
            self._state = State.STOPPED
        if self._state in (State.STOPPED, State.FAILED, State.SLEEPING) and not self._closed:
            wanted = self._start_again or (self._queue and self._state is not State.FAILED)
            if wanted:
                self._begin_start()
                return self._run_start
        return None

    def _run_start(self) -> None:
        with self._lock:
            start, adoption = self._start, self._adoption
            predecessors, self._predecessors = self._predecessors, []
        assert start is not None
        for predecessor in predecessors:
            predecessor.join()
        result = bring_up(self.settings.name, start, adoption, self._shared)
        adopted = adoption is not None
        with self._lock:
            self._start, self._adoption = None, None
            self._passed_over = start.passed_over
            # Asked for once more while it was cancelled: that holds for the next start.
            self._manual = self._manual and self._start_again
            if isinstance(result, Server):
                self._started(result, adopted)
            elif self._server is not None:
                self._wake_failed(result, start)
            else:
                self._start_failed(result, start, adopted)

    def _started(self, server: Server, adopted: bool) -> None:
        is_woken = server is self._server
        self._server = server
        self._breaker.close()
        self._check.reset()
        # Why it was restarted is shown as long as it runs.
        self._last_error, self._restart_reason = self._restart_reason, None
        self._crashed, self._knows_server = False, is_woken
        self.starts += not adopted and not self.is_remote and not is_woken
        log.info(
            "%s is %s after %.2f s %s%s",
            self.settings.name,
            "awake" if is_woken else "ready",
            server.start_seconds,
            server.describe(),
            ", adopted" if adopted else "",
        )
        if self._state is State.STOPPING:
            return  # the stop came too late to cancel the start: the next step brings it down
        self._state = State.READY if server.asleep_since is None else State.SLEEPING
        self._last_used = self._clock.monotonic()
        self._watch(server)
        self._renew_remote()
        self._admit(WAVE_REQUESTS)

    def _watch(self, server: Server) -> None:
        if (launched := server.launched) is None:
            self._remote_servers.add(server)
        else:
            server.watch_token = self._shared.watch.add(
                lambda: not launched.process.alive(), lambda: self._server_ended(server)
            )

    def _admit_waves(self) -> None:
        """Those who waited go on in waves: hundreds of threads that wake at one moment contend for
        the GIL, and everybody else waits for it as well."""
        with self._lock:
            self._changed.wait(WAVE_PAUSE_SECONDS)
            self._admit(WAVE_REQUESTS)

    def _ask_server(self) -> None:
        server = self._server
        assert server is not None
        found = facts.learn(
            server, self._shared, self.facts, lambda: self._ready_server() is not server
        )
        with self._lock:
            self._knows_server = True
            self.facts = found

    def _wake_failed(self, failure: StartFailedError, start: Start) -> None:
        name = self.settings.name
        if self._state is State.STOPPING:  # the next step stops it, unless it may sleep on
            if self._may_sleep and start.scheme is None:  # it was not asked to wake
                self._sleep_on()
            return
        log.error("%s was not woken: %s", name, failure)
        self._last_error = str(failure)
        if isinstance(failure, NotPlacedError) and failure.code != "insufficient_memory":
            self._sleep_on()
            self._reject_waiting(failure)
            return
        self._state = State.STOPPING
        self._end_reason = f"it was not woken: {failure}"
        self._may_sleep = False

    def _sleep_on(self) -> None:
        assert self._server is not None
        self._state = State.SLEEPING
        self._watch(self._server)

    def _start_failed(self, failure: StartFailedError, start: Start, adopted: bool) -> None:
        name = self.settings.name
        if (start.cancelled or adopted) and not isinstance(failure, LeftoverError):
            if not isinstance(failure, StartCancelledError):
                log.warning("%s was not taken over: %s", name, failure)
            self._state = State.STOPPED
            return
        self._state = State.FAILED
        self._restart_reason = None
        is_remote = isinstance(failure, NotAnsweringError)
        self.failed_starts += not is_remote
        if not is_remote and not isinstance(failure, NotPlacedError):
            # Either of those can be different a moment later.
            self._breaker.record_failure(self._clock.monotonic())
        if not is_remote or self._last_error != str(failure):  # it is asked again and again
            log.error("%s %s: %s", name, failure.what, failure)
        self._last_error = str(failure)
        self._reject_waiting(failure)

    def _reject_waiting(self, failure: StartFailedError) -> None:
        name = self.settings.name
        retry_after = self._breaker.seconds_until_retry(self._clock.monotonic()) or None
        if failure.code == "queue_timeout":  # those in the way may be idle the next time
            retry_after = RETRY_AFTER_SECONDS
        self._queue.reject_all(
            lambda: ApiError(
                failure.status,
                failure.code,
                f"{name} {failure.what}: {failure}",
                retry_after=retry_after,
            )
        )

    def _run_stop(self) -> None:
        server = self._server
        assert server is not None
        grace, reason = self.settings.stop_timeout, self._end_reason
        if self._crashed and server.launched is not None:
            reason = server.launched.process.describe_end()
        elif server.launched is not None or self._closed:
            with self._lock:
                self._changed.wait_for(lambda: not server.in_flight, grace)
        if self._put_to_sleep(server):
            return
        fault = bring_down(self.settings.name, server, self._shared, grace, reason)
        with self._lock:
            if fault and self._tries_left(server, fault):
                return  # still stopping: the next step tries again
            self._server = None
            self._state = State.FAILED if self._crashed or fault else State.STOPPED
            if fault:
                log.error("%s is left running: %s", self.settings.name, fault)
            elif self._crashed:
                self._last_error = reason
                log.error("%s stopped: %s", self.settings.name, reason)
            else:
                if server.failed_stops:
                    self._last_error = None
                log.info("%s stopped: %s", self.settings.name, reason)
            self._start_again = self._start_again or bool(self._queue)
            self._crashed = False

    def _put_to_sleep(self, server: Server) -> bool:
        """Whether it sleeps now, instead of being stopped."""
        if not self._may_sleep or self._crashed or server.asleep_since is not None:
            return False
        fault = put_to_sleep(server, self._shared, lambda: not self._may_sleep)
        with self._lock:
            if fault is not None:
                log.info("%s is not put to sleep: %s", self.settings.name, fault)
                return False
            server.asleep_since = self._clock.monotonic()
            if not self._may_sleep:  # a stop was asked for meanwhile
                return False
            log.info("%s sleeps: %s", self.settings.name, self._end_reason)
            self._sleep_on()
        return True

    def _tries_left(self, server: Server, fault: str) -> bool:
        """After a stop that left something running: as long as it lives there is no second server
        beside it, unless the program ends, which waits for only a few more tries."""
        server.failed_stops += 1
        self._last_error = f"it could not be stopped: {fault}"
        self._queue.reject_all(self._unstopped)
        if server.failed_stops == 1:
            log.error("%s: %s", self.settings.name, self._last_error)
        if self._closed and server.failed_stops > MAX_STOPS_AT_EXIT:
            return False
        self._changed.wait(min(STOP_RETRY_SECONDS * server.failed_stops, MAX_STOP_RETRY_SECONDS))
        return True

    def _unstopped(self) -> ApiError:
        message = f"{self.settings.name} is not started: {self._last_error}"
        return ApiError(503, "start_failed", message, retry_after=RETRY_AFTER_SECONDS)

    def _announce(self) -> None:
        # One at a time, each with the state as it is then: else an older one could be published
        # last, and a page would show it for ever.
        with self._announcing:
            self._shared.events.publish("model", self.to_json)

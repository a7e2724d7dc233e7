"""The program's `Placement` on a simulated clock, with models that only take time.

- One start a model however many requests; those that wait go on together when it is ready. A
  ready model's requests go on at once, but for those of one that yields to others.
- A model that was stopped while requests waited for it gets in the queue again, at its end.
- An idle model is stopped for another one or after ``ALIVE`` seconds. Readings are perfect: a
  device's used memory is what ready models and those that are being stopped declared.
- With ``learns`` no model declares anything: it has its devices alone until its first request has
  ended, and what it was measured to take counts from then on.

Unlike in the program nobody's wait ends with ``queue_timeout``, so that the longest one shows,
and no request has a priority.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from bench.placement.policies import Policy, Use
from bench.placement.traces import ModelSpec, Trace
from manager.clock import Clock
from manager.config.settings import Program
from manager.devices import Device, Monitor, Snapshot
from manager.events import Events
from manager.placement.matching import matches
from manager.placement.placement import Placement
from manager.placement.planner import Plan, plan, update_mean_gap
from manager.placement.reservation import EvictionStatus
from manager.placement.types import (
    Action,
    Allocation,
    Basis,
    Decision,
    DeviceBudget,
    Evictability,
    SchemeOption,
    StartRequest,
)
from manager.placement.waiter import Waiter

if TYPE_CHECKING:
    from manager.placement.reservation import Reservation

ALIVE = 15 * 60.0  # seconds
STOPPING = 0.5  # seconds
INF = float("inf")
POLL = 1.0  # seconds after which a start that waits decides again, as in the program


class State(enum.Enum):
    STOPPED = 0  # queued, if it has a waiter
    STARTING = 1
    READY = 2
    STOPPING = 3


@dataclass(eq=False)
class Model:
    """A model as the placement sees it, while the clock runs."""

    spec: ModelSpec
    simulation: Simulation
    state: State = State.STOPPED
    waiter: Waiter | None = None
    reservation: Reservation | None = None
    in_flight: int = 0
    # (arrived, takes) of requests: those that go on when it is ready, and those that came while
    # it was yielding.
    waiting: list[tuple[float, float]] = field(default_factory=list)
    behind: list[tuple[float, float]] = field(default_factory=list)
    yielding: bool = False
    evicting: bool = False  # chosen, and about to be stopped
    last_used: float | None = None
    gap: float | None = None
    is_idle_checked: bool = False  # a check whether it is idle is under way
    scheme: SchemeOption | None = None  # that it runs with
    known: set[str] = field(default_factory=set)  # schemes that were measured

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def memory_mb(self) -> dict[str, int]:
        return dict(self.reservation.memory_mb) if self.reservation is not None else {}

    @property
    def options(self) -> tuple[SchemeOption, ...]:
        """Its schemes, as far as they are known."""
        if not self.simulation.learns:
            return self.spec.options
        return tuple(
            replace(option, basis=Basis.MEASURED)
            if option.scheme in self.known
            else replace(option, memory_mb={}, basis=Basis.WHOLE)
            for option in self.spec.options
        )

    @property
    def taken_mb(self) -> dict[str, int]:
        """What it really takes, by device id."""
        if self.reservation is None or self.scheme is None:
            return {}
        takes = self.scheme.memory_mb
        return {
            on: max(mb for name, mb in takes.items() if matches(name, on.rpartition(" #")[0]))
            for on in self.reservation.memory_mb
        }

    def eviction_status(self) -> EvictionStatus:
        if self.spec.pinned:
            evictability = Evictability.PINNED
        elif self.state is State.STOPPING or self.evicting:
            evictability = Evictability.STOPPING
        elif self.state is State.STARTING or self.in_flight:
            evictability = Evictability.BUSY
        else:
            evictability = Evictability.IDLE
        last_used = None if self.in_flight else self.last_used
        return EvictionStatus(
            evictability, last_used, self.gap, self.spec.start_seconds, self.yielding
        )

    def waiting_priority(self) -> int | None:
        return 0

    def begin_eviction(self) -> bool:
        self.evicting = self.eviction_status().evictability is Evictability.IDLE
        return self.evicting

    def cancel_eviction(self) -> None:
        self.evicting = False
        self._admit()

    def evict(self, _reason: str) -> None:
        self.simulation.stop(self)

    def set_yielding(self, yielding: bool) -> None:
        if self.state is State.STOPPING:
            return  # what waits behind it is for its next start
        self.yielding = yielding
        self._admit()

    def _admit(self) -> None:
        if not self.yielding and not self.evicting:
            self.waiting += self.behind
            self.behind = []
            if self.state is State.READY:
                self.simulation.send_waiting(self)


@dataclass
class Outcome:
    """What became of a trace; ``waits`` in seconds, one a request that was served."""

    waits: list[float] = field(default_factory=list)
    refused: int = 0
    cold_starts: int = 0
    evictions: int = 0
    memory_used: float = 0.0  # share of all the devices' memory, over the whole time

    def wait(self, share: float) -> float:
        """The wait that this share of the requests does not exceed."""
        if not self.waits:
            return 0.0
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def record_eviction(self, _model: str) -> None:
        self.evictions += 1

    def record_wait(self, _model: str, _seconds: float, _outcome: str) -> None:
        pass


class Readings:
    """What `Placement` asks of a monitor: perfect readings at any moment."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    @property
    def snapshot(self) -> Snapshot:
        used = dict.fromkeys((device.id for device in self._simulation.trace.devices), 0)
        for model in self._simulation.models.values():
            if model.state is not State.STARTING:
                for device, mb in model.taken_mb.items():
                    used[device] += mb
        readings = (
            replace(device, used_mb=used[device.id]) for device in self._simulation.trace.devices
        )
        return Snapshot(tuple(Device(reading, INF, False) for reading in readings))

    def wait_for_reading(self, _since: float, _timeout: float) -> Snapshot:
        return self.snapshot

    def add_listener(self, callback: Callable[[Snapshot], None]) -> None:
        pass  # nothing is to be measured

    def refresh(self) -> None:
        pass


class Simulation:
    """Plays one trace. ``decide`` stands in for ``plan`` where somebody wants to look on."""

    def __init__(
        self,
        trace: Trace,
        policy: Policy,
        decide: Callable[..., list[Decision]] = plan,
        *,
        learns: bool = False,
    ):
        self.outcome = Outcome()
        self.learns = learns
        self.trace = trace
        self.models = {spec.name: Model(spec, self) for spec in trace.models}
        self._policy = policy
        self._decide_with = decide
        self._now = 0.0
        self._placement = Placement(
            cast(Monitor, Readings(self)),
            Clock(lambda: self._now, lambda: self._now),
            Events(),
            self.outcome,
            Program(),
            cast(Plan, self._plan),
        )
        self._events: list[tuple[float, int, Callable[[Model], None], Model]] = []
        self._number = itertools.count()
        self._next_poll = INF
        self._total_mb = sum(device.total_mb or 0 for device in trace.devices)
        self._held_mb = 0
        self._held_since = 0.0
        self._held_mb_seconds = 0.0

    def run(self, requests: int | None = None) -> Outcome:
        """Plays the trace, again and again until there were that many requests."""
        for at, model, seconds in self._arrivals(requests):
            self._let_happen(until=at)
            self._now = at
            self._arrived(model, seconds)
            self._decide()
        self._let_happen(until=INF)
        self._count_memory(0)
        if self._now and self._total_mb:
            self.outcome.memory_used = self._held_mb_seconds / self._now / self._total_mb
        return self.outcome

    def _let_happen(self, until: float) -> None:
        events = self._events
        while True:
            next_event = events[0][0] if events else INF
            at = min(next_event, self._next_poll)
            if at > until or at == INF:
                return
            if self._next_poll <= next_event:
                self._now = self._next_poll
                self._placement.wake()
            else:
                self._now, _, happen, model = heapq.heappop(events)
                happen(model)
            self._decide()

    def _arrivals(self, requests: int | None) -> Iterator[tuple[float, Model, float]]:
        rounds = self.trace.requests
        if not rounds:
            return
        played = [(at, self.models[name], seconds) for at, name, seconds in rounds]
        length = rounds[-1][0] + rounds[-1][0] / len(rounds)
        left = len(rounds) if requests is None else requests
        for number in itertools.count():
            for at, model, seconds in played[:left]:
                yield at + number * length, model, seconds
            left -= len(played)
            if left <= 0:
                return

    def _after(self, seconds: float, happen: Callable[[Model], None], model: Model) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._number), happen, model))

    # --- what happens ---------------------------------------------------------------------

    def _arrived(self, model: Model, seconds: float) -> None:
        is_used = model.in_flight or model.waiting or model.behind
        if not is_used and model.last_used is not None:
            model.gap = update_mean_gap(model.gap, self._now - model.last_used)
        if model.state is State.READY and not model.yielding:
            self._send(model, self._now, seconds)
        elif model.yielding:
            model.behind.append((self._now, seconds))
        else:
            model.waiting.append((self._now, seconds))
            if model.state is State.STOPPED and model.waiter is None:
                self._enqueue(model)

    def _enqueue(self, model: Model) -> None:
        model.waiter = self._placement.enqueue(model, model.options)

    def _send(self, model: Model, arrived: float, seconds: float) -> None:
        model.in_flight += 1
        self.outcome.waits.append(self._now - arrived)
        self._after(seconds, self._finished, model)

    def send_waiting(self, model: Model) -> None:
        waiting, model.waiting = model.waiting, []
        for arrived, seconds in waiting:
            self._send(model, arrived, seconds)

    def _finished(self, model: Model) -> None:
        model.in_flight -= 1
        self._measure(model)
        if not model.in_flight:
            model.last_used = self._now
            self._placement.wake()
            if not model.is_idle_checked:
                self._check_idle_in(model, ALIVE)

    def _measure(self, model: Model) -> None:
        """A request has ended: what it takes is known."""
        scheme, reservation = model.scheme, model.reservation
        if not self.learns or scheme is None or reservation is None or scheme.scheme in model.known:
            return
        model.known.add(scheme.scheme)
        taken = model.taken_mb
        self._count_memory(sum(taken.values()) - sum(reservation.memory_mb.values()))
        reservation.memory_mb = taken
        self._placement.wake()

    def _check_idle_in(self, model: Model, seconds: float) -> None:
        model.is_idle_checked = True
        self._after(seconds, self._check_idle, model)

    def _check_idle(self, model: Model) -> None:
        model.is_idle_checked = False
        if model.state is not State.READY or model.in_flight or model.last_used is None:
            return
        left = model.last_used + ALIVE - self._now
        if left > 0.001:  # a remainder of rounding is none
            self._check_idle_in(model, left)
        else:
            self.stop(model)

    def _started(self, model: Model) -> None:
        assert model.reservation is not None
        model.state = State.READY
        self._placement.mark_ready(model.reservation)
        self.send_waiting(model)

    def stop(self, model: Model) -> None:
        assert model.reservation is not None
        model.state = State.STOPPING
        self._placement.mark_stopping(model.reservation, ended=False)
        self._after(STOPPING, self._stopped, model)

    def _stopped(self, model: Model) -> None:
        reservation = model.reservation
        assert reservation is not None
        self._count_memory(-sum(reservation.memory_mb.values()))
        model.state, model.reservation = State.STOPPED, None
        model.yielding = model.evicting = False
        reservation.used_when_stopping = {}  # its memory is free: nothing is to be waited for
        self._placement.release(reservation)
        model.waiting += model.behind
        model.behind = []
        if model.waiting:
            self._enqueue(model)

    # --- what is decided ------------------------------------------------------------------

    def _decide(self) -> None:
        """Has the placement decide, and does what is said, until nothing changes any more."""
        while True:
            queued = [model for model in self.models.values() if model.waiter is not None]
            if not queued:
                self._next_poll = INF
                return
            self._placement.decide()
            carried_out = [self._carry_out(model) for model in queued]
            if not any(carried_out):
                if not self._now < self._next_poll < INF:
                    self._next_poll = self._now + POLL
                return

    def _carry_out(self, model: Model) -> bool:
        """Whether the model waits no more."""
        waiter = model.waiter
        assert waiter is not None
        if waiter.assignment is not None:
            model.state, model.reservation, model.waiter = State.STARTING, waiter.reservation, None
            chosen = waiter.assignment.scheme
            model.scheme = next(one for one in model.spec.options if one.scheme == chosen)
            self.outcome.cold_starts += 1
            self._count_memory(sum(waiter.assignment.memory_mb.values()))
            self._after(model.spec.start_seconds, self._started, model)
        elif waiter.decision is not None and waiter.decision.action is Action.REJECT:
            self.outcome.refused += len(model.waiting)
            model.waiting, model.waiter = [], None
        else:
            return False
        self._placement.dequeue(waiter, placed=waiter.assignment is not None)
        return True

    def _plan(
        self,
        queue: Sequence[StartRequest],
        budgets: Sequence[DeviceBudget],
        allocations: Sequence[Allocation],
    ) -> list[Decision]:
        cost = self._policy.cost
        if cost is not None:
            allocations = [
                replace(allocation, cost=cost(self._use(self.models[allocation.model])))
                for allocation in allocations
            ]
        return self._decide_with(queue, budgets, allocations, self._policy.victims)

    def _use(self, model: Model) -> Use:
        busy = model.last_used is None or model.in_flight
        idle = 0.0 if busy else self._now - (model.last_used or 0.0)
        return Use(idle, sum(model.memory_mb.values()))

    def _count_memory(self, change: int) -> None:
        self._held_mb_seconds += self._held_mb * (self._now - self._held_since)
        self._held_since = self._now
        self._held_mb += change

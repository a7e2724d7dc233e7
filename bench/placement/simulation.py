"""The live program's rules on a simulated clock.

- One start a model however many requests; those that wait go on together when it is ready. A
  ready model's requests go on at once.
- Starts stand in one line, first come first served; ``manager.planner.plan`` decides for all
  of it whenever a model is wanted, ready, idle or gone.
- A start that has waited ``PATIENCE`` seconds for busy models makes these yield: their new
  requests wait until the start has its place. One that has drained may then be stopped; if
  requests wait behind it, it is wanted again, at the end of the line.
- An idle model is stopped for another one or after ``ALIVE`` seconds. Readings are perfect: a
  card's used memory is what ready models and those that are being stopped declared.

Unlike the program it has no ``queue_timeout``, so that the longest wait shows, and no priorities.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from bench.placement.policies import Policy, Use
from bench.placement.trace import ModelSpec, Trace
from manager.placement.planner import plan, update_mean_gap, yield_at
from manager.placement.types import (
    Action,
    Allocation,
    Decision,
    DeviceBudget,
    Evictability,
    StartRequest,
)
from manager.placement.victims import VictimChooser

ALIVE = 15 * 60.0  # seconds
STOPPING = 0.5  # seconds

Planner = Callable[
    [Sequence[StartRequest], Sequence[DeviceBudget], Sequence[Allocation], VictimChooser],
    list[Decision],
]


class State(enum.Enum):
    STOPPED = 0  # queued, if it is in the line
    STARTING = 1
    READY = 2
    STOPPING = 3


@dataclass(eq=False, slots=True)
class Model:
    """One model while the clock runs."""

    spec: ModelSpec
    wanted: StartRequest
    state: State = State.STOPPED
    memory_mb: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    # (arrived, takes) of requests: those that go on when it is ready, and those that came when
    # it was yielding.
    waiting: list[tuple[float, float]] = field(default_factory=list)
    behind: list[tuple[float, float]] = field(default_factory=list)
    yielding: bool = False
    last_used: float | None = None
    gap: float | None = None
    ready_at: float = float("inf")
    in_line_since: float = 0.0
    asks_at: float = 0.0  # others to yield
    asked: set[Model] = field(default_factory=set)  # to yield to it, while it is in the line
    watched: bool = False  # an UNUSED event is on its way


@dataclass
class Outcome:
    """What became of a trace; ``waits`` in seconds, one a request that was served."""

    waits: list[float] = field(default_factory=list)
    refused: int = 0
    cold_starts: int = 0
    evictions: int = 0
    memory_used: float = 0.0  # share of all the cards' memory, over the whole time

    def wait(self, share: float) -> float:
        """The wait that this share of the requests does not exceed."""
        if not self.waits:
            return 0.0
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Simulation:
    """Plays one trace. ``planner`` stands in for ``plan`` where somebody wants to look on."""

    def __init__(self, trace: Trace, policy: Policy, planner: Planner = plan) -> None:
        self.outcome = Outcome()
        self.models = {
            spec.name: Model(spec, StartRequest(spec.name, spec.options)) for spec in trace.models
        }
        self.line: list[Model] = []
        self._trace = trace
        self._policy = policy
        self._planner = planner
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[Model], None], Model]] = []
        self._number = itertools.count()
        self._changed = False
        self._some_yield = False
        self._total_mb = sum(card.total_mb or 0 for card in trace.cards)
        self._held_mb = 0
        self._held_since = 0.0
        self._held_mb_seconds = 0.0

    def run(self, requests: int | None = None) -> Outcome:
        """Plays the trace, again and again until there were that many requests."""
        for at, model, seconds in self._arrivals(requests):
            self._let_happen(until=at)
            self._now = at
            self._arrived(model, seconds)
            if self._changed:
                self._decide()
        self._let_happen(until=float("inf"))
        self._count_memory(0)
        if self._now and self._total_mb:
            self.outcome.memory_used = self._held_mb_seconds / self._now / self._total_mb
        return self.outcome

    def _let_happen(self, until: float) -> None:
        events = self._events
        while events and events[0][0] <= until:
            self._now, _, happen, model = heapq.heappop(events)
            happen(model)
            if self._changed:
                self._decide()

    def _arrivals(self, requests: int | None) -> Iterator[tuple[float, Model, float]]:
        rounds = self._trace.requests
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
        self._at(self._now + seconds, happen, model)

    def _at(self, moment: float, happen: Callable[[Model], None], model: Model) -> None:
        heapq.heappush(self._events, (moment, next(self._number), happen, model))

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
            if model.state is State.STOPPED and len(model.waiting) == 1:
                self._want(model)

    def _want(self, model: Model) -> None:
        model.in_line_since = self._now
        self.line.append(model)
        self._changed = True

    def _send(self, model: Model, arrived: float, seconds: float) -> None:
        model.in_flight += 1
        self.outcome.waits.append(self._now - arrived)
        self._after(seconds, self._finished, model)

    def _send_waiting(self, model: Model) -> None:
        waiting, model.waiting = model.waiting, []
        for arrived, seconds in waiting:
            self._send(model, arrived, seconds)

    def _finished(self, model: Model) -> None:
        model.in_flight -= 1
        if not model.in_flight:
            self._is_idle(model)

    def _is_idle(self, model: Model) -> None:
        model.last_used = self._now
        self._changed = bool(self.line)
        if not model.watched:
            self._watch(model, ALIVE)

    def _unused(self, model: Model) -> None:
        model.watched = False
        if model.state is not State.READY or model.in_flight:
            return
        left = model.last_used + ALIVE - self._now
        if left > 0.001:  # a remainder of rounding is none
            self._watch(model, left)
        else:
            self._stop(model)

    def _watch(self, model: Model, seconds: float) -> None:
        model.watched = True
        self._after(seconds, self._unused, model)

    def _started(self, model: Model) -> None:
        model.state = State.READY
        model.ready_at = self._now
        self._changed = bool(self.line)
        self._send_waiting(model)

    def _stop(self, model: Model) -> None:
        model.state = State.STOPPING
        self._after(STOPPING, self._gone, model)

    def _gone(self, model: Model) -> None:
        model.state = State.STOPPED
        model.yielding = False
        for other in self.line:
            other.asked.discard(model)
        self._count_memory(-sum(model.memory_mb.values()))
        model.memory_mb = {}
        self._changed = bool(self.line)
        model.waiting += model.behind
        model.behind = []
        if model.waiting:
            self._want(model)

    def _patient(self, _: Model) -> None:
        self._changed = bool(self.line)

    # --- what is decided ------------------------------------------------------------------

    def _decide(self) -> None:
        """Asks once and does what is said, for the whole line."""
        self._changed = False
        decisions = self._planner(
            [model.wanted for model in self.line],
            self._cards(),
            [self._holding(model) for model in self.models.values() if model.memory_mb],
            self._policy.victims,
        )
        line, self.line = self.line, []
        for model, decision in zip(line, decisions, strict=True):
            if decision.action is Action.START:
                self._start(model, decision)
            elif decision.action is Action.REJECT:
                self._refuse(model)
            else:
                self.line.append(model)
                if decision.action is Action.EVICT:
                    self._evict(model, decision)
                elif decision.action is Action.QUEUE and not decision.behind_queue:
                    self._ask_to_yield(model, [self.models[name] for name in decision.models])
        self._let_yield()

    def _start(self, model: Model, decision: Decision) -> None:
        model.state = State.STARTING
        model.ready_at = float("inf")
        model.memory_mb = dict(decision.memory_mb)
        self._leave_line(model)
        self.outcome.cold_starts += 1
        self._count_memory(sum(model.memory_mb.values()))
        self._after(model.spec.start_seconds, self._started, model)

    def _refuse(self, model: Model) -> None:
        self.outcome.refused += len(model.waiting)
        model.waiting = []
        self._leave_line(model)

    def _leave_line(self, model: Model) -> None:
        model.asked.clear()
        if model.wanted.planned is not None:
            model.wanted = replace(model.wanted, planned=None)

    def _evict(self, model: Model, decision: Decision) -> None:
        model.wanted = replace(model.wanted, planned=decision)
        for name in decision.models:
            self.outcome.evictions += 1
            self._stop(self.models[name])

    def _ask_to_yield(self, model: Model, others: Sequence[Model]) -> None:
        at = yield_at(model.in_line_since, [other.ready_at for other in others])
        if at <= self._now:
            model.asked.update(others)
        elif at not in (model.asks_at, float("inf")):
            model.asks_at = at
            self._at(at, self._patient, model)

    def _let_yield(self) -> None:
        if not any(model.asked for model in self.line) and not self._some_yield:
            return
        asked = set().union(*(model.asked for model in self.line))
        self._some_yield = bool(asked)
        for model in self.models.values():
            if model.state is State.STOPPING:
                continue  # what waits behind it is for its next start
            model.yielding = model in asked
            if model.behind and not model.yielding:
                model.waiting += model.behind
                model.behind = []
                if model.state is State.READY:
                    self._send_waiting(model)

    # --- what is seen ---------------------------------------------------------------------

    def _cards(self) -> list[DeviceBudget]:
        used = dict.fromkeys((card.id for card in self._trace.cards), 0)
        for model in self.models.values():
            if model.state is not State.STARTING:
                for card, mb in model.memory_mb.items():
                    used[card] += mb
        return [
            DeviceBudget(card.id, card.name, card.total_mb, used[card.id])
            for card in self._trace.cards
        ]

    def _holding(self, model: Model) -> Allocation:
        mb = sum(model.memory_mb.values())
        last_used = self._now if model.last_used is None or model.in_flight else model.last_used
        use = Use(self._now - last_used, model.gap, model.spec.start_seconds, mb)
        return Allocation(
            model.spec.name,
            model.memory_mb,
            _standing(model),
            settled=model.state is not State.STARTING,
            cost=self._policy.cost(use),
            yielding=model.yielding,
        )

    def _count_memory(self, change: int) -> None:
        self._held_mb_seconds += self._held_mb * (self._now - self._held_since)
        self._held_since = self._now
        self._held_mb += change


def _standing(model: Model) -> Evictability:
    if model.state is State.STOPPING:
        return Evictability.STOPPING
    if model.spec.pinned:
        return Evictability.PINNED
    if model.state is State.STARTING or model.in_flight:
        return Evictability.BUSY
    return Evictability.IDLE

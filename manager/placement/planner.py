"""Pure decisions: which scheme, on which cards, is there room, whom to stop, who waits.

No clock, no I/O, no locks. Memory is in MB, and linear: on each card

    free = total - others - sum of what the models hold there

where a model holds ``max(declared, measured)`` and ``others`` is what is used by nobody of ours:
the measured use less what our models account for. A model that the reading does not show yet
accounts for nothing, so that memory which is promised is never counted as free.
"""

from __future__ import annotations

import enum
import math
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from manager.placement.matching import assignments, missing_devices

YIELD_AFTER_SECONDS = (
    10.0  # seconds that a model waits for busy ones before these are asked to yield
)
PRIORITY_STEP_SECONDS = 10.0  # seconds of waiting that each step of priority counts as

_MAX_DEVICES = 10  # with more there may be more assignments than are looked at
_MAX_STEPS = 20_000  # of one search for whom to stop: some ten milliseconds

Megabytes = Mapping[str, int]  # by the card's id


class Evictability(enum.Enum):
    """What may be done with a model that holds memory."""

    IDLE = "idle"  # may be stopped
    BUSY = "busy"  # has requests, or is starting
    PINNED = "pinned"  # never stopped for another
    STOPPING = "going"  # is being stopped; its memory comes back


@dataclass(frozen=True)
class DeviceBudget:
    """A device that is online. ``total_mb`` is None where nobody knows it: then it is without
    limit. ``used_mb`` is 0 where nothing measures it."""

    id: str
    name: str
    total_mb: int | None
    used_mb: int = 0


@dataclass(frozen=True)
class Allocation:
    """What one model holds. ``settled``: the cards' readings show all of it. ``cost``: of
    stopping it, see ``stop_cost``. ``yielding``: it takes no new requests, to make room."""

    model: str
    declared_mb: Megabytes
    evictability: Evictability
    measured_mb: Megabytes = field(default_factory=dict)
    settled: bool = True
    cost: float = 1.0
    yielding: bool = False

    def held_mb(self, card: str) -> int:
        declared = self.declared_mb.get(card, 0)
        return max(declared, self.measured_mb.get(card, 0)) if self.measured_mb else declared

    def devices(self) -> Collection[str]:
        if not self.measured_mb:
            return self.declared_mb.keys()
        return self.declared_mb.keys() | self.measured_mb.keys()


@dataclass(frozen=True)
class SchemeOption:
    """A scheme as it is placed. ``obstacle`` is what speaks against it whatever the cards do."""

    scheme: str
    required_devices: tuple[str, ...] = ()
    memory_mb: Megabytes = field(default_factory=dict)  # by name, as in required_devices
    unusable_reason: str | None = None


@dataclass(frozen=True)
class StartRequest:
    """A model that is to be started. ``may_evict`` is False where nobody waits for it: then it
    takes only what is free. ``intended`` is a decision for which models were stopped: what they
    held is waited for, lest others are stopped as well when these come to be idle."""

    model: str
    options: tuple[SchemeOption, ...]
    may_evict: bool = True
    planned: Decision | None = None


class Action(enum.IntEnum):
    """What happens with a model that is to be started; the lesser the better."""

    START = 0  # there is room
    EVICT = 1  # there is, once the named idle models are stopped
    AWAIT_MEMORY = 2  # there is, once memory comes back or a start is through
    QUEUE = 3  # the named models are busy, or were here before
    REJECT = 4


@dataclass(frozen=True)
class Decision:
    """What happens with one model. ``memory_mb`` is by card; ``models`` whom it stops (EVICT) or
    waits for (SOON, WAIT); ``passed_over`` scheme → why not; ``code`` that of a refusal."""

    model: str
    action: Action
    scheme: str | None = None
    memory_mb: Megabytes = field(default_factory=dict)
    models: tuple[str, ...] = ()
    reason: str = ""
    passed_over: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    behind_queue: bool = False  # it waits for those before it, not for those in its way


Lacking = Mapping[str, int]
# Whom to stop so that every lacking card has enough; None where it is not to be had.
VictimChooser = Callable[[Lacking, Sequence[Allocation]], "tuple[Allocation, ...] | None"]


def stop_cost(idle: float, usual_gap: float | None, start: float) -> float:
    """What stopping a model is likely to cost: ``(start + 10) / sqrt(idle * usual_gap)``, all in
    seconds.

    ``start`` is how long it takes to start; ten seconds more stand for what every stop costs,
    whatever is stopped: one more model that has to come back through the line. It is needed
    again the sooner, the shorter it has been idle and the shorter it usually is
    (``usual_gap``); neither tells alone, so the middle of both counts, which is the geometric
    mean of two times that may be far apart.
    """
    idle = max(idle, 0.1)
    gap = idle if usual_gap is None else max(usual_gap, 0.1)
    return (start + 10.0) / math.sqrt(idle * gap)


def update_mean_gap(before: float | None, gap: float) -> float:
    """The mean of the gaps between a model's uses, where each new one counts for a tenth.

    To be called with each request that comes while the model has none under way or waiting, with
    the ``gap`` in seconds since the end of its last one, be it running or not; ``before`` is the
    mean up to now.
    """
    return gap if before is None else before + 0.1 * (gap - before)


def yield_at(in_line_since: float, ready_at: Sequence[float]) -> float:
    """When the models in a start's way are asked to yield; ``ready_at`` is when each of them was
    ready, infinity for one that is starting.

    They have ``PATIENCE`` seconds from then as well: one that had to yield as soon as it is
    ready would have been started for the few that waited for it.
    """
    return max(in_line_since, *ready_at) + YIELD_AFTER_SECONDS


# --- room ---------------------------------------------------------------------------------


class _Machine:
    """The cards with who holds what on them, while a queue is gone through."""

    def __init__(self, cards: Sequence[DeviceBudget], holdings: Sequence[Allocation]) -> None:
        self.cards = {card.id: card for card in cards}
        self.holdings = list(holdings)
        # MB by card. Kept as sums: they are asked for much more often than they change.
        self._held = dict.fromkeys(self.cards, 0)
        self._stopping = dict.fromkeys(self.cards, 0)
        self._pinned = dict.fromkeys(self.cards, 0)
        known = dict.fromkeys(self.cards, 0)
        # If a start under way has taken already all that it will take.
        assumed = dict.fromkeys(self.cards, 0)
        for holding in holdings:
            self._count(holding)
            for card in holding.devices():
                if card in known:
                    known[card] += _shown(holding, card, unsettled=False)
                    assumed[card] += _shown(holding, card, unsettled=True)
        self.others = {card.id: max(0, card.used_mb - known[card.id]) for card in cards}
        self.least_others = {card.id: max(0, card.used_mb - assumed[card.id]) for card in cards}

    def allocate(self, come: Allocation) -> None:
        self.holdings.append(come)
        self._count(come)

    def mark_stopping(self, models: Collection[str]) -> None:
        for at, holding in enumerate(self.holdings):
            if holding.model in models:
                self.holdings[at] = replace(holding, evictability=Evictability.STOPPING)
                for card in holding.devices():
                    if card in self._stopping:  # others are not online
                        self._stopping[card] += holding.held_mb(card)

    def shortage(self, need: Megabytes, *, soon: bool) -> dict[str, int]:
        """Card → MB that are missing there; ``soon``: when what is on its way has arrived."""
        lacking = {}
        for card, mb in need.items():
            free = self.free(card, soon=soon)
            if mb and free is not None and free < mb:
                lacking[card] = mb - free
        return lacking

    def free(self, card: str, *, soon: bool) -> int | None:
        total = self.cards[card].total_mb
        if total is None:
            return None
        if soon:
            return total - self.least_others[card] - self._held[card] + self._stopping[card]
        return total - self.others[card] - self._held[card]

    def surely_free(self, card: str) -> int | None:
        """When what is being stopped is gone, however much starts under way have taken yet."""
        now = self.free(card, soon=False)
        return None if now is None else now + self._stopping[card]

    def emptiest_first(self) -> list[DeviceBudget]:
        """In the driver's order where every assignment is looked at; of more cards, those are
        looked at first where it is likely to fit."""
        cards = list(self.cards.values())
        if len(cards) > _MAX_DEVICES:
            free = {card.id: self.free(card.id, soon=True) for card in cards}
            room = {card: math.inf if mb is None else mb for card, mb in free.items()}
            cards.sort(key=lambda card: (-room[card.id], self._pinned[card.id]))
        return cards

    def can_ever_hold(self, need: Megabytes) -> bool:
        """Whether there is room once all models are gone that may be stopped one day."""
        for card, mb in need.items():
            total = self.cards[card].total_mb
            if total is not None and mb:
                for_ever = self.least_others[card] + self._pinned[card]
                if mb > total - for_ever:
                    return False
        return True

    def _count(self, holding: Allocation) -> None:
        for card in holding.devices():
            if card in self.cards:
                held = holding.held_mb(card)
                self._held[card] += held
                if holding.evictability is Evictability.STOPPING:
                    self._stopping[card] += held
                elif holding.evictability is Evictability.PINNED:
                    self._pinned[card] += held


class _AfterQueue:
    """What is free on each card once all those before in the line have what they wait for."""

    def __init__(self, machine: _Machine) -> None:
        self._machine = machine
        self._free = {card: machine.surely_free(card) for card in machine.cards}
        self._released: set[str] = set()

    def fits(self, need: Megabytes) -> bool:
        for card, mb in need.items():
            free = self._free[card]
            if mb and free is not None and free < mb:
                return False
        return True

    def reserve(self, need: Megabytes, gone: Collection[str]) -> None:
        """One has its place when these models have gone."""
        for card, mb in need.items():
            self._add(card, -mb)
        if gone:
            for holding in self._machine.holdings:
                if holding.model in gone and holding.model not in self._released:
                    self._released.add(holding.model)
                    for card in holding.devices():
                        self._add(card, holding.held_mb(card))

    def _add(self, card: str, mb: int) -> None:
        free = self._free.get(card)
        if free is not None:
            self._free[card] = free + mb


def _shown(holding: Allocation, card: str, *, unsettled: bool) -> int:
    """How much of the card's measured use is the model's."""
    measured = holding.measured_mb.get(card)
    if measured is not None:
        return measured
    return holding.declared_mb.get(card, 0) if holding.settled or unsettled else 0


def free_mb(card: str, cards: Sequence[DeviceBudget], holdings: Sequence[Allocation]) -> int | None:
    """What is left of a card for a model that is to be started; None if it has no limit."""
    return _Machine(cards, holdings).free(card, soon=False)


def _place(need: Megabytes, machine: _Machine, victims: VictimChooser) -> Decision:
    """One assignment, with nobody before it in the line."""
    refused = _rejection(need, machine)
    if refused is not None:
        return refused
    if not machine.shortage(need, soon=False):
        return Decision("", Action.START, memory_mb=need)
    lacking = machine.shortage(need, soon=True)
    if not lacking:
        return _await_memory(need, machine)
    idle = [holding for holding in machine.holdings if holding.evictability is Evictability.IDLE]
    chosen = victims(lacking, idle)
    if chosen is not None:
        if not _is_surely_enough(chosen, need, machine):
            return _await_memory(need, machine)
        action = Action.EVICT
    else:
        action = Action.QUEUE
        busy = [
            holding for holding in machine.holdings if holding.evictability is Evictability.BUSY
        ]
        dear = 1.0 + sum(holding.cost for holding in idle)
        chosen = choose_victims(
            lacking,
            [*idle, *busy],
            # As few busy ones as possible, and rather those that yield already.
            lambda holding: holding.cost + (dear if _is_in_use(holding) else 0.0),
        )
    return Decision(
        "",
        action,
        memory_mb=need,
        models=tuple(holding.model for holding in chosen or ()),
        reason=_shortage(need, lacking, machine),
    )


def _rejection(need: Megabytes, machine: _Machine) -> Decision | None:
    """None where there is room, be it one day."""
    for card, mb in need.items():
        total = machine.cards[card].total_mb
        if total is not None and mb > total:
            reason = f"it needs {mb} MB on {card}, which has {total} MB in all"
            return Decision("", Action.REJECT, memory_mb=need, reason=reason)
    if machine.can_ever_hold(need):
        return None
    reason = _shortage(need, machine.shortage(need, soon=True), machine)
    reason += "; stopping the models that may be stopped is not enough"
    return Decision("", Action.REJECT, memory_mb=need, reason=reason)


def _await_memory(need: Megabytes, machine: _Machine) -> Decision:
    cards = machine.shortage(need, soon=False)
    moving = [
        holding.model
        for holding in machine.holdings
        if _is_moving(holding) and any(holding.held_mb(card) for card in cards)
    ]
    reason = f"memory on {_listed(cards)} is on its way back"
    return Decision("", Action.AWAIT_MEMORY, memory_mb=need, models=tuple(moving), reason=reason)


def _is_surely_enough(chosen: Sequence[Allocation], need: Megabytes, machine: _Machine) -> bool:
    """Whether there is room once these are gone, also where a start under way has taken nothing
    yet and what is used is others'. Else nobody is stopped until that is known: the model could
    not go before anyway."""
    for card, mb in need.items():
        free = machine.surely_free(card)
        if mb and free is not None and free + sum(one.held_mb(card) for one in chosen) < mb:
            return False
    return True


def _is_in_use(holding: Allocation) -> bool:
    return holding.evictability is Evictability.BUSY and not holding.yielding


def _is_moving(holding: Allocation) -> bool:
    return holding.evictability is Evictability.STOPPING or not holding.settled


def _shortage(need: Megabytes, lacking: Lacking, machine: _Machine) -> str:
    """The numbers, for a person: ``it needs 8000 MB on A #0, where 3000 of 16000 MB are free``."""
    parts = []
    for card, missing in lacking.items():
        total = machine.cards[card].total_mb
        part = f"it needs {need[card]} MB on {card}, where {need[card] - missing} of {total} MB"
        part += " are free"
        held = [
            f"{holding.model} {mb}"
            for holding in machine.holdings
            if (mb := holding.held_mb(card)) and holding.evictability is not Evictability.STOPPING
        ]
        if machine.least_others[card]:
            held.append(f"other programs {machine.least_others[card]}")
        if held:
            part += f" (held: {', '.join(held)} MB)"
        parts.append(part)
    return "; ".join(parts)


def _listed(names: Collection[str]) -> str:
    return ", ".join(names)


# --- whom to stop ---------------------------------------------------------------------------


def choose_victims(
    lacking: Lacking,
    candidates: Sequence[Allocation],
    cost: Callable[[Allocation], float] = lambda holding: holding.cost,
) -> tuple[Allocation, ...] | None:
    """The candidates that cost least and together hold at least what each card lacks; no one of
    them could be left out. None where all of them are not enough.

    A search with a bound, exact up to some fifteen candidates; with more it may end early, with
    the best that it has found.
    """
    wanted = tuple(lacking.values())
    useful = []
    for holding in candidates:
        held = tuple(map(holding.held_mb, lacking))
        if any(held):
            useful.append((cost(holding), held, holding))
    # What gives most for its cost first: the first set found is then a good bound.
    useful.sort(key=lambda each: each[0] / sum(map(min, each[1], wanted)))
    left_behind = [(0,) * len(wanted)]  # held by those from here to the end
    for _, held, _ in reversed(useful):
        left_behind.append(tuple(map(operator.add, left_behind[-1], held)))
    left_behind.reverse()
    if any(map(operator.lt, left_behind[0], wanted)):
        return None
    best: list[Allocation] = [holding for _, _, holding in useful]
    best_cost = float("inf")
    steps = 0

    def search(at: int, missing: tuple[int, ...], spent: float, chosen: list[Allocation]) -> None:
        nonlocal best, best_cost, steps
        steps += 1
        if spent >= best_cost or steps > _MAX_STEPS:
            return
        if max(missing) <= 0:
            best, best_cost = list(chosen), spent
            return
        if any(map(operator.lt, left_behind[at], missing)):
            return
        price, held, holding = useful[at]
        chosen.append(holding)
        search(at + 1, tuple(map(operator.sub, missing, held)), spent + price, chosen)
        chosen.pop()
        search(at + 1, missing, spent, chosen)

    search(0, wanted, 0.0, [])
    return _without_needless(lacking, best, cost)


def _without_needless(
    lacking: Lacking, chosen: Sequence[Allocation], cost: Callable[[Allocation], float]
) -> tuple[Allocation, ...]:
    """Leaves out whom the others make needless, the dearest first."""
    kept = sorted(chosen, key=cost)
    for holding in kept[::-1] if len(kept) > 1 else ():
        rest = [other for other in kept if other is not holding]
        if all(sum(other.held_mb(card) for other in rest) >= mb for card, mb in lacking.items()):
            kept = rest
    return tuple(kept)


# --- the line -------------------------------------------------------------------------------


def queue_rank(arrival: float, priority: int) -> tuple[float, float]:
    """The place in a line: the lesser goes first. Every step of priority counts as
    ``PRIORITY_STEP`` seconds more of waiting, and of two that come out equal the one goes first
    that came first.

    It never changes while one waits. So nobody waits for ever: one is overtaken only by those of
    higher priority that came within ``PRIORITY_STEP`` seconds times the difference.
    """
    return (arrival - PRIORITY_STEP_SECONDS * priority, arrival)


def plan(
    queue: Sequence[StartRequest],
    cards: Sequence[DeviceBudget],
    holdings: Sequence[Allocation],
    victims: VictimChooser = choose_victims,
) -> list[Decision]:
    """What happens now with every model that is to be started, in the order of the line.

    A later one goes before an earlier one only where that takes nothing from it: they share no
    card, or both fit once the earlier one has its place.
    """
    now = _Machine(cards, holdings)
    later = _AfterQueue(now)
    claimed: dict[str, str] = {}  # card → the first who waits for it
    decisions = []
    for wanted in queue:
        decision = _decide(wanted, now, later, claimed, victims)
        decisions.append(decision)
        if decision.action is Action.REJECT:
            continue
        makes_room = decision.action in (Action.EVICT, Action.QUEUE) and not decision.behind_queue
        gone = decision.models if makes_room else ()
        later.reserve(decision.memory_mb, gone)
        if decision.action is Action.START:
            now.allocate(
                Allocation(wanted.model, decision.memory_mb, Evictability.BUSY, settled=False)
            )
            continue
        for card in decision.memory_mb:
            claimed.setdefault(card, wanted.model)
        if decision.action is Action.EVICT:
            now.mark_stopping(gone)
    return decisions


def _decide(
    wanted: StartRequest,
    now: _Machine,
    later: _AfterQueue,
    claimed: Mapping[str, str],
    victims: VictimChooser,
) -> Decision:
    """The first scheme in the file's order that can have its place without waiting for busy
    models; else the first that can have one at all."""
    passed_over: dict[str, str] = {}
    waiting: Decision | None = None
    code = "no_matching_scheme"
    names = {card.id: card.name for card in now.emptiest_first()}
    intended = wanted.planned
    if intended is not None and names.keys() >= intended.memory_mb.keys():
        placed = _place_in_queue(wanted, intended.memory_mb, now, later, claimed, victims)
        if placed.action in (Action.START, Action.AWAIT_MEMORY):
            return _with_scheme(placed, wanted, intended.scheme, intended.passed_over)
    for option in wanted.options:
        if option.unusable_reason is not None:
            passed_over[option.scheme] = option.unusable_reason
            continue
        places = [
            _place_in_queue(wanted, need, now, later, claimed, victims)
            for need in assignments(option.required_devices, option.memory_mb, names)
        ]
        if not places:
            passed_over[option.scheme] = missing_devices(option.required_devices, names)
            continue
        decision = (
            min(places, key=lambda place: _preference(place, now)) if places[1:] else places[0]
        )
        if decision.action <= Action.AWAIT_MEMORY:
            return _with_scheme(decision, wanted, option.scheme, passed_over)
        if decision.action is Action.REJECT:
            code = "insufficient_memory"
        elif waiting is None:
            waiting = _with_scheme(decision, wanted, option.scheme, passed_over)
        passed_over[option.scheme] = decision.reason
    if waiting is not None:
        return waiting
    return Decision(wanted.model, Action.REJECT, passed_over=passed_over, code=code)


def _place_in_queue(
    wanted: StartRequest,
    need: Megabytes,
    now: _Machine,
    later: _AfterQueue,
    claimed: Mapping[str, str],
    victims: VictimChooser,
) -> Decision:
    before = list(dict.fromkeys(claimed[card] for card in need if card in claimed and need[card]))
    if before:
        refused = _rejection(need, now)
        if refused is not None:
            return refused
        if now.shortage(need, soon=False) or not later.fits(need):
            return Decision(
                "",
                Action.QUEUE,
                memory_mb=need,
                models=tuple(before),
                reason=f"before it in the line: {_listed(before)}",
                behind_queue=True,
            )
    placed = _place(need, now, victims)
    if not wanted.may_evict and placed.action in (Action.EVICT, Action.QUEUE):
        return Decision(
            "",
            Action.REJECT,
            memory_mb=need,
            reason=f"{placed.reason}; nothing is stopped for a model that nobody has asked for",
        )
    return placed


def _preference(decision: Decision, now: _Machine) -> tuple[float, ...]:
    """The lesser the better: what is done, how many have to yield that do not yet, what stopping
    costs, how little of the cards is left."""
    named = [holding for holding in now.holdings if holding.model in decision.models]
    in_use = sum(map(_is_in_use, named)) if decision.action is Action.QUEUE else 0
    room = []
    for card, mb in decision.memory_mb.items():
        free = now.free(card, soon=True)
        room.append(float("inf") if free is None else free - mb)
    # Among cards with room the emptiest: two models on two cards do not share one's speed.
    cost = sum(holding.cost for holding in named)
    return (decision.action, in_use, cost, -min(room, default=0))


def _with_scheme(
    decision: Decision, wanted: StartRequest, scheme: str | None, passed_over: Mapping[str, str]
) -> Decision:
    return Decision(
        wanted.model,
        decision.action,
        scheme,
        decision.memory_mb,
        decision.models,
        decision.reason,
        dict(passed_over),
        behind_queue=decision.behind_queue,
    )

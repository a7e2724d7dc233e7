"""Who holds what on which device, and the line of those who wait for room.

What happens is decided by ``scheduling.plan``; here it is done. One lock guards the seats and
the line. Under it a model's lock may be taken, for a moment; never the other way round, so that
a model tells us something only after it has let go of its own. Nothing waits for a device under
it: readings come from the monitor's snapshot.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from manager.clock import Clock
from manager.config.settings import Program
from manager.devices import Device, Monitor, Snapshot
from manager.errors import ApiError
from manager.events import Events
from manager.placement import planner
from manager.placement.device_state import cards_of, environment_of
from manager.placement.matching import matches
from manager.placement.planner import Action, Card, Decision, Holding, Option, Standing, Wanted
from manager.placement.reservation import Seat, Tenant, is_back, is_read, measure, shows

log = logging.getLogger(__name__)

_READING_AGE = 1.0  # seconds: a reading no older than this is good enough to place by
_READING_WAIT = 3.5  # a poll that takes longer hangs, and the last reading has to do
_GIVE_BACK = 5.0  # seconds that a driver may take to give a dead process's memory back
_GIVE_BACK_PAUSE = 0.1
_STEADY = 1.0  # seconds without change, where nobody knows how much is to come back
_LOOK = 1.0  # seconds between two looks at the line, should nothing else happen
_MOST_ROUNDS = 8  # plans in a row that a request has crossed


class NoPlace(Exception):
    """A model cannot be placed; ``code`` is that of the error table, ``passed_over`` has why no
    scheme of it can be used."""

    def __init__(
        self, message: str, code: str, passed_over: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.passed_over = passed_over or {}


class Observer(Protocol):
    """Who counts."""

    def evicted(self, model: str) -> None: ...

    def waited(self, model: str, seconds: float, outcome: str) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where a model is started: ``memory_mb`` is by device id, ``environment`` tells the script
    which cards are meant, ``passed_over`` says why not an earlier scheme."""

    scheme: str
    memory_mb: Mapping[str, int]
    environment: Mapping[str, str]
    passed_over: Mapping[str, str]


@dataclass(frozen=True)
class Waiting:
    """What a model waits for: its ``number`` in the line from 1, since when (monotonic)."""

    number: int
    since: float
    decision: Decision


class _Waiter:
    def __init__(self, seat: Seat, options: Sequence[Option], since: float) -> None:
        self.seat = seat
        self.options = tuple(options)
        self.since = since
        self.decision: Decision | None = None
        self.intended: Decision | None = None  # what models were stopped for
        self.place: Place | None = None
        self.had_to_wait = False
        self.asked_to_yield: set[Seat] = set()

    def is_made_room_for(self) -> bool:
        """Whether models have been stopped for it, and that is enough so far."""
        was_decided = self.decision is not None and self.decision.action is not Action.WAIT
        return self.intended is not None and was_decided


class Placement:
    """The devices' memory. Every public method may be called from any thread."""

    def __init__(
        self,
        monitor: Monitor,
        clock: Clock,
        events: Events,
        observer: Observer,
        program: Program,
    ) -> None:
        self._monitor = monitor
        self._clock = clock
        self._events = events
        self._observer = observer
        self._program = program
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._seats: list[Seat] = []
        self._line: list[_Waiter] = []
        # Names of device_memory_mb whose device a driver has told of.
        self._driven: frozenset[str] = frozenset()
        self._is_due = False  # something happened since the line was last gone through
        # By device that is not read any more: what models held that have left it since.
        self._left_mb: dict[str, int] = {}
        monitor.listen(self._read)

    def configure(self, program: Program) -> None:
        """Takes a new config; running models keep what they have."""
        if program.disable_gpu_monitoring:
            self._program = program
            self._monitor.set_enabled(False)
        else:
            # In this order: a start in between must not find the readings missing.
            self._monitor.set_enabled(True)
            self._program = program
        self.look()

    # --- for the models ---------------------------------------------------------------------

    def take(
        self,
        tenant: Tenant,
        options: Sequence[Option],
        cancelled: Callable[[], bool],
        tell: Callable[[Waiting | None], None],
    ) -> tuple[Seat, Place]:
        """A seat for a model that is to be started, at once or after waiting for room.

        ``tell`` is told what it waits for; call ``look`` when ``cancelled`` has become true.
        Raises NoPlace; a cancelled wait is one of code "cancelled".
        """
        seat = Seat(tenant)
        if self._program.disable_gpu_monitoring:
            return seat, self._unchecked(options)
        if any(option.required_devices for option in options):
            now = self._clock.monotonic()
            self._monitor.touch()
            self._monitor.fresh(now - _READING_AGE, _READING_WAIT)
        waiter = _Waiter(seat, options, self._clock.monotonic())
        outcome = "failed"
        try:
            place = self._await_place(waiter, cancelled, tell)
            outcome = "placed"
            return seat, place
        finally:
            with self._lock:
                if waiter in self._line:
                    self._line.remove(waiter)
                if outcome != "placed" and seat in self._seats:
                    self._seats.remove(seat)  # another thread seated it, and it is cancelled
                self._let_in_again(waiter)
                self._wake()
            tell(None)
            if waiter.had_to_wait:
                seconds = self._clock.monotonic() - waiter.since
                self._observer.waited(tenant.name, seconds, outcome)

    def occupy(
        self, tenant: Tenant, memory_mb: Mapping[str, int], pids: Callable[[], Collection[int]]
    ) -> Seat:
        """The seat of a model that runs already, as an earlier program started it."""
        seat = Seat(tenant, memory_mb, ready_at=float("-inf"), pids=pids)
        with self._lock:
            self._seats.append(seat)
        return seat

    def look(self) -> None:
        """Something has changed for those who wait: a model is idle, a start was cancelled."""
        # Unlocked: a waiter joins the line before it looks at the models. One that joins after
        # this sees what the caller has done before.
        if self._line:
            with self._lock:
                self._wake()

    def has_line(self) -> bool:
        return bool(self._line)

    def preview(self, tenant: Tenant, options: Sequence[Option]) -> Decision:
        """What would happen if the model were started by hand now. Changes nothing."""
        if self._program.disable_gpu_monitoring:
            try:
                place = self._unchecked(options)
            except NoPlace:
                over = {option.scheme: option.obstacle or "" for option in options}
                return Decision(
                    tenant.name, Action.REFUSE, passed_over=over, code="no_matching_scheme"
                )
            return Decision(tenant.name, Action.GO, place.scheme, passed_over=place.passed_over)
        self._monitor.touch()
        self._monitor.fresh(self._clock.monotonic() - _READING_AGE, _READING_WAIT)
        with self._lock:
            cards, holdings = self._picture(self._monitor.snapshot)
            queue = self._in_order()
        return planner.plan([*queue, Wanted(tenant.name, tuple(options))], cards, holdings)[-1]

    # --- a seat's life ------------------------------------------------------------------------

    def settle(self, seat: Seat) -> None:
        """The server answers: it has taken what it needs, and the next reading shows it."""
        with self._lock:
            seat.ready_at = self._clock.monotonic()
            self._wake()
        self._monitor.refresh()

    def leaving(self, seat: Seat) -> None:
        """The server is about to be stopped."""
        ended = not seat.pids()
        if seat.memory_mb and not seat.going:
            # What comes back is seen by what was used before: by a reading that shows all of
            # the server, and is not from when somebody last looked.
            since = self._clock.monotonic() - _READING_AGE
            self._monitor.fresh(max(since, seat.ready_at or since), _READING_WAIT)
        with self._lock:
            if seat.going:
                return  # a stop that is tried again: what counts is before the first
            seat.going, seat.ended = True, ended
            self._disturb(seat)
            seat.used_when_going = {
                device.reading.id: device.reading.used_mb
                for device in self._monitor.snapshot.devices
                if device.reading.id in seat.memory_mb and device.reading.used_mb is not None
            }
            self._wake()

    def leave(self, seat: Seat) -> None:
        """The server is gone. Waits, bounded, until the devices have its memory back."""
        try:
            if seat.used_when_going and not self._program.disable_gpu_monitoring:
                self._await_give_back(seat)
        finally:
            with self._lock:
                if seat in self._seats:
                    self._seats.remove(seat)
                    self._note_left(seat)
                self._wake()
        self._monitor.refresh()

    def lost(self, seat: Seat) -> list[str]:
        """The seat's devices that are not online any more, by a new reading."""
        if self._program.disable_gpu_monitoring or not seat.memory_mb:
            return []
        snapshot = self._monitor.fresh(self._clock.monotonic(), _READING_WAIT)
        online = {card.id for card in self._cards(snapshot)}
        return [card for card in seat.memory_mb if card not in online]

    def picture(self) -> tuple[list[Card], list[Holding]]:
        """The devices as models are placed on them, and who holds what there."""
        with self._lock:
            return self._picture(self._monitor.snapshot)

    def pids(self) -> Collection[int]:
        """The processes of all models; for the monitor, which asks in a thread of its own."""
        with self._lock:
            seats = list(self._seats)
        for seat in seats:
            if not seat.going:  # a driver may list those that have ended for a while
                seat.seen_pids = frozenset(seat.pids())
        return frozenset().union(*(seat.seen_pids for seat in seats))

    # --- the line; with the lock held, unless it says otherwise ---------------------------------

    def _await_place(
        self,
        waiter: _Waiter,
        cancelled: Callable[[], bool],
        tell: Callable[[Waiting | None], None],
    ) -> Place:
        """Without the lock."""
        deadline = waiter.since + self._program.queue_timeout
        told: tuple[object, ...] | None = None
        with self._lock:
            self._line.append(waiter)
            self._is_due = True
        while True:
            if self._program.disable_gpu_monitoring:  # a reload has switched it off meanwhile
                return self._unchecked(waiter.options)
            evictions: list[tuple[Tenant, str]] = []
            with self._lock:
                if cancelled():
                    raise NoPlace("it was stopped while it waited for room", "cancelled")
                if self._is_due:
                    evictions = self._go_through_line()
                decision, place = waiter.decision, waiter.place
                number = self._line.index(waiter) + 1 if waiter in self._line else 0
            for victim, reason in evictions:
                self._evict(victim, reason)
            if place is not None:
                return place
            if decision is not None and decision.action is Action.REFUSE:
                raise self._refusal(decision)
            if decision is not None:
                # Told without the lock: the model takes its own for that, and announces it.
                news = (number, decision.action, decision.models)
                if news != told:
                    told = news
                    waiter.had_to_wait = True
                    tell(Waiting(number, waiter.since, decision))
                    self._monitor.touch()
            now = self._clock.monotonic()
            if now >= deadline:
                raise self._timed_out(decision)
            with self._lock:
                has_to_wait = waiter in self._line and not self._is_due and not cancelled()
                # Time by itself changes things as well: after a while others have to yield.
                if has_to_wait and not self._changed.wait(min(_LOOK, deadline - now)):
                    self._is_due = True

    def _go_through_line(self) -> list[tuple[Tenant, str]]:
        """Decides for all who wait; whom to evict, claimed already."""
        evictions: list[tuple[Tenant, str]] = []
        for _ in range(_MOST_ROUNDS):
            self._is_due = False
            snapshot = self._monitor.snapshot
            cards, holdings = self._picture(snapshot)
            decisions = planner.plan(self._in_order(), cards, holdings)
            tenants = {seat.tenant.name: seat.tenant for seat in self._seats}
            crossed = False
            for waiter, decision in zip(list(self._line), decisions, strict=True):
                waiter.decision = decision
                self._let_in_who_moved(waiter)
                if decision.action is Action.GO:
                    self._seat(waiter, decision, snapshot)
                elif decision.action is Action.REFUSE:
                    self._line.remove(waiter)
                elif decision.action is Action.EVICT:
                    claimed = self._claim([tenants[model] for model in decision.models])
                    crossed |= claimed is None
                    if claimed is not None:
                        waiter.intended = decision
                    reason = f"evicted to make room for {decision.model}"
                    evictions += [(victim, reason) for victim in claimed or ()]
                elif decision.action is Action.WAIT and not decision.in_line:
                    self._ask_to_yield(waiter, decision.models)
            if not crossed:
                break
        self._changed.notify_all()
        return evictions

    def _seat(self, waiter: _Waiter, decision: Decision, snapshot: Snapshot) -> None:
        assert decision.scheme is not None
        seat = waiter.seat
        seat.memory_mb = decision.memory_mb
        self._disturb(seat)
        for device in snapshot.devices:
            card, used = device.reading.id, device.reading.used_mb
            others = [other for other in self._seats if card in other.memory_mb]
            quiet = all(shows(device, other) and not other.going for other in others)
            if card in seat.memory_mb and used is not None and not device.stale and quiet:
                seat.used_before[card] = used
        self._seats.append(seat)
        self._line.remove(waiter)
        waiter.place = Place(
            decision.scheme,
            decision.memory_mb,
            environment_of(decision.memory_mb, snapshot),
            decision.passed_over,
        )

    def _claim(self, victims: Sequence[Tenant]) -> list[Tenant] | None:
        """All of them or none: a request may have come to one since it was looked at."""
        claimed: list[Tenant] = []
        for victim in victims:
            if not victim.claim():
                for other in claimed:
                    other.unclaim()
                return None
            claimed.append(victim)
        return claimed

    def _evict(self, victim: Tenant, reason: str) -> None:
        """Without the lock."""
        try:
            victim.evict(reason)
        except ApiError as error:
            # No thread for it: the line is gone through again in a moment.
            victim.unclaim()
            log.error("%s was not evicted: %s", victim.name, error)
            return
        log.info("%s is %s", victim.name, reason)
        self._observer.evicted(victim.name)
        self._events.publish("eviction", lambda: {"model": victim.name, "reason": reason})

    def _ask_to_yield(self, waiter: _Waiter, models: Collection[str]) -> None:
        seats = [seat for seat in self._seats if seat.tenant.name in models]
        ready_at = [math.inf if seat.ready_at is None else seat.ready_at for seat in seats]
        if self._clock.monotonic() < planner.yield_at(waiter.since, ready_at):
            return
        for seat in seats:
            if seat not in waiter.asked_to_yield:
                waiter.asked_to_yield.add(seat)
                seat.tenant.yield_to_others(True)

    def _let_in_again(self, waiter: _Waiter) -> None:
        asked, waiter.asked_to_yield = waiter.asked_to_yield, set()
        for seat in asked:
            self._let_in(seat.tenant)

    def _let_in_who_moved(self, waiter: _Waiter) -> None:
        """A model that has crashed or was evicted makes room no more: it gets in line again, and
        may have its turn before the waiter, be it on another card or on the same."""
        wanted = waiter.decision.memory_mb if waiter.decision else {}
        for seat in list(waiter.asked_to_yield):
            if seat not in self._seats or not any(card in wanted for card in seat.memory_mb):
                waiter.asked_to_yield.discard(seat)
                self._let_in(seat.tenant)

    def _let_in(self, model: Tenant) -> None:
        asked = (seat for other in self._line for seat in other.asked_to_yield)
        if not any(seat.tenant is model for seat in asked):
            model.yield_to_others(False)

    def _wake(self) -> None:
        self._is_due = True
        self._changed.notify_all()

    def _in_order(self) -> list[Wanted]:
        """The line, brought into the order of its ranks: a model is in it since it got in line,
        with the highest priority of those who wait for it now."""
        urgency = {waiter: waiter.seat.tenant.urgency() for waiter in self._line}
        highest = max((each or 0 for each in urgency.values()), default=0)

        def rank(waiter: _Waiter) -> tuple[float, float]:
            # The room that others were stopped for is not for those who come later, such as those
            # that were stopped.
            priority = highest if waiter.is_made_room_for() else urgency[waiter] or 0
            return planner.rank(waiter.since, priority)

        # Not in place: that list would look empty meanwhile to those who look without the lock.
        self._line = sorted(self._line, key=rank)
        return [
            Wanted(
                waiter.seat.tenant.name,
                waiter.options,
                urgency[waiter] is not None,
                waiter.intended,
            )
            for waiter in self._line
        ]

    # --- the picture; with the lock held ----------------------------------------------------------

    def _picture(self, snapshot: Snapshot) -> tuple[list[Card], list[Holding]]:
        now = self._clock.monotonic()
        read = {device.reading.id: device for device in snapshot.devices}
        holdings = []
        for seat in self._seats:
            if not seat.memory_mb:
                continue
            tenancy = seat.tenant.tenancy()
            idle = now - tenancy.last_used if tenancy.last_used is not None else 0.0
            holdings.append(
                Holding(
                    seat.tenant.name,
                    seat.memory_mb,
                    Standing.GOING if seat.going else tenancy.standing,
                    dict(seat.measured_mb),
                    all(shows(read.get(card), seat) for card in seat.memory_mb),
                    planner.stop_cost(idle, tenancy.usual_gap, tenancy.start_seconds),
                    tenancy.yielding,
                )
            )
        cards = self._cards(snapshot)
        return [self._brought_up(card, read.get(card.id)) for card in cards], holdings

    def _brought_up(self, card: Card, device: Device | None) -> Card:
        """A card that is not read any more, with who has come to it and left it since then."""
        if device is None or not device.stale:
            return card
        come = sum(
            seat.memory_mb[card.id]
            for seat in self._seats
            if card.id in seat.memory_mb and seat.ready_at is not None and not is_read(device, seat)
        )
        used = card.used_mb + come - self._left_mb.get(card.id, 0)
        return replace(card, used_mb=max(0, used))

    def _note_left(self, seat: Seat) -> None:
        for device in self._monitor.snapshot.devices:
            card = device.reading.id
            if device.stale and card in seat.memory_mb and is_read(device, seat):
                held = seat.measured_mb.get(card, seat.memory_mb[card])
                self._left_mb[card] = self._left_mb.get(card, 0) + held

    def _cards(self, snapshot: Snapshot) -> list[Card]:
        declared = self._program.device_memory_mb
        return cards_of(snapshot, declared, self._driven)

    def _read(self, snapshot: Snapshot) -> None:
        """From the monitor: a new reading."""
        with self._lock:
            names = [device.reading.name for device in snapshot.devices]
            self._driven |= {
                budget
                for budget in self._program.device_memory_mb
                if any(matches(budget, name) for name in names)
            }
            for device in snapshot.devices:
                if not device.stale:
                    self._left_mb.pop(device.reading.id, None)
                seats = [seat for seat in self._seats if device.reading.id in seat.memory_mb]
                for seat in seats:
                    # One that is half gone shows less than it took.
                    if not device.stale and not seat.going:
                        measure(seat, device, alone=len(seats) == 1)
            self._wake()

    def _disturb(self, seat: Seat) -> None:
        """Somebody comes to or leaves the cards of a seat: what others there have taken cannot
        be told by the difference any more."""
        for other in self._seats:
            if other is not seat:
                for card in seat.memory_mb:
                    other.used_before.pop(card, None)

    # --- without the lock -------------------------------------------------------------------------

    def _await_give_back(self, seat: Seat) -> None:
        """Until the readings show that the memory is free, or do not change any more where
        nobody knows how much it was."""
        began = self._clock.monotonic()
        pause = threading.Event()
        last: dict[str, int | None] = {}
        last_change = began
        while (now := self._clock.monotonic()) < began + _GIVE_BACK:
            snapshot = self._monitor.fresh(now, _READING_WAIT)
            readings = [
                device.reading
                for device in snapshot.devices
                if device.reading.id in seat.used_when_going and not device.stale
            ]
            if all(is_back(seat, reading) for reading in readings):
                return
            used = {reading.id: reading.used_mb for reading in readings}
            if used != last:
                last, last_change = used, self._clock.monotonic()
            # What was used while an ended one lived may be known no more: it may be back already.
            unknown = seat.ended or all(card not in seat.measured_mb for card in used)
            if unknown and self._clock.monotonic() >= last_change + _STEADY:
                return
            pause.wait(_GIVE_BACK_PAUSE)
        log.warning(
            "%s is gone, and its memory was not given back within %g seconds",
            seat.tenant.name,
            _GIVE_BACK,
        )

    def _unchecked(self, options: Sequence[Option]) -> Place:
        """With ``Disable_GPU_monitoring``: the first scheme that this system can run."""
        passed_over: dict[str, str] = {}
        for option in options:
            if option.obstacle is None:
                return Place(option.scheme, {}, {}, passed_over)
            passed_over[option.scheme] = option.obstacle
        raise NoPlace(_reasons(passed_over), "no_matching_scheme", passed_over)

    def _refusal(self, decision: Decision) -> NoPlace:
        message = _reasons(decision.passed_over)
        if decision.code == "no_matching_scheme":
            snapshot = self._monitor.snapshot
            cards = self._cards(snapshot)
            message += f". Online: {', '.join(card.id for card in cards) or 'no device'}"
            for plugin, fault in snapshot.faults.items():
                message += f". The devices of {plugin} cannot be read: {fault}"
        return NoPlace(message, decision.code, decision.passed_over)

    def _timed_out(self, decision: Decision | None) -> NoPlace:
        waited = f"no room for it within {self._program.queue_timeout:g} seconds"
        if decision is None:
            return NoPlace(waited, "queue_timeout")
        return NoPlace(
            f"{waited}: {decision.reason}; in the way: {', '.join(decision.models)}",
            "queue_timeout",
            decision.passed_over,
        )


def _reasons(passed_over: Mapping[str, str]) -> str:
    reasons = "; ".join(f"{scheme}: {reason}" for scheme, reason in passed_over.items())
    return f"no scheme of it can be used here. {reasons}"

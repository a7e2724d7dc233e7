"""Who holds what on which device, and the line of those who wait for room.

What happens is decided by ``planner.plan``; here it is done. One lock guards the seats and
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
from manager.placement.device_state import device_budgets, visible_devices_env
from manager.placement.matching import matches
from manager.placement.planner import (
    Action,
    Allocation,
    Decision,
    DeviceBudget,
    Evictability,
    SchemeOption,
    StartRequest,
)
from manager.placement.reservation import (
    Evictable,
    Reservation,
    memory_returned,
    read_after_ready,
    reading_includes,
    record_measurement,
)

log = logging.getLogger(__name__)

_READING_AGE_SECONDS = 1.0  # seconds: a reading no older than this is good enough to place by
_READING_WAIT_SECONDS = 3.5  # a poll that takes longer hangs, and the last reading has to do
_RELEASE_SECONDS = 5.0  # seconds that a driver may take to give a dead process's memory back
_RELEASE_POLL_SECONDS = 0.1
_STEADY_SECONDS = 1.0  # seconds without change, where nobody knows how much is to come back
_RECHECK_SECONDS = 1.0  # seconds between two looks at the line, should nothing else happen
_MAX_ROUNDS = 8  # plans in a row that a request has crossed


class PlacementError(Exception):
    """A model cannot be placed; ``code`` is that of the error table, ``passed_over`` has why no
    scheme of it can be used."""

    def __init__(
        self, message: str, code: str, passed_over: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.passed_over = passed_over or {}


class PlacementMetrics(Protocol):
    """Who counts."""

    def record_eviction(self, model: str) -> None: ...

    def record_wait(self, model: str, seconds: float, outcome: str) -> None: ...


@dataclass(frozen=True)
class DeviceAssignment:
    """Where a model is started: ``memory_mb`` is by device id, ``environment`` tells the script
    which cards are meant, ``passed_over`` says why not an earlier scheme."""

    scheme: str
    memory_mb: Mapping[str, int]
    environment: Mapping[str, str]
    passed_over: Mapping[str, str]


@dataclass(frozen=True)
class QueuePosition:
    """What a model waits for: its ``number`` in the line from 1, since when (monotonic)."""

    number: int
    since: float
    decision: Decision


class _Waiter:
    def __init__(
        self, reservation: Reservation, options: Sequence[SchemeOption], since: float
    ) -> None:
        self.reservation = reservation
        self.options = tuple(options)
        self.since = since
        self.decision: Decision | None = None
        self.planned: Decision | None = None  # what models were stopped for
        self.assignment: DeviceAssignment | None = None
        self.had_to_wait = False
        self.asked_to_yield: set[Reservation] = set()

    def has_evictions_under_way(self) -> bool:
        """Whether models have been stopped for it, and that is enough so far."""
        was_decided = self.decision is not None and self.decision.action is not Action.QUEUE
        return self.planned is not None and was_decided


class Placement:
    """The devices' memory. Every public method may be called from any thread."""

    def __init__(
        self,
        monitor: Monitor,
        clock: Clock,
        events: Events,
        observer: PlacementMetrics,
        program: Program,
    ) -> None:
        self._monitor = monitor
        self._clock = clock
        self._events = events
        self._metrics = observer
        self._program = program
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._reservations: list[Reservation] = []
        self._queue: list[_Waiter] = []
        # Names of device_memory_mb whose device a driver has told of.
        self._driver_reported: frozenset[str] = frozenset()
        self._is_due = False  # something happened since the line was last gone through
        # By device that is not read any more: what models held that have left it since.
        self._released_mb: dict[str, int] = {}
        monitor.add_listener(self._read)

    def configure(self, program: Program) -> None:
        """Takes a new config; running models keep what they have."""
        if program.disable_gpu_monitoring:
            self._program = program
            self._monitor.set_enabled(False)
        else:
            # In this order: a start in between must not find the readings missing.
            self._monitor.set_enabled(True)
            self._program = program
        self.wake()

    # --- for the models ---------------------------------------------------------------------

    def reserve(
        self,
        evictable: Evictable,
        options: Sequence[SchemeOption],
        cancelled: Callable[[], bool],
        report: Callable[[QueuePosition | None], None],
    ) -> tuple[Reservation, DeviceAssignment]:
        """A seat for a model that is to be started, at once or after waiting for room.

        ``tell`` is told what it waits for; call ``look`` when ``cancelled`` has become true.
        Raises PlacementError; a cancelled wait is one of code "cancelled".
        """
        reservation = Reservation(evictable)
        if self._program.disable_gpu_monitoring:
            return reservation, self._unchecked(options)
        if any(option.required_devices for option in options):
            now = self._clock.monotonic()
            self._monitor.touch()
            self._monitor.wait_for_reading(now - _READING_AGE_SECONDS, _READING_WAIT_SECONDS)
        waiter = _Waiter(reservation, options, self._clock.monotonic())
        outcome = "failed"
        try:
            place = self._await_assignment(waiter, cancelled, report)
            outcome = "placed"
            return reservation, place
        finally:
            with self._lock:
                if waiter in self._queue:
                    self._queue.remove(waiter)
                if outcome != "placed" and reservation in self._reservations:
                    self._reservations.remove(
                        reservation
                    )  # another thread seated it, and it is cancelled
                self._stop_yielding(waiter)
                self._wake_locked()
            report(None)
            if waiter.had_to_wait:
                seconds = self._clock.monotonic() - waiter.since
                self._metrics.record_wait(evictable.name, seconds, outcome)

    def reserve_running(
        self,
        evictable: Evictable,
        memory_mb: Mapping[str, int],
        pids: Callable[[], Collection[int]],
    ) -> Reservation:
        """The seat of a model that runs already, as an earlier program started it."""
        reservation = Reservation(evictable, memory_mb, ready_at=float("-inf"), pids=pids)
        with self._lock:
            self._reservations.append(reservation)
        return reservation

    def wake(self) -> None:
        """Something has changed for those who wait: a model is idle, a start was cancelled."""
        # Unlocked: a waiter joins the line before it looks at the models. One that joins after
        # this sees what the caller has done before.
        if self._queue:
            with self._lock:
                self._wake_locked()

    def has_waiting(self) -> bool:
        return bool(self._queue)

    def preview(self, evictable: Evictable, options: Sequence[SchemeOption]) -> Decision:
        """What would happen if the model were started by hand now. Changes nothing."""
        if self._program.disable_gpu_monitoring:
            try:
                place = self._unchecked(options)
            except PlacementError:
                over = {option.scheme: option.unusable_reason or "" for option in options}
                return Decision(
                    evictable.name, Action.REJECT, passed_over=over, code="no_matching_scheme"
                )
            return Decision(
                evictable.name, Action.START, place.scheme, passed_over=place.passed_over
            )
        self._monitor.touch()
        self._monitor.wait_for_reading(
            self._clock.monotonic() - _READING_AGE_SECONDS, _READING_WAIT_SECONDS
        )
        with self._lock:
            cards, holdings = self._snapshot_locked(self._monitor.snapshot)
            queue = self._in_order()
        return planner.plan(
            [*queue, StartRequest(evictable.name, tuple(options))], cards, holdings
        )[-1]

    # --- a seat's life ------------------------------------------------------------------------

    def mark_ready(self, reservation: Reservation) -> None:
        """The server answers: it has taken what it needs, and the next reading shows it."""
        with self._lock:
            reservation.ready_at = self._clock.monotonic()
            self._wake_locked()
        self._monitor.refresh()

    def mark_stopping(self, reservation: Reservation) -> None:
        """The server is about to be stopped."""
        ended = not reservation.pids()
        if reservation.memory_mb and not reservation.stopping:
            # What comes back is seen by what was used before: by a reading that shows all of
            # the server, and is not from when somebody last looked.
            since = self._clock.monotonic() - _READING_AGE_SECONDS
            self._monitor.wait_for_reading(
                max(since, reservation.ready_at or since), _READING_WAIT_SECONDS
            )
        with self._lock:
            if reservation.stopping:
                return  # a stop that is tried again: what counts is before the first
            reservation.stopping, reservation.ended = True, ended
            self._disturb(reservation)
            reservation.used_when_stopping = {
                device.reading.id: device.reading.used_mb
                for device in self._monitor.snapshot.devices
                if device.reading.id in reservation.memory_mb and device.reading.used_mb is not None
            }
            self._wake_locked()

    def release(self, reservation: Reservation) -> None:
        """The server is gone. Waits, bounded, until the devices have its memory back."""
        try:
            if reservation.used_when_stopping and not self._program.disable_gpu_monitoring:
                self._await_memory_return(reservation)
        finally:
            with self._lock:
                if reservation in self._reservations:
                    self._reservations.remove(reservation)
                    self._record_release(reservation)
                self._wake_locked()
        self._monitor.refresh()

    def lost_devices(self, reservation: Reservation) -> list[str]:
        """The seat's devices that are not online any more, by a new reading."""
        if self._program.disable_gpu_monitoring or not reservation.memory_mb:
            return []
        snapshot = self._monitor.wait_for_reading(self._clock.monotonic(), _READING_WAIT_SECONDS)
        online = {card.id for card in self._device_budgets(snapshot)}
        return [card for card in reservation.memory_mb if card not in online]

    def snapshot(self) -> tuple[list[DeviceBudget], list[Allocation]]:
        """The devices as models are placed on them, and who holds what there."""
        with self._lock:
            return self._snapshot_locked(self._monitor.snapshot)

    def pids(self) -> Collection[int]:
        """The processes of all models; for the monitor, which asks in a thread of its own."""
        with self._lock:
            reservations = list(self._reservations)
        for reservation in reservations:
            if not reservation.stopping:  # a driver may list those that have ended for a while
                reservation.seen_pids = frozenset(reservation.pids())
        return frozenset().union(*(reservation.seen_pids for reservation in reservations))

    # --- the line; with the lock held, unless it says otherwise ---------------------------------

    def _await_assignment(
        self,
        waiter: _Waiter,
        cancelled: Callable[[], bool],
        report: Callable[[QueuePosition | None], None],
    ) -> DeviceAssignment:
        """Without the lock."""
        deadline = waiter.since + self._program.queue_timeout
        told: tuple[object, ...] | None = None
        with self._lock:
            self._queue.append(waiter)
            self._is_due = True
        while True:
            if self._program.disable_gpu_monitoring:  # a reload has switched it off meanwhile
                return self._unchecked(waiter.options)
            evictions: list[tuple[Evictable, str]] = []
            with self._lock:
                if cancelled():
                    raise PlacementError("it was stopped while it waited for room", "cancelled")
                if self._is_due:
                    evictions = self._plan_queue()
                decision, place = waiter.decision, waiter.assignment
                number = self._queue.index(waiter) + 1 if waiter in self._queue else 0
            for victim, reason in evictions:
                self._evict(victim, reason)
            if place is not None:
                return place
            if decision is not None and decision.action is Action.REJECT:
                raise self._rejection(decision)
            if decision is not None:
                # Told without the lock: the model takes its own for that, and announces it.
                news = (number, decision.action, decision.models)
                if news != told:
                    told = news
                    waiter.had_to_wait = True
                    report(QueuePosition(number, waiter.since, decision))
                    self._monitor.touch()
            now = self._clock.monotonic()
            if now >= deadline:
                raise self._timed_out(decision)
            with self._lock:
                has_to_wait = waiter in self._queue and not self._is_due and not cancelled()
                # Time by itself changes things as well: after a while others have to yield.
                if has_to_wait and not self._changed.wait(min(_RECHECK_SECONDS, deadline - now)):
                    self._is_due = True

    def _plan_queue(self) -> list[tuple[Evictable, str]]:
        """Decides for all who wait; whom to evict, claimed already."""
        evictions: list[tuple[Evictable, str]] = []
        for _ in range(_MAX_ROUNDS):
            self._is_due = False
            snapshot = self._monitor.snapshot
            cards, holdings = self._snapshot_locked(snapshot)
            decisions = planner.plan(self._in_order(), cards, holdings)
            evictables = {
                reservation.evictable.name: reservation.evictable
                for reservation in self._reservations
            }
            crossed = False
            for waiter, decision in zip(list(self._queue), decisions, strict=True):
                waiter.decision = decision
                self._let_in_who_moved(waiter)
                if decision.action is Action.START:
                    self._assign(waiter, decision, snapshot)
                elif decision.action is Action.REJECT:
                    self._queue.remove(waiter)
                elif decision.action is Action.EVICT:
                    claimed = self._begin_evictions(
                        [evictables[model] for model in decision.models]
                    )
                    crossed |= claimed is None
                    if claimed is not None:
                        waiter.planned = decision
                    reason = f"evicted to make room for {decision.model}"
                    evictions += [(victim, reason) for victim in claimed or ()]
                elif decision.action is Action.QUEUE and not decision.behind_queue:
                    self._ask_to_yield(waiter, decision.models)
            if not crossed:
                break
        self._changed.notify_all()
        return evictions

    def _assign(self, waiter: _Waiter, decision: Decision, snapshot: Snapshot) -> None:
        assert decision.scheme is not None
        reservation = waiter.reservation
        reservation.memory_mb = decision.memory_mb
        self._disturb(reservation)
        for device in snapshot.devices:
            card, used = device.reading.id, device.reading.used_mb
            others = [other for other in self._reservations if card in other.memory_mb]
            quiet = all(reading_includes(device, other) and not other.stopping for other in others)
            if card in reservation.memory_mb and used is not None and not device.stale and quiet:
                reservation.used_before[card] = used
        self._reservations.append(reservation)
        self._queue.remove(waiter)
        waiter.assignment = DeviceAssignment(
            decision.scheme,
            decision.memory_mb,
            visible_devices_env(decision.memory_mb, snapshot),
            decision.passed_over,
        )

    def _begin_evictions(self, victims: Sequence[Evictable]) -> list[Evictable] | None:
        """All of them or none: a request may have come to one since it was looked at."""
        claimed: list[Evictable] = []
        for victim in victims:
            if not victim.begin_eviction():
                for other in claimed:
                    other.cancel_eviction()
                return None
            claimed.append(victim)
        return claimed

    def _evict(self, victim: Evictable, reason: str) -> None:
        """Without the lock."""
        try:
            victim.evict(reason)
        except ApiError as error:
            # No thread for it: the line is gone through again in a moment.
            victim.cancel_eviction()
            log.error("%s was not evicted: %s", victim.name, error)
            return
        log.info("%s is %s", victim.name, reason)
        self._metrics.record_eviction(victim.name)
        self._events.publish("eviction", lambda: {"model": victim.name, "reason": reason})

    def _ask_to_yield(self, waiter: _Waiter, models: Collection[str]) -> None:
        reservations = [
            reservation
            for reservation in self._reservations
            if reservation.evictable.name in models
        ]
        ready_at = [
            math.inf if reservation.ready_at is None else reservation.ready_at
            for reservation in reservations
        ]
        if self._clock.monotonic() < planner.yield_at(waiter.since, ready_at):
            return
        for reservation in reservations:
            if reservation not in waiter.asked_to_yield:
                waiter.asked_to_yield.add(reservation)
                reservation.evictable.set_yielding(True)

    def _stop_yielding(self, waiter: _Waiter) -> None:
        asked, waiter.asked_to_yield = waiter.asked_to_yield, set()
        for reservation in asked:
            self._let_in(reservation.evictable)

    def _let_in_who_moved(self, waiter: _Waiter) -> None:
        """A model that has crashed or was evicted makes room no more: it gets in line again, and
        may have its turn before the waiter, be it on another card or on the same."""
        wanted = waiter.decision.memory_mb if waiter.decision else {}
        for reservation in list(waiter.asked_to_yield):
            if reservation not in self._reservations or not any(
                card in wanted for card in reservation.memory_mb
            ):
                waiter.asked_to_yield.discard(reservation)
                self._let_in(reservation.evictable)

    def _let_in(self, model: Evictable) -> None:
        asked = (reservation for other in self._queue for reservation in other.asked_to_yield)
        if not any(reservation.evictable is model for reservation in asked):
            model.set_yielding(False)

    def _wake_locked(self) -> None:
        self._is_due = True
        self._changed.notify_all()

    def _in_order(self) -> list[StartRequest]:
        """The line, brought into the order of its ranks: a model is in it since it got in line,
        with the highest priority of those who wait for it now."""
        urgency = {
            waiter: waiter.reservation.evictable.waiting_priority() for waiter in self._queue
        }
        highest = max((each or 0 for each in urgency.values()), default=0)

        def rank(waiter: _Waiter) -> tuple[float, float]:
            # The room that others were stopped for is not for those who come later, such as those
            # that were stopped.
            priority = highest if waiter.has_evictions_under_way() else urgency[waiter] or 0
            return planner.queue_rank(waiter.since, priority)

        # Not in place: that list would look empty meanwhile to those who look without the lock.
        self._queue = sorted(self._queue, key=rank)
        return [
            StartRequest(
                waiter.reservation.evictable.name,
                waiter.options,
                urgency[waiter] is not None,
                waiter.planned,
            )
            for waiter in self._queue
        ]

    # --- the picture; with the lock held ----------------------------------------------------------

    def _snapshot_locked(self, snapshot: Snapshot) -> tuple[list[DeviceBudget], list[Allocation]]:
        now = self._clock.monotonic()
        read = {device.reading.id: device for device in snapshot.devices}
        holdings = []
        for reservation in self._reservations:
            if not reservation.memory_mb:
                continue
            tenancy = reservation.evictable.eviction_status()
            idle = now - tenancy.last_used if tenancy.last_used is not None else 0.0
            holdings.append(
                Allocation(
                    reservation.evictable.name,
                    reservation.memory_mb,
                    Evictability.STOPPING if reservation.stopping else tenancy.evictability,
                    dict(reservation.measured_mb),
                    all(
                        reading_includes(read.get(card), reservation)
                        for card in reservation.memory_mb
                    ),
                    planner.stop_cost(idle, tenancy.mean_gap, tenancy.start_seconds),
                    tenancy.yielding,
                )
            )
        cards = self._device_budgets(snapshot)
        return [self._brought_up(card, read.get(card.id)) for card in cards], holdings

    def _brought_up(self, card: DeviceBudget, device: Device | None) -> DeviceBudget:
        """A card that is not read any more, with who has come to it and left it since then."""
        if device is None or not device.stale:
            return card
        come = sum(
            reservation.memory_mb[card.id]
            for reservation in self._reservations
            if card.id in reservation.memory_mb
            and reservation.ready_at is not None
            and not read_after_ready(device, reservation)
        )
        used = card.used_mb + come - self._released_mb.get(card.id, 0)
        return replace(card, used_mb=max(0, used))

    def _record_release(self, reservation: Reservation) -> None:
        for device in self._monitor.snapshot.devices:
            card = device.reading.id
            if (
                device.stale
                and card in reservation.memory_mb
                and read_after_ready(device, reservation)
            ):
                held = reservation.measured_mb.get(card, reservation.memory_mb[card])
                self._released_mb[card] = self._released_mb.get(card, 0) + held

    def _device_budgets(self, snapshot: Snapshot) -> list[DeviceBudget]:
        declared = self._program.device_memory_mb
        return device_budgets(snapshot, declared, self._driver_reported)

    def _read(self, snapshot: Snapshot) -> None:
        """From the monitor: a new reading."""
        with self._lock:
            names = [device.reading.name for device in snapshot.devices]
            self._driver_reported |= {
                budget
                for budget in self._program.device_memory_mb
                if any(matches(budget, name) for name in names)
            }
            for device in snapshot.devices:
                if not device.stale:
                    self._released_mb.pop(device.reading.id, None)
                reservations = [
                    reservation
                    for reservation in self._reservations
                    if device.reading.id in reservation.memory_mb
                ]
                for reservation in reservations:
                    # One that is half gone shows less than it took.
                    if not device.stale and not reservation.stopping:
                        record_measurement(reservation, device, alone=len(reservations) == 1)
            self._wake_locked()

    def _disturb(self, reservation: Reservation) -> None:
        """Somebody comes to or leaves the cards of a seat: what others there have taken cannot
        be told by the difference any more."""
        for other in self._reservations:
            if other is not reservation:
                for card in reservation.memory_mb:
                    other.used_before.pop(card, None)

    # --- without the lock -------------------------------------------------------------------------

    def _await_memory_return(self, reservation: Reservation) -> None:
        """Until the readings show that the memory is free, or do not change any more where
        nobody knows how much it was."""
        began = self._clock.monotonic()
        pause = threading.Event()
        last: dict[str, int | None] = {}
        last_change = began
        while (now := self._clock.monotonic()) < began + _RELEASE_SECONDS:
            snapshot = self._monitor.wait_for_reading(now, _READING_WAIT_SECONDS)
            readings = [
                device.reading
                for device in snapshot.devices
                if device.reading.id in reservation.used_when_stopping and not device.stale
            ]
            if all(memory_returned(reservation, reading) for reading in readings):
                return
            used = {reading.id: reading.used_mb for reading in readings}
            if used != last:
                last, last_change = used, self._clock.monotonic()
            # What was used while an ended one lived may be known no more: it may be back already.
            unknown = reservation.ended or all(card not in reservation.measured_mb for card in used)
            if unknown and self._clock.monotonic() >= last_change + _STEADY_SECONDS:
                return
            pause.wait(_RELEASE_POLL_SECONDS)
        log.warning(
            "%s is gone, and its memory was not given back within %g seconds",
            reservation.evictable.name,
            _RELEASE_SECONDS,
        )

    def _unchecked(self, options: Sequence[SchemeOption]) -> DeviceAssignment:
        """With ``Disable_GPU_monitoring``: the first scheme that this system can run."""
        passed_over: dict[str, str] = {}
        for option in options:
            if option.unusable_reason is None:
                return DeviceAssignment(option.scheme, {}, {}, passed_over)
            passed_over[option.scheme] = option.unusable_reason
        raise PlacementError(_reasons(passed_over), "no_matching_scheme", passed_over)

    def _rejection(self, decision: Decision) -> PlacementError:
        message = _reasons(decision.passed_over)
        if decision.code == "no_matching_scheme":
            snapshot = self._monitor.snapshot
            cards = self._device_budgets(snapshot)
            message += f". Online: {', '.join(card.id for card in cards) or 'no device'}"
            for plugin, fault in snapshot.faults.items():
                message += f". The devices of {plugin} cannot be read: {fault}"
        return PlacementError(message, decision.code, decision.passed_over)

    def _timed_out(self, decision: Decision | None) -> PlacementError:
        waited = f"no room for it within {self._program.queue_timeout:g} seconds"
        if decision is None:
            return PlacementError(waited, "queue_timeout")
        return PlacementError(
            f"{waited}: {decision.reason}; in the way: {', '.join(decision.models)}",
            "queue_timeout",
            decision.passed_over,
        )


def _reasons(passed_over: Mapping[str, str]) -> str:
    reasons = "; ".join(f"{scheme}: {reason}" for scheme, reason in passed_over.items())
    return f"no scheme of it can be used here. {reasons}"

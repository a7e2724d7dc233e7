"""Who holds what on which device, and the queue of those who wait for memory.

What happens is decided by ``planner.plan``; here it is done. One lock guards the ledger and the
queue. Under it a model's lock may be taken, for a moment; never the other way round, so that a
model reports something only after it has released its own. Nothing waits for a device under it:
readings come from the monitor's snapshot.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from manager.clock import Clock
from manager.config import Program
from manager.devices import Monitor, Reading, Snapshot
from manager.errors import ApiError
from manager.events import Events
from manager.placement import planner
from manager.placement.device_state import memory_variables, visible_devices_env
from manager.placement.ledger import Ledger
from manager.placement.memory_return import READING_TIMEOUT_SECONDS, await_memory_return
from manager.placement.reservation import Evictable, PlacementMetrics, Reservation, begin_evictions
from manager.placement.sleep import Sleep, to_wake
from manager.placement.types import (
    Action,
    Allocation,
    Basis,
    Decision,
    DeviceBudget,
    SchemeOption,
    StartRequest,
)
from manager.placement.waiter import (
    DeviceAssignment,
    PlacementError,
    QueuePosition,
    Waiter,
    decide_unmonitored,
    first_usable,
    no_usable_scheme,
    timed_out,
)

log = logging.getLogger(__name__)

MAX_READING_AGE_SECONDS = 1.0  # of a reading that is good enough to place by
RECHECK_SECONDS = 1.0  # after which the queue is planned again, should nothing else happen
MAX_ROUNDS = 8  # plans in a row that a request has crossed


class Placement:
    """The devices' memory. Every public method may be called from any thread."""

    def __init__(
        self,
        monitor: Monitor,
        clock: Clock,
        events: Events,
        metrics: PlacementMetrics,
        program: Program,
        plan: planner.Plan = planner.plan,
    ) -> None:
        """``plan`` decides; the simulator compares others with it."""
        self._monitor = monitor
        self._clock = clock
        self._events = events
        self._metrics = metrics
        self._program = program
        self._plan = plan
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._ledger = Ledger()
        self._queue: list[Waiter] = []
        self._is_due = False  # something happened since the queue was last planned
        self.sleep = Sleep(monitor, clock, self._lock, self._ledger, self._wake_locked)
        self._warned: set[str] = set()  # devices of unknown memory; of the monitor's call alone
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
        asleep: Reservation | None = None,
    ) -> tuple[Reservation, DeviceAssignment]:
        """A reservation for a model that is to be started, at once or after waiting for memory.

        ``asleep`` is the reservation that it has already: then its server is to be woken, and the
        ``options`` are not looked at. ``report`` is called with what it waits for; call ``wake``
        when ``cancelled`` has become true. Raises PlacementError; a cancelled wait is one of code
        "cancelled".
        """
        if self._program.disable_gpu_monitoring:
            return asleep or Reservation(evictable), self._unmonitored(options, asleep)
        if asleep is not None or any(option.required_devices for option in options):
            self._monitor.touch()
            self._await_recent_reading()
        waiter = self.enqueue(evictable, options, asleep)
        outcome = "failed"
        try:
            assignment = self._await_assignment(waiter, cancelled, report)
            outcome = "placed"
            return waiter.reservation, assignment
        finally:
            self.dequeue(waiter, placed=outcome == "placed")
            report(None)
            if waiter.had_to_wait:
                seconds = self._clock.monotonic() - waiter.since
                self._metrics.record_wait(evictable.name, seconds, outcome)

    def enqueue(
        self,
        evictable: Evictable,
        options: Sequence[SchemeOption],
        asleep: Reservation | None = None,
    ) -> Waiter:
        """A start in the queue, without waiting: ``reserve`` does both. ``dequeue`` ends it."""
        with self._lock:
            if asleep is not None:
                options = [to_wake(asleep)]
            reservation = asleep or Reservation(evictable)
            waiter = Waiter(reservation, options, self._clock.monotonic())
            self._queue.append(waiter)
            self._is_due = True
        return waiter

    def decide(self) -> None:
        """Decides for all who wait, if something has changed, and begins the evictions."""
        with self._lock:
            evictions = self._plan_queue() if self._is_due else []
        for victim, reason in evictions:
            self._evict(victim, reason)

    def dequeue(self, waiter: Waiter, *, placed: bool) -> None:
        """A start waits no more; unless it is ``placed``, it reserves nothing either."""
        with self._lock:
            if waiter in self._queue:
                self._queue.remove(waiter)
            if not placed and waiter.assignment is not None:
                # Another thread has assigned it devices, and it is cancelled.
                if waiter.held_asleep is None:
                    self._ledger.reservations.remove(waiter.reservation)
                else:
                    self._ledger.cancel_wake(waiter.reservation, waiter.held_asleep)
            waiter.stop_yielding(self._queue)
            self._wake_locked()

    def reserve_running(
        self,
        evictable: Evictable,
        memory_mb: Mapping[str, int],
        pids: Callable[[], Collection[int]],
        basis: Basis = Basis.DECLARED,
    ) -> Reservation:
        """The reservation of a model that runs already, as an earlier program started it."""
        reservation = Reservation(evictable, memory_mb, basis, ready_at=float("-inf"), pids=pids)
        with self._lock:
            self._ledger.reservations.append(reservation)
        return reservation

    def wake(self) -> None:
        """Something has changed for those who wait: a model is idle, a start was cancelled."""
        # Unlocked: a waiter joins the queue before it asks the models. One that joins after
        # this sees what the caller has done before.
        if self._queue:
            with self._lock:
                self._wake_locked()

    def has_waiting(self) -> bool:
        return bool(self._queue)

    def preview(
        self,
        evictable: Evictable,
        options: Sequence[SchemeOption],
        asleep: Reservation | None = None,
    ) -> Decision:
        """What would happen if the model were started manually now, or woken, as by ``reserve``.
        Changes nothing."""
        if asleep is not None:
            with self._lock:
                options = [to_wake(asleep)]
        if self._program.disable_gpu_monitoring:
            return decide_unmonitored(evictable.name, options)
        self._monitor.touch()
        self._await_recent_reading()
        with self._lock:
            budgets, allocations = self._state(self._monitor.snapshot)
            queue = self._in_order()
        request = StartRequest(evictable.name, tuple(options))
        return self._plan([*queue, request], budgets, allocations)[-1]

    # --- a reservation's life ---------------------------------------------------------------

    def mark_ready(self, reservation: Reservation) -> None:
        """The server answers: it has taken what it needs, and the next reading shows it."""
        with self._lock:
            reservation.ready_at = self._clock.monotonic()
            # What was seen until now may be the memory of what has launched a container.
            reservation.measured_mb.clear()
            self._wake_locked()
        self._monitor.refresh()

    def mark_served(self, reservation: Reservation) -> None:
        """Its first request has ended: what it is seen to take from now on is what it needs."""
        with self._lock:
            reservation.served_at = self._clock.monotonic()

    def peak_mb(self, reservation: Reservation) -> dict[str, int]:
        """The most that it was seen to take since it has served, by device id."""
        with self._lock:
            return dict(reservation.peak_mb)

    def mark_stopping(self, reservation: Reservation, *, ended: bool) -> None:
        """The server is about to be stopped. ``ended``: it has ended by itself."""
        if reservation.memory_mb and not reservation.stopping:
            # What is freed is known by what was used before: by a reading that shows all of
            # the server, and is not from the last time that somebody asked.
            since = self._clock.monotonic() - MAX_READING_AGE_SECONDS
            self._monitor.wait_for_reading(
                max(since, reservation.ready_at or since, reservation.served_at or since),
                READING_TIMEOUT_SECONDS,
            )
        with self._lock:
            if reservation.stopping:
                return  # a stop that is tried again: what counts is before the first
            self._ledger.mark_stopping(reservation, self._monitor.snapshot, ended=ended)
            self._wake_locked()

    def release(self, reservation: Reservation) -> None:
        """The server has ended. Waits, bounded, until its memory on the devices is free."""
        try:
            if reservation.used_when_stopping and not self._program.disable_gpu_monitoring:
                await_memory_return(
                    reservation,
                    self._monitor,
                    self._clock,
                    lambda readings: self._take_returned(reservation, readings),
                )
        finally:
            with self._lock:
                self._ledger.remove(reservation, self._monitor.snapshot)
                self._wake_locked()
        self._monitor.refresh()

    def _take_returned(self, reservation: Reservation, readings: Sequence[Reading]) -> bool:
        with self._lock:
            return self._ledger.take_returned(reservation, readings)

    def lost_devices(self, reservation: Reservation) -> list[str]:
        """The reservation's devices that are not online any more, by a new reading."""
        if self._program.disable_gpu_monitoring or not reservation.memory_mb:
            return []
        snapshot = self._monitor.wait_for_reading(self._clock.monotonic(), READING_TIMEOUT_SECONDS)
        online = {budget.id for budget in self._budgets(snapshot)}
        return [device_id for device_id in reservation.memory_mb if device_id not in online]

    def snapshot(self) -> tuple[list[DeviceBudget], list[Allocation]]:
        """The devices as models are placed on them, and what each model holds there."""
        with self._lock:
            return self._state(self._monitor.snapshot)

    def pids(self) -> Collection[int]:
        """The processes of all models; for the monitor, which asks in a thread of its own."""
        with self._lock:
            reservations = list(self._ledger.reservations)
        for reservation in reservations:
            if not reservation.stopping:  # a driver may list those that have ended for a while
                reservation.seen_pids = frozenset(reservation.pids())
        return frozenset().union(*(reservation.seen_pids for reservation in reservations))

    # --- waiting; without the lock ----------------------------------------------------------

    def _await_recent_reading(self) -> None:
        since = self._clock.monotonic() - MAX_READING_AGE_SECONDS
        self._monitor.wait_for_reading(since, READING_TIMEOUT_SECONDS)

    def _await_assignment(
        self,
        waiter: Waiter,
        cancelled: Callable[[], bool],
        report: Callable[[QueuePosition | None], None],
    ) -> DeviceAssignment:
        deadline = waiter.since + self._program.queue_timeout
        reported: tuple[object, ...] | None = None
        while True:
            if self._program.disable_gpu_monitoring:  # a reload has switched it off meanwhile
                reservation = waiter.reservation
                is_asleep = reservation.asleep_mb is not None
                return self._unmonitored(waiter.options, reservation if is_asleep else None)
            if cancelled():
                raise PlacementError("it was stopped while it waited for memory", "cancelled")
            self.decide()
            with self._lock:
                decision, assignment = waiter.decision, waiter.assignment
                number = self._queue.index(waiter) + 1 if waiter in self._queue else 0
            if assignment is not None:
                return assignment
            if decision is not None and decision.action is Action.REJECT:
                raise self._rejected(decision)
            if decision is not None:
                # Without the lock: the model takes its own for that, and announces it.
                news = (number, decision.action, decision.models)
                if news != reported:
                    reported = news
                    waiter.had_to_wait = True
                    report(QueuePosition(number, waiter.since, decision))
                    self._monitor.touch()
            now = self._clock.monotonic()
            if now >= deadline:
                raise timed_out(decision, self._program.queue_timeout)
            with self._lock:
                has_to_wait = waiter in self._queue and not self._is_due and not cancelled()
                # Time by itself changes things as well: after a while others have to yield.
                if has_to_wait and not self._changed.wait(min(RECHECK_SECONDS, deadline - now)):
                    self._is_due = True

    def _unmonitored(
        self, options: Sequence[SchemeOption], asleep: Reservation | None
    ) -> DeviceAssignment:
        """With ``Disable_GPU_monitoring``: at once. Raises PlacementError."""
        if asleep is None:
            return first_usable(options)
        with self._lock:
            self._ledger.begin_wake(asleep)
        return DeviceAssignment("", {}, {}, {})

    def _evict(self, victim: Evictable, reason: str) -> None:
        try:
            victim.evict(reason)
        except ApiError as error:
            # No thread for it: the queue is planned again in a moment.
            victim.cancel_eviction()
            log.error("%s was not evicted: %s", victim.name, error)
            return
        log.info("%s is %s", victim.name, reason)
        self._metrics.record_eviction(victim.name)
        self._events.publish("eviction", lambda: {"model": victim.name, "reason": reason})

    def _budgets(self, snapshot: Snapshot) -> list[DeviceBudget]:
        return self._ledger.budgets(snapshot, self._program.device_memory_mb)

    def _rejected(self, decision: Decision) -> PlacementError:
        message = no_usable_scheme(decision.passed_over)
        if decision.code == "no_matching_scheme":
            snapshot = self._monitor.snapshot
            online = [budget.id for budget in self._budgets(snapshot)]
            message += f". Online: {', '.join(online) or 'no device'}"
            for reading in snapshot.hidden:
                message += f". {reading.id} is hidden by {reading.hidden_by}"
            for plugin, fault in snapshot.faults.items():
                message += f". The devices of {plugin} cannot be read: {fault}"
        return PlacementError(message, decision.code, decision.passed_over)

    def _read(self, snapshot: Snapshot) -> None:
        """From the monitor: a new reading."""
        with self._lock:
            self._ledger.read(snapshot, self._program.device_memory_mb)
            self._wake_locked()
        for budget in self._budgets(snapshot):
            if budget.total_mb is None and budget.id not in self._warned:
                self._warned.add(budget.id)
                log.warning(
                    "the driver of %s does not report its memory: one model at a time is placed on"
                    " it. To share it, say in the config, under program, how much there is:"
                    ' device_memory_mb: {"%s": MB}',
                    budget.id,
                    budget.name,
                )

    # --- the queue; with the lock held ------------------------------------------------------

    def _plan_queue(self) -> list[tuple[Evictable, str]]:
        """Decides for all who wait; whom to evict, with each eviction begun already."""
        evictions: list[tuple[Evictable, str]] = []
        for _ in range(MAX_ROUNDS):
            self._is_due = False
            snapshot = self._monitor.snapshot
            budgets, allocations = self._state(snapshot)
            decisions = self._plan(self._in_order(), budgets, allocations)
            reservations = self._ledger.reservations
            evictables = {each.evictable.name: each.evictable for each in reservations}
            crossed = False
            for waiter, decision in zip(list(self._queue), decisions, strict=True):
                waiter.decision = decision
                waiter.release_moved(reservations, self._queue)
                if decision.action is Action.START:
                    self._assign(waiter, decision, snapshot)
                elif decision.action is Action.REJECT:
                    self._queue.remove(waiter)
                elif decision.action is Action.EVICT:
                    begun = begin_evictions([evictables[model] for model in decision.models])
                    crossed |= begun is None
                    if begun is not None:
                        waiter.planned = decision
                    reason = f"evicted to free memory for {decision.model}"
                    evictions += [(victim, reason) for victim in begun or ()]
                elif decision.action is Action.QUEUE and not decision.behind_queue:
                    waiter.ask_to_yield(
                        [each for each in reservations if each.evictable.name in decision.models],
                        self._clock.monotonic(),
                    )
            if not crossed:
                break
        self._changed.notify_all()
        return evictions

    def _assign(self, waiter: Waiter, decision: Decision, snapshot: Snapshot) -> None:
        assert decision.scheme is not None
        option = next(each for each in waiter.options if each.scheme == decision.scheme)
        if option.on is not None:
            waiter.held_asleep = self._ledger.begin_wake(waiter.reservation)
        else:
            waiter.reservation.memory_mb = decision.memory_mb
            waiter.reservation.basis = option.basis
            self._ledger.add(waiter.reservation, snapshot)
        self._queue.remove(waiter)
        waiter.assignment = DeviceAssignment(
            decision.scheme,
            decision.memory_mb,
            visible_devices_env(decision.memory_mb, snapshot),
            decision.passed_over,
            memory_variables(decision.memory_mb, self._budgets(snapshot), snapshot, option.basis),
        )

    def _wake_locked(self) -> None:
        self._is_due = True
        self._changed.notify_all()

    def _in_order(self) -> list[StartRequest]:
        """The queue, sorted by rank: a model's arrival is when it joined the queue, its priority
        the highest of the requests that wait for it now."""
        priorities = {
            waiter: waiter.reservation.evictable.waiting_priority() for waiter in self._queue
        }
        highest = max((each or 0 for each in priorities.values()), default=0)

        def rank(waiter: Waiter) -> tuple[float, float]:
            # The memory that others were stopped for is not for those who come later, such as
            # those that were stopped.
            is_first = waiter.has_evictions_under_way()
            return planner.queue_rank(
                waiter.since, highest if is_first else priorities[waiter] or 0
            )

        # Not in place: that list would seem empty meanwhile to those who read it without the lock.
        self._queue = sorted(self._queue, key=rank)
        return [
            StartRequest(
                waiter.reservation.evictable.name,
                waiter.options,
                priorities[waiter] is not None,
                waiter.planned,
            )
            for waiter in self._queue
        ]

    def _state(self, snapshot: Snapshot) -> tuple[list[DeviceBudget], list[Allocation]]:
        declared = self._program.device_memory_mb
        return self._ledger.state(snapshot, declared, self._clock.monotonic())

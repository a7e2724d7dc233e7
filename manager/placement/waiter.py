"""A model that waits to be placed, what it is given in the end, and why it is not."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from manager.placement import planner
from manager.placement.reservation import Evictable, Reservation
from manager.placement.types import Action, Decision, SchemeOption


class PlacementError(Exception):
    """A model cannot be placed; ``code`` is that of the error table, ``passed_over`` has why no
    scheme of it can be used."""

    def __init__(
        self, message: str, code: str, passed_over: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.passed_over = passed_over or {}


@dataclass(frozen=True)
class DeviceAssignment:
    """Where a model is started: ``memory_mb`` is by device id, ``environment`` names the devices
    to the script, ``passed_over`` says why not an earlier scheme, ``variables`` are for the
    command: how much it may take."""

    scheme: str
    memory_mb: Mapping[str, int]
    environment: Mapping[str, str]
    passed_over: Mapping[str, str]
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class QueuePosition:
    """What a model waits for: its ``number`` in the queue from 1, since when (monotonic)."""

    number: int
    since: float
    decision: Decision


class Waiter:
    """A model in the queue. All of it is guarded by the placement's lock, but for
    ``had_to_wait``, which belongs to the thread that waits."""

    def __init__(
        self, reservation: Reservation, options: Sequence[SchemeOption], since: float
    ) -> None:
        self.reservation = reservation
        self.options = tuple(options)
        self.since = since
        self.decision: Decision | None = None
        self.planned: Decision | None = None  # what models were stopped for
        self.assignment: DeviceAssignment | None = None
        self.held_asleep: Mapping[str, int] | None = None  # by a server that is to be woken
        self.had_to_wait = False
        self.asked_to_yield: set[Reservation] = set()

    def has_evictions_under_way(self) -> bool:
        """Whether models have been stopped for it, and that is enough so far."""
        was_decided = self.decision is not None and self.decision.action is not Action.QUEUE
        return self.planned is not None and was_decided

    def ask_to_yield(self, reservations: Sequence[Reservation], now: float) -> None:
        """Asks the models in its way to yield, if they have had their time; see
        ``planner.yield_at``."""
        ready_at = [
            math.inf if reservation.ready_at is None else reservation.ready_at
            for reservation in reservations
        ]
        if now < planner.yield_at(self.since, ready_at):
            return
        for reservation in reservations:
            if reservation not in self.asked_to_yield:
                self.asked_to_yield.add(reservation)
                reservation.evictable.set_yielding(True)

    def stop_yielding(self, queue: Collection[Waiter]) -> None:
        """Nobody has to yield for it any more."""
        asked, self.asked_to_yield = self.asked_to_yield, set()
        for reservation in asked:
            _stop_yielding(reservation.evictable, queue)

    def release_moved(
        self, reservations: Collection[Reservation], queue: Collection[Waiter]
    ) -> None:
        """A model that has crashed or was evicted frees no memory any more: it queues again, and
        may be placed before the waiter, be it on another device or on the same."""
        wanted = self.decision.memory_mb if self.decision else {}
        for reservation in list(self.asked_to_yield):
            if reservation not in reservations or not any(
                device_id in wanted for device_id in reservation.memory_mb
            ):
                self.asked_to_yield.discard(reservation)
                _stop_yielding(reservation.evictable, queue)


def _stop_yielding(model: Evictable, queue: Collection[Waiter]) -> None:
    """Unless another in the queue has asked for it as well."""
    asked = (reservation for other in queue for reservation in other.asked_to_yield)
    if not any(reservation.evictable is model for reservation in asked):
        model.set_yielding(False)


def first_usable(options: Sequence[SchemeOption]) -> DeviceAssignment:
    """With ``Disable_GPU_monitoring``: the first scheme that this system can run. Raises
    PlacementError."""
    passed_over: dict[str, str] = {}
    for option in options:
        if option.unusable_reason is None:
            return DeviceAssignment(option.scheme, {}, {}, passed_over)
        passed_over[option.scheme] = option.unusable_reason
    raise PlacementError(no_usable_scheme(passed_over), "no_matching_scheme", passed_over)


def decide_unmonitored(model: str, options: Sequence[SchemeOption]) -> Decision:
    """As ``planner.plan`` does, with ``Disable_GPU_monitoring``."""
    try:
        assignment = first_usable(options)
    except PlacementError as error:
        code = error.code
        return Decision(model, Action.REJECT, passed_over=error.passed_over, code=code)
    return Decision(model, Action.START, assignment.scheme, passed_over=assignment.passed_over)


def no_usable_scheme(passed_over: Mapping[str, str]) -> str:
    """The message for a person; ``passed_over`` is scheme → why not."""
    reasons = "; ".join(f"{scheme}: {reason}" for scheme, reason in passed_over.items())
    return f"no scheme of it can be used here. {reasons}"


def timed_out(decision: Decision | None, seconds: float) -> PlacementError:
    """After ``seconds`` in the queue."""
    waited = f"not enough free memory for it within {seconds:g} seconds"
    if decision is None:
        return PlacementError(waited, "queue_timeout")
    return PlacementError(
        f"{waited}: {decision.reason}; in the way: {', '.join(decision.models)}",
        "queue_timeout",
        decision.passed_over,
    )

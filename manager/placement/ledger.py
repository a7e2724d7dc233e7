"""Which model holds how much of which device, by what was declared and what was read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from manager.devices import Device, Reading, Snapshot
from manager.placement import planner
from manager.placement.device_state import device_budgets
from manager.placement.matching import matches
from manager.placement.reservation import (
    Reservation,
    adopt_peak,
    count_as_returned,
    memory_returned,
    read_after_ready,
    reading_includes,
    record_measurement,
    record_ram,
    rest_mb,
)
from manager.placement.types import Allocation, DeviceBudget, Evictability


class Ledger:
    """The reservations and what readings say of them. Every method is called with the placement's
    lock held, but for ``budgets``; models are asked for their eviction status under it."""

    def __init__(self) -> None:
        self.reservations: list[Reservation] = []
        # Names of device_memory_mb whose device a driver has reported.
        self._driver_reported: frozenset[str] = frozenset()
        # By device that is not read any more: what models held that have stopped since.
        self._released_mb: dict[str, int] = {}

    def add(self, reservation: Reservation, snapshot: Snapshot) -> None:
        """A model is about to be launched with this reservation."""
        self._forget_use_before(reservation)
        reservation.used_before = self._steady_use(reservation, snapshot)
        self.reservations.append(reservation)

    def mark_stopping(self, reservation: Reservation, snapshot: Snapshot, *, ended: bool) -> None:
        """The stop of its server begins; ``ended``: it has ended by itself before."""
        if reservation.served_at is not None:  # it may have had no other reading since
            self._measure(snapshot, [reservation])
        reservation.stopping, reservation.ended = True, ended
        self._forget_use_before(reservation)
        reservation.used_when_stopping = _used_mb(reservation, snapshot)

    def begin_sleep(self, reservation: Reservation, snapshot: Snapshot) -> int:
        """Its server is about to free its cards. Returns the MB that it may move from them."""
        self._forget_use_before(reservation)
        reservation.used_when_stopping = self._steady_use(reservation, snapshot)
        measured = reservation.measured_mb
        return sum(max(mb, measured.get(on, 0)) for on, mb in reservation.memory_mb.items())

    def mark_asleep(self, reservation: Reservation, snapshot: Snapshot) -> None:
        """Its server has freed what it can of its cards, and holds that in the machine's memory."""
        self._forget_use_before(reservation)  # of those that were launched meanwhile
        readings = {device.reading.id: device.reading for device in snapshot.devices}
        awake = reservation.memory_mb
        asleep = {
            on: rest_mb(reservation, readings[on]) if on in readings else mb // 10
            for on, mb in awake.items()
        }
        reservation.measured_mb = {on: mb for on, mb in asleep.items() if on in readings}
        moved = sum(max(0, awake[on] - mb) for on, mb in asleep.items())
        for reading in readings.values():
            if reading.kind == "cpu" and reading.id not in awake:
                asleep[reading.id] = moved
        reservation.awake_mb, reservation.asleep_mb = awake, asleep
        reservation.memory_mb = asleep
        reservation.used_when_stopping, reservation.moving_mb = {}, 0

    def begin_wake(self, reservation: Reservation) -> Mapping[str, int]:
        """Its cards' memory is its own again. Returns what it held until now."""
        held = reservation.memory_mb
        self._forget_use_before(reservation)
        reservation.memory_mb, reservation.asleep_mb = reservation.awake_mb, None
        reservation.ready_at = None
        return held

    def cancel_wake(self, reservation: Reservation, held: Mapping[str, int]) -> None:
        """Its server was not asked to wake, and still holds what ``begin_wake`` returned."""
        reservation.memory_mb = reservation.asleep_mb = held
        reservation.ready_at = float("-inf")

    def take_returned(self, reservation: Reservation, readings: Sequence[Reading]) -> bool:
        """Whether these show that its memory is free; then no other may count that as its own."""
        if not all(memory_returned(reservation, reading) for reading in readings):
            return False
        others = [other for other in self.reservations if other is not reservation]
        for reading in readings:
            count_as_returned(reservation, reading, others)
        return True

    def remove(self, reservation: Reservation, snapshot: Snapshot) -> None:
        """Its server has ended."""
        if reservation not in self.reservations:
            return
        self.reservations.remove(reservation)
        for device in snapshot.devices:
            on = device.reading.id
            is_held = on in reservation.memory_mb
            if device.stale and is_held and read_after_ready(device, reservation):
                held = reservation.measured_mb.get(on, reservation.memory_mb[on])
                self._released_mb[on] = self._released_mb.get(on, 0) + held

    def read(self, snapshot: Snapshot, declared_mb: Mapping[str, int]) -> None:
        """A new reading; ``declared_mb`` is ``device_memory_mb`` of the config."""
        readings = [*(device.reading for device in snapshot.devices), *snapshot.hidden]
        names = [reading.name for reading in readings]
        self._driver_reported |= {
            declared for declared in declared_mb if any(matches(declared, name) for name in names)
        }
        for device in snapshot.devices:
            if not device.stale:
                self._released_mb.pop(device.reading.id, None)
        self._measure(snapshot, self.reservations)
        for reservation in self.reservations:
            adopt_peak(reservation)

    def budgets(self, snapshot: Snapshot, declared_mb: Mapping[str, int]) -> list[DeviceBudget]:
        """The devices within ``device_memory_mb``, as they were read. Needs no lock."""
        return device_budgets(snapshot, declared_mb, self._driver_reported)

    def state(
        self, snapshot: Snapshot, declared_mb: Mapping[str, int], now: float
    ) -> tuple[list[DeviceBudget], list[Allocation]]:
        """The devices as models are placed on them, and what each model holds there."""
        read = {device.reading.id: device for device in snapshot.devices}
        allocations = []
        for reservation in self.reservations:
            if not reservation.memory_mb:
                continue
            status = reservation.evictable.eviction_status()
            idle = now - status.last_used if status.last_used is not None else 0.0
            allocations.append(
                Allocation(
                    reservation.evictable.name,
                    reservation.memory_mb,
                    Evictability.STOPPING if reservation.stopping else status.evictability,
                    dict(reservation.measured_mb),
                    all(
                        reading_includes(read.get(on), reservation) for on in reservation.memory_mb
                    ),
                    planner.stop_cost(idle, status.mean_gap, status.start_seconds),
                    status.yielding,
                )
            )
        budgets = self.budgets(snapshot, declared_mb)
        return [self._updated(budget, read.get(budget.id)) for budget in budgets], allocations

    def _updated(self, budget: DeviceBudget, device: Device | None) -> DeviceBudget:
        """A device that is not read any more, with what has started and stopped there since."""
        if device is None or not device.stale:
            return budget
        started = sum(
            reservation.memory_mb[budget.id]
            for reservation in self.reservations
            if budget.id in reservation.memory_mb
            and reservation.ready_at is not None
            and not read_after_ready(device, reservation)
        )
        used = budget.used_mb + started - self._released_mb.get(budget.id, 0)
        return replace(budget, used_mb=max(0, used))

    def _measure(self, snapshot: Snapshot, measured: Collection[Reservation]) -> None:
        """Records what the reading shows of these; of one that is stopping nothing, since it may
        have stopped in part."""
        for device in snapshot.devices:
            if device.stale:
                continue
            on = device.reading.id
            alone = sum(on in each.memory_mb for each in self.reservations) == 1
            for reservation in measured:
                if on in reservation.memory_mb and not reservation.stopping:
                    record_measurement(reservation, device, alone=alone)
                if device.reading.kind == "cpu":
                    record_ram(reservation, device.reading)

    def _steady_use(self, reservation: Reservation, snapshot: Snapshot) -> dict[str, int]:
        """What is used of its devices, by id, where no other model starts or stops."""
        found = {}
        for device in snapshot.devices:
            on, used = device.reading.id, device.reading.used_mb
            if on not in reservation.memory_mb or used is None or device.stale:
                continue
            others = [each for each in self.reservations if each is not reservation]
            on_it = [other for other in others if on in other.memory_mb]
            if all(reading_includes(device, other) and not other.stopping for other in on_it):
                found[on] = used
        return found

    def _forget_use_before(self, reservation: Reservation) -> None:
        """A model starts or stops on these devices, falls asleep or wakes: what others there have
        taken, or free as they fall asleep, cannot be known by the difference any more."""
        for other in self.reservations:
            if other is not reservation:
                for device_id in reservation.memory_mb:
                    other.used_before.pop(device_id, None)
                    if not other.stopping:
                        other.used_when_stopping.pop(device_id, None)


def _used_mb(reservation: Reservation, snapshot: Snapshot) -> dict[str, int]:
    """What is used of its devices, by id."""
    return {
        device.reading.id: device.reading.used_mb
        for device in snapshot.devices
        if device.reading.id in reservation.memory_mb and device.reading.used_mb is not None
    }

"""Free memory of each device, now and later. Pure: no clock, no I/O, no locks.

Memory is in MB, and linear: on each device

    free = total - others - sum of what the models hold there

where a model holds ``max(declared, measured)`` and ``others`` is what other programs use: the
measured use less what our models account for. A model that the reading does not show yet accounts
for nothing, so that memory which is promised is never counted as free.

A device whose memory nobody knows is one unit, which every model there takes as a whole. Needs and
allocations are counted in these units here: ``Memory.units``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from manager.placement.types import (
    Allocation,
    Basis,
    DeviceBudget,
    Evictability,
    Megabytes,
    SchemeOption,
)

_MAX_DEVICES = 10  # with more there may be more assignments than are tried


class Memory:
    """The devices with what each model holds there, while a queue is planned."""

    def __init__(self, devices: Sequence[DeviceBudget], allocations: Sequence[Allocation]) -> None:
        self.unknown = frozenset(each.id for each in devices if each.total_mb is None)
        self.devices = {
            each.id: replace(each, total_mb=1, used_mb=0) if each.id in self.unknown else each
            for each in devices
        }
        self._total = {each.id: each.total_mb or 0 for each in self.devices.values()}
        self.allocations = list(map(self._in_units, allocations))
        # MB by device. Kept as sums: they are read much more often than they change.
        self._held = dict.fromkeys(self.devices, 0)
        self._stopping = dict.fromkeys(self.devices, 0)
        self._pinned = dict.fromkeys(self.devices, 0)
        known = dict.fromkeys(self.devices, 0)
        # If a start under way has taken already all that it will take.
        assumed = dict.fromkeys(self.devices, 0)
        for allocation in self.allocations:
            self._count(allocation)
            for device_id in allocation.devices():
                if device_id in known:
                    known[device_id] += _accounted_mb(allocation, device_id, unsettled=False)
                    assumed[device_id] += _accounted_mb(allocation, device_id, unsettled=True)
        used = {each.id: each.used_mb for each in self.devices.values()}
        self.others = {on: max(0, mb - known[on]) for on, mb in used.items()}
        self.least_others = {on: max(0, mb - assumed[on]) for on, mb in used.items()}

    def need(self, option: SchemeOption, assigned: Mapping[str, str]) -> Megabytes:
        """MB of each device that the scheme takes where it is ``assigned`` these: device id → name.

        A device whose memory it does not declare is taken as far as it is expected to need it, or
        whole: all that other programs leave. More than that is never asked for, so that nothing
        is rejected for a figure that nobody has declared.
        """
        if option.basis is Basis.DECLARED:
            return {on: option.memory_mb.get(name, 0) for on, name in assigned.items()}
        need = {}
        for on, name in assigned.items():
            whole = max(1, self._total[on] - self.others[on])
            need[on] = min(option.memory_mb.get(name, whole), whole)
        return need

    def units(self, need: Megabytes) -> Megabytes:
        """What of each device is taken by a model that declares so many MB of it."""
        if self.unknown.isdisjoint(need):
            return need
        return {on: 1 if on in self.unknown else mb for on, mb in need.items()}

    def allocate(self, allocation: Allocation) -> None:
        allocation = self._in_units(allocation)
        self.allocations.append(allocation)
        self._count(allocation)

    def mark_stopping(self, models: Collection[str]) -> None:
        for at, allocation in enumerate(self.allocations):
            if allocation.model in models:
                self.allocations[at] = replace(allocation, evictability=Evictability.STOPPING)
                for device_id in allocation.devices():
                    if device_id in self._stopping:  # others are not online
                        self._stopping[device_id] += allocation.held_mb(device_id)

    def shortage(self, need: Megabytes, *, soon: bool) -> dict[str, int]:
        """Device id → MB that are missing there; ``soon``: once all models that are stopping have
        stopped and all starts have ended."""
        missing = {}
        for device_id, mb in need.items():
            free = self.free(device_id, soon=soon)
            if mb and free < mb:
                missing[device_id] = mb - free
        return missing

    def free(self, device_id: str, *, soon: bool) -> int:
        total = self._total[device_id]
        if soon:
            total += self._stopping[device_id]
            return total - self.least_others[device_id] - self._held[device_id]
        return total - self.others[device_id] - self._held[device_id]

    def surely_free(self, device_id: str) -> int:
        """Once the stopping models have stopped, however much starts under way have taken yet."""
        return self.free(device_id, soon=False) + self._stopping[device_id]

    def most_free_first(self) -> list[DeviceBudget]:
        """In the driver's order where every assignment is tried; of more devices, those come
        first where the model is likely to fit."""
        devices = list(self.devices.values())
        if len(devices) > _MAX_DEVICES:
            free = {each.id: self.free(each.id, soon=True) for each in devices}
            devices.sort(key=lambda device: (-free[device.id], self._pinned[device.id]))
        return devices

    def can_ever_hold(self, model: str, need: Megabytes) -> bool:
        """Whether it fits once all models have stopped that may be stopped one day, beside what
        the ``model`` holds itself."""
        pinned = Evictability.PINNED  # is counted as such
        own = [
            each
            for each in self.allocations
            if each.model == model and each.evictability is not pinned
        ]
        for device_id, mb in need.items():
            unavailable = self.least_others[device_id] + self._pinned[device_id]
            unavailable += sum(each.held_mb(device_id) for each in own)
            if mb and mb > self._total[device_id] - unavailable:
                return False
        return True

    def _in_units(self, allocation: Allocation) -> Allocation:
        if self.unknown.isdisjoint(allocation.devices()):
            return allocation
        measured = {on: mb for on, mb in allocation.measured_mb.items() if on not in self.unknown}
        return replace(
            allocation, declared_mb=self.units(allocation.declared_mb), measured_mb=measured
        )

    def _count(self, allocation: Allocation) -> None:
        for device_id in allocation.devices():
            if device_id in self.devices:
                held = allocation.held_mb(device_id)
                self._held[device_id] += held
                if allocation.evictability is Evictability.STOPPING:
                    self._stopping[device_id] += held
                elif allocation.evictability is Evictability.PINNED:
                    self._pinned[device_id] += held


class MemoryAfterQueue:
    """What is free on each device once all those before in the queue have what they wait for."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._free = {device_id: memory.surely_free(device_id) for device_id in memory.devices}
        self._released: set[str] = set()

    def fits(self, need: Megabytes) -> bool:
        return all(not mb or self._free[device_id] >= mb for device_id, mb in need.items())

    def reserve(self, need: Megabytes, victims: Collection[str]) -> None:
        """One takes its memory once these models have stopped."""
        for device_id, mb in need.items():
            self._add(device_id, -mb)
        if victims:
            for allocation in self._memory.allocations:
                if allocation.model in victims and allocation.model not in self._released:
                    self._released.add(allocation.model)
                    for device_id in allocation.devices():
                        self._add(device_id, allocation.held_mb(device_id))

    def _add(self, device_id: str, mb: int) -> None:
        if device_id in self._free:
            self._free[device_id] += mb


def free_mb(
    device_id: str, devices: Sequence[DeviceBudget], allocations: Sequence[Allocation]
) -> int | None:
    """What a model that is to be started could take of a device; None where nobody knows how much
    there is."""
    memory = Memory(devices, allocations)
    return None if device_id in memory.unknown else memory.free(device_id, soon=False)


def _accounted_mb(allocation: Allocation, device_id: str, *, unsettled: bool) -> int:
    """How much of the device's measured use is the model's."""
    if unsettled and not allocation.settled:
        # It takes more from moment to moment: what was measured may be older than what is used.
        return allocation.held_mb(device_id)
    measured = allocation.measured_mb.get(device_id)
    if measured is not None:
        return measured
    return allocation.declared_mb.get(device_id, 0) if allocation.settled else 0

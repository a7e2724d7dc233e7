"""The devices as models are placed on them: what was read, within the config's budgets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from manager.devices import Snapshot
from manager.placement.matching import matches
from manager.placement.types import DeviceBudget

_VARIABLES = {"nvidia": "CUDA_VISIBLE_DEVICES", "amd": "HIP_VISIBLE_DEVICES"}
"""What names a script its devices, by their kind."""


def device_budgets(
    snapshot: Snapshot, budgets: Mapping[str, int], driver_reported: Collection[str] = ()
) -> list[DeviceBudget]:
    """The devices as models are placed on them: those that were read, with their budgets, then
    those that only the config knows. A hidden one is not there, whatever the config says.
    ``budgets`` is ``device_memory_mb``, MB by name;
    ``driver_reported`` are the names among them whose device a driver has reported: if it does
    not report it any more, it is not there."""
    devices = []
    for device in snapshot.devices:
        reading = device.reading
        # A driver that knows no memory of its card's own may report 0.
        total = reading.total_mb or None
        budgeted = DeviceBudget(reading.id, reading.name, total, reading.used_mb or 0)
        for name, budget in budgets.items():
            if matches(name, reading.name):
                budgeted = _within(budgeted, budget)
        devices.append(budgeted)
    readings = [*(device.reading for device in snapshot.devices), *snapshot.hidden]
    for name, budget in budgets.items():
        is_read = any(matches(name, reading.name) for reading in readings)
        if not is_read and name not in driver_reported:
            devices.append(DeviceBudget(f"{name} #0", name, budget))
    return devices


def _within(device: DeviceBudget, budget: int) -> DeviceBudget:
    """A device of which only so much may be used. What lies outside of the budget is left to
    other programs: only what they use beyond that counts."""
    if device.total_mb is None:
        return replace(device, total_mb=budget)
    budget = min(budget, device.total_mb)
    outside = device.total_mb - budget
    return replace(device, total_mb=budget, used_mb=max(0, device.used_mb - outside))


def visible_devices_env(memory_mb: Mapping[str, int], snapshot: Snapshot) -> dict[str, str]:
    """The environment variables that name a script the devices that it is to use."""
    found = {}
    for kind, variable in _VARIABLES.items():
        indices = [
            device.reading.index
            for device in snapshot.devices
            if device.reading.id in memory_mb and device.reading.kind == kind
        ]
        if indices:
            found[variable] = ",".join(map(str, sorted(indices)))
    if "CUDA_VISIBLE_DEVICES" in found:
        # CUDA counts the fastest card first unless it is set to count as the driver does.
        found["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return found

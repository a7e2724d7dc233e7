"""The devices as models are placed on them: what was read, within the config's budgets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from manager.devices import Snapshot
from manager.placement.matching import matches
from manager.placement.planner import DeviceBudget


def device_budgets(
    snapshot: Snapshot, budgets: Mapping[str, int], driver_reported: Collection[str] = ()
) -> list[DeviceBudget]:
    """The devices as they are placed on: those that were read, with their budgets, then those
    that only the config knows. ``driven`` are names whose device a driver has told of: if it
    tells of it no more, it is not there."""
    cards = []
    for device in snapshot.devices:
        reading = device.reading
        card = DeviceBudget(reading.id, reading.name, reading.total_mb, reading.used_mb or 0)
        for name, budget in budgets.items():
            if matches(name, reading.name):
                card = _within(card, budget)
        cards.append(card)
    for name, budget in budgets.items():
        is_read = any(matches(name, device.reading.name) for device in snapshot.devices)
        if not is_read and name not in driver_reported:
            cards.append(DeviceBudget(f"{name} #0", name, budget))
    return cards


def _within(card: DeviceBudget, budget: int) -> DeviceBudget:
    """A card of which only so much may be used. What lies outside of the budget is left to
    other programs: only what they use beyond that counts."""
    if card.total_mb is None:
        return replace(card, total_mb=budget)
    budget = min(budget, card.total_mb)
    outside = card.total_mb - budget
    return replace(card, total_mb=budget, used_mb=max(0, card.used_mb - outside))


def visible_devices_env(memory_mb: Mapping[str, int], snapshot: Snapshot) -> dict[str, str]:
    """What tells a script which of the cards are meant for it."""
    indices = [
        device.reading.index
        for device in snapshot.devices
        if device.reading.id in memory_mb and device.reading.kind == "nvidia"
    ]
    if not indices:
        return {}
    # CUDA counts the fastest card first unless it is told to count as the driver does.
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, sorted(indices))),
    }

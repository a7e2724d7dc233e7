"""``/api/devices``: the devices, and how much of each a model has reserved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Response, jsonify

from manager.devices import Device, Reading, Snapshot
from manager.placement import Allocation, DeviceBudget, memory
from routes.calls import Api, Rule
from routes.services import Services

_AGE = 2.0  # seconds: older readings are from before this page was open
_READING = 0.5  # seconds that a page waits for a newer one
_FIRST_READING = 2.0  # for the first of all: a driver that was idle may take long to answer


def blueprint(services: Services) -> Api:
    api = Api("devices", tag="program")

    @api.call("GET /api/devices", Rule.VIEW)
    def devices() -> Response:
        """Each device, and how much of it which model has reserved."""
        return jsonify(read(services))

    def publish(_snapshot: Snapshot) -> None:
        services.events.publish("devices", lambda: view(services), wakes=False)

    services.monitor.add_listener(publish)
    return api


def read(services: Services) -> dict[str, Any]:
    """As `view`, from a reading of now, if there is one soon."""
    services.monitor.touch()
    is_first = services.monitor.snapshot.taken_at is None
    wait = _FIRST_READING if is_first else _READING
    services.monitor.wait_for_reading(services.clock.monotonic() - _AGE, wait)
    return view(services)


def view(services: Services) -> dict[str, Any]:
    """Every device, and why the drivers that do not answer do not."""
    snapshot = services.monitor.snapshot
    budgets, allocations = services.placement.snapshot()
    known = {device.reading.id: device for device in snapshot.devices}
    devices = [
        _device(services, budget, known.get(budget.id), budgets, allocations) for budget in budgets
    ]
    return {"devices": devices, "faults": dict(snapshot.faults)}


def _device(
    services: Services,
    budget: DeviceBudget,
    device: Device | None,
    budgets: Sequence[DeviceBudget],
    allocations: Sequence[Allocation],
) -> dict[str, Any]:
    reading = device.reading if device else Reading(budget.name, "declared", 0, budget.total_mb)
    unreserved_mb = memory.free_mb(budget.id, budgets, allocations)
    # A card whose driver does not report its memory has what device_memory_mb says.
    total, used = reading.total_mb or budget.total_mb, reading.used_mb
    held = sum(allocation.held_mb(budget.id) for allocation in allocations)
    return {
        "id": budget.id,
        "name": reading.name,
        "kind": reading.kind,
        "index": reading.index,
        "total_mb": total,
        "used_mb": used,
        "free_mb": None if total is None else max(0, total - (held if used is None else used)),
        "budget_mb": budget.total_mb,
        "exclusive": budget.total_mb is None,
        "room_mb": None if unreserved_mb is None else max(0, unreserved_mb),
        "load": reading.load,
        "temperature_c": reading.temperature_c,
        "read_at": services.clock.iso(device.read_at) if device else None,
        "stale": device.stale if device else False,
        "models": [
            {
                "name": allocation.model,
                "declared_mb": allocation.declared_mb[budget.id],
                "measured_mb": allocation.measured_mb.get(budget.id),
            }
            for allocation in allocations
            if budget.id in allocation.declared_mb
        ],
    }

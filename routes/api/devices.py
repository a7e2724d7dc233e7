"""``/api/devices``: the devices, and which model holds how much of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response, jsonify

from manager.devices import Device, Reading, Snapshot
from manager.placement import memory
from manager.placement.types import Allocation, DeviceBudget
from routes.services import Services

_AGE = 2.0  # seconds: older readings are from when nobody looked
_READING = 0.5  # seconds that a page waits for a newer one
_FIRST_READING = 2.0  # for the first of all: a driver that nobody has used may have to wake up


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("devices", __name__)

    @routes.get("/api/devices")
    def devices() -> Response:
        services.monitor.touch()
        is_first = services.monitor.snapshot.taken_at is None
        wait = _FIRST_READING if is_first else _READING
        services.monitor.wait_for_reading(services.clock.monotonic() - _AGE, wait)
        return jsonify(view(services))

    def tell(_snapshot: Snapshot) -> None:
        services.events.publish("devices", lambda: view(services), wakes=False)

    services.monitor.add_listener(tell)
    return routes


def view(services: Services) -> dict[str, Any]:
    """Every device, and why the drivers that do not answer do not."""
    snapshot = services.monitor.snapshot
    cards, holdings = services.placement.snapshot()
    known = {device.reading.id: device for device in snapshot.devices}
    devices = [_device(services, card, known.get(card.id), cards, holdings) for card in cards]
    return {"devices": devices, "faults": dict(snapshot.faults)}


def _device(
    services: Services,
    card: DeviceBudget,
    device: Device | None,
    cards: Sequence[DeviceBudget],
    holdings: Sequence[Allocation],
) -> dict[str, Any]:
    reading = device.reading if device else Reading(card.name, "declared", 0, card.total_mb)
    free = None
    room = memory.free_mb(card.id, cards, holdings)
    if reading.total_mb is not None and reading.used_mb is not None:
        free = max(0, reading.total_mb - reading.used_mb)
    return {
        "id": card.id,
        "name": reading.name,
        "kind": reading.kind,
        "index": reading.index,
        "total_mb": reading.total_mb,
        "used_mb": reading.used_mb,
        "free_mb": free,
        "budget_mb": card.total_mb,
        "room_mb": None if room is None else max(0, room),
        "load": reading.load,
        "temperature_c": reading.temperature_c,
        "read_at": services.clock.iso(device.read_at) if device else None,
        "stale": device.stale if device else False,
        "models": [
            {
                "name": holding.model,
                "declared_mb": holding.declared_mb[card.id],
                "measured_mb": holding.measured_mb.get(card.id),
            }
            for holding in holdings
            if card.id in holding.declared_mb
        ],
    }

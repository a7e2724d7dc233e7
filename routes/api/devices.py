"""``/api/devices``: the devices, and which model holds how much of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response, jsonify

from manager.devices import Device, Reading, Snapshot
from manager.placement import planner
from manager.placement.planner import Card, Holding
from routes.services import House

_AGE = 2.0  # seconds: older readings are from when nobody looked
_READING = 0.5  # seconds that a page waits for a newer one
_FIRST_READING = 2.0  # for the first of all: a driver that nobody has used may have to wake up


def blueprint(house: House) -> Blueprint:
    routes = Blueprint("devices", __name__)

    @routes.get("/api/devices")
    def devices() -> Response:
        house.monitor.touch()
        is_first = house.monitor.snapshot.taken_at is None
        wait = _FIRST_READING if is_first else _READING
        house.monitor.fresh(house.clock.monotonic() - _AGE, wait)
        return jsonify(view(house))

    def tell(_snapshot: Snapshot) -> None:
        house.events.publish("devices", lambda: view(house), wakes=False)

    house.monitor.listen(tell)
    return routes


def view(house: House) -> dict[str, Any]:
    """Every device, and why the drivers that do not answer do not."""
    snapshot = house.monitor.snapshot
    cards, holdings = house.placement.picture()
    known = {device.reading.id: device for device in snapshot.devices}
    devices = [_device(house, card, known.get(card.id), cards, holdings) for card in cards]
    return {"devices": devices, "faults": dict(snapshot.faults)}


def _device(
    house: House,
    card: Card,
    device: Device | None,
    cards: Sequence[Card],
    holdings: Sequence[Holding],
) -> dict[str, Any]:
    reading = device.reading if device else Reading(card.name, "declared", 0, card.total_mb)
    free = None
    room = planner.free_mb(card.id, cards, holdings)
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
        "read_at": house.clock.iso(device.read_at) if device else None,
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

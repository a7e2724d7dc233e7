"""``/api/events``: what changes, as it changes."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Blueprint, Response

from manager.events import Subscription
from routes import streams
from routes.house import House

_KEEP_ALIVE = 15.0  # seconds; proxies cut a stream that is silent for long


def blueprint(house: House) -> Blueprint:
    routes = Blueprint("events", __name__)

    @routes.get("/api/events")
    def events() -> Response:
        subscription = house.events.subscribe()
        house.monitor.touch()

        def stop() -> None:
            house.events.unsubscribe(subscription)

        return streams.answer(house, _pieces(house, subscription), stop)

    return routes


def _pieces(house: House, subscription: Subscription) -> Iterator[bytes]:
    """First every model as it is, then each change."""
    for model in house.fleet.models():
        yield streams.event("model", model.view())
    while not subscription.closed:
        change = subscription.get(_KEEP_ALIVE)
        if change is not None:
            yield streams.event(*change)
        elif not subscription.closed:
            yield b": still here\n\n"

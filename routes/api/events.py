"""``/api/events``: what changes, as it changes; ``/api/activity``: what is under way."""

from __future__ import annotations

import time
from collections.abc import Iterator

from flask import Blueprint, Response, jsonify

from manager.errors import ApiError
from manager.events import Event, Subscription
from manager.storage.logs import POLL, Follower
from routes import sse
from routes.api.logs import lines_asked_for
from routes.request import Query, bad
from routes.services import Services

KINDS = ("model", "devices", "eviction", "throughput", "requests")
_UNASKED = KINDS[:-1]  # the list of requests is long: it is for those who name it
_KEEP_ALIVE = 15.0  # seconds; proxies cut a stream that is silent for long
_LOOK = 1.0  # seconds until a page is told what does not wake it
_PAUSE = 0.1  # seconds between two pieces of a stream
_OF_MODEL = "model/"


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("events", __name__)

    @routes.get("/api/events")
    def events() -> Response:
        query = Query(("only", "log", "lines"))
        kinds = _kinds(query)
        follower, first = _follower(services, query)
        subscription = services.events.subscribe(kinds)
        if "devices" in kinds:
            services.monitor.touch()

        def stop() -> None:
            services.events.unsubscribe(subscription)

        return sse.stream_response(services, _pieces(services, subscription, follower, first), stop)

    @routes.get("/api/activity")
    def activity() -> Response:
        return jsonify(
            {
                "throughput": services.activity.throughput(),
                "history": services.activity.history(),
                "requests": services.activity.requests(),
            }
        )

    return routes


def _kinds(query: Query) -> tuple[str, ...]:
    only = query.text("only")
    if only is None:
        return _UNASKED
    kinds = tuple(only.split(",")) if only else ()
    for kind in kinds:
        if kind not in KINDS:
            raise bad("only", f"only has to be some of {','.join(KINDS)}, not {kind[:40]!r}")
    return kinds


def _follower(services: Services, query: Query) -> tuple[Follower | None, list[str]]:
    """Of the log that the page shows, in the same stream: a page holds one thread. And what it is
    told in the place of a log: a page whose model is gone goes on with all else."""
    log = query.text("log")
    if log is None:
        return None, []
    if log == "program":
        return services.logs.program_follower(lines_asked_for()), []
    if not log.startswith(_OF_MODEL):
        raise bad("log", f"log has to be program or model/NAME, not {log[:40]!r}")
    try:
        model = services.fleet.find(log.removeprefix(_OF_MODEL))
    except ApiError as error:
        return None, [str(error)]
    return services.logs.follower(model.settings.name, lines_asked_for()), []


def _pieces(
    services: Services, subscription: Subscription, follower: Follower | None, first: list[str]
) -> Iterator[bytes]:
    """First all as it is, then each change."""
    # The headers go out with the first bytes, and a browser has no stream before it has those.
    yield b": here it is\n\n" + b"".join(event.message for event in _now(services, subscription))
    if first:
        yield Event("lines", first).message
    quiet = 0.0
    wait = _LOOK if follower is None else POLL
    while not subscription.closed:
        changes = subscription.take(wait)
        if follower is not None and (lines := follower.read()):
            changes.append(Event("lines", lines))
        if changes:
            quiet = 0.0
            # In one write: each is a system call, and a turn at the interpreter's lock.
            yield b"".join(event.message for event in changes)
            time.sleep(_PAUSE)  # meanwhile a burst gathers, and wakes nobody
            continue
        quiet += wait
        if quiet >= _KEEP_ALIVE and not subscription.closed:
            quiet = 0.0
            yield b": still here\n\n"


def _now(services: Services, subscription: Subscription) -> Iterator[Event]:
    if subscription.accepts("model"):
        for model in services.fleet.models():
            yield Event("model", model.to_json())
    if subscription.accepts("throughput"):
        yield Event("throughput", services.activity.throughput())
    if subscription.accepts("requests"):
        yield Event("requests", services.activity.requests())

"""``/api/events``: changes as they happen; ``/api/activity``: the requests under way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from flask import Response, jsonify

from manager.errors import ApiError
from manager.events import Event, Subscription
from manager.storage import POLL, Follower
from routes import sse
from routes.api.logs import LINES
from routes.calls import Api, Rule
from routes.request import anything, bad
from routes.services import Services

KINDS = ("model", "devices", "eviction", "throughput", "requests")
_DEFAULT = KINDS[:-1]  # the list of requests is long: it has to be named
_KEEP_ALIVE = 15.0  # seconds; proxies cut a stream that is silent for long
_POLL = 1.0  # seconds after which changes are sent that do not wake the stream
_PAUSE = 0.1  # seconds between two pieces of a stream
_OF_MODEL = "model/"
_ANY_KIND = "|".join(KINDS)
_QUERY = {
    "only": anything(
        pattern=f"^(({_ANY_KIND})(,({_ANY_KIND}))*)?$",
        description=f"Some of {', '.join(KINDS)}, by commas; all but requests where left out",
    ),
    "log": anything(
        pattern="^(program|model/.+)$",
        description="The lines of this log too: program, or model/NAME",
    ),
    **LINES,
}


def blueprint(services: Services) -> Api:
    api = Api("events", tag="program")

    @api.call("GET /api/events", Rule.VIEW, query=_QUERY, answers={200: "Events"})
    def events(query: dict[str, Any]) -> Response:
        """Changes as they happen: of models, devices, evictions, speeds and requests.

        First all as it is, then each change. `log` adds the lines of a log to the same stream.
        """
        kinds = _kinds(query)
        follower, first = _follower(services, query)
        subscription = services.events.subscribe(kinds)
        if "devices" in kinds:
            services.monitor.touch()

        def stop() -> None:
            services.events.unsubscribe(subscription)

        return sse.stream_response(services, _pieces(services, subscription, follower, first), stop)

    @api.call("GET /api/activity", Rule.VIEW)
    def activity() -> Response:
        """The requests under way, and the speeds of the last minutes."""
        return jsonify(
            {
                "throughput": services.activity.throughput(),
                "history": services.activity.history(),
                "requests": services.activity.requests(),
            }
        )

    return api


def _kinds(query: dict[str, Any]) -> tuple[str, ...]:
    only = query.get("only")
    if only is None:
        return _DEFAULT
    kinds = tuple(only.split(",")) if only else ()
    for kind in kinds:
        if kind not in KINDS:
            raise bad("only", f"only has to be some of {','.join(KINDS)}, not {kind[:40]!r}")
    return kinds


def _follower(services: Services, query: dict[str, Any]) -> tuple[Follower | None, list[str]]:
    """Of the log that the page shows, in the same stream, so that a page holds one thread; and the
    lines in its place where there is no such model any more: the page goes on with all else."""
    log = query.get("log")
    if log is None:
        return None, []
    if log == "program":
        return services.logs.program_follower(query["lines"]), []
    if not log.startswith(_OF_MODEL):
        raise bad("log", f"log has to be program or model/NAME, not {log[:40]!r}")
    try:
        model = services.fleet.find(log.removeprefix(_OF_MODEL))
    except ApiError as error:
        return None, [str(error)]
    return services.logs.follower(model.settings.name, query["lines"]), []


def _pieces(
    services: Services, subscription: Subscription, follower: Follower | None, first: list[str]
) -> Iterator[bytes]:
    # The headers go out with the first bytes, and a browser has no stream before it has those.
    yield b": here it is\n\n" + b"".join(event.message for event in _now(services, subscription))
    if first:
        yield Event("lines", first).message
    quiet = 0.0
    wait = _POLL if follower is None else POLL
    while not subscription.closed:
        changes = subscription.take(wait)
        if follower is not None and (lines := follower.read()):
            changes.append(Event("lines", lines))
        if changes:
            quiet = 0.0
            # In one write: each is a system call, which releases the GIL.
            yield b"".join(event.message for event in changes)
            time.sleep(_PAUSE)  # meanwhile further changes gather
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

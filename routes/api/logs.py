"""The models' runs and their logs, and the program's own log."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from flask import Response, jsonify

from manager.billing import iso
from manager.events import Event
from manager.storage import PastRun, runs
from routes import sse
from routes.calls import Api, Rule
from routes.request import anything, integer
from routes.services import Services

LINES = {"lines": integer(1, 10_000).default_to(200)}
_KEEP_ALIVE_ROUNDS = 60  # quiet moments of a follower, about 15 seconds


def blueprint(services: Services) -> Api:
    api = Api("logs", tag="models")

    @api.call(
        "GET /api/models/<path:name>/logs",
        Rule.VIEW,
        query={**LINES, "run": anything().described("The id of a run")},
        answers={200: "Text"},
    )
    def logs(name: str, query: dict[str, Any]) -> Response:
        """The last lines of a run's log, the latest run's where none is named."""
        model = services.fleet.find(name)
        return _text(services.logs.tail(model.settings.name, query["lines"], query.get("run")))

    @api.call(
        "GET /api/models/<path:name>/runs",
        Rule.VIEW,
        query={"limit": integer(1, 1000).default_to(50)},
    )
    def past(name: str, query: dict[str, Any]) -> Response:
        """Its runs, newest first."""
        model = services.fleet.find(name).settings.name
        found = runs.newest(services.data_dir / "usage.db", model, query["limit"])
        return jsonify({"runs": [_run(services, model, one) for one in found]})

    @api.call(
        "GET /api/models/<path:name>/logs/stream",
        Rule.VIEW,
        query=LINES,
        answers={200: "Events"},
    )
    def follow(name: str, query: dict[str, Any]) -> Response:
        """The lines of its log as they are written."""
        model = services.fleet.find(name)
        stopped = threading.Event()
        lines = services.logs.follow(model.settings.name, query["lines"], stopped)
        return sse.stream_response(services, _log_pieces(lines), stopped.set)

    @api.call("GET /api/log", Rule.VIEW, query=LINES, answers={200: "Text"}, tag="program")
    def own(query: dict[str, Any]) -> Response:
        """The last lines of the program's own log."""
        return _text(services.logs.program_tail(query["lines"]))

    return api


def _log_pieces(lines: Iterator[str | None]) -> Iterator[bytes]:
    quiet = 0
    for line in lines:
        if line is not None:
            yield Event("line", line).message
            continue
        quiet += 1
        if quiet % _KEEP_ALIVE_ROUNDS == 1:
            yield b": still here\n\n"


def _run(services: Services, model: str, run: PastRun) -> dict[str, Any]:
    return {
        "id": run.id,
        "scheme": run.scheme,
        "port": run.port,
        "pid": run.pid,
        "started_at": iso(run.started_ms),
        "ready_at": None if run.ready_ms is None else iso(run.ready_ms),
        "ended_at": None if run.ended_ms is None else iso(run.ended_ms),
        "end_reason": run.end_reason,
        "has_log": services.logs.of_run(model, run.id) is not None,
    }


def _text(text: str) -> Response:
    return Response(text + "\n" if text else "", mimetype="text/plain")

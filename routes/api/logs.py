"""The models' runs and their logs, and the program's own log."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Response, jsonify, request

from manager.billing.calendar import iso
from manager.errors import ApiError
from manager.events import Event
from manager.storage import runs
from manager.storage.runs import PastRun
from manager.storage.store import DatabaseError
from routes import sse
from routes.api.usage import database_error
from routes.request import Query
from routes.services import Services

_MAX_LINES = 10_000
_RUNS, _MOST_RUNS = 50, 1000
_KEEP_ALIVE_ROUNDS = 60  # quiet moments of a follower, about 15 seconds


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("logs", __name__)
    routes.register_error_handler(DatabaseError, database_error)

    @routes.get("/api/models/<path:name>/logs")
    def logs(name: str) -> Response:
        model = services.fleet.find(name)
        run = request.args.get("run")
        return _text(services.logs.tail(model.settings.name, lines_asked_for(), run))

    @routes.get("/api/models/<path:name>/runs")
    def past(name: str) -> Response:
        model = services.fleet.find(name).settings.name
        limit = Query(("limit",)).integer("limit", 1, _MOST_RUNS) or _RUNS
        found = runs.newest(services.data_dir / "usage.db", model, limit)
        return jsonify({"runs": [_run(services, model, one) for one in found]})

    @routes.get("/api/models/<path:name>/logs/stream")
    def follow(name: str) -> Response:
        model = services.fleet.find(name)
        stopped = threading.Event()
        lines = services.logs.follow(model.settings.name, lines_asked_for(), stopped)
        return sse.stream_response(services, _log_pieces(lines), stopped.set)

    @routes.get("/api/log")
    def own() -> Response:
        return _text(services.logs.program_tail(lines_asked_for()))

    return routes


def lines_asked_for() -> int:
    """How many lines of a log are wanted. Raises ApiError 400."""
    text = request.args.get("lines", "200")
    if not re.fullmatch("[1-9][0-9]{0,4}", text) or int(text) > _MAX_LINES:
        raise ApiError(
            400,
            "bad_parameter",
            f"lines has to be 1 to {_MAX_LINES}, not {text[:40]!r}",
            param="lines",
        )
    return int(text)


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

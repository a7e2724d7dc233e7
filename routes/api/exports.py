"""``/api/exports``: bills as CSV files."""

from __future__ import annotations

from datetime import timezone, tzinfo
from pathlib import Path
from typing import Any

from flask import Response, jsonify

from manager.billing import Period, calendar, iso, statements
from manager.config import Export, next_time
from manager.errors import ApiError
from routes.api.data import TASK, run_task, task_to_json
from routes.api.usage import zone_of
from routes.calls import Api, Rule
from routes.request import WAIT, Body, bad, text
from routes.services import Services

_PERIOD = Body(
    {
        "month": text(pattern="^[0-9]{4}-[0-9]{2}$"),
        "day": text(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}$"),
    },
    {"minProperties": 1, "maxProperties": 1},
)


def blueprint(services: Services) -> Api:
    api = Api("exports", tag="money")
    # Where and when they are made needs a restart.
    program = services.fleet.config.program
    folder = statements.directory(program.export_directory, services.data_dir)
    export, zone = program.export, calendar.zone(program.timezone)

    def is_complete(path: Path, period: Period) -> bool:
        try:
            return statements.is_made(path, period, zone_of(services))
        except ValueError:  # there is no such day in the zone that is configured now
            return False

    def file_to_json(path: Path) -> dict[str, Any]:
        period, state = statements.period_of(path.name), path.stat()
        return {
            "file": path.name,
            "period": period.text if period else "",
            "bytes": state.st_size,
            "made_at": iso(int(state.st_mtime * 1000)),
            "complete": period is not None and is_complete(path, period),
        }

    @api.call("GET /api/exports", Rule.VIEW)
    def exports() -> Response:
        """The bills, the latest period first; tasks that wait or failed; the schedule."""
        orders = [
            task_to_json(order) for order in services.orders.load_all() if order.kind == "export"
        ]
        files = [file_to_json(path) for path in statements.list_files(folder)]
        schedule = export and _schedule(export, folder, zone, services.clock.wall_ms())
        return jsonify({"exports": files, "orders": orders, "schedule": schedule})

    @api.call(
        "POST /api/exports",
        Rule.ADMIN,
        query=WAIT,
        body=_PERIOD,
        answers=TASK,
        errors=(500,),
    )
    def make(query: dict[str, Any], body: dict[str, Any]) -> tuple[Response, int]:
        """Makes the bill of a month or of a day; `file` is its name.

        One that is there is replaced. `complete` is false where it is of a part: the period is not
        over, or a request of it is still under way. The schedule replaces such a bill.
        """
        period = _period(body)
        start_ms, _ = _bounds(services, period)
        if start_ms > services.clock.wall_ms():
            raise bad("month" if period.is_month else "day", f"{period.text} has not begun")
        services.record_all()
        answer, status = run_task(
            services, services.orders.enqueue("export", period.text), query["wait"]
        )
        made = answer.get_json()
        complete = made["done"] and is_complete(folder / period.file, period)
        return jsonify({**made, "file": period.file, "complete": complete}), status

    @api.call("GET /api/exports/<file>", Rule.VIEW, answers={200: "Csv"})
    def download(file: str) -> Response:
        """A bill."""
        # Only the names that bills have: none of them leads out of the folder.
        if statements.period_of(file) is None:
            raise _missing(file)
        try:
            bill = (folder / file).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise _missing(file) from None
        answer = Response(bill, mimetype="text/csv")
        answer.headers["Content-Disposition"] = f"attachment; filename={file}"
        return answer

    return api


def _schedule(export: Export, folder: Path, zone: tzinfo, now_ms: int) -> dict[str, Any]:
    next_at = next_time(export.schedule, calendar.local(now_ms + 1, zone))
    utc = next_at and next_at.astimezone(timezone.utc)
    return {
        "schedule": export.schedule,
        "period": export.period,
        "directory": str(folder),
        "next_at": utc and utc.isoformat(timespec="milliseconds"),
    }


def _period(given: dict[str, str]) -> Period:
    if len(given) != 1:
        raise bad("month", 'say which: {"month": "2026-11"} or {"day": "2026-11-05"}')
    ((kind, wanted),) = given.items()
    try:
        period = Period.parse(wanted)
    except ValueError as error:
        raise bad(kind, f"{kind}: {error}") from None
    if period.is_month != (kind == "month"):
        raise bad(kind, f"{kind}: {period.text} is no {kind}")
    return period


def _bounds(services: Services, period: Period) -> tuple[int, int]:
    try:
        return period.bounds_ms(zone_of(services))
    except ValueError as error:
        raise bad("day", str(error)) from None


def _missing(file: str) -> ApiError:
    return ApiError(404, "export_not_found", f"There is no bill {file[:80]!r}; GET /api/exports")

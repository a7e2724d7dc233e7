"""``/api/data``: what is stored of each model, deleting it, copies, and how the worker does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify, request

from manager.billing.calendar import iso
from manager.errors import ApiError
from manager.storage import maintenance
from manager.storage.maintenance_tasks import Order
from manager.storage.store import DatabaseError, reading
from routes import fields
from routes.api.usage import database_error
from routes.request import body, refuse_unknown
from routes.services import Services

_WAIT_SECONDS = 60.0
_AT_REST = ("stopped", "failed")


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("data", __name__)
    routes.register_error_handler(DatabaseError, database_error)
    path = services.data_dir / "usage.db"

    @routes.get("/api/data")
    def state() -> Response:
        with reading(path) as connection:
            free, pages, page = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("freelist_count", "page_count", "page_size")
            )
            behind = maintenance.newest_seq(connection) - maintenance.billed_seq(connection)
            oldest_ms = maintenance.oldest_ms(connection)
        return jsonify(
            {
                "database_bytes": pages * page,
                "free_bytes": free * page,
                "unbilled_requests": behind,
                "oldest_at": None if oldest_ms is None else iso(oldest_ms),
                "worker": services.worker.view(),
                "orders": [task_to_json(order) for order in services.orders.all()],
                "backups": [_backup(file) for file in _backups(services)],
            }
        )

    @routes.get("/api/data/models")
    def models() -> Response:
        configured = services.fleet.config.models
        with reading(path) as connection:
            found = maintenance.stored(connection)
        return jsonify(
            {
                "models": [
                    {
                        "name": one.model,
                        "configured": one.model in configured,
                        "requests": one.requests,
                        "oldest_at": None if one.oldest_ms is None else iso(one.oldest_ms),
                        "newest_at": None if one.newest_ms is None else iso(one.newest_ms),
                        "billed_requests": one.billed_requests,
                        "runs": one.runs,
                        "prices": one.prices,
                        "adjustments": one.adjustments,
                    }
                    for one in found
                ]
            }
        )

    @routes.delete("/api/data/models/<path:name>")
    def delete(name: str) -> tuple[Response, int]:
        model = next((m for m in services.fleet.models() if m.settings.name == name), None)
        if model is not None and (state := model.to_json()["state"]) not in _AT_REST:
            raise ApiError(
                409, "model_running", f"{name} is {state}: stop it first, then delete its data"
            )
        _require_stored(path, name)
        return run_task(services, services.orders.place("delete", name))

    @routes.post("/api/data/reprice")
    def reprice() -> tuple[Response, int]:
        given = body()
        refuse_unknown(given, ("model",))
        name = fields.read(given, "model", fields.text)
        _require_stored(path, name)
        return run_task(services, services.orders.place("reprice", name))

    @routes.post("/api/data/vacuum")
    def vacuum() -> tuple[Response, int]:
        return run_task(services, services.orders.place("vacuum"))

    @routes.post("/api/data/backup")
    def back_up() -> tuple[Response, int]:
        return run_task(services, services.orders.place("backup"))

    return routes


def _require_stored(path: Path, model: str) -> None:
    with reading(path) as connection:
        if not maintenance.is_stored(connection, model):
            raise ApiError(404, "no_data", f"Nothing is stored of a model {model[:200]!r}")


def run_task(services: Services, order: Order) -> tuple[Response, int]:
    """202 at once; with ``?wait=1`` 200 when it is done, and still 202 where that lasts.

    Raises ApiError 500 ``not_done``, with the reason.
    """
    now: Order | None = order
    if request.args.get("wait") in ("1", "true"):
        give_back = services.slots.acquire()
        try:
            now = services.orders.wait(order, _WAIT_SECONDS, services.closing.is_set)
        finally:
            give_back()
    if now is not None and now.error is not None:
        raise ApiError(500, "not_done", f"{order.kind} {order.subject}: {now.error}")
    return jsonify({**task_to_json(order), "done": now is None}), 200 if now is None else 202


def task_to_json(order: Order) -> dict[str, Any]:
    """An order, as JSON."""
    return {
        "kind": order.kind,
        "subject": order.subject,
        "asked_at": iso(order.asked_ms),
        "error": order.error,
    }


def _backups(services: Services) -> list[Path]:
    folder = services.data_dir / "backups"
    return sorted(folder.glob("usage-*.db"), reverse=True) if folder.is_dir() else []


def _backup(file: Path) -> dict[str, Any]:
    state = file.stat()
    return {
        "file": file.name,
        "bytes": state.st_size,
        "made_at": iso(int(state.st_mtime * 1000)),
    }

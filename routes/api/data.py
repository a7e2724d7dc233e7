"""``/api/data``: what is stored of each model, deleting it, backups, the worker's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Response, jsonify

from manager.billing import iso
from manager.errors import ApiError
from manager.storage import Order, maintenance, read_connection
from routes.calls import Api, Rule
from routes.request import WAIT, text
from routes.services import Services

_WAIT_SECONDS = 60.0
_AT_REST = ("stopped", "failed")
TASK = {200: "Json", 202: "Accepted"}


def blueprint(services: Services) -> Api:
    api = Api("data", tag="data")
    path = services.data_dir / "usage.db"

    @api.call("GET /api/data", Rule.VIEW)
    def state() -> Response:
        """How large the database is, and what the worker does.

        `oldest_at` is the first moment that something is stored of, `worker` whether it is alive,
        since when, and how it last ended, `orders` the tasks that wait or failed.
        """
        with read_connection(path) as connection:
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
                "orders": [task_to_json(order) for order in services.orders.load_all()],
                "backups": [_backup(file) for file in _backups(services)],
            }
        )

    @api.call("GET /api/data/models", Rule.VIEW)
    def models() -> Response:
        """What is stored of each model, also of those that are no longer configured."""
        configured = services.fleet.config.models
        with read_connection(path) as connection:
            found = maintenance.stored_by_model(connection)
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

    @api.call(
        "DELETE /api/data/models/<path:name>",
        Rule.ADMIN,
        query=WAIT,
        answers=TASK,
        errors=(409, 500),
    )
    def delete(name: str, query: dict[str, Any]) -> tuple[Response, int]:
        """Deletes a model's requests, runs and sums; prices and adjustments stay.

        409 `model_running` while it runs. Reports and bills made from then on are without it.
        """
        model = next((m for m in services.fleet.models() if m.settings.name == name), None)
        if model is not None and (state := model.to_json()["state"]) not in _AT_REST:
            how = "take it out of the config" if model.is_remote else "stop it"
            raise ApiError(
                409, "model_running", f"{name} is {state}: {how} first, then delete its data"
            )
        _require_stored(path, name)
        return run_task(services, services.orders.enqueue("delete", name), query["wait"])

    @api.call(
        "POST /api/data/reprice",
        Rule.ADMIN,
        query=WAIT,
        body={"model": text().required()},
        answers=TASK,
        errors=(404, 500),
    )
    def reprice(query: dict[str, Any], body: dict[str, Any]) -> tuple[Response, int]:
        """Prices a model's requests that had no price when they were billed and have one now.

        Nothing that has a price is changed.
        """
        _require_stored(path, body["model"])
        return run_task(services, services.orders.enqueue("reprice", body["model"]), query["wait"])

    @api.call("POST /api/data/vacuum", Rule.ADMIN, query=WAIT, answers=TASK, errors=(500,))
    def vacuum(query: dict[str, Any]) -> tuple[Response, int]:
        """Returns free space of the database to the disk, some at a time."""
        return run_task(services, services.orders.enqueue("vacuum"), query["wait"])

    @api.call("POST /api/data/backup", Rule.ADMIN, query=WAIT, answers=TASK, errors=(500,))
    def back_up(query: dict[str, Any]) -> tuple[Response, int]:
        """Copies `usage.db` into `backups/` of the data folder."""
        return run_task(services, services.orders.enqueue("backup"), query["wait"])

    return api


def _require_stored(path: Path, model: str) -> None:
    with read_connection(path) as connection:
        if not maintenance.is_stored(connection, model):
            raise ApiError(404, "no_data", f"Nothing is stored of a model {model[:200]!r}")


def run_task(services: Services, order: Order, wait: bool) -> tuple[Response, int]:
    """202 at once; where it is to ``wait``, 200 when it is done, and 202 after a minute.

    Raises ApiError 500 ``not_done``, with the reason.
    """
    now: Order | None = order
    if wait:
        release = services.slots.acquire()
        try:
            now = services.orders.wait(order, _WAIT_SECONDS, services.closing.is_set)
        finally:
            release()
    if now is not None and now.error is not None:
        raise ApiError(500, "not_done", f"{order.kind} {order.subject}: {now.error}")
    return jsonify({**task_to_json(order), "done": now is None}), 200 if now is None else 202


def task_to_json(order: Order) -> dict[str, Any]:
    """A maintenance task, as JSON."""
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

"""A model, and a decision about it, as the API's JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manager.clock import Clock
from manager.config import Model as ModelSettings
from manager.models.server import Server
from manager.models.startup import Start
from manager.placement import Action, Decision, QueuePosition

# As scripts know them: they stay, whatever the actions are called here.
_ACTION_NAMES = {
    Action.START: "start",
    Action.EVICT: "evict",
    Action.AWAIT_MEMORY: "soon",
    Action.QUEUE: "wait",
    Action.REJECT: "refuse",
}


def model_to_json(
    settings: ModelSettings,
    clock: Clock,
    *,
    state: str,
    server: Server | None,
    start: Start | None,
    passed_over: Mapping[str, str],
    waiting: int,
    last_used: float | None,
    idle_stop_at: float | None,
    last_error: str | None,
    capture_until: float | None,
    memory: list[dict[str, Any]],
) -> dict[str, Any]:
    """A model of ``/api/models``. ``passed_over`` is the last start's; times are monotonic."""
    run = server or start
    launched = server.launched if server else None
    begun = server.started_at if server else start.began if start and start.pid else None
    return {
        "name": settings.name,
        "aliases": list(settings.aliases),
        "mode": settings.mode,
        "state": state,
        "url": settings.url,
        "scheme": (run.scheme or None) if run else None,
        "schemes_passed_over": dict(run.passed_over if run else passed_over),
        "waits_for": _position_to_json(start.waiting if start else None, clock),
        "pid": launched.process.pid if launched else start.pid if start else None,
        "port": launched.port if launched else start.port if start else settings.port,
        "in_flight": server.in_flight if server else 0,
        "waiting": waiting,
        "started_at": clock.iso(begun),
        "last_used_at": clock.iso(last_used),
        "idle_stop_at": clock.iso(idle_stop_at),
        "start_seconds": round(server.start_seconds, 3) if server else None,
        "last_error": last_error,
        "capture_until": clock.iso(capture_until),
        "memory": memory,
        "ram_mb": launched.reservation.ram_mb if launched else None,
    }


def preview_to_json(name: str, state: str, decision: Decision | None) -> dict[str, Any]:
    """What a start would do; ``decision`` is None where it has begun already."""
    answer = {"name": name, "state": state}
    if decision is None:
        return {**answer, "action": "none", "reason": f"it is {state} already"}
    passed_over = dict(decision.passed_over)
    return {**answer, **_decision_to_json(decision), "schemes_passed_over": passed_over}


def _position_to_json(position: QueuePosition | None, clock: Clock) -> dict[str, Any] | None:
    if position is None:
        return None
    return {
        **_decision_to_json(position.decision),
        "place_in_line": position.number,
        "since": clock.iso(position.since),
    }


def _decision_to_json(decision: Decision) -> dict[str, Any]:
    stops = list(decision.models) if decision.action is Action.EVICT else []
    waits = list(decision.models) if decision.action in (Action.AWAIT_MEMORY, Action.QUEUE) else []
    return {
        "action": _ACTION_NAMES[decision.action],
        "scheme": decision.scheme,
        "memory_mb": dict(decision.memory_mb),
        "stops": stops,
        "waits_for": waits,
        "reason": decision.reason or "; ".join(decision.passed_over.values()) or None,
    }

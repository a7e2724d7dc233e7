"""The JSON names of models, decisions and devices, which scripts rely on: they never change."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from manager.clock import Clock
from manager.config.settings import Model as Settings
from manager.models import views
from manager.placement.types import Action, Allocation, Decision, DeviceBudget, Evictability
from manager.placement.waiter import QueuePosition
from routes.api import devices as device_routes
from tests.support.played_machine import real_model, runs

MODEL = [
    "name",
    "aliases",
    "mode",
    "state",
    "url",
    "scheme",
    "schemes_passed_over",
    "waits_for",
    "pid",
    "port",
    "in_flight",
    "waiting",
    "started_at",
    "last_used_at",
    "idle_stop_at",
    "start_seconds",
    "last_error",
    "capture_until",
    "memory",
    "ram_mb",
]
DECISION = ["action", "scheme", "memory_mb", "stops", "waits_for", "reason"]
ACTIONS = {
    Action.START: "start",
    Action.EVICT: "evict",
    Action.AWAIT_MEMORY: "soon",
    Action.QUEUE: "wait",
    Action.REJECT: "refuse",
}


def test_a_model_has_its_names_whether_it_runs_or_not() -> None:
    model = real_model(Settings("M", aliases=("m",)))
    assert list(model.to_json()) == MODEL
    assert model.to_json()["state"] == "stopped"
    runs(model)
    ready = model.to_json()
    assert list(ready) == MODEL
    assert (ready["state"], ready["pid"], ready["start_seconds"]) == ("ready", 4711, 1.0)


@pytest.mark.parametrize("action", Action)
def test_a_preview_has_its_names_and_action(action: Action) -> None:
    decision = Decision("M", action, "Default", {"V100 #0": 9000}, ("Other",), "why")
    preview = views.preview_to_json("M", "stopped", decision)
    assert list(preview) == ["name", "state", *DECISION, "schemes_passed_over"]
    assert preview["action"] == ACTIONS[action]
    assert preview["stops"] == (["Other"] if action is Action.EVICT else [])
    waits = action in (Action.AWAIT_MEMORY, Action.QUEUE)
    assert preview["waits_for"] == (["Other"] if waits else [])


def test_a_preview_of_a_model_that_is_ready_says_that_nothing_happens() -> None:
    model = real_model(Settings("M"))
    runs(model)
    assert model.preview() == {
        "name": "M",
        "state": "ready",
        "action": "none",
        "reason": "it is ready already",
    }


def test_a_model_that_waits_says_for_what_and_since_when() -> None:
    decision = Decision("M", Action.QUEUE, "Default", {}, ("Busy",), "why")
    start: Any = SimpleNamespace(
        scheme=None,
        passed_over={},
        port=None,
        pid=None,
        began=1.0,
        waiting=QueuePosition(2, 1.0, decision),
    )
    shown = views.model_to_json(
        Settings("M"),
        Clock(),
        state="queued",
        server=None,
        start=start,
        passed_over={},
        waiting=1,
        last_used=None,
        idle_stop_at=None,
        last_error=None,
        capture_until=None,
        memory=[],
    )
    assert list(shown) == MODEL
    assert list(shown["waits_for"]) == [*DECISION, "place_in_line", "since"]
    assert (shown["waits_for"]["action"], shown["waits_for"]["place_in_line"]) == ("wait", 2)


def test_a_device_has_its_names() -> None:
    budget = DeviceBudget("rtx 4060 #0", "rtx 4060", 8000)
    held = Allocation("M", {"rtx 4060 #0": 6000}, Evictability.IDLE)
    services: Any = SimpleNamespace(
        monitor=SimpleNamespace(snapshot=SimpleNamespace(devices=(), faults={})),
        placement=SimpleNamespace(snapshot=lambda: ([budget], [held])),
        clock=Clock(),
    )
    assert device_routes.view(services) == {
        "devices": [
            {
                "id": "rtx 4060 #0",
                "name": "rtx 4060",
                "kind": "declared",
                "index": 0,
                "total_mb": 8000,
                "used_mb": None,
                "free_mb": 2000,
                "budget_mb": 8000,
                "exclusive": False,
                "room_mb": 2000,
                "load": None,
                "temperature_c": None,
                "read_at": None,
                "stale": False,
                "models": [{"name": "M", "declared_mb": 6000, "measured_mb": None}],
            }
        ],
        "faults": {},
    }

"""An admin may have whole requests of a model kept for some minutes, and alone reads them."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.support.fixtures import Launch
from tests.support.program import (
    CHAT,
    NOBODY,
    PASSWORD,
    Program,
    chat,
    error_of,
    events_of,
    fake,
)

ID = "X-LLM-Manager-Request"


@pytest.fixture
def program(launch: Launch) -> Program:
    program = launch({"Model": fake(), "Other": fake()})
    assert program.ask("Model").status_code == 200  # before it is switched on
    answer = program.post("/api/models/Model/capture", {"minutes": 5})
    assert answer.status_code == 200
    assert answer.json()["capture_until"]
    return program


def kept(program: Program) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = program.get("/api/captures").json()["captures"]
    return found


def test_whole_requests_and_answers_are_kept_as_long_as_that_is_on(program: Program) -> None:
    secret = program.add_key("ann")
    asked = chat("Model", stream=True)
    headers = {"Authorization": f"Bearer {secret}"}
    answer = program.post(CHAT, asked, headers=headers, stream=True)
    events = events_of(answer)
    other = program.post(CHAT, chat("Other"), headers=headers)
    assert other.status_code == 200
    assert [one["id"] for one in kept(program)] == [answer.headers[ID]]

    whole = program.get(f"/api/captures/{answer.headers[ID]}").json()
    assert (whole["model"], whole["method"], whole["target"]) == ("Model", "POST", CHAT)
    assert '"stream": true' in whole["request"]["body"]
    assert whole["answer"]["body"].count("data: ") == len(events)
    assert "[DONE]" in whole["answer"]["body"]
    assert secret not in repr(whole)

    over = program.post("/api/models/Model/capture", {"minutes": 0}).json()
    assert over["capture_until"] is None
    assert kept(program) == []
    assert program.post(CHAT, chat("Model"), headers=headers).status_code == 200
    assert kept(program) == []
    done = [entry["action"] for entry in program.get("/api/audit").json()["audit"]]
    assert done.count("POST /api/models/{name}/capture") == 2


def test_who_is_no_admin_reads_none_and_switches_nothing_on(program: Program) -> None:
    number = program.ask("Model").headers[ID]
    program.add_account("Ann")
    program.add_account("Vera", "viewer")
    secret = program.add_key("ann")
    viewer = requests.Session()
    page = viewer.get(f"{program.url}/login")
    csrf = page.text.split('name="csrf_token" value="')[1].split('"')[0]
    form = {"csrf_token": csrf, "name": "Vera", "password": PASSWORD}
    assert viewer.post(f"{program.url}/login", data=form).status_code == 200
    assert viewer.get(f"{program.url}/api/models").status_code == 200
    for path in ("/api/captures", f"/api/captures/{number}"):
        refused = viewer.get(program.url + path)
        assert (refused.status_code, error_of(refused)["code"]) == (403, "admin_needed")
        by_key = program.get(path, headers={"Authorization": f"Bearer {secret}"})
        assert by_key.status_code == 401
        assert program.get(path, headers=NOBODY).status_code == 401
    assert program.get(f"/api/captures/{number}").json()["status"] == 200

"""``/api/config/models``: single models of the config, over a real file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from routes.api import entries
from tests.support.authorization import as_admin
from tests.support.config_desk import TEXT, Desk

ENTRY = "# new\nmode: Chat\nGPU:\n  command: [serve, -c, 0.50]   # as it is\n"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    folder = tmp_path / "config"
    folder.mkdir()
    return Desk(folder, monkeypatch, entries.blueprint)


def shown(desk: Desk, name: str) -> dict[str, Any]:
    answer = as_admin(desk.app.test_client()).get(f"/api/config/models/{name}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.get_json()
    return found


def test_a_model_is_added_applied_and_not_started_unless_that_is_asked_for(desk: Desk) -> None:
    answer = desk.send("POST", "/api/config/models", {"name": "Neu", "entry": ENTRY})
    assert answer.status_code == 200, answer.text
    assert answer.get_json()["models"] == ["Qwen", "Gemma", "Neu"]
    assert list(desk.fleet.config.models) == ["Qwen", "Gemma", "Neu"]
    assert desk.path.read_text() == TEXT + "  Neu:\n" + "".join(
        f"    {line}\n" for line in ENTRY.splitlines()
    )
    assert desk.fleet.started == []
    body = {"name": "a/b", "entry": ENTRY, "start": True}
    assert desk.send("POST", "/api/config/models", body).status_code == 200
    assert desk.fleet.started == ["a/b"]


def test_an_entry_is_shown_replaced_and_removed(desk: Desk) -> None:
    before = shown(desk, "Gemma")
    assert before["entry"] == "CPU: {command: [serve]}\n"
    body = {"entry": ENTRY, "version": before["version"]}
    answer = desk.send("PUT", "/api/config/models/Gemma", body)
    assert answer.status_code == 200, answer.text
    assert shown(desk, "Gemma")["entry"] == ENTRY
    assert shown(desk, "Gemma")["version"] == answer.get_json()["version"] != before["version"]
    assert desk.send("PUT", "/api/config/models/Gemma", body).status_code == 409
    assert desk.send("DELETE", "/api/config/models/Qwen", {}).get_json()["models"] == ["Gemma"]
    assert desk.discarded == ["Qwen"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "", {"name": "Qwen", "entry": ENTRY}, 409, "model_exists"),
        ("POST", "", {"name": "Neu", "entry": "mode: ["}, 400, "invalid_entry"),
        ("POST", "", {"name": "Neu", "entry": "mode: Chat"}, 400, "invalid_config"),
        ("POST", "", {"name": "Neu", "entry": "x: *y"}, 400, "invalid_entry"),
        ("POST", "", {"name": "Neu", "entry": "x" * 20_001}, 400, "bad_parameter"),
        ("POST", "", {"name": "Neu", "entry": 5}, 400, "bad_parameter"),
        ("POST", "", {"name": "", "entry": ENTRY}, 400, "invalid_config"),
        ("PUT", "/Other", {"entry": ENTRY}, 404, "model_not_found"),
        ("DELETE", "/Other", {}, 404, "model_not_found"),
    ],
)
def test_what_is_refused_changes_nothing(
    desk: Desk, method: str, path: str, body: Any, status: int, code: str
) -> None:
    desk.refused(desk.send(method, f"/api/config/models{path}", body), status, code)
    assert desk.path.read_text() == TEXT
    assert desk.files == ["config.yaml"]


def test_a_file_with_changes_that_nobody_has_looked_at_is_not_applied_along(desk: Desk) -> None:
    other = TEXT.replace("max_waiting: 7", "max_waiting: 8")
    desk.path.write_text(other)
    answer = desk.send("POST", "/api/config/models", {"name": "Neu", "entry": ENTRY})
    assert "reload it first" in desk.refused(answer, 409, "config_not_writable")["message"]
    desk.path.write_text(other.replace("max_", "mux_"))
    answer = desk.send("DELETE", "/api/config/models/Qwen", {})
    assert "mux_waiting" in desk.refused(answer, 400, "invalid_config")["message"]
    desk.path.write_text(other + "# Only a comment.\n")
    desk.fleet.apply(desk.load())
    assert desk.send("DELETE", "/api/config/models/Qwen", {}).status_code == 200


def preview(desk: Desk, name: str, entry: str) -> Any:
    answer = desk.send("POST", "/api/config/preview", {"name": name, "entry": entry})
    assert answer.status_code == 200, answer.text
    return answer.get_json()


def test_a_preview_says_what_a_start_would_do_and_writes_nothing(desk: Desk) -> None:
    for name in ("Neu", "Qwen"):
        assert preview(desk, name, ENTRY) == {
            "problems": [],
            "warnings": [],
            "start": {"name": name, "action": "start", "scheme": "GPU"},
        }
    assert preview(desk, "Neu", ENTRY.replace("serve", '"${NOT_THERE}"'))["warnings"] == [
        {
            "line": 4,
            "message": "command, item 1: the environment has no NOT_THERE: ${NOT_THERE} stays as"
            " it is",
        }
    ]
    assert desk.path.read_text() == TEXT


def test_problems_have_the_lines_of_the_entry(desk: Desk) -> None:
    found = preview(desk, "Neu", ENTRY.replace("mode:", "mod:"))
    assert found["start"] is None
    assert found["problems"] == [
        {"line": 2, "message": "mod: unknown key; did you mean mode?"},
    ]
    found = preview(desk, ".", ENTRY)
    assert [problem["line"] for problem in found["problems"]] == [0]
    desk.path.write_text(TEXT.replace("max_", "mux_"))
    assert preview(desk, "Neu", ENTRY)["problems"] == [
        {
            "line": None,
            "message": "line 3 of the file: mux_waiting: unknown key; did you mean max_waiting?",
        }
    ]


def test_a_caller_who_may_not_edit_the_config_is_refused(desk: Desk) -> None:
    client = desk.app.test_client()
    for method, path in (
        ("GET", "/api/config/models/Qwen"),
        ("POST", "/api/config/models"),
        ("PUT", "/api/config/models/Qwen"),
        ("DELETE", "/api/config/models/Qwen"),
        ("POST", "/api/config/preview"),
    ):
        answer = client.open(path, method=method, json={"name": "x", "entry": ENTRY})
        assert answer.status_code in (401, 403), (method, path)
    assert desk.path.read_text() == TEXT

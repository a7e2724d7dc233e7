"""``/api/about``: which program this is, and what it takes on the disk."""

from __future__ import annotations

import os
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import manager
import routes
from manager.clock import Clock
from manager.config.settings import Config, Program
from manager.metrics import Metrics
from routes import app as app_module
from routes.api import status
from tests.support.authorization import unlocked


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    now = [100.0]
    program = Program(currency="EUR", timezone="Asia/Shanghai")
    services: Any = SimpleNamespace(
        **unlocked(),
        clock=Clock(monotonic=lambda: now[0], wall=lambda: 1_795_349_000 + now[0]),
        data_dir=tmp_path,
        fleet=SimpleNamespace(config=Config(tmp_path / "config.yaml", program, {}), models=list),
        metrics=Metrics(),
    )
    monkeypatch.setattr(app_module, "_BLUEPRINTS", (status.blueprint,))
    client = routes.create_app(services, b"secret").test_client()
    now[0] += 60

    def ask() -> dict[str, Any]:
        answer = client.get("/api/about")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.get_json()
        return found

    return ask


def sizes(found: dict[str, Any]) -> dict[str, int]:
    assert all(one["complete"] for one in found["sizes"])
    return {one["name"]: one["bytes"] for one in found["sizes"]}


def test_it_tells_the_program_its_packages_and_where_it_runs(ask: Any, tmp_path: Path) -> None:
    found = ask()
    assert found["version"] == manager.__version__
    assert found["packages"]["flask"] == metadata.version("flask")
    assert set(found["packages"]) >= {"flask", "waitress", "requests", "PyYAML", "pandas"}
    assert found["pid"] == os.getpid()
    assert found["data_dir"] == str(tmp_path)
    assert found["config"] == str(tmp_path / "config.yaml")
    assert found["uptime_seconds"] == 60
    assert datetime.fromisoformat(found["started_at"]).timestamp() == 1_795_349_100
    assert (found["timezone"], found["currency"]) == ("Asia/Shanghai", "EUR")
    assert found["disk_free_bytes"] > 0


def test_it_tells_what_is_stored(ask: Any, tmp_path: Path) -> None:
    assert sizes(ask()) == {"usage.db": 0, "queue.db": 0, "logs": 0, "exports": 0, "backups": 0}
    (tmp_path / "usage.db").write_bytes(b"x" * 1000)
    (tmp_path / "usage.db-wal").write_bytes(b"x" * 100)
    for model in ("a", "b"):
        (tmp_path / "logs" / model).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "logs" / model / f"{number}.log").write_bytes(b"x" * 10)
    (tmp_path / "logs" / "llm-manager.log").write_bytes(b"x")
    (tmp_path / "logs" / "elsewhere").symlink_to("/")
    (tmp_path / "exports").mkdir()
    (tmp_path / "exports" / "2026-11.csv").write_bytes(b"x" * 7)
    link = os.lstat(tmp_path / "logs" / "elsewhere").st_size
    assert sizes(ask()) == {
        "usage.db": 1100,
        "queue.db": 0,
        "logs": 61 + link,
        "exports": 7,
        "backups": 0,
    }


def test_a_folder_with_too_many_files_is_told_to_be_at_least_so_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        (tmp_path / str(number)).write_bytes(b"x" * 10)
    assert status.bytes_below(tmp_path) == (100, True)
    monkeypatch.setattr(status, "_MAX_FILES", 4)
    assert status.bytes_below(tmp_path) == (40, False)

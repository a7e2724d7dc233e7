"""The application's calls of the config, over a real file and as much of a fleet as they need."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.test import TestResponse

import routes
from manager.clock import Clock
from manager.config import loader
from manager.config.settings import Model, Program
from manager.errors import ApiError
from routes import app as app_module
from routes.calls import Api
from routes.services import Services
from tests.support.authorization import as_admin, unlocked

TEXT = """\
# Two models.
program:
  max_waiting: 7
Local-Models:
  Qwen:
    GPU:
      command: [serve, --api-key=s3cr3t]
      env: {HF_TOKEN: s3cr3t}   # Ada's
  Gemma:
    CPU: {command: [serve]}
"""
MODES = {"Chat": None}


class Fleet:
    """As much of the fleet as the routes need."""

    def __init__(self, loaded: loader.Config) -> None:
        self.config = loaded
        self.refusal: ApiError | None = None
        self.started: list[str] = []

    def apply(self, after: loader.Config) -> None:
        if self.refusal:
            raise self.refusal
        self.config = after

    def watch_remote(self) -> None: ...

    def preview(self, settings: Model) -> dict[str, Any]:
        return {"name": settings.name, "action": "start", "scheme": settings.schemes[0].name}

    def find(self, name: str) -> Any:
        assert name in self.config.models
        return SimpleNamespace(start=lambda: self.started.append(name))


class Desk:
    """The application over a config file, and who edits it."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *blueprints: Callable[[Services], Api],
    ) -> None:
        self.path = folder / "config.yaml"
        self.path.write_bytes(TEXT.encode())
        self.data = folder.with_name("data")
        self.data.mkdir()
        self.fleet = Fleet(self.load())
        self.told: list[Program] = []
        self.discarded: list[str] = []  # the models whose captures were
        parts: dict[str, Any] = {
            **unlocked(),
            "clock": Clock(),
            "fleet": self.fleet,
            "interfaces": MODES,
            "load": self.load,
            "data_dir": self.data,
            "worker": SimpleNamespace(update=self.told.append),
            "prices": SimpleNamespace(seed_from_config=list),
            "captures": SimpleNamespace(discard=self.discarded.append),
        }
        others = {
            field.name: None for field in fields(Services) if field.init and field.name not in parts
        }
        services = Services(**parts, **others)  # type: ignore[arg-type]
        monkeypatch.setattr(app_module, "_BLUEPRINTS", blueprints)
        self.app = routes.create_app(services, b"secret")

    def load(self) -> loader.Config:
        return loader.load(self.path, lambda _: MODES)

    def get(self) -> dict[str, Any]:
        answer = as_admin(self.app.test_client()).get("/api/config/text")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.get_json()
        return found

    def check(self, text: str) -> dict[str, Any]:
        answer = self.send("POST", "/api/config/check", {"text": text})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.get_json()
        return found

    def put(self, text: str, version: str | None = "now") -> TestResponse:
        if version == "now":
            version = self.get()["version"]
        return self.send("PUT", "/api/config/text", {"text": text, "version": version})

    def send(self, method: str, path: str, body: Any) -> TestResponse:
        data = json.dumps(body)  # half characters can be sent only as its escapes
        client = as_admin(self.app.test_client())
        return client.open(path, method=method, data=data, content_type="application/json")

    def refused(self, answer: TestResponse, status: int, code: str) -> dict[str, Any]:
        """What is told; nothing has changed."""
        assert answer.status_code == status, answer.text
        error: dict[str, Any] = answer.get_json()["error"]
        assert error["code"] == code
        assert self.told == []
        return error

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir())

"""What is answered, and logged, for a path or a model that is not there: the whole application,
whose routes answer nothing."""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from flask.testing import FlaskClient

import routes
from manager.clock import Clock
from manager.config import loader, plugins
from manager.errors import ApiError
from routes.services import Services
from tests.support.authorization import unlocked

CHAT = "/v1/chat/completions"
CONFIG = """
program: {trusted_proxies: [10.0.0.1]}
Local-Models:
  Qwen: {Default: {command: [serve]}}
  x/logs: {Default: {command: [serve]}}
"""


class Models:
    """As much of the fleet as the routes need."""

    def __init__(self, loaded: loader.Config) -> None:
        self.config = loaded

    def read_model_files(self, *_models: Any) -> None: ...

    def find(self, name: str, _may_see: Any = None) -> Any:
        settings = self.config.find(name)
        if settings is None:
            raise ApiError(404, "model_not_found", f"The model {name!r} does not exist")
        return SimpleNamespace(
            settings=settings,
            endpoints=(),
            capabilities=(),
            context_length=None,
            to_json=lambda: {"name": settings.name},
        )


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    interfaces = plugins.interfaces(None)
    config = loader.parse(CONFIG, tmp_path / "config.yaml", lambda _: interfaces)
    parts: dict[str, Any] = {
        **unlocked(),
        "fleet": Models(config),
        "clock": Clock(),
        "data_dir": tmp_path,
        "interfaces": interfaces,
        "host": "127.0.0.1",
    }
    others = {
        field.name: MagicMock()
        for field in fields(Services)
        if field.init and field.name not in parts
    }
    return routes.create_app(Services(**parts, **others), b"a secret").test_client()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "routes.app"]


@pytest.fixture(autouse=True)
def _everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "routes")


@pytest.mark.parametrize(
    ("method", "path", "near"),
    [
        ("POST", "/openai/v1/chat/completions", f"POST {CHAT}"),
        ("GET", "/api/v1/models", "GET /v1/models"),
        ("GET", "/api/model", "GET /api/models"),
        ("POST", "/v1/embedding", "POST /v1/embeddings"),
    ],
)
def test_an_unknown_path_is_answered_with_the_nearest_and_logged_with_its_client(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, method: str, path: str, near: str
) -> None:
    answer = client.open(path, method=method, json={})
    assert answer.status_code == 404
    error = answer.get_json()["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        None,
        "not_found",
    )
    assert error["message"] == f"There is nothing at {method} {path}; did you mean {near}?"
    (line,) = lines(caplog)
    assert line.startswith(f"{method} '{path}' from 127.0.0.1: 404, ")
    assert near in line


def test_where_no_path_is_near_the_error_says_how_to_find_one(client: FlaskClient) -> None:
    message = client.post("/v1").get_json()["error"]["message"]
    assert "base URL that ends in /v1" in message
    assert "/openapi.json" in message


@pytest.mark.parametrize("wrong", ["GET", "PUT", "DELETE"])
def test_a_wrong_method_is_answered_with_the_right_one_and_logged(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    answer = client.open(CHAT, method=wrong)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "OPTIONS, POST")
    error = answer.get_json()["error"]
    assert error["code"] == "method_not_allowed"
    assert error["message"] == f"{CHAT} takes no {wrong}; did you mean POST {CHAT}?"
    (line,) = lines(caplog)
    assert line.startswith(f"{wrong} '{CHAT}' from 127.0.0.1: 405, ")


def test_a_browser_gets_a_page_for_an_unknown_page_and_json_below_the_apis(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    wants_page = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = client.get("/modles", headers=wants_page)
    assert (page.status_code, page.mimetype) == (404, "text/html")
    for path in ("/v1/nothing", "/api/nothing"):
        assert client.get(path, headers=wants_page).get_json()["error"]["code"] == "not_found"
    assert len(lines(caplog)) == 3


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/Qwem"),
        ("GET", "/api/models/Qwem"),
        ("GET", "/api/models/Qwem/logs"),
        ("GET", "/api/models/x"),
    ],
)
def test_an_unknown_model_is_logged_wherever_it_is_asked_for(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, method: str, path: str
) -> None:
    answer = client.open(path, method=method)
    assert answer.status_code == 404
    assert answer.get_json()["error"]["code"] == "model_not_found"
    (line,) = lines(caplog)
    assert line.startswith(f"{method} '{path}' from 127.0.0.1: 404, ")


def test_a_model_with_the_name_of_a_call_is_not_taken_for_it(client: FlaskClient) -> None:
    assert client.get("/api/models/x%2Flogs").get_json()["name"] == "x/logs"
    assert client.get("/v1/models/x%2Flogs").get_json()["id"] == "x/logs"


def test_a_line_of_the_log_stays_one_and_short_whatever_the_path_is(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.get("/a%0A2026-01-01 ERROR forged%1B[31m" + "x" * 5000)
    (line,) = lines(caplog)
    assert line.isprintable()
    assert len(line) < 800


def test_the_client_behind_a_trusted_proxy_is_the_one_that_is_logged(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    for address, logged in (("127.0.0.1", "127.0.0.1"), ("10.0.0.1", "203.0.113.9")):
        client.get(
            "/nothing",
            headers={"X-Forwarded-For": "203.0.113.9"},
            environ_base={"REMOTE_ADDR": address},
        )
        assert f" from {logged}: " in lines(caplog)[-1]


def test_a_request_to_an_unknown_model_has_one_line_the_recorders(
    client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "manager.requests")
    environ = {"waitress.client_disconnected": lambda: False}
    answer = client.post(CHAT, json={"model": "Qwem"}, environ_overrides=environ)
    assert answer.get_json()["error"]["code"] == "model_not_found"
    (line,) = caplog.messages
    assert line.startswith(f"{CHAT} - as 'Qwem' from 127.0.0.1: 404 in ")

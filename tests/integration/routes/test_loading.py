"""``send_loading_state``: a stream that waits for its model shows that it lives. A real model and a
real server; the start takes until the test lets it go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from werkzeug.test import TestResponse

import routes
from manager.clock import Clock
from manager.config import loader, plugins
from manager.errors import ApiError
from manager.interfaces import Chat
from manager.models import facts
from manager.models import model as model_module
from manager.models.model import Model
from manager.models.server import Server, StartFailedError
from manager.relay import Outcome, Upstream
from routes import proxy
from routes.services import Services
from tests.support.authorization import unlocked
from tests.support.played_machine import played_server, real_model
from tests.support.servers import PATIENCE, FakeModel

CHAT = "/v1/chat/completions"
COMMENT = b": waiting for 'Slow', which is queued\n\n"
CONFIG = """
program: {send_loading_state: true}
Local-Models:
  Slow: {Default: {command: [serve]}}
"""


class Slow:
    """A model whose start takes until ``go_on``, and clients that ask for it."""

    def __init__(self, folder: Path) -> None:
        interfaces = plugins.interfaces(None)
        config = loader.parse(CONFIG, folder / "config.yaml", lambda _: interfaces)
        self.model: Model = real_model(config.models["Slow"])
        self.model._interface = Chat()
        self.result: Server | StartFailedError = StartFailedError("no memory left")
        self.started = threading.Event()
        self.is_disconnected = False
        self.outcomes: list[Outcome] = []
        recorder = MagicMock()
        recorder.begin.return_value.close = self.outcomes.append
        recorder.begin.return_value.id = "1"
        self.recorder = recorder
        fleet = SimpleNamespace(config=config, find=lambda _name, _may_see: self.model)
        parts: dict[str, Any] = {
            **unlocked(),
            "fleet": fleet,
            "clock": Clock(),
            "data_dir": folder,
            "interfaces": interfaces,
            "host": "127.0.0.1",
            "watch": self.model._shared.watch,
        }
        others = {
            field.name: MagicMock()
            for field in fields(Services)
            if field.init and field.name not in parts
        }
        self.services = Services(**parts, **others)

    def bring_up(self, *_arguments: Any) -> Server | StartFailedError:
        assert self.started.wait(PATIENCE)
        return self.result

    def ask(self, path: str = CHAT, **asked: Any) -> TestResponse:
        client = routes.create_app(self.services, b"a secret").test_client()
        body = {"model": "Slow", "messages": [], "stream": True, **asked}
        environ = {"waitress.client_disconnected": lambda: self.is_disconnected}
        return client.post(path, json=body, environ_overrides=environ)

    def go_on(self) -> None:
        self.started.set()


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    one = Slow(tmp_path)
    monkeypatch.setattr(model_module, "bring_up", one.bring_up)
    monkeypatch.setattr(model_module, "bring_down", lambda *_: None)
    monkeypatch.setattr(facts, "learn", lambda *_: facts.ServerFacts())
    monkeypatch.setattr(proxy, "Recorder", lambda *_: one.recorder)
    monkeypatch.setattr(proxy, "LOADING_SECONDS", 0.005)
    yield one
    one.go_on()
    one.model.close("the test has ended", lambda: ApiError(503, "shutting_down", "ended"))
    one.model.join()


def test_comments_come_until_the_model_is_ready_and_then_its_stream(
    slow: Slow, fake_model: Callable[..., FakeModel]
) -> None:
    upstream = Upstream(fake_model().port, 4)
    slow.result = played_server(slow.model.settings, Chat(), upstream)
    answer = slow.ask(fake={"text": "Hello"})
    pieces = iter(answer.response)
    assert (answer.status_code, answer.content_type) == (200, "text/event-stream")
    assert [next(pieces), next(pieces)] == [COMMENT, COMMENT]
    slow.go_on()
    rest = b"".join(piece for piece in pieces if piece != COMMENT)
    answer.close()
    assert b"Hello" in rest
    assert rest.rstrip().endswith(b"data: [DONE]")
    assert slow.outcomes[0].status == 200
    assert slow.model.to_json()["in_flight"] == 0
    upstream.close()


def test_a_start_that_fails_after_that_is_an_error_of_the_stream(slow: Slow) -> None:
    answer = slow.ask()
    pieces = iter(answer.response)
    assert next(pieces) == COMMENT
    slow.go_on()
    (error,) = (piece for piece in pieces if piece != COMMENT)
    answer.close()
    assert error.startswith(b'data: {"error": {')
    assert b"no memory left" in error
    assert b'"code": "start_failed"' in error
    assert (slow.outcomes[0].status, slow.outcomes[0].streamed) == (503, True)


def test_it_is_an_error_of_the_clients_protocol(slow: Slow) -> None:
    answer = slow.ask("/v1/messages", max_tokens=1)
    pieces = iter(answer.response)
    next(pieces)
    slow.go_on()
    (error,) = (piece for piece in pieces if not piece.startswith(b":"))
    answer.close()
    assert error.startswith(b'event: error\ndata: {"type": "error"')


def test_a_client_that_leaves_meanwhile_is_not_waited_for(slow: Slow) -> None:
    answer = slow.ask()
    assert next(iter(answer.response)) == COMMENT
    answer.close()
    assert slow.model.to_json()["waiting"] == 0
    assert slow.outcomes[0].status == 499


def test_an_answer_of_the_server_that_is_no_stream_is_an_error_of_the_stream(
    slow: Slow, fake_model: Callable[..., FakeModel]
) -> None:
    upstream = Upstream(fake_model().port, 4)
    slow.result = played_server(slow.model.settings, Chat(), upstream)
    answer = slow.ask(fake={"status": 400})
    pieces = iter(answer.response)
    next(pieces)
    slow.go_on()
    (error,) = (piece for piece in pieces if piece != COMMENT)
    answer.close()
    assert error.startswith(b'data: {"error": {')
    assert slow.outcomes[0].status == 400
    upstream.close()


def test_an_answer_without_an_end_is_not_read_to_it(
    slow: Slow, fake_model: Callable[..., FakeModel]
) -> None:
    upstream = Upstream(fake_model().port, 4)
    slow.result = played_server(slow.model.settings, Chat(), upstream)
    answer = slow.ask(fake={"html": False, "size": 5_000_000, "framing": "chunked"}, stream="true")
    pieces = iter(answer.response)
    next(pieces)
    slow.go_on()
    rest = [piece for piece in pieces if piece != COMMENT]
    answer.close()
    assert b"without a stream" in rest[-1]
    assert slow.model.to_json()["in_flight"] == 0
    upstream.close()


def test_who_asks_for_no_stream_waits_for_the_status(slow: Slow) -> None:
    slow.go_on()
    answer = slow.ask(stream=False)
    assert answer.status_code == 503

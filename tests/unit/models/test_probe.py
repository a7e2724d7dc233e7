"""Which path a server's health is asked at, and what the answers mean."""

from __future__ import annotations

from typing import Any

import pytest

from manager.config.settings import Model as Settings
from manager.interfaces import Chat
from manager.models import ports, probe
from manager.models.probe import HealthQuestion, ProbeRequest, one_token_request
from manager.relay import Upstream, UpstreamRefused

URL = "http://10.0.0.5:8080"


class Server:
    """Answers each path with a status, of those that it does not know with 404."""

    def __init__(self, **statuses: int) -> None:
        self.statuses = {f"/{name.replace('_', '/')}": status for name, status in statuses.items()}
        self.asked: list[str] = []

    def __call__(self, request: ProbeRequest) -> tuple[int, bytes]:
        assert (request.method, request.body) == ("GET", b"")
        self.asked.append(request.path)
        return self.statuses.get(request.path, 404), b""


def question(**settings: Any) -> HealthQuestion:
    return HealthQuestion(Settings("Model", **settings), Upstream(1, 1))


@pytest.mark.parametrize(
    ("server", "settings", "asked"),
    [
        (Server(health=200), {}, ["/health"]),
        (Server(health=401), {}, ["/health"]),
        (Server(v1_models=200), {}, ["/health", "/v1/models"]),
        (Server(health=405, v1_models=403), {}, ["/health", "/v1/models"]),
        (Server(ready=204), {"health": "/ready"}, ["/ready"]),
        (Server(ready=403), {"health": "/ready"}, ["/ready"]),
        (Server(), {"url": URL}, ["/health", "/v1/models"]),
        (Server(ready=429), {"url": URL, "health": "/ready"}, ["/ready"]),
    ],
)
def test_a_server_is_well_by_the_path_that_it_has(
    server: Server, settings: dict[str, Any], asked: list[str]
) -> None:
    assert question(**settings).ask(server) is None
    assert server.asked == asked


@pytest.mark.parametrize(
    ("server", "settings", "fault"),
    [
        (Server(health=503), {}, "/health answered 503"),
        (Server(), {}, "/v1/models answered 404"),
        (Server(v1_models=503), {"url": URL}, "/v1/models answered 503"),
        (Server(ready=503), {"health": "/ready"}, "/ready answered 503"),
        (Server(ready=429), {"health": "/ready"}, "/ready answered 429"),
    ],
)
def test_a_server_that_is_not_well_is_named_with_what_it_answered(
    server: Server, settings: dict[str, Any], fault: str
) -> None:
    assert question(**settings).ask(server) == fault


@pytest.mark.parametrize("status", [404, 405, 501])
@pytest.mark.parametrize("path", ["/ready", "/health"])
@pytest.mark.parametrize("settings", [{}, {"url": URL}])
def test_a_path_of_the_config_that_the_server_does_not_have_is_a_mistake_in_the_config(
    settings: dict[str, Any], path: str, status: int
) -> None:
    server = Server(ready=status, health=status, v1_models=200)
    fault = question(health=path, **settings).ask(server)
    assert fault is not None
    assert fault.startswith(f"{path} answered {status}")
    assert "the model's health names" in fault
    assert server.asked == [path]


def test_once_a_server_has_no_health_it_is_not_asked_for_that_again() -> None:
    server = Server(v1_models=503)
    one = question()
    assert one.ask(server) == one.ask(server) == "/v1/models answered 503"
    assert server.asked == ["/health", "/v1/models", "/v1/models"]


def test_where_the_port_is_enough_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    connected: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ports, "connect", lambda *where: connected.append(where))
    server = Server()
    one = HealthQuestion(Settings("Model", health="none"), Upstream(9, 1, "::1"))
    assert one.ask(server) is None
    assert connected == [("::1", 9, probe.HEALTH_TIMEOUT_SECONDS)]
    assert server.asked == []


def test_a_port_that_takes_no_connections_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(ports, "connect", refuse)
    with pytest.raises(UpstreamRefused, match="nothing takes connections on port 1"):
        question(health="none").ask(Server())


def test_a_model_without_a_probe_is_sent_no_token() -> None:
    assert one_token_request(Chat(), Settings("Model")) is not None
    assert one_token_request(Chat(), Settings("Model", probe=False)) is None

"""What `open` and `tray` ask of the running program, and whom they ask."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from commands import client as client_module
from commands.client import Client, find_listener, pages_url
from commands.open import show_pages
from commands.options import CommandError
from manager.access.local_token import LocalToken
from manager.storage import data_dir


class Server(ThreadingHTTPServer):
    """Answers what a test wants, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Any] = {}
        self.status = 200
        self.calls: list[str] = []
        self.headers: list[dict[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.calls.append(f"{self.command} {self.path}")
        self.server.headers.append(dict(self.headers))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps(self.server.answers.get(self.path, {})).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


@pytest.fixture
def client(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """Of a program that runs on the folder, and listens where the server does."""
    address = ("127.0.0.1", server.server_port)
    monkeypatch.setattr(client_module, "find_listener", lambda pid: (psutil.Process(pid), address))
    LocalToken(tmp_path)
    with data_dir.lock(tmp_path):
        yield Client(tmp_path)


def test_each_call_is_the_owners(client: Client, server: Server, tmp_path: Path) -> None:
    server.answers["/api/models"] = {"models": [{"name": "A", "state": "ready"}]}
    assert client.models() == [{"name": "A", "state": "ready"}]
    client.refresh_devices()
    client.stop_all()
    assert server.calls == ["GET /api/models", "GET /api/devices", "POST /api/models/stop"]
    token = (tmp_path / "admin-token").read_text().strip()
    assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {token}"}
    assert server.headers[-1]["Content-Type"] == "application/json"


def test_the_auto_start_models_are_started_and_no_others(client: Client, server: Server) -> None:
    server.answers["/api/config"] = {
        "models": [
            {"name": "org/A b", "auto_start": True},
            {"name": "Other", "auto_start": False},
        ]
    }
    client.start_auto_start()
    assert server.calls == ["GET /api/config", "POST /api/models/org%2FA%20b/start"]


def test_what_keeps_the_config_from_being_in_use_is_said(client: Client, server: Server) -> None:
    path, state = "/api/config/file", {"watched": True, "problems": [], "waiting": None}
    server.answers[path] = state
    assert client.config_fault() is None
    problems = [{"line": 3, "message": "x: unknown key"}, {"line": 5, "message": None}]
    server.answers[path] = {**state, "problems": problems}
    assert client.config_fault() == "line 3: x: unknown key; line 5: wrong"
    waiting = {"code": "removes_models", "message": "2 of 2 models are not in it: A, B"}
    server.answers[path] = {**state, "waiting": waiting}
    assert client.config_fault() == "2 of 2 models are not in it: A, B"


def test_a_refusal_is_its_message(client: Client, server: Server) -> None:
    server.status = 503
    server.answers["/api/models"] = {"error": {"message": "The program is shutting down"}}
    with pytest.raises(CommandError, match="The program is shutting down"):
        client.models()


def test_a_program_that_does_not_answer_is_named(client: Client, server: Server) -> None:
    server.server_close()
    with pytest.raises(CommandError, match=f"{server.server_port}/ does not answer"):
        client.models()


def test_the_pages_are_opened_through_a_private_file(
    client: Client,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    show_pages(client)
    page = tmp_path / "open.html"
    assert opened == [page.as_uri()]
    link = f"http://127.0.0.1:{server.server_port}/login/link#"
    assert link in page.read_text()
    assert page.stat().st_mode & 0o077 == 0
    assert link not in capsys.readouterr().out
    monkeypatch.setattr("webbrowser.open", lambda _url: False)
    show_pages(client)
    assert link in capsys.readouterr().out


def test_where_no_program_runs_nobody_is_asked(tmp_path: Path) -> None:
    LocalToken(tmp_path)
    with pytest.raises(CommandError, match="does not run"):
        Client(tmp_path)


# --- its address ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080/"),
        ("0.0.0.0", "http://127.0.0.1:8080/"),
        ("::", "http://[::1]:8080/"),
        ("::1", "http://[::1]:8080/"),
        ("192.168.1.5", "http://192.168.1.5:8080/"),
        ("localhost", "http://localhost:8080/"),
    ],
)
def test_the_pages_are_where_a_browser_finds_them(host: str, address: str) -> None:
    assert pages_url(host, 8080) == address


@pytest.mark.parametrize(
    ("host", "reached"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("::1", "::1")]
)
def test_the_address_is_that_on_which_the_process_listens(
    monkeypatch: pytest.MonkeyPatch, host: str, reached: str
) -> None:
    sockets = [
        SimpleNamespace(status=psutil.CONN_ESTABLISHED, laddr=("127.0.0.1", 40000)),
        SimpleNamespace(status=psutil.CONN_LISTEN, laddr=(host, 8080)),
    ]
    for name in ("net_connections", "connections"):
        monkeypatch.setattr(psutil.Process, name, lambda _self, _kind: sockets, raising=False)
    assert find_listener(os.getpid()) == (psutil.Process(), (reached, 8080))
    sockets.pop()
    with pytest.raises(CommandError, match="does not listen yet"):
        find_listener(os.getpid())

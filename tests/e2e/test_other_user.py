"""What another user of the machine may do on loopback: read, until there is an account; no more."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.program import CHAT, PATIENCE, ROOT, Program, chat, eventually, fake

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="needs root and setpriv, to be another user",
)

AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
# Reads requests as JSON, prints the status of each and the error's code; for READ, "read" where the
# file opens.
ASK = """
import json, sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
answers = []
for method, url, body in json.load(sys.stdin):
    if method == "READ":
        try:
            open(url, "rb").close()
            answers.append("read")
        except OSError as error:
            answers.append(type(error).__name__)
        continue
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with opener.open(request, timeout=30) as answer:
            answers.append(f"{answer.status} {answer.url.rpartition(':')[2].partition('/')[2]}")
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        code = json.loads(text)["error"]["code"] if text.startswith("{") else "page"
        answers.append(f"{error.code} {code}")
print(json.dumps(answers))
"""

LINK = "To sign in as admin, once and within 10 minutes"
READING = ["/", "/settings", "/api/models", "/api/config", "/api/log", "/api/keys", "/metrics"]
CHANGING: list[tuple[str, str, Any]] = [
    ("GET", "/api/config/text", None),
    ("PUT", "/api/config/text", {"text": "Local-Models: {}", "version": None}),
    ("POST", "/api/config/reload", {}),
    ("POST", "/api/models/Model/start", {}),
    ("POST", "/api/models/stop", {}),
    ("POST", "/api/keys", {"name": "mine"}),
    ("GET", "/api/accounts", None),
    ("POST", "/api/accounts", {"name": "me", "role": "admin", "password": "long enough"}),
    ("POST", "/api/tokens", {"name": "me", "role": "admin"}),
    ("GET", "/api/audit", None),
]


def ask(program: Program, requests: list[tuple[str, str, Any]]) -> list[str]:
    """The answers to another user."""
    sent = [
        (method, path if method == "READ" else program.url + path, body)
        for method, path, body in requests
    ]
    done = subprocess.run(
        [*AS_NOBODY, "/usr/bin/env", "python3", "-c", ASK],
        input=json.dumps(sent),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd="/",
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: list[str] = json.loads(done.stdout)
    return answers


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that others can get to; the data folder's own rights are tested."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture
def program(folder: Path) -> Iterator[Program]:
    program = Program(folder / "program", {"Model": fake()})
    yield program
    program.finish()


def test_another_user_of_the_machine_reads_and_no_more(program: Program) -> None:
    program.start()
    chatting = ("POST", CHAT, chat("Model"))
    files = ["admin-token", "secret", "usage.db", "queue.db", "logs/llm-manager.log"]
    private = [("READ", str(program.data / name), None) for name in files]

    read = ask(program, [("GET", path, None) for path in READING])
    assert read == [f"200 {path[1:]}" for path in READING]
    assert ask(program, CHANGING) == ["401 sign_in_needed"] * len(CHANGING)
    assert ask(program, [("GET", "/setup", None), ("POST", "/setup", {})]) == ["403 page"] * 2
    assert ask(program, [chatting]) == [f"200 {CHAT[1:]}"]
    assert ask(program, private) == ["PermissionError"] * len(private)

    program.add_account("admin")
    program.add_key("first")
    read = ask(program, [("GET", path, None) for path in READING])
    assert read[:2] == ["200 login", "200 login?next=/settings"]
    assert read[2:] == ["401 sign_in_needed"] * len(READING[2:])
    assert ask(program, CHANGING) == ["401 sign_in_needed"] * len(CHANGING)
    assert ask(program, [chatting]) == ["401 invalid_api_key"]
    assert [one["name"] for one in program.get("/api/accounts").json()["accounts"]] == ["admin"]
    assert LINK not in program.output  # which is no terminal


@pytest.mark.parametrize("planted", ["admin-token", "usage.db", "lock", "logs/llm-manager.log"])
def test_a_program_does_not_start_on_what_another_user_has_put_into_its_folder(
    folder: Path, planted: str
) -> None:
    data = folder / "data"
    path = data / planted
    path.parent.mkdir(parents=True)
    for opened in {data, path.parent}:
        opened.chmod(0o777)
    command = [*AS_NOBODY, "/usr/bin/env", "ln", "-s", "/etc/hostname", str(path)]
    subprocess.run(command, check=True, cwd="/", timeout=PATIENCE)
    arguments = ["--data-dir", str(data), "--port", "0", "--config", "config.yaml"]
    result = subprocess.run(
        [sys.executable, "wsgi.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert result.returncode == 1
    assert f"{path} belongs to another user" in result.stderr
    assert data.stat().st_mode & 0o022 == 0


def test_the_sign_in_link_is_printed_at_a_start_on_a_terminal_and_never_logged(
    tmp_path: Path,
) -> None:
    on_terminal = [sys.executable, "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"]
    program = Program(tmp_path, {}, wrapper=on_terminal)
    program.start()
    try:
        eventually(lambda: LINK in program.output)
        log = (program.data / "logs" / "llm-manager.log").read_text()
        assert "/login/link" not in log
        assert program.local_token not in program.output + log
    finally:
        # The terminal's own end would be a SIGHUP, which reloads the config.
        for child in psutil.Process(program.pid).children():
            child.terminate()
        assert program.process.wait(PATIENCE) == 0

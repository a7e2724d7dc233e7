"""A model is added to a running program, over HTTP and on the command line: played cards, a played
llama-server, real GGUFs of a tiny model."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import Cards, card
from tests.support.fixtures import Launch
from tests.support.gguf_files import write_model
from tests.support.program import FAKE, PATIENCE, ROOT, Program, chat, env_of, eventually, on

LARGE = "NVIDIA GeForce RTX 3090"


@pytest.fixture
def cards(tmp_path: Path) -> Cards:
    """One card, and a llama-server that takes what a test says."""
    cards = Cards(tmp_path / "machine", [card(LARGE, 24_576)])
    server = cards.bin / "llama-server"
    server.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" --takes 1000\n')
    server.chmod(0o755)
    return cards


@pytest.fixture
def program(tmp_path: Path, cards: Cards, launch: Launch) -> Program:
    folder = tmp_path / "models"
    folder.mkdir()
    write_model(folder / "tiny-Q8_0.gguf", extra={"tokenizer.chat_template": "x"})
    write_model(tmp_path / "outside.gguf")
    (folder / "link.gguf").symlink_to(tmp_path / "outside.gguf")
    (folder / "cut.gguf").write_bytes(b"GGUF\3\0\0\0")
    models = {"Old": on(LARGE, 24_000)}
    return launch(models, env=env_of(cards), models_dir=[str(folder)])


def call(program: Program, method: str, path: str, **body: Any) -> dict[str, Any]:
    answer = program.request(method, path, **({"json": body} if method != "GET" else {}))
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_from_a_file_to_its_first_answer(program: Program) -> None:
    found = call(program, "GET", "/api/config/files")
    tiny = next(one for one in found["files"] if one["path"].endswith("tiny-Q8_0.gguf"))
    assert (tiny["kind"], tiny["architecture"], tiny["context"]) == ("chat", "llama", 4096)
    for name in ("cut.gguf", "link.gguf"):
        broken = next(one for one in found["files"] if one["path"].endswith(name))
        assert list(broken) == ["path", "error"]
        assert broken["error"]
    engines = {one["id"]: one for one in found["engines"]}
    assert engines["llama-server"]["unavailable"] is None
    assert LARGE in [one["name"] for one in found["devices"]]

    proposal = call(
        program,
        "POST",
        "/api/config/propose",
        file=tiny["path"],
        engine="llama-server",
        devices=[LARGE],
    )
    assert (proposal["name"], proposal["mode"], proposal["context"]) == ("tiny", "Chat", 4096)
    fits = {one["device"]: one for one in proposal["fits"]}
    assert fits[LARGE]["largest"] == 4096

    assert program.ask("Old").status_code == 200
    entry = proposal["entry"] + f"  memory_mb: {{{LARGE}: 1000}}   # ours\n"
    preview = call(program, "POST", "/api/config/preview", name="tiny", entry=entry)
    assert preview["problems"] == []
    assert (preview["start"]["action"], preview["start"]["stops"]) == ("evict", ["Old"])

    call(program, "POST", "/api/config/models", name="tiny", entry=entry, start=True)
    answer = program.request("POST", "/v1/chat/completions", json=chat("tiny"))
    assert answer.status_code == 200, answer.text
    assert program.model("Old")["state"] == "stopped"

    shown = call(program, "GET", "/api/config/models/tiny")
    assert shown["entry"] == entry
    call(program, "PUT", "/api/config/models/tiny", entry=entry + "pinned: true\n")
    assert call(program, "DELETE", "/api/config/models/tiny")["models"] == ["Old"]


@pytest.mark.parametrize("where", ["../outside.gguf", "link.gguf", "cut.gguf", "none.gguf"])
def test_no_file_is_opened_that_is_not_listed(program: Program, tmp_path: Path, where: str) -> None:
    path = str(tmp_path / "models" / where)
    answer = program.request(
        "POST", "/api/config/propose", json={"file": path, "engine": "llama-server"}
    )
    assert answer.status_code == 400, answer.text


def run(
    program: Program, cards: Cards, *arguments: str, config: bool = True
) -> subprocess.CompletedProcess[str]:
    places = ["--data-dir", str(program.data)]
    if config:
        places += ["--config", str(program.config)]
    return subprocess.run(
        [sys.executable, "-m", "commands", *arguments, *places],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
        cwd=ROOT,
        env={**os.environ, **env_of(cards)},
    )


def test_the_command_adds_starts_and_shows_the_log(
    program: Program, cards: Cards, tmp_path: Path
) -> None:
    path = str(tmp_path / "outside.gguf")
    done = run(program, cards, "add", path, "--engine", "llama-server", "--yes", "--start")
    assert done.returncode == 0, done.stderr
    assert "it would start at once, in scheme GPU" in done.stderr
    *_, answers, request = done.stderr.splitlines()
    assert answers == "outside answers"
    curl, url, *_, body = shlex.split(request)
    assert (curl, url) == ("curl", f"{program.url}/v1/chat/completions")
    assert program.request("POST", "/v1/chat/completions", json=json.loads(body)).ok
    assert run(program, cards, "remove", "outside", "--yes").returncode == 0
    assert run(program, cards, "keys", "add", "ann", config=False).returncode == 0
    # The program reads a key that a shell has made a moment later.
    eventually(lambda: program.request("GET", "/v1/models").status_code == 401)
    done = run(program, cards, "add", path, "--engine", "llama-server", "--yes", "--start")
    assert done.stderr.endswith('-H "Authorization: Bearer $KEY"\n'), done.stderr
    assert "scheme GPU, port " in done.stdout, "the first line of its log"
    assert program.model("outside")["state"] == "ready"
    done = run(program, cards, "remove", "outside", "--yes")
    assert done.returncode == 0, done.stderr
    assert [one["name"] for one in program.get("/api/models").json()["models"]] == ["Old"]


def test_the_command_says_why_a_model_did_not_start(
    program: Program, cards: Cards, tmp_path: Path
) -> None:
    (cards.bin / "llama-server").write_text("#!/bin/sh\necho no such thing\nexit 3\n")
    path = str(tmp_path / "outside.gguf")
    done = run(program, cards, "add", path, "--engine", "llama-server", "--yes", "--start")
    assert done.returncode == 1
    assert "outside did not start: " in done.stderr
    assert "exit code 3" in done.stderr
    assert "no such thing" in done.stderr

"""What a model's server writes: how much of it is kept, and what people see of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import requests

from tests.support.fixtures import Launch
from tests.support.program import CHAT, Program, chat, error_of, eventually, fake

MB = 1 << 20
LINES = 400_000  # of 16 bytes


def floods(gate: Path) -> dict[str, Any]:
    """A model that writes 6 MB and a last line each time that the file `gate` comes to be."""
    flood = (
        'while :; do until [ -e "$0" ]; do sleep 0.02; done;'
        f" yes 'fifteen letters' | head -n {LINES}; echo the end; rm \"$0\"; done"
    )
    return fake(prefix=["sh", "-c", f'({flood}) & exec "$@"', gate])


def flood(program: Program, gate: Path) -> None:
    (log,) = program.logs("Floods")
    before = log.stat().st_mtime_ns
    gate.touch()
    eventually(lambda: not gate.exists())
    assert log.stat().st_mtime_ns > before


def kept_bytes(program: Program) -> int:
    return sum(path.stat().st_size for path in program.logs("Floods"))


def test_a_model_that_writes_fast_keeps_its_newest_output_within_the_limit(
    launch: Launch, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    program = launch({"Floods": floods(gate)}, model_log_mb=2)
    program.command("Floods", "start")
    follower = program.page("/api/models/Floods/logs/stream?lines=1", "line")
    flood(program, gate)
    eventually(lambda: kept_bytes(program) <= 2 * MB)
    assert program.log("Floods").endswith("fifteen letters\nthe end\n")
    follower.until(lambda line: line == "the end")

    # It goes on while no program runs, and the next one cuts at once.
    program.kill()
    flood(program, gate)
    assert kept_bytes(program) > 6 * MB
    program.start()
    assert kept_bytes(program) <= 2 * MB
    program.becomes("Floods", state="ready")
    (log,) = program.logs("Floods")
    assert log.read_text().splitlines()[0].rstrip().endswith("; earlier output was deleted")
    follower = program.page("/api/models/Floods/logs/stream?lines=1", "line")
    assert follower.next() == "the end"


def test_an_error_has_a_progress_bars_last_state_and_no_colours(launch: Launch) -> None:
    script = (
        r"printf '\033[1mloading\033[0m\n'; for n in 1 2 3; do printf '\r%d of 3' $n; done;"
        r" printf '\n\033]8;;https://example.org\033\\no such file\033]8;;\033\\\n'; exit 3"
    )
    program = launch({"Bar": {"Default": {"command": ["sh", "-c", script]}}})
    shown = "\nloading\n3 of 3\nno such file"
    message = error_of(requests.post(program.url + CHAT, json=chat("Bar"), timeout=60))["message"]
    assert message.endswith(shown)
    assert program.log("Bar").endswith(f"{shown}\n")
    assert program.model("Bar")["last_error"].endswith(shown)
    assert "\x1b" not in program.output
    (log,) = program.logs("Bar")
    assert b"\x1b[1mloading" in log.read_bytes()

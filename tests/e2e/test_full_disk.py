"""A disk that is full below logs/: a start says so, and what runs goes on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.fixtures import Launch
from tests.support.program import Program, error_of, events_of, eventually, fake

SMALL_DISK = "mkdir -p {logs} && mount -t tmpfs -o size=256k tmpfs {logs}"


@pytest.fixture
def own_mounts() -> list[str]:
    """A command that runs another one where it may mount things that nobody else sees."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    try:
        done = subprocess.run(
            [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("a small disk needs unshare, of util-linux")
    if done.returncode:
        pytest.skip(f"this system lets nobody mount a small disk: {done.stderr.strip()}")
    return command


def logs_of(program: Program) -> Path:
    """The folder as the program sees it."""
    return Path(f"/proc/{program.pid}/root{program.data / 'logs'}")


def fill(folder: Path) -> None:
    block = b"x" * 4096
    with (folder / "filler").open("wb", buffering=0) as filler:
        while free_blocks(folder):
            filler.write(block)


def free_blocks(folder: Path) -> int:
    return os.statvfs(folder).f_bfree


def test_a_start_on_a_full_disk_says_so_and_nothing_else_is_lost(
    launch: Launch, tmp_path: Path, own_mounts: list[str]
) -> None:
    logs = tmp_path / "program-1" / "data" / "logs"
    script = f'{SMALL_DISK.format(logs=logs)} && exec "$@"'
    # A server that minds that nobody takes its output would fail by itself.
    quiet = ["sh", "-c", 'exec "$0" "$@" >/dev/null 2>&1']
    program = launch(
        {"Running": fake(prefix=quiet), "Cold": fake()},
        wrapper=[*own_mounts, "sh", "-c", script, "sh"],
    )
    program.may_log_tracebacks = True  # the program's own log has no room either
    assert program.ask("Running").status_code == 200
    server = program.model("Running")["pid"]

    fill(logs_of(program))
    failed = program.ask("Cold")
    assert failed.status_code == 503
    error = error_of(failed)
    assert error["code"] == "start_failed"
    assert "No space left on device" in error["message"]
    assert program.processes("Cold") == []
    assert program.model("Cold")["state"] == "failed"
    for _ in range(20):
        assert program.ask("Running").status_code == 200
    with program.ask("Running", stream=True) as answer:
        assert events_of(answer)[-1] == "[DONE]"
    assert program.get("/health").status_code == 200
    assert program.get("/api/models/Cold/logs").status_code == 200
    assert program.model("Running")["pid"] == server

    (logs_of(program) / "filler").unlink()
    assert eventually(lambda: program.ask("Cold").status_code == 200)

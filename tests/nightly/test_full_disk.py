"""A disk that is full: a start says so, what runs goes on, and no row of a request is lost."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from typing import Any

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
    """Until the disk refuses: asking it how much is free would race with the program's own log."""
    block = b"x" * 4096
    with (folder / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(block)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


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


def ask(program: Program, **fields: Any) -> str:
    """The id of a request that was answered."""
    with program.ask("Model", **fields) as answer:
        assert answer.status_code == 200
        assert answer.content
        return answer.headers["X-LLM-Manager-Request"]


def test_on_a_full_disk_answers_come_and_their_rows_are_written_when_there_is_room(
    launch: Launch,
    tmp_path: Path,
    own_mounts: list[str],
) -> None:
    data = tmp_path / "program-1" / "data"
    mount = "mkdir -p {0} && mount -t tmpfs -o size={1} tmpfs {0}".format
    script = f'{mount(data, "3m")} && {mount(data / "logs", "8m")} && exec "$@"'
    wrapper = [*own_mounts, "sh", "-c", script, "sh"]
    program = launch({"Model": fake()}, wrapper=wrapper)
    disk = Path(f"/proc/{program.pid}/root{data}")  # as the program sees it
    # SQLite would follow that link to our own disk, so that the program has to say what is there.
    listed = "/api/usage/requests?limit=1000"

    def rows() -> list[str]:
        return sorted(row["id"] for row in program.get(listed).json()["requests"])

    numbers = [ask(program)]

    fill(disk)
    # What has room in the last page of the file is still written.
    while "was not written and is kept" not in program.output:
        numbers.append(ask(program))
        assert len(numbers) < 500
    numbers += [ask(program, stream=True) for _ in range(3)]
    assert program.get("/health").status_code == 200
    assert program.get("/api/usage/summary").status_code == 200
    assert set(rows()) < set(numbers)
    for worker in program.workers():
        worker.kill()  # another one finds no room, or what it needs is there

    (disk / "filler").unlink()
    numbers.append(ask(program))
    eventually(lambda: rows() == sorted(numbers))
    eventually(lambda: program.get("/api/usage/summary?start=0").json()["requests"] == len(numbers))

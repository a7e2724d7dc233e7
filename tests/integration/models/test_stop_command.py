"""A stop_command as a process: what it is given, and what becomes of one that goes wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from manager.models.process_tree import ProcessTree
from manager.models.server_process import Detached, find
from manager.storage import Launch, ModelLogs, Run
from tests.support.program import free_port


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


Stop = Callable[..., tuple["str | None", str]]
GRACE = 20.0


@pytest.fixture
def logs(tmp_path: Path) -> ModelLogs:
    return ModelLogs(tmp_path / "logs")


@pytest.fixture
def stop(tmp_path: Path, logs: ModelLogs) -> Stop:
    """Stops a detached server that has ended: what was wrong, and its log."""

    def stop(
        command: Sequence[object], env: dict[str, str] | None = None, grace: float = GRACE
    ) -> tuple[str | None, str]:
        launch = Launch(tuple(map(str, command)), str(tmp_path), env or {}, detached=True)
        run = Run("0123456789", "m", "s", "f", free_port(), None, None, 0, None, launch=launch)
        os.close(logs.create("m", run.id, "title")[1])
        fault = Detached(run, None, logs)._run_stop_command(grace)
        return fault, logs.tail("m", 100)

    return stop


def test_it_has_the_variables_and_the_folder_of_the_start_and_its_output_is_in_the_log(
    stop: Stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THE_PROGRAM", "shared")
    monkeypatch.setenv("LLM_MANAGER_ADMIN", "hunter2")
    script = 'echo "$PORT $OWN $OF_THE_PROGRAM [$LLM_MANAGER_ADMIN] $(pwd)"; echo trouble >&2'
    fault, log = stop(["sh", "-c", script], {"PORT": "21000", "OWN": "mine"})
    assert fault is None
    assert f"21000 mine shared [] {tmp_path}\ntrouble" in log


def test_one_that_fails_is_named_with_its_exit_code_also_in_the_log(stop: Stop) -> None:
    fault, log = stop(["sh", "-c", "echo no such container; exit 3"])
    assert fault == "its stop_command ended with exit code 3"
    assert "no such container" in log
    assert fault in log


def test_one_that_hangs_is_killed_with_all_that_it_has_started(stop: Stop, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = 'echo $$ >"$0"; sleep 600 & echo $! >>"$0"; wait'
    fault, _ = stop(["sh", "-c", script, pids], grace=1)
    assert fault == "its stop_command had not ended after 1 seconds and was killed"
    assert not [pid for pid in map(int, pids.read_text().split()) if is_running(pid)]


def test_a_program_that_is_not_there_is_named(stop: Stop) -> None:
    fault, _ = stop(["no-such-docker", "stop", "x"])
    assert str(fault).startswith("its stop_command failed: no-such-docker cannot be run: No such")


def test_it_runs_also_where_the_log_has_been_deleted(tmp_path: Path) -> None:
    launch = Launch((sys.executable, "-c", "open('done', 'w')"), str(tmp_path), {}, detached=True)
    run = Run("r", "never-logged", "s", "f", free_port(), None, None, 0, None, launch=launch)
    assert Detached(run, None, ModelLogs(tmp_path / "none")).stop(GRACE) is None
    assert (tmp_path / "done").exists()


def test_a_run_of_an_earlier_program_is_left_to_be_stopped_where_it_says_how(
    logs: ModelLogs,
) -> None:
    def run(launch: Launch) -> Run:
        fields: dict[str, Any] = {"pid": None, "pid_created": None, "started_ms": 0}
        return Run("r", "m", "s", "f", free_port(), ready_ms=None, launch=launch, **fields)

    assert find(run(Launch()), logs) is None
    left = find(run(Launch(("docker", "stop", "x"), "/")), logs)
    assert isinstance(left, Detached)
    assert not left.alive()


@pytest.mark.parametrize("code", [0, 1])
@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_a_stop_that_fails_before_the_server_listens_counts_as_long_as_it_may_come_up(
    tmp_path: Path, logs: ModelLogs, code: int, seconds: float
) -> None:
    launch = Launch(("false",), str(tmp_path), {}, detached=True)
    run = Run("0123456789", "m", "s", "f", free_port(), None, None, 0, None, launch=launch)
    _, output = logs.create("m", run.id, "title")
    command = ["sh", "-c", f"exit {code}"]
    tree = ProcessTree.start(run.id, command, cwd=tmp_path, env=dict(os.environ), output=output)
    os.close(output)
    assert tree.wait(GRACE) == code
    process = Detached(run, tree, logs, seconds)
    fault = process.stop(GRACE)
    may_come_up = code == 0 and seconds > 0
    assert process.may_come_up() is may_come_up
    assert ("may still be loading" in (fault or "")) is may_come_up

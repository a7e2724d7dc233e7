"""The program as the first process of a container, the parent of all that is left behind."""

from __future__ import annotations

import signal
import subprocess
import sys

import psutil
import pytest

from tests.support.fixtures import Launch
from tests.support.program import PATIENCE, Program, eventually, fake

ISOLATE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def can_isolate() -> bool:
    """Whether this user may have processes with a numbering of their own."""
    try:
        command = [*ISOLATE, "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not can_isolate(), reason="needs root and unshare"
)


def first_process(program: Program) -> psutil.Process:
    (first,) = psutil.Process(program.pid).children()
    return first


def zombies(program: Program) -> list[int]:
    below = first_process(program).children(recursive=True)
    return [process.pid for process in below if process.status() == psutil.STATUS_ZOMBIE]


@pytest.fixture
def program(launch: Launch) -> Program:
    # Its server outlives the script by a moment, so that it is left to the first process.
    forks = ["sh", "-c", '"$@" & wait', "sh"]
    model = fake("--ignore-sigterm", "--children", 2, prefix=forks, stop_timeout=0.2)
    program = launch({"Model": model}, wrapper=ISOLATE)
    assert first_process(program).children()
    return program


def test_nothing_that_a_script_leaves_behind_stays_a_zombie(program: Program) -> None:
    for _ in range(2):
        assert program.command("Model", "start")["state"] == "ready"
        assert program.command("Model", "stop")["state"] == "stopped"
        eventually(lambda: not zombies(program))
    assert len(program.logs("Model")) == 2
    first_process(program).terminate()
    program.ends_well()


def test_signals_reach_the_program_and_its_end_is_the_containers(program: Program) -> None:
    program.configure({"Model": fake(), "Added": fake()})
    first_process(program).send_signal(signal.SIGHUP)
    eventually(lambda: program.get("/api/models/Added").status_code == 200)
    first_process(program).send_signal(signal.SIGINT)
    program.ends_well()


def test_a_crash_of_the_program_ends_the_container_with_its_exit_code(program: Program) -> None:
    (serving,) = first_process(program).children()
    serving.kill()
    assert program.process.wait(PATIENCE) == 128 + signal.SIGKILL

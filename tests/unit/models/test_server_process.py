"""What watches and ends a server: played process trees and listeners, no process and no socket."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from manager.models import ports, process_tree, server_process
from manager.models.server_process import Attached, Detached, ServerProcess
from manager.storage import Launch, Run

PORT = 21000
STOP = ("docker", "stop", "web")
OURS, FOREIGN = "boot/1", "boot/2"


class Machine:
    """What listens on the port, and what was done, in order."""

    def __init__(self) -> None:
        self.listening: set[str] = set()
        self.accepting = False
        self.holder_run: str | None = None
        self.now = 1000.0
        self.calls: list[str] = []
        self.stop_command: dict[str, Any] | None = {"exit_code": 0, "ends": [OURS]}

    def tree(self, **fields: Any) -> Any:
        """A process tree whose end is noted."""
        usual = {"exit_code": None, "describe_exit": lambda: "", "stops": True, "ends": []}
        usual["settle"] = lambda _port: True
        tree = SimpleNamespace(pid=7, created=1.5, **(usual | fields))

        def stop(_grace: float) -> bool:
            self.calls.append("tree")
            self.listening -= set(tree.ends)
            stopped: bool = tree.stops
            return stopped

        tree.stop = stop
        return tree

    def run_stop_command(self, _grace: float) -> str | None:
        if self.stop_command is None:
            return None
        self.calls.append("stop_command")
        self.listening -= set(self.stop_command["ends"])
        code = self.stop_command["exit_code"]
        return f"its stop_command ended with exit code {code}" if code else None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine()

    def pass_time(seconds: float) -> None:
        machine.now += seconds

    clock = SimpleNamespace(monotonic=lambda: machine.now, sleep=pass_time)
    monkeypatch.setattr(server_process, "time", clock)
    monkeypatch.setattr(ports, "listeners", lambda _port: frozenset(machine.listening))
    monkeypatch.setattr(ports, "accepts", lambda _port: machine.accepting)
    monkeypatch.setattr(ports, "listener", lambda _port: 99)
    monkeypatch.setattr(ports, "holder", lambda _port: "docker-proxy (pid 99)")
    monkeypatch.setattr(process_tree, "run_id_of", lambda _pid: machine.holder_run)
    monkeypatch.setattr(ServerProcess, "_run_stop_command", machine.run_stop_command)
    return machine


def a_run(*listeners: str, stop: tuple[str, ...] = STOP, detached: bool = True) -> Run:
    launch = Launch(stop, "/", {"A": "b"}, detached, listeners=listeners)
    return Run("r", "Qwen", "Docker", "f", PORT, None, None, 0, None, launch=launch)


def detached(machine: Machine, **tree: Any) -> Detached:
    logs: Any = None
    return Detached(a_run(), machine.tree(**tree), logs)


def attached(machine: Machine, stop: tuple[str, ...] = (), **tree: Any) -> Attached:
    logs: Any = None
    if not stop:
        machine.stop_command = None
    return Attached(a_run(stop=stop, detached=False), machine.tree(**tree), logs)


def found(*listeners: str) -> Detached:
    """One that an earlier program has started, whose command has ended."""
    logs: Any = None
    return Detached(a_run(*listeners), None, logs)


# --- a detached server's life -----------------------------------------------------------


def test_a_command_that_has_ended_well_has_started_its_server(machine: Machine) -> None:
    assert detached(machine).alive()
    assert detached(machine, exit_code=0).alive()
    failed = detached(machine, exit_code=125, describe_exit=lambda: " with exit code 125")
    assert not failed.alive()
    assert failed.describe_end() == "its command ended with exit code 125"


def test_a_server_that_ends_while_it_loads_is_noticed_once_its_port_stays_closed(
    machine: Machine,
) -> None:
    server = detached(machine, exit_code=0)
    machine.now += 100
    assert server.alive()  # it has not listened yet
    machine.listening = {OURS}
    assert server.alive()
    machine.listening = set()
    machine.now += 1
    assert server.alive()  # as a server does that opens its port again
    machine.now += 2
    assert not server.alive()
    assert "nothing listens on its port any more" in server.describe_end()


def test_a_ready_server_has_ended_when_its_listener_has(machine: Machine) -> None:
    server = detached(machine, exit_code=0)
    machine.listening = {OURS}
    assert not server.settle()
    assert server.alive()
    machine.listening = {OURS, FOREIGN}
    assert server.alive()
    machine.listening = {FOREIGN}
    assert not server.alive()
    assert server.has_ended()


def test_a_program_without_descriptors_does_not_take_a_server_for_a_dead_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = detached(machine, exit_code=0)
    machine.listening = {OURS}
    server.settle()

    def fail(_port: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(ports, "listeners", fail)
    assert server.alive()


def listens_as(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is what listens on the port, and has that name."""
    monkeypatch.setattr(ports, "listener", lambda _port: os.getpid())
    monkeypatch.setattr(psutil.Process, "name", lambda _process: name)


def test_its_memory_is_that_of_the_process_that_listens_on_its_port(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    listens_as("llama-server", monkeypatch)
    server = detached(machine, exit_code=0)
    assert server.pids() == set()
    server.settle()
    assert os.getpid() in server.pids()


def test_the_memory_of_a_container_behind_a_client_is_not_the_client_s(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    listens_as("vllm", monkeypatch)
    server = attached(machine, pids=lambda: {7}, settle=lambda _port: False)
    assert server.pids() == {7}
    server.settle()
    assert 7 not in server.pids()
    assert os.getpid() in server.pids()


def test_what_forwards_to_a_container_does_not_hold_its_memory(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    listens_as("docker-proxy", monkeypatch)
    server = detached(machine, exit_code=0)
    assert (server.pid, server.created) == (7, 1.5)  # of its command, as long as it starts
    server.settle()
    assert (server.pid, server.created, server.pids()) == (None, None, set())


def test_where_no_listener_is_shown_it_lives_as_long_as_it_takes_connections(
    machine: Machine,
) -> None:
    server = detached(machine, exit_code=0)
    server.settle()
    machine.accepting = True
    machine.now += 1
    assert server.alive()
    machine.accepting = False
    assert server.alive()  # asked once a second
    machine.now += 1
    assert not server.alive()


# --- found again ------------------------------------------------------------------------


def test_a_server_is_recognised_by_its_listener(machine: Machine) -> None:
    machine.listening = {OURS}
    assert found(OURS).alive()


@pytest.mark.parametrize("listening", [set(), {FOREIGN}])
def test_a_foreign_server_on_the_port_is_not_taken_for_it(
    machine: Machine, listening: set[str]
) -> None:
    machine.listening, machine.accepting = listening, True
    assert not found(OURS).alive()
    assert not found().alive()  # of one that is not known by anything, any may be foreign


def test_what_recognises_it_is_recorded_where_something_can_stop_it(machine: Machine) -> None:
    machine.listening = {OURS}
    server = detached(machine, exit_code=0)
    server.settle()
    recorded = server.recorded("::1")
    assert (recorded.host, recorded.listeners, recorded.stop_command) == ("::1", (OURS,), STOP)
    plain = attached(machine)
    plain.settle()
    assert plain.recorded("127.0.0.1").listeners == ()


# --- the end ----------------------------------------------------------------------------


def test_the_stop_command_of_a_script_runs_before_its_processes_are_ended(
    machine: Machine,
) -> None:
    server = attached(machine, STOP)
    assert server.stop(1) is None
    assert machine.calls == ["stop_command", "tree"]


def test_a_command_that_still_runs_is_ended_before_the_stop_command(machine: Machine) -> None:
    """Else it could start the server afterwards."""
    assert detached(machine).stop(1) is None
    assert machine.calls == ["tree", "stop_command"]


def test_a_server_that_still_answers_has_not_ended(machine: Machine) -> None:
    machine.listening = {OURS}
    server = attached(machine)
    server.settle()
    why = server.stop(1)
    assert why is not None
    assert f"still answers on its port {PORT}, held by docker-proxy (pid 99)" in why
    assert "set stop_command" in why
    assert "[docker, stop, NAME]" in why
    machine.listening = set()
    assert server.stop(1) is None


def test_a_stop_command_that_failed_is_named_where_the_server_still_answers(
    machine: Machine,
) -> None:
    server = detached(machine, exit_code=0)
    machine.listening = {OURS}
    server.settle()
    machine.stop_command = {"exit_code": 1, "ends": []}
    assert "its stop_command ended with exit code 1" in str(server.stop(1))
    machine.stop_command = {"exit_code": 0, "ends": []}
    assert "although its stop_command ended well" in str(server.stop(1))
    machine.stop_command = {"exit_code": 1, "ends": [OURS]}  # as of a container that had ended
    assert server.stop(1) is None


def test_a_process_that_does_not_die_is_named(machine: Machine) -> None:
    assert "does not die" in str(attached(machine, stops=False).stop(1))


def test_another_server_on_the_port_does_not_keep_one_from_having_ended(
    machine: Machine,
) -> None:
    server = attached(machine, ends=[OURS])
    machine.listening = {OURS}
    server.settle()
    machine.listening = {OURS, FOREIGN}
    assert server.stop(1) is None


def test_another_managers_model_does_not_keep_a_failed_start_from_having_ended(
    machine: Machine,
) -> None:
    machine.listening, machine.holder_run = {FOREIGN}, "another run"
    assert attached(machine).stop(1) is None
    machine.holder_run = None
    assert "still answers" in str(attached(machine).stop(1))


def test_a_server_that_no_listener_shows_is_asked_whether_it_still_answers(
    machine: Machine,
) -> None:
    machine.accepting = True
    assert "still answers" in str(attached(machine).stop(1))


# --- what a script's end says -----------------------------------------------------------


def test_a_script_that_ends_well_without_a_server_is_told_from_a_crash(machine: Machine) -> None:
    def ended(code: int) -> Attached:
        return attached(machine, exit_code=code, describe_exit=lambda: f" with exit code {code}")

    assert "set detached: true and stop_command" in ended(0).describe_end()
    assert ended(3).describe_end() == "its script ended with exit code 3"
    ready = ended(0)
    ready.settle()
    assert ready.describe_end() == "its process ended by itself with exit code 0"

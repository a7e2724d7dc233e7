"""Servers that are no child processes: containers, with and without a client."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import docker
from tests.support.docker import Containers
from tests.support.fixtures import Launch
from tests.support.program import (
    FAKE,
    PATIENCE,
    PLAIN,
    Program,
    background,
    error_of,
    eventually,
    free_port,
)

DOCKER = [sys.executable, docker.__file__]
STOP = [*DOCKER, "stop", "-t", "1", "${MODEL}"]


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Those of one daemon, none of which a test may leave behind."""
    containers = Containers(tmp_path_factory.mktemp("docker"))
    yield containers
    left = containers.running()
    for name in left:
        containers.stop(name, 0)
    assert left == []


def container(
    containers: Containers,
    *flags: object,
    run: Sequence[str] = ("--rm",),
    stop: Sequence[object] | None = STOP,
    detached: bool = True,
    prefix: Sequence[object] = (),
    server: object = FAKE,
    **settings: Any,
) -> dict[str, Any]:
    """A model in a container of its name; ``run`` are flags of docker's, ``flags`` the server's."""
    client = [*DOCKER, "run", *(["-d"] if detached else []), *run, "--name", "${MODEL}"]
    inside = ["-e", "PORT=${PORT}", "image", sys.executable, server, *flags]
    command = [*prefix, *client, *inside]
    scheme: dict[str, Any] = {
        "command": [str(part) for part in command],
        "env": {"DOCKER_HOST": str(containers.folder)},
    }
    if stop is not None:
        scheme["stop_command"] = [str(part) for part in stop]
    if detached and stop is not None:
        scheme["detached"] = True
    return {"stop_timeout": 5, **settings, "Default": scheme}


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


def unless(gate: Path, what: str) -> list[object]:
    """A stop command that does something else until the gate exists."""
    return ["sh", "-c", f'[ -e "$0" ] || {what}; exec "$@"', gate, *STOP]


@pytest.fixture(scope="module")
def taken_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def program(launch_once: Launch, containers: Containers, gates: Path, taken_port: int) -> Program:
    """One program with a model for each test that needs nothing of its own."""

    def model(*flags: object, **options: Any) -> dict[str, Any]:
        return container(containers, *flags, **options)

    waits = ["sh", "-c", 'until [ -e "$0" ]; do sleep 0.02; done; exec "$@"']
    fails = ["sh", "-c", '"$@"; exit 9', "sh"]
    budget = {"required_devices": ["rtx 4060"], "memory_mb": {"rtx 4060": 6000}}
    big, other = model(), model()
    for one in (big, other):
        one["Default"].update(budget)
    return launch_once(
        {
            "Detached": model("--children", 2),
            "Attended": model(detached=False),
            "Outlives": model(detached=False, stop=None, stop_timeout=0.5, port=taken_port),
            "NotDetached": model(stop=None, stop_timeout=0.5),
            "Crashing": model(),
            "NeverReady": model("--never-ready", start_timeout=1.5),
            "HalfWay": model("--never-ready"),
            "StillRuns": model(prefix=[*waits, gates / "never"]),
            "Fails": model(prefix=fails),
            "EndsEarly": model("--silent", server=PLAIN),
            "Hangs": model(stop=unless(gates / "Hangs", "exec sleep 600"), stop_timeout=0.5),
            "Refuses": model(stop=unless(gates / "Refuses", "exit 3"), stop_timeout=5),
            "Loads": model("--boot", 600, stop=unless(gates / "Loads", "exit 3")),
            "NoProgram": model(stop=["no-such-docker", "stop"], stop_timeout=5),
            "Big": big,
            "Other": other,
            "OnIPv6": model("--host", "::1"),
        },
        device_memory_mb={"rtx 4060": 8000},
    )


# --- a life -----------------------------------------------------------------------------


def test_a_detached_server_is_started_answers_and_is_stopped_with_its_command(
    program: Program, containers: Containers
) -> None:
    name = "Detached"
    assert program.ask(name).status_code == 200
    view = program.model(name)
    assert (view["state"], view["pid"]) == ("ready", None)
    assert program.processes(name) == []  # it is none of ours
    server = containers.process(name)
    assert server is not None
    assert server.pid == program.stats(name)["pid"]
    assert program.command(name, "stop")["state"] == "stopped"
    assert name not in containers.names()
    assert f"\n{name}" in program.log(name)  # what `docker stop` has printed
    assert program.ask(name).status_code == 200
    program.command(name, "stop")


def test_a_container_with_a_client_is_stopped_with_its_command(
    program: Program, containers: Containers
) -> None:
    """Which a signal to the client alone would not do, without --init."""
    name = "Attended"
    assert program.ask(name).status_code == 200
    assert program.processes(name)  # the client
    assert program.command(name, "stop")["state"] == "stopped"
    assert name not in containers.names()
    assert program.processes(name) == []


def test_a_container_that_outlives_its_client_is_not_stopped_and_what_to_write_is_said(
    program: Program, containers: Containers, taken_port: int
) -> None:
    name = "Outlives"
    assert program.ask(name).status_code == 200
    program.post(f"/api/models/{name}/stop")
    view = eventually(lambda: found if (found := program.model(name))["last_error"] else None)
    assert view["state"] == "stopping"
    assert f"still answers on its port {taken_port}, held by" in view["last_error"]
    assert "set stop_command" in view["last_error"]
    refused = program.ask(name)  # and nobody is answered by the old one, or waits for ever
    assert refused.status_code == 503
    assert "still answers" in error_of(refused)["message"]
    containers.stop(name, 0)
    program.becomes(name, state="stopped", last_error=None)
    assert program.ask(name).status_code == 200
    program.post(f"/api/models/{name}/stop")
    containers.stop(name, 0)
    program.becomes(name, state="stopped")


def test_a_command_that_ends_and_leaves_a_server_is_told_what_to_set(
    program: Program, containers: Containers
) -> None:
    message = error_of(program.ask("NotDetached"))["message"]
    assert "ended with exit code 0; if the server lives on elsewhere" in message
    assert "set detached: true and stop_command" in message
    assert program.model("NotDetached")["state"] == "failed"
    containers.stop("NotDetached", 0)


def test_a_crash_of_a_detached_server_is_noticed_and_the_next_request_starts_it_again(
    program: Program, containers: Containers
) -> None:
    assert program.ask("Crashing").status_code == 200
    first = program.stats("Crashing")["pid"]
    server = containers.process("Crashing")
    assert server is not None
    server.kill()
    view = program.becomes("Crashing", state="failed", pid=None)
    assert "nothing listens on its port any more" in view["last_error"]
    assert program.ask("Crashing").status_code == 200
    assert program.stats("Crashing")["pid"] != first
    program.command("Crashing", "stop")


def test_a_detached_server_is_stopped_to_free_memory_for_another(
    program: Program, containers: Containers
) -> None:
    for name, other in (("Big", "Other"), ("Other", "Big")):
        assert program.ask(name).status_code == 200
        assert name in containers.running()
        assert other not in containers.names()
    program.command("Other", "stop")


def test_a_server_on_ipv6_loopback_alone_is_found(program: Program, containers: Containers) -> None:
    assert program.ask("OnIPv6").status_code == 200
    assert program.command("OnIPv6", "stop")["state"] == "stopped"
    assert "OnIPv6" not in containers.names()


# --- starts that come to nothing --------------------------------------------------------


def test_a_container_that_is_never_ready_is_stopped(
    program: Program, containers: Containers
) -> None:
    error = error_of(program.ask("NeverReady"))
    assert error["code"] == "start_timeout"
    assert program.model("NeverReady")["state"] == "failed"
    assert "NeverReady" not in containers.names()


def test_a_start_that_is_stopped_half_way_leaves_no_container(
    program: Program, containers: Containers
) -> None:
    waiting = background(lambda: program.ask("HalfWay"))
    eventually(lambda: "HalfWay" in containers.running())
    assert program.command("HalfWay", "stop")["state"] == "stopped"
    assert error_of(waiting.result())["code"] == "start_failed"
    assert "HalfWay" not in containers.names()


def test_a_start_whose_command_still_runs_can_be_stopped(program: Program) -> None:
    waiting = background(lambda: program.ask("StillRuns"))
    program.becomes("StillRuns", state="starting")
    eventually(lambda: program.processes("StillRuns"))
    assert program.command("StillRuns", "stop")["state"] == "stopped"
    assert error_of(waiting.result())["code"] == "start_failed"
    assert program.processes("StillRuns") == []


def test_a_command_that_fails_is_named_and_the_container_that_it_has_left_is_stopped(
    program: Program, containers: Containers
) -> None:
    message = error_of(program.ask("Fails"))["message"]
    assert "its command ended with exit code 9" in message
    assert "Fails" not in containers.names()


def test_a_container_that_ends_while_it_loads_fails_the_start_without_a_time_out(
    program: Program, containers: Containers
) -> None:
    waiting = background(lambda: program.ask("EndsEarly"))
    eventually(lambda: "EndsEarly" in containers.running())
    eventually(lambda: "asked at" in containers.output("EndsEarly"))
    server = containers.process("EndsEarly")
    assert server is not None
    server.kill()
    message = error_of(waiting.result())["message"]
    assert "nothing listens on its port any more" in message
    assert program.model("EndsEarly")["state"] == "failed"


# --- stop commands that go wrong --------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Hangs", "had not ended after 0.5 seconds and was killed"),
        ("Refuses", "its stop_command ended with exit code 3"),
    ],
)
def test_a_server_that_its_stop_command_does_not_end_is_stopped_once_that_works(
    program: Program, containers: Containers, gates: Path, name: str, why: str
) -> None:
    assert program.ask(name).status_code == 200
    program.post(f"/api/models/{name}/stop")
    view = eventually(lambda: found if (found := program.model(name))["last_error"] else None)
    assert view["state"] == "stopping"
    assert why in view["last_error"]
    assert why in program.log(name)
    (gates / name).touch()
    program.becomes(name, state="stopped", last_error=None)
    assert name not in containers.names()


def test_a_server_that_still_loads_when_its_stop_command_fails_is_not_left_to_come_up(
    program: Program, containers: Containers, gates: Path
) -> None:
    waiting = background(lambda: program.ask("Loads"))
    eventually(lambda: "Loads" in containers.running())
    eventually(lambda: program.processes("Loads") == [])  # the command that launches it has ended
    program.post("/api/models/Loads/stop")
    # Twice: the stop is tried again.
    eventually(lambda: program.output.count("Loads: its stop_command ended with exit code 3") > 1)
    assert program.model("Loads")["state"] == "stopping"
    assert "Loads" in containers.running()
    (gates / "Loads").touch()
    program.becomes("Loads", state="stopped")
    assert "Loads" not in containers.names()
    assert error_of(waiting.result())["code"] == "start_failed"


def test_a_stop_command_whose_program_is_missing_is_named(
    program: Program, containers: Containers
) -> None:
    assert program.ask("NoProgram").status_code == 200
    program.post("/api/models/NoProgram/stop")
    view = eventually(
        lambda: found if (found := program.model("NoProgram"))["last_error"] else None
    )
    assert "no-such-docker cannot be run" in view["last_error"]
    containers.stop("NoProgram", 0)
    program.becomes("NoProgram", state="stopped", last_error=None)


# --- the program's end, and the start after it ------------------------------------------


def test_an_orderly_end_stops_detached_servers(launch: Launch, containers: Containers) -> None:
    program = launch({"Orderly": container(containers)})
    assert program.ask("Orderly").status_code == 200
    program.end(signal.SIGTERM)
    assert "Orderly" not in containers.names()


def test_a_detached_server_survives_the_kill_of_the_program_and_is_adopted_without_a_reload(
    launch: Launch, containers: Containers
) -> None:
    """One of them has a client, which is killed as well."""
    models = {
        "Kept": container(containers),
        "KeptOnIPv6": container(containers, "--host", "::1"),
        "Clientless": container(containers, detached=False),
    }
    names = list(models)
    program = launch(models)
    for name in names:
        assert program.ask(name).status_code == 200
    ports = {name: program.model(name)["port"] for name in names}
    pids = {name: containers.read(name)["pid"] for name in names}
    program.kill()
    for client in program.processes():
        client.kill()
    eventually(lambda: not program.processes())
    program.start()
    for name in names:
        program.becomes(name, state="ready", pid=None, port=ports[name])
        assert program.ask(name).status_code == 200
        assert containers.read(name)["pid"] == pids[name]
        assert len(program.logs(name)) == 1
        server = containers.process(name)
        assert server is not None
        server.kill()
        program.becomes(name, state="failed")


def test_a_detached_server_is_stopped_as_it_was_started_though_the_config_was_edited_since(
    launch: Launch, containers: Containers
) -> None:
    program = launch({name: container(containers) for name in ("Edited", "Changed", "Removed")})
    for name in ("Edited", "Changed", "Removed"):
        assert program.ask(name).status_code == 200
    pid = containers.read("Edited")["pid"]
    program.kill()
    # Neither command would do anything now, and the variable is another one.
    edited = container(containers, stop=["true"])
    changed = container(containers, "--children", 1, stop=["true"])
    for model in (edited, changed):
        model["Default"]["env"] = {"DOCKER_HOST": str(containers.folder), "NEW": "1"}
    edited["Default"]["env"].pop("NEW")
    program.configure({"Edited": edited, "Changed": changed})
    program.start()
    program.becomes("Edited", state="ready")  # how it is stopped is no reason to stop it
    assert containers.read("Edited")["pid"] == pid
    program.becomes("Changed", state="stopped")
    eventually(lambda: not {"Changed", "Removed"} & set(containers.names()))
    assert program.command("Edited", "stop")["state"] == "stopped"
    assert "Edited" not in containers.names()


def test_a_foreign_server_on_the_port_is_never_adopted(
    launch: Launch, containers: Containers
) -> None:
    port = free_port()
    program = launch({"Robbed": container(containers, port=port)})
    assert program.ask("Robbed").status_code == 200
    program.kill()
    containers.stop("Robbed", 0)
    command = [sys.executable, FAKE, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as foreign:
        try:
            assert foreign.stdout is not None
            foreign.stdout.readline()
            program.start()
            program.becomes("Robbed", state="stopped")
            assert foreign.poll() is None
            refused = error_of(program.ask("Robbed"))
            assert f"its port {port} is held by" in refused["message"]
            assert f"(pid {foreign.pid})" in refused["message"]
        finally:
            foreign.kill()
            foreign.wait(PATIENCE)
    assert program.ask("Robbed").status_code == 200
    program.command("Robbed", "stop")


def test_a_secret_of_a_detached_server_is_kept_only_while_it_runs(
    launch: Launch, containers: Containers
) -> None:
    model = container(containers)
    model["Default"]["env"]["HF_TOKEN"] = "s3cr3t-of-the-model"
    program = launch({"Secret": model})
    assert program.ask("Secret").status_code == 200
    command = [sys.executable, "-m", "commands", "backup", program.folder / "copy.db"]
    subprocess.run([*command, "--data-dir", program.data], check=True, capture_output=True)
    assert b"s3cr3t-of-the-model" not in (program.folder / "copy.db").read_bytes()
    program.command("Secret", "stop")
    program.end()
    assert b"s3cr3t-of-the-model" not in program.usage_db.read_bytes()

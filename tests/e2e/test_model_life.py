"""A model's life: started once, stopped as a whole, and each failure named."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.fixtures import Launch
from tests.support.program import (
    FAKE,
    FEW_THREADS,
    RUN,
    Program,
    background,
    error_of,
    events_of,
    eventually,
    fake,
    free_port,
    frozen,
    gated,
    plain,
    text_of,
)

HERD = 100


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that the models below wait for: `(gates / name).touch()` lets one go."""
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def taken_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def program(launch_once: Launch, gates: Path, taken_port: int) -> Program:
    """One program with a model for each test that needs nothing of its own."""

    def slow(name: str, **settings: Any) -> dict[str, Any]:
        return fake(prefix=gated(gates / name), **settings)

    def script(name: str, text: str) -> dict[str, Any]:
        path = gates / f"{name}.sh"
        path.write_text(text)
        path.chmod(0o755)
        return {"Default": {"script_path": str(path), "env": {"OWN": "mine"}}}

    names = " ".join(f"${{LLM_MANAGER_{name}}}" for name in ("MODEL", "SCHEME", "PORT"))
    # Fails until its file exists.
    flaky = ["sh", "-c", 'test -e "$0" || exit 7; exec "$@"', gates / "Flaky"]
    return launch_once(
        {
            "Other": fake(),
            "Herd": slow("Herd"),
            "Manual": fake("--children", 2),
            "HalfWay": slow("HalfWay"),
            "Silent": plain("--silent"),
            "Crashing": fake(),
            "Sick": fake(),
            "Exits": fake("--crash-after-boot", 3),
            "org/m:7b": script(
                "serve", f'#!/bin/sh\necho "I am {names} $PORT $OWN"\nexec python3 {FAKE}\n'
            ),
            **{name: script(name, "no script") for name in ("Missing", "Locked", "Text")},
            "NoProgram": {"Default": {"command": [str(gates / "no-such-server"), "--port"]}},
            "Daemon": fake("--daemonize", "--children", 2),
            "DaemonParent": fake("--daemonize", "--children", 2),
            "Stubborn": fake("--ignore-sigterm", "--children", 2, stop_timeout=0.5),
            "NeverReady": fake("--never-ready", "--children", 1, start_timeout=1),
            "Refusing": fake("--refuse-probe", 400),
            "Late": fake("--loading", 0.5),
            "NoHealth": fake("--no-health"),
            "OwnHealth": fake("--no-health", health="/v1/models"),
            "PortOnly": fake("--no-health", health="none"),
            "Unprobed": fake("--refuse-probe", 400, probe=False),
            "Misnamed": fake(health="/raedy", start_timeout=1),
            "PortTaken": fake(port=taken_port),
            "Robbed": slow("Robbed"),
            "Flaky": fake(prefix=flaky),
            "Idle": fake(alive_time=0.01),
            "Narrow": fake(max_concurrency=1),
            "Crowded": slow("Crowded", max_waiting=2),
            "Restarted": slow("Restarted"),
            "Renamed": fake("--served-name", "llama-3", served_model_name="llama-3"),
            "Strict": fake("--no-ask-usage", ask_usage=False),
        },
        threads=256,
    )


# --- started once -----------------------------------------------------------------------


def test_a_hundred_requests_on_a_cold_model_start_one_process_and_all_are_answered(
    program: Program, gates: Path
) -> None:
    with ThreadPoolExecutor(HERD) as pool:
        herd = [pool.submit(program.ask, "Herd") for _ in range(HERD)]
        program.becomes("Herd", state="starting", waiting=HERD)
        # Nobody else has to wait for it.
        assert program.get("/health").status_code == 200
        assert program.ask("Other").status_code == 200
        assert program.get("/v1/models").status_code == 200
        assert program.model("Herd")["waiting"] == HERD
        (gates / "Herd").touch()
        assert [answer.result().status_code for answer in herd] == [200] * HERD
    assert len(program.logs("Herd")) == 1
    assert len(program.processes("Herd")) == 1
    stats = program.stats("Herd")
    assert stats["pid"] == program.model("Herd")["pid"]
    assert stats["served"] == HERD + 1  # the probe as well
    program.becomes("Herd", in_flight=0, waiting=0)


def test_auto_start_models_start_in_parallel_and_once_each_and_all_stop_with_one_call(
    launch: Launch, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    names = ["One", "Two"]
    models = {name: fake(prefix=gated(gate), auto_start=True) for name in names}
    program = launch({**models, "Sleeping": fake()})
    for name in names:  # none is ready before all have been launched
        program.becomes(name, state="starting")
    gate.touch()
    for name in names:
        program.becomes(name, state="ready")
        assert len(program.logs(name)) == 1
    assert program.model("Sleeping")["state"] == "stopped"
    views = program.post("/api/models/stop?wait=1").json()["models"]
    assert [view["state"] for view in views] == ["stopped"] * 3
    assert program.processes() == []


def test_a_script_gets_its_model_its_scheme_and_its_port(program: Program) -> None:
    assert program.ask("org/m:7b").status_code == 200
    view = program.model("org/m:7b")
    assert view["scheme"] == "Default"
    assert f"I am org/m:7b Default {view['port']} {view['port']} mine" in program.log("org/m:7b")


def test_a_command_gets_its_port_its_names_and_what_the_environment_has(launch: Launch) -> None:
    command = ["sh", "-c", f'echo "I am $0"; exec python3 {FAKE}']
    names = "${MODEL} ${SCHEME} ${PORT} [${DEVICES}] ${FOR_MODELS} ${FLAVOUR} ${NOT_THERE}"
    program = launch(
        {"org/m:7b": {"Plain": {"command": [*command, names], "env": {"FLAVOUR": "ice"}}}},
        env={"FOR_MODELS": "s3cr3t", "PORT": "1"},
    )
    assert program.ask("org/m:7b").status_code == 200
    port = program.model("org/m:7b")["port"]
    assert f"I am org/m:7b Plain {port} [] s3cr3t ice ${{NOT_THERE}}" in program.log("org/m:7b")
    assert "the environment has no NOT_THERE: ${NOT_THERE} stays as it is" in program.output
    assert "s3cr3t" not in program.output + program.get("/api/config").text


def test_a_model_gets_what_its_scheme_names_and_no_secret_of_the_programs(
    launch: Launch, tmp_path: Path
) -> None:
    script = tmp_path / "serve.sh"
    script.write_text(f"#!/bin/sh\nexec python3 {FAKE}\n")
    script.chmod(0o755)
    named = {"HF_TOKEN": "${FOR_MODELS}", "LLM_MANAGER_OWN": "mine"}
    program = launch(
        {
            "Plain": {"Scripted": {"script_path": str(script)}},
            "Named": {"Scripted": {"script_path": str(script), "env": named}},
        },
        env={"LLM_MANAGER_ADMIN": "hunter2", "LLM_MANAGER_PORT": "1", "FOR_MODELS": "s3cr3t"},
    )
    for name in ("Plain", "Named"):
        assert program.ask(name).status_code == 200
    plain, named = (program.processes(name)[0].environ() for name in ("Plain", "Named"))
    assert "hunter2" not in [*plain.values(), *named.values()]
    assert not {"LLM_MANAGER_ADMIN", "HF_TOKEN"} & set(plain)
    assert plain["LLM_MANAGER_PORT"] == plain["PORT"] != "1"
    assert (named["HF_TOKEN"], named["LLM_MANAGER_OWN"]) == ("s3cr3t", "mine")

    assert program.get("/api/config").status_code == 200
    shown = [program.output, program.get("/api/config").text]
    kept = [path.read_bytes() for path in program.data.rglob("*") if path.is_file()]
    for secret in ("hunter2", "s3cr3t"):
        assert secret not in "".join(shown)
        assert secret.encode() not in b"".join(kept)


@pytest.mark.parametrize("name", ["Late", "NoHealth", "OwnHealth", "PortOnly", "Renamed", "Strict"])
def test_servers_that_load_long_or_know_no_health_or_have_other_names_are_used_all_the_same(
    program: Program, name: str
) -> None:
    with program.ask(name, stream=True) as answer:
        events = events_of(answer)
    assert text_of(events) == " token0 token1 token2"


def test_a_server_that_is_not_probed_is_ready_and_was_sent_nothing(program: Program) -> None:
    program.command("Unprobed", "start")
    assert program.model("Unprobed")["state"] == "ready"
    assert program.stats("Unprobed")["requests"] == []


# --- started and stopped manually -------------------------------------------------------


def test_a_model_is_started_restarted_and_stopped_manually(program: Program) -> None:
    started = program.command("Manual", "start")
    assert started["state"] == "ready"
    assert psutil.pid_exists(started["pid"])
    assert program.command("Manual", "start")["pid"] == started["pid"]

    restarted = program.command("Manual", "restart")
    assert restarted["state"] == "ready"
    assert restarted["pid"] != started["pid"]
    assert len(program.processes("Manual")) == 3  # it has two children

    stopped = program.command("Manual", "stop")
    assert (stopped["state"], stopped["pid"]) == ("stopped", None)
    assert program.processes("Manual") == []
    assert program.command("Manual", "stop")["state"] == "stopped"


def test_a_command_that_does_not_wait_is_accepted_at_once(program: Program) -> None:
    response = program.post("/api/models/HalfWay/start")
    assert response.status_code == 202
    assert response.json()["state"] in ("queued", "starting")
    program.command("HalfWay", "stop")


def test_a_start_is_stopped_half_way_and_those_who_wait_get_an_error(
    program: Program, gates: Path
) -> None:
    herd = [background(lambda: program.ask("HalfWay")) for _ in range(5)]
    program.becomes("HalfWay", state="starting", waiting=5)
    assert program.command("HalfWay", "stop")["state"] == "stopped"
    for answer in herd:
        response = answer.result()
        assert response.status_code == 503
        assert error_of(response)["code"] == "start_failed"
        assert "stopped while you waited" in error_of(response)["message"]
    assert program.processes("HalfWay") == []

    (gates / "HalfWay").touch()
    assert program.ask("HalfWay").status_code == 200


def test_a_start_is_stopped_while_the_model_is_silent_over_its_first_request(
    program: Program,
) -> None:
    waiting = background(lambda: program.ask("Silent"))
    eventually(lambda: "asked at" in program.log("Silent"))
    assert program.command("Silent", "stop")["state"] == "stopped"
    assert error_of(waiting.result())["code"] == "start_failed"
    assert program.processes("Silent") == []


def test_a_restart_of_a_model_that_is_starting_keeps_those_who_wait(
    program: Program, gates: Path
) -> None:
    waiting = background(lambda: program.ask("Restarted"))
    first = program.becomes("Restarted", state="starting", waiting=1)["pid"]
    assert program.post("/api/models/Restarted/restart").status_code == 202
    eventually(lambda: program.model("Restarted")["pid"] not in (first, None))
    (gates / "Restarted").touch()
    assert waiting.result().status_code == 200
    assert not psutil.pid_exists(first)


# --- scripts as they are ----------------------------------------------------------------


def test_a_server_that_its_script_leaves_behind_is_found_and_stopped_with_its_children(
    program: Program,
) -> None:
    name = "Daemon"
    assert program.ask(name).status_code == 200
    program.becomes(name, pid=program.stats(name)["pid"])
    assert len(program.processes(name)) == 3
    assert program.command(name, "stop")["state"] == "stopped"
    assert program.processes(name) == []


def test_a_server_that_ignores_sigterm_is_killed_with_its_children(program: Program) -> None:
    assert program.ask("Stubborn").status_code == 200
    assert len(program.processes("Stubborn")) == 3
    assert program.command("Stubborn", "stop")["state"] == "stopped"
    assert program.processes("Stubborn") == []


def test_a_server_that_lives_and_no_longer_serves_is_started_again(program: Program) -> None:
    assert program.ask("Sick").status_code == 200
    before = program.stats("Sick")["pid"]
    assert program.ask("Sick", {"breaks": "errors"}).status_code == 500
    assert program.model("Sick")["state"] == "ready"
    # Its requests go on failing: after five seconds that is enough.
    eventually(lambda: program.ask("Sick").status_code == 200)
    shown = program.becomes("Sick", state="ready")
    assert program.stats("Sick")["pid"] != before
    assert "in a row failed" in shown["last_error"]
    assert "/health answered 503" in shown["last_error"]
    assert shown["last_error"] in program.output
    assert program.counted("llm_manager_restarts_total", model="Sick") == 1
    assert len(program.processes("Sick")) == 1


@pytest.mark.parametrize("name", ["Crashing", "DaemonParent"])
def test_a_crash_is_noticed_and_the_next_request_starts_the_model_again(
    program: Program, name: str
) -> None:
    assert program.ask(name).status_code == 200
    before = program.stats(name)["pid"]
    psutil.Process(before).kill()
    view = program.becomes(name, state="failed", pid=None)
    assert "ended by itself" in view["last_error"]
    assert program.ask(name).status_code == 200
    assert program.stats(name)["pid"] != before
    assert program.model(name)["last_error"] is None


def failed_start(program: Program, name: str, code: str = "start_failed") -> str:
    """The message of a start that came to nothing, of which nothing is left."""
    response = program.ask(name)
    assert response.status_code == 503, response.text
    error = error_of(response)
    assert error["code"] == code
    view = program.model(name)
    assert (view["state"], view["pid"], view["waiting"]) == ("failed", None, 0)
    assert view["last_error"] in error["message"]
    assert program.processes(name) == []
    message: str = error["message"]
    return message


def test_a_script_that_exits_fails_the_start_with_its_code_and_its_last_lines(
    program: Program,
) -> None:
    message = failed_start(program, "Exits")
    assert "exit code 3" in message
    assert "fake: out of memory\nfake: giving up" in message


def test_a_program_that_is_not_there_is_named(program: Program) -> None:
    assert "no-such-server cannot be run: No such file" in failed_start(program, "NoProgram")


def test_a_script_that_is_missing_or_not_executable_or_no_script_is_named(
    program: Program, gates: Path
) -> None:
    missing, locked = gates / "Missing.sh", gates / "Locked.sh"
    missing.unlink()
    locked.chmod(0o644)
    assert f"{missing} is missing" in failed_start(program, "Missing")
    assert f"chmod +x {locked}" in failed_start(program, "Locked")
    assert "#! line" in failed_start(program, "Text")


def test_a_server_that_is_never_ready_is_stopped_after_start_timeout(program: Program) -> None:
    assert "not ready after 1 seconds" in failed_start(program, "NeverReady", "start_timeout")


def test_a_server_that_refuses_its_first_request_is_not_taken_for_ready(program: Program) -> None:
    message = failed_start(program, "Refusing")
    assert "got 400" in message
    assert "refused" in message


def test_a_health_that_the_server_does_not_have_is_named_with_its_key(program: Program) -> None:
    message = failed_start(program, "Misnamed", "start_timeout")
    assert "/raedy answered 404: its server has no such path, which is what the model's" in message


def test_a_port_that_another_program_holds_is_named_with_its_holder(
    program: Program, taken_port: int
) -> None:
    with socket.create_server(("127.0.0.1", taken_port)):
        message = failed_start(program, "PortTaken")
    assert f"port {taken_port} is held by" in message
    assert f"(pid {os.getpid()})" in message
    assert program.ask("PortTaken").status_code == 200
    assert program.model("PortTaken")["port"] == taken_port


def test_another_managers_model_that_takes_the_port_during_a_start_is_never_taken_for_ours(
    program: Program, gates: Path
) -> None:
    waiting = background(lambda: program.ask("Robbed"))
    port = program.becomes("Robbed", state="starting", waiting=1)["port"]
    command = [sys.executable, FAKE, "--port", str(port)]
    with subprocess.Popen(command, env={**os.environ, RUN: "another"}) as other:
        answer = waiting.result()
        assert answer.status_code == 503
        assert f"(pid {other.pid})" in error_of(answer)["message"]
        other.kill()
    (gates / "Robbed").touch()
    assert program.ask("Robbed").status_code == 200


def test_after_three_failed_starts_no_request_starts_it_until_it_is_started_manually(
    program: Program, gates: Path
) -> None:
    for _ in range(3):
        assert "exit code 7" in failed_start(program, "Flaky")
    refused = program.ask("Flaky")
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert "exit code 7" in error_of(refused)["message"]
    assert len(program.logs("Flaky")) == 3

    (gates / "Flaky").touch()
    assert program.ask("Flaky").status_code == 503
    assert len(program.logs("Flaky")) == 3
    assert program.command("Flaky", "start")["state"] == "ready"
    assert program.ask("Flaky").status_code == 200


# --- idle, narrow and crowded -----------------------------------------------------------


def test_an_idle_model_is_stopped_and_comes_back_when_it_is_asked(program: Program) -> None:
    assert program.ask("Idle").status_code == 200
    program.becomes("Idle", state="stopped", last_error=None)
    assert program.processes("Idle") == []
    assert program.ask("Idle").status_code == 200


def test_requests_over_max_concurrency_wait_in_the_order_in_which_they_came(
    program: Program, gates: Path
) -> None:
    # It ends by itself: of one that is aborted the server knows only a moment later.
    answers = [background(lambda: program.ask("Narrow", {"until": str(gates / "Narrow")}))]
    program.becomes("Narrow", in_flight=1)
    for number in range(5):
        user = f"user {number}"
        answers.append(background(lambda user=user: program.ask("Narrow", user=user)))
        program.becomes("Narrow", waiting=number + 1, in_flight=1)
    (gates / "Narrow").touch()
    assert [answer.result().status_code for answer in answers] == [200] * 6
    stats = program.stats("Narrow")
    assert stats["peak"] == 1
    asked = [request["body"] for request in stats["requests"][-5:]]
    assert [f"user {number}" in body for number, body in enumerate(asked)] == [True] * 5


def test_more_than_max_waiting_are_refused_and_the_others_answered(
    program: Program, gates: Path
) -> None:
    waiting = [background(lambda: program.ask("Crowded")) for _ in range(2)]
    program.becomes("Crowded", waiting=2)
    refused = program.ask("Crowded")
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "too_many_waiting"
    assert int(refused.headers["Retry-After"]) > 0
    (gates / "Crowded").touch()
    assert [answer.result().status_code for answer in waiting] == [200, 200]


# --- the config is edited ---------------------------------------------------------------


def reload(program: Program) -> dict[str, Any]:
    response = program.post("/api/config/reload")
    assert response.status_code == 200, response.text
    done: dict[str, Any] = response.json()
    return done


@pytest.fixture(scope="module")
def edited(launch_once: Launch) -> Program:
    """A program for the tests that edit its config."""
    return launch_once({}, timezone="UTC")


def edit(program: Program, models: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Saves the config and has it reloaded."""
    program.configure(models, **{"timezone": "UTC", **settings})
    return reload(program)


def test_a_model_that_is_taken_out_of_the_config_finishes_its_answers_and_stops(
    edited: Program,
) -> None:
    models = {"Stays": fake(), "Removed": fake("--children", 2, stop_timeout=60)}
    program = edited
    edit(program, models)
    assert program.ask("Stays").status_code == 200
    server = program.command("Removed", "start")["pid"]
    with program.ask("Removed", {"chunks": 20, "interval": 0.05}, stream=True) as answer:
        lines = answer.iter_lines()
        next(lines)
        with frozen(server):
            assert edit(program, {"Stays": models["Stays"]})["models"] == ["Stays"]
            assert error_of(program.ask("Removed"))["code"] == "model_not_found"
            assert len(program.processes("Removed")) == 3
        assert [line for line in lines if line][-1] == b"data: [DONE]"
    eventually(lambda: not program.processes("Removed"))
    assert program.ask("Stays").status_code == 200
    assert len(program.logs("Stays")) == 1


def test_a_changed_model_goes_on_and_is_launched_as_changed_at_its_next_start(
    edited: Program,
) -> None:
    def model(version: str, **settings: Any) -> dict[str, Any]:
        entry = fake(**settings)
        entry["Default"]["env"] = {"VERSION": version}
        return entry

    def version(program: Program) -> str:
        return psutil.Process(program.model("Changed")["pid"]).environ()["VERSION"]

    program = edited
    edit(program, {"Changed": model("old")})
    assert program.ask("Changed").status_code == 200
    pid = program.model("Changed")["pid"]
    edit(program, {"Changed": model("new", aliases=["changed"]), "Added": fake()})
    assert program.ask("changed").status_code == 200
    assert program.model("Changed")["pid"] == pid
    assert version(program) == "old"
    assert program.ask("Added").status_code == 200
    program.command("Changed", "restart")
    assert version(program) == "new"


def test_a_model_that_comes_with_a_price_is_billed_by_it_and_in_the_new_zone(
    edited: Program,
) -> None:
    program = edited
    tiers = [{"input": "0.5", "output": 2}]
    models = {"Old": fake(), "New": fake(price={"tiers": tiers})}
    assert edit(program, models, timezone="Asia/Tokyo")["restart_needed_for"] == []
    assert program.ask("New").status_code == 200
    (price,) = program.get("/api/prices").json()["prices"]
    assert (price["model"], price["tiers"][0]["input"]) == ("New", "0.5")

    def summary() -> dict[str, Any]:
        found: dict[str, Any] = program.get("/api/usage/summary?model=New").json()
        return found

    eventually(lambda: summary()["pending"] == 0)
    assert summary()["timezone"] == "Asia/Tokyo"
    assert summary()["cost"] == "0.0000145"  # 17 prompt and 3 completion tokens


def test_a_bad_config_changes_nothing_and_the_error_names_its_lines(edited: Program) -> None:
    program = edited
    edit(program, {"Steady": fake(aliases=["steady"])})
    assert program.ask("Steady").status_code == 200
    program.config.write_text("program:\n  threads: many\nLocal-Models:\n  New: {}\n")
    refused = program.post("/api/config/reload")
    assert refused.status_code == 400
    error = error_of(refused)
    assert error["code"] == "invalid_config"
    assert "config.yaml:2: " in error["message"]
    assert "config.yaml:4: " in error["message"]
    assert program.ask("steady").status_code == 200
    assert len(program.logs("Steady")) == 1


def test_a_config_that_is_saved_on_a_page_is_in_use(edited: Program) -> None:
    program = edited
    edit(program, {"One": fake()})
    model = fake()
    model["Default"]["env"] = {"HF_TOKEN": "s3cr3t"}
    program.configure({"One": model})
    shown = program.get("/api/config/text").json()
    assert "HF_TOKEN: s3cr3t" in shown["text"]
    edited = shown["text"].replace("One:", "One:\n    aliases: [first]")
    body = {"text": edited, "version": shown["version"]}
    saved = program.request("PUT", "/api/config/text", json=body)
    assert saved.status_code == 200, saved.text
    assert saved.json()["models"] == ["One"]
    assert program.ask("first").status_code == 200
    assert program.environment("One")["HF_TOKEN"] == "s3cr3t"
    again = program.request("PUT", "/api/config/text", json=body)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "config_changed")
    about = program.get("/api/about").json()
    assert (about["pid"], about["config"]) == (program.pid, str(program.config))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
def test_sighup_reloads_the_config_and_a_bad_one_only_shows_in_the_log(
    edited: Program,
) -> None:
    program = edited
    program.configure({"One": fake(), "Two": fake()})
    program.process.send_signal(signal.SIGHUP)
    eventually(lambda: program.get("/api/models/Two").status_code == 200)
    program.config.write_text("program: [\n")
    program.process.send_signal(signal.SIGHUP)
    eventually(lambda: "config.yaml:" in program.output)
    assert program.ask("Two").status_code == 200


def test_a_setting_that_needs_a_restart_of_the_program_is_named(edited: Program) -> None:
    changed = edit(edited, {"One": fake()}, threads=FEW_THREADS, queue_timeout=7)
    assert changed["restart_needed_for"] == ["threads"]


def test_a_new_time_zone_needs_a_restart_where_bills_are_scheduled_by_it(launch: Launch) -> None:
    export = {"schedule": "0 3 1 * *", "period": "month"}
    program = launch({"One": fake()}, timezone="UTC", export=export)
    program.configure({"One": fake()}, timezone="Asia/Tokyo", export=export)
    assert reload(program)["restart_needed_for"] == ["timezone"]

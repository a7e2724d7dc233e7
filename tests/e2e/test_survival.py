"""What an end of the program, good or bad, does to its models, and the start after it."""

from __future__ import annotations

import signal
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.support.fixtures import Launch
from tests.support.program import (
    PATIENCE,
    background,
    error_of,
    events_of,
    eventually,
    fake,
    frozen,
    gated,
    text_of,
)

SLOW = {"chunks": 20, "interval": 0.05}
ENDLESS = {"chunks": 5000, "interval": 0.05}
UNDER_LOAD = 8


def versioned(version: str, *flags: str) -> dict[str, Any]:
    model = fake(*flags)
    model["Default"]["env"] = {"VERSION": version}
    return model


# --- the program is killed --------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--fork"], ["--daemonize"]])
def test_a_model_survives_the_kill_of_the_program_and_is_taken_over_without_a_reload(
    launch: Launch, flags: list[object]
) -> None:
    program = launch({"Model": fake(*flags)})
    assert program.ask("Model").status_code == 200
    before = program.stats("Model")
    with ThreadPoolExecutor(UNDER_LOAD) as pool:
        streams = [
            pool.submit(lambda: events_of(program.ask("Model", ENDLESS, stream=True)))
            for _ in range(UNDER_LOAD)
        ]
        program.becomes("Model", in_flight=UNDER_LOAD)
        program.kill()
        for stream in streams:  # none of them looks whole
            assert isinstance(stream.exception(PATIENCE), requests.RequestException)

    program.start()
    program.becomes("Model", state="ready", pid=before["pid"])  # before anybody asks
    assert program.ask("Model").status_code == 200
    after = program.stats("Model")
    assert (after["pid"], after["started_at"]) == (before["pid"], before["started_at"])
    assert len(program.logs("Model")) == 1
    assert program.model("Model")["start_seconds"] > 0

    psutil.Process(after["pid"]).kill()  # the new program watches it as the old one did
    program.becomes("Model", state="failed", pid=None)


def test_a_model_whose_config_has_changed_is_stopped_and_not_taken_over(launch: Launch) -> None:
    program = launch({"Changed": versioned("old", "--children", "2"), "Gone": fake()})
    for name in ("Changed", "Gone"):
        assert program.ask(name).status_code == 200
    program.kill()
    assert len(program.processes()) == 4

    program.configure({"Changed": versioned("new")})
    program.start()
    eventually(lambda: not program.processes())
    assert program.ask("Changed").status_code == 200
    assert psutil.Process(program.model("Changed")["pid"]).environ()["VERSION"] == "new"
    assert len(program.processes()) == 1


def test_a_start_that_the_kill_broke_off_leaves_nothing_behind(
    launch: Launch, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    program = launch({"Model": fake(prefix=gated(gate))})
    program.post("/api/models/Model/start")
    program.becomes("Model", state="starting")
    program.kill()
    assert program.processes("Model")

    program.start()
    eventually(lambda: not program.processes("Model"))
    program.becomes("Model", state="stopped", pid=None)
    gate.touch()
    assert program.ask("Model").status_code == 200


def test_a_model_that_died_with_the_program_is_started_anew(launch: Launch) -> None:
    program = launch({"Model": fake(), "Auto": fake(auto_start=True)})
    assert program.ask("Model").status_code == 200
    program.becomes("Auto", state="ready")
    adopted, lost = program.stats("Auto")["pid"], program.stats("Model")["pid"]
    program.kill()
    psutil.Process(lost).kill()
    eventually(lambda: not program.processes("Model"))

    program.start()
    program.becomes("Model", state="stopped")
    assert program.ask("Model").status_code == 200
    program.becomes("Auto", state="ready", pid=adopted)
    assert len(program.logs("Auto")) == 1


# --- the program is told to end ---------------------------------------------------------


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_stream_under_way_is_finished_and_new_requests_are_refused(
    launch: Launch, by: signal.Signals
) -> None:
    program = launch({"Model": fake("--children", 2, stop_timeout=60), "Other": fake()})
    assert program.ask("Other").status_code == 200
    server = program.command("Model", "start")["pid"]
    with program.ask("Model", SLOW, stream=True) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        with frozen(server):
            program.process.send_signal(by)
            eventually(lambda: program.ask("Other").status_code == 503)
            for name in ("Other", "Model"):
                refused = program.ask(name)
                assert refused.status_code == 503
                assert error_of(refused)["code"] == "shutting_down"
                assert "Retry-After" in refused.headers
            assert program.get("/health").status_code == 200
        rest = list(lines)
    assert first.startswith(b"data: ")
    assert [line for line in rest if line][-1] == b"data: [DONE]"
    program.ends_well()


def test_those_who_wait_for_a_start_are_told_and_the_start_is_given_up(
    launch: Launch, tmp_path: Path
) -> None:
    program = launch({"Model": fake(prefix=gated(tmp_path / "never"))})
    waiting = [background(lambda: program.ask("Model")) for _ in range(5)]
    program.becomes("Model", state="starting", waiting=5)
    program.end()
    for answer in waiting:
        assert error_of(answer.result(PATIENCE))["code"] == "shutting_down"


def test_pages_that_are_open_do_not_hold_up_the_end(launch: Launch) -> None:
    program = launch({"Model": fake(auto_start=True)})
    program.becomes("Model", state="ready")
    pages = [program.page("/api/events"), program.page("/api/models/Model/logs/stream")]
    for page in pages:
        page.next()
    program.end()
    for page in pages:
        page.close()


def test_a_stream_that_outlasts_stop_timeout_ends_with_an_error(launch: Launch) -> None:
    program = launch({"Model": fake(stop_timeout=0.5)})
    with program.ask("Model", ENDLESS, stream=True) as answer:
        events = background(lambda: events_of(answer))
        program.becomes("Model", in_flight=1)
        program.end()
        assert "error" in events.result(PATIENCE)[-1]


def test_told_twice_the_program_leaves_at_once_and_its_models_run_on(launch: Launch) -> None:
    program = launch({"Model": fake(stop_timeout=600)})
    assert program.ask("Model").status_code == 200
    before = program.stats("Model")["pid"]
    with program.held("Model"):
        program.process.terminate()
        eventually(lambda: program.ask("Model").status_code == 503)
        program.process.terminate()
        assert program.process.wait(PATIENCE) == -signal.SIGTERM
    program.start()
    program.becomes("Model", state="ready", pid=before)


def test_a_start_after_an_orderly_end_finds_nothing_and_is_as_the_first(launch: Launch) -> None:
    program = launch({"Model": fake("--daemonize", "--children", 2)})
    assert program.ask("Model").status_code == 200
    program.end()
    program.start()
    assert program.model("Model")["state"] == "stopped"
    with program.ask("Model", stream=True) as answer:
        assert text_of(events_of(answer)) == " token0 token1 token2"
    assert len(program.logs("Model")) == 2


def test_a_crash_of_a_model_that_was_taken_over_is_noticed_though_its_children_live_on(
    launch: Launch,
) -> None:
    program = launch({"Model": fake("--children", 2)})
    assert program.ask("Model").status_code == 200
    program.kill()
    program.start()
    server = program.becomes("Model", state="ready")["pid"]
    psutil.Process(server).kill()
    program.becomes("Model", state="failed", pid=None)
    assert program.processes("Model") == []
    assert program.ask("Model").status_code == 200


# --- an update --------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")
def test_what_an_earlier_version_left_open_to_other_users_is_closed_to_them_at_the_next_start(
    launch: Launch,
) -> None:
    program = launch({"Model": fake()})
    assert stat.S_IMODE(program.data.stat().st_mode) == 0o700
    assert program.ask("Model").status_code == 200
    assert program.post("/api/data/backup?wait=1").status_code == 200
    secrets = [program.usage_db, program.data / "secret", *program.data.glob("backups/*")]
    assert len(secrets) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}

    program.kill()
    secrets += [program.data / "usage.db-wal", program.data / "usage.db-shm"]
    for path in secrets:
        path.chmod(0o644)
    program.data.chmod(0o775)
    program.start()
    assert program.ask("Model").status_code == 200
    assert stat.S_IMODE(program.data.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    assert program.output.count("others had rights here") == 1

"""What an end of the program, good or bad, does to its models, and the start after it."""

from __future__ import annotations

import signal
import stat
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.support.fixtures import Launch
from tests.support.program import (
    PATIENCE,
    Program,
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
CLIENTS = 8
ADOPTED = ("Plain", "Forked", "Daemonized", "Parent", "PortOnly")


def versioned(version: str, *flags: object) -> dict[str, Any]:
    model = fake(*flags)
    model["Default"]["env"] = {"VERSION": version}
    return model


# --- a relay process is killed ----------------------------------------------------------


def test_streams_of_a_killed_relay_process_break_off_and_are_recorded_and_others_go_on(
    launch: Launch,
) -> None:
    program = launch({"Model": fake()})
    assert program.ask("Model").ok
    with program.ask("Model", ENDLESS, stream=True) as answer:
        lines = answer.iter_lines()
        next(lines)
        number = answer.headers["X-LLM-Manager-Request"]
        (relay,) = program.relays()
        relay.kill()
        rest: list[bytes] = []
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            rest.extend(lines)
        assert b"data: [DONE]" not in rest
    program.becomes("Model", in_flight=0)
    row = eventually(
        lambda: next(
            (
                row
                for row in program.get("/api/usage/requests").json()["requests"]
                if row["id"] == number
            ),
            None,
        )
    )
    assert (row["status"], row["streamed"], row["estimated"]) == (502, True, True)
    with program.ask("Model", SLOW, stream=True) as answer:  # also before there is a next one
        assert events_of(answer)[-1] == "[DONE]"
    eventually(lambda: [new for new in program.relays() if new.pid != relay.pid])
    with program.ask("Model", SLOW, stream=True) as answer:
        assert events_of(answer)[-1] == "[DONE]"


# --- the program is killed --------------------------------------------------------------


@dataclass(frozen=True)
class Killed:
    """A program that was killed while its models served, and started again."""

    program: Program
    before: dict[str, dict[str, Any]]  # what its models' servers reported before the kill
    streams: list[Future[Any]]
    gate: Path  # that lets Starting start


@pytest.fixture(scope="module")
def killed(launch_once: Launch, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    gate = tmp_path_factory.mktemp("gates") / "gate"
    models = {
        "Plain": fake(),
        "Forked": fake("--fork"),
        "Daemonized": fake("--daemonize"),
        "Parent": fake("--children", 2),
        "PortOnly": fake("--no-health", health="none", probe=False),
        "Auto": fake(auto_start=True),
        "Dead": fake(),
        "Changed": versioned("old", "--children", 2),
        "Starting": fake(prefix=gated(gate)),
    }
    program = launch_once({**models, "Removed": fake()})
    serving = [*ADOPTED, "Dead", "Changed", "Removed"]
    with ThreadPoolExecutor(len(serving)) as pool:
        assert all(answer.ok for answer in pool.map(program.ask, serving))
    program.becomes("Auto", state="ready")
    before = {name: program.stats(name) for name in [*serving, "Auto"]}
    program.post("/api/models/Starting/start")
    program.becomes("Starting", state="starting")
    with ThreadPoolExecutor(CLIENTS) as pool:
        streams = [
            pool.submit(lambda: events_of(program.ask("Plain", ENDLESS, stream=True)))
            for _ in range(CLIENTS)
        ]
        program.becomes("Plain", in_flight=CLIENTS)
        program.kill()
    assert all(program.processes(name) for name in before)
    assert program.processes("Starting")

    psutil.Process(before["Dead"]["pid"]).kill()
    eventually(lambda: not program.processes("Dead"))
    for path in private_files(program):
        path.chmod(0o644)
    program.data.chmod(0o775)
    program.configure({**models, "Changed": versioned("new")})
    program.start()
    return Killed(program, before, streams, gate)


def private_files(program: Program) -> list[Path]:
    database = [program.usage_db.with_name(f"usage.db{end}") for end in ("", "-wal", "-shm")]
    return [*database, program.data / "secret"]


@pytest.mark.parametrize("name", ADOPTED)
def test_a_model_survives_the_kill_of_the_program_and_is_adopted_without_a_reload(
    killed: Killed, name: str
) -> None:
    program, before = killed.program, killed.before[name]
    program.becomes(name, state="ready", pid=before["pid"])  # before anybody sends a request
    assert program.ask(name).status_code == 200
    after = program.stats(name)
    assert (after["pid"], after["started_at"]) == (before["pid"], before["started_at"])
    assert len(program.logs(name)) == 1
    assert program.model(name)["start_seconds"] > 0


def test_a_killed_programs_relay_process_ends_with_it(killed: Killed) -> None:
    assert len(eventually(killed.program.relays)) == 1


def test_no_stream_that_the_kill_broke_off_looks_complete(killed: Killed) -> None:
    for stream in killed.streams:
        assert isinstance(stream.exception(PATIENCE), requests.RequestException)


@pytest.mark.parametrize("name", ["Plain", "Parent"])
def test_a_crash_of_an_adopted_model_is_noticed_also_where_its_children_live_on(
    killed: Killed, name: str
) -> None:
    program = killed.program
    psutil.Process(program.becomes(name, state="ready")["pid"]).kill()
    program.becomes(name, state="failed", pid=None)
    assert program.processes(name) == []
    assert program.ask(name).status_code == 200


def test_a_model_whose_config_has_changed_is_stopped_and_not_adopted(killed: Killed) -> None:
    program = killed.program
    eventually(lambda: not program.processes("Removed"))
    eventually(lambda: not program.processes("Changed"))
    assert program.ask("Changed").status_code == 200
    assert program.environment("Changed")["VERSION"] == "new"
    assert len(program.processes("Changed")) == 1


def test_a_start_that_the_kill_broke_off_leaves_nothing_behind(killed: Killed) -> None:
    program = killed.program
    eventually(lambda: not program.processes("Starting"))
    program.becomes("Starting", state="stopped", pid=None)
    killed.gate.touch()
    assert program.ask("Starting").status_code == 200


def test_a_model_that_died_with_the_program_is_started_again(killed: Killed) -> None:
    killed.program.becomes("Dead", state="stopped")
    assert killed.program.ask("Dead").status_code == 200


def test_an_adopted_model_is_not_started_automatically_once_more(killed: Killed) -> None:
    killed.program.becomes("Auto", state="ready", pid=killed.before["Auto"]["pid"])
    assert len(killed.program.logs("Auto")) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_what_others_could_read_is_closed_to_them_at_the_next_start(killed: Killed) -> None:
    program = killed.program
    assert stat.S_IMODE(program.data.stat().st_mode) == 0o750
    modes = {stat.S_IMODE(path.stat().st_mode) for path in private_files(program)}
    assert modes == {0o600}
    assert program.output.count("others had rights here") == 1


# --- the program is ended by a signal ---------------------------------------------------


def test_a_stream_in_progress_is_finished_and_new_requests_are_refused(launch: Launch) -> None:
    program = launch({"Model": fake("--children", 2, stop_timeout=60), "Other": fake()})
    assert program.ask("Other").status_code == 200
    server = program.command("Model", "start")["pid"]
    with program.ask("Model", SLOW, stream=True) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        with frozen(server):
            program.process.terminate()
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


@dataclass(frozen=True)
class Ended:
    """A program that SIGINT ended while it was busy, and that was started again."""

    program: Program
    waiting: list[Future[requests.Response]]
    stream: Future[list[Any]]


@pytest.fixture(scope="module")
def ended(launch_once: Launch, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """It ends in good order, although requests wait for a start, pages are open and a stream
    outlasts its model's `stop_timeout`."""
    never = tmp_path_factory.mktemp("gates") / "never"
    program = launch_once(
        {
            "Starting": fake(prefix=gated(never)),
            "Streaming": fake(stop_timeout=0.5),
            "Idle": fake("--daemonize", "--children", 2, auto_start=True),
        }
    )
    program.becomes("Idle", state="ready")
    pages = [program.page("/api/events"), program.page("/api/models/Idle/logs/stream")]
    for page in pages:
        page.next()
    waiting = [background(lambda: program.ask("Starting")) for _ in range(5)]
    program.becomes("Starting", state="starting", waiting=5)
    stream = background(lambda: events_of(program.ask("Streaming", ENDLESS, stream=True)))
    program.becomes("Streaming", in_flight=1)
    eventually(lambda: "context_length" in program.get("/v1/models/Streaming").json())
    program.end(signal.SIGINT)
    for page in pages:
        page.close()
    return Ended(program.start(), waiting, stream)


def test_requests_that_wait_for_a_start_are_refused_at_the_end(ended: Ended) -> None:
    for answer in ended.waiting:
        assert error_of(answer.result(PATIENCE))["code"] == "shutting_down"


def test_a_stream_that_outlasts_stop_timeout_ends_with_an_error(ended: Ended) -> None:
    assert "error" in ended.stream.result(PATIENCE)[-1]


def test_the_start_after_an_orderly_end_finds_no_process_and_serves(ended: Ended) -> None:
    program = ended.program
    program.becomes("Idle", state="ready")
    with program.ask("Idle", stream=True) as answer:
        assert text_of(events_of(answer)) == " token0 token1 token2"
    assert len(program.logs("Idle")) == 2  # it was started, not adopted
    assert program.model("Starting")["state"] == "stopped"


def test_what_a_server_said_of_its_model_is_known_while_none_runs(ended: Ended) -> None:
    assert ended.program.model("Streaming")["state"] == "stopped"
    entry = ended.program.get("/v1/models/Streaming").json()
    assert (entry["context_length"], entry["max_model_len"]) == (4096, 4096)
    assert entry["capabilities"] == ["chat", "completion"]
    unseen = ended.program.get("/v1/models/Starting").json()
    assert "context_length" not in unseen


def test_a_second_signal_ends_the_program_at_once_and_its_models_run_on(launch: Launch) -> None:
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

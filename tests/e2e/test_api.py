"""The manager's side: what it reports of its models, live and at once, and which secrets it
keeps."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.fixtures import Launch
from tests.support.program import FEW_THREADS, Program, error_of, eventually, fake, gated

FIELDS = {
    "name",
    "aliases",
    "mode",
    "state",
    "scheme",
    "pid",
    "port",
    "in_flight",
    "waiting",
    "started_at",
    "last_used_at",
    "idle_stop_at",
    "start_seconds",
    "last_error",
}


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def program(launch_once: Launch, gates: Path) -> Program:
    secretive = fake("--api-key=sk-in-argument", "--children", 0)
    secretive["Default"]["command"] += ["--api-key", "sk-behind-argument"]
    secretive["Default"]["env"] = {"HF_TOKEN": "hf-secret", "PLAIN": "not-shown"}
    return launch_once(
        {
            "Model": fake(aliases=["org/model:7b"]),
            "Watched": fake(prefix=gated(gates / "Watched")),
            "Logged": fake(),
            "Counted": fake(),
            "Secretive": secretive,
            "Broken": fake("--crash-after-boot", 4),
            "/logs": fake(),
            "a?b#c 中文/start": fake(),
        },
        threads=FEW_THREADS,
        list_aliases=True,
    )


# --- models -----------------------------------------------------------------------------


def test_models_have_the_fields_that_scripts_rely_on(program: Program) -> None:
    views = {view["name"]: view for view in program.get("/api/models").json()["models"]}
    assert list(views)[:6] == ["Model", "Watched", "Logged", "Counted", "Secretive", "Broken"]
    assert set(views["Model"]) >= FIELDS
    assert views["Model"]["state"] == "stopped"
    assert views["Model"]["pid"] is None

    assert program.ask("Model").status_code == 200
    view = program.becomes("Model", in_flight=0)
    assert view["aliases"] == ["org/model:7b"]
    assert (view["mode"], view["scheme"], view["state"]) == ("Chat", "Default", "ready")
    assert view["pid"] == program.stats("Model")["pid"]
    assert view["last_error"] is None
    times = [
        datetime.datetime.fromisoformat(view[name])
        for name in ("started_at", "last_used_at", "idle_stop_at")
    ]
    assert all(time.utcoffset() == datetime.timedelta(0) for time in times)
    assert times == sorted(times)
    assert view["start_seconds"] > 0


def test_aliases_are_entries_of_their_own_where_the_config_says_so(program: Program) -> None:
    names = [entry["id"] for entry in program.get("/v1/models").json()["data"]]
    assert {"Model", "org/model:7b", "Logged"} <= set(names)


def test_a_model_is_found_and_controlled_by_its_alias_slashes_and_all(
    program: Program,
) -> None:
    assert program.get("/api/models/org/model:7b").json()["name"] == "Model"
    assert program.command("org/model:7b", "start")["state"] == "ready"
    assert "listening" in program.log("org/model:7b")
    assert program.command("org/model:7b", "stop")["state"] == "stopped"


@pytest.mark.parametrize("name", ["/logs", "a?b#c 中文/start"])
def test_a_model_is_controlled_whatever_its_name_is(program: Program, name: str) -> None:
    encoded = quote(name, safe="")
    assert program.get(f"/v1/models/{encoded}").json()["id"] == name
    assert program.command(encoded, "start")["state"] == "ready"
    assert program.get(f"/api/models/{encoded}").json()["state"] == "ready"
    assert "listening" in program.log(encoded)
    assert len(program.get(f"/api/models/{encoded}/runs").json()["runs"]) == 1
    price = {"per_hour": "1"}
    put = program.request("PUT", f"/api/models/{encoded}/price", json=price)
    assert put.json()["model"] == name
    assert program.command(encoded, "stop")["state"] == "stopped"


def test_a_failed_manual_start_is_reported(program: Program) -> None:
    view = program.command("Broken", "start")
    assert view["state"] == "failed"
    assert "exit code 4" in view["last_error"]


# --- logs -------------------------------------------------------------------------------


def test_a_models_output_is_kept_and_its_last_lines_are_served(program: Program) -> None:
    assert program.ask("Logged", {"log": "first\nsecond ✓"}).status_code == 200
    response = program.get("/api/models/Logged/logs")
    assert response.headers["Content-Type"].startswith("text/plain")
    assert "listening on 127.0.0.1" in response.text
    assert "first\nsecond ✓\n" in response.text
    assert program.get("/api/models/Logged/logs?lines=1").text == "second ✓\n"


def test_a_follower_of_the_log_sees_what_is_printed_and_stays_over_a_restart(
    program: Program,
) -> None:
    assert program.ask("Logged", {"log": "before"}).status_code == 200
    program.command("Logged", "stop")
    page = program.page("/api/models/Logged/logs/stream?lines=2")
    page.until(lambda line: line == "before")
    for number in range(3):
        program.command("Logged", "restart")
        assert program.ask("Logged", {"log": f"run {number}"}).status_code == 200
        lines = page.until(lambda line, n=number: line == f"run {n}")
        assert any(line.startswith("# ") for line in lines)
        assert any("listening on" in line for line in lines)
    page.close()
    program.becomes("Logged", in_flight=0)


def test_why_an_earlier_run_ended_can_be_read_later(program: Program) -> None:
    program.command("Model", "restart")
    psutil.Process(program.model("Model")["pid"]).kill()
    program.becomes("Model", state="failed")
    program.command("Model", "start")
    runs = program.get("/api/models/Model/runs?limit=2").json()["runs"]
    assert [run["end_reason"] for run in runs] == [
        None,
        "its process ended by itself, killed by signal 9 (often the system's, for want of memory)",
    ]
    assert [run["ended_at"] is None for run in runs] == [True, False]
    logs = [
        program.get(f"/api/models/Model/logs?run={run['id']}").text
        for run in [*runs, {"id": "nothing"}]
    ]
    assert all("listening on" in text for text in logs[:2])
    assert logs[0] != logs[1]
    assert logs[2] == ""


# --- events -----------------------------------------------------------------------------


def test_a_page_gets_every_model_and_then_each_change(program: Program, gates: Path) -> None:
    page = program.page("/api/events")
    first = page.until(lambda view: view["name"] == "Broken")
    assert len(first) == 6
    assert all(set(view) >= FIELDS for view in first)

    program.post("/api/models/Watched/start")
    page.until(lambda view: (view["name"], view["state"]) == ("Watched", "starting"))
    (gates / "Watched").touch()
    page.until(lambda view: (view["name"], view["state"]) == ("Watched", "ready"))
    program.command("Watched", "stop")
    page.until(lambda view: (view["name"], view["state"]) == ("Watched", "stopped"))
    page.close()


def test_a_page_sees_the_requests_in_flight_and_their_throughput(program: Program) -> None:
    page = program.page("/api/events?only=requests,throughput", "requests", "throughput")
    page.until(lambda seen: seen == [])
    with program.held("Model") as answer:
        number = answer.headers["X-LLM-Manager-Request"]

        def is_shown(seen: Any) -> bool:
            return isinstance(seen, list) and any(
                (one["id"], one["model"], one["state"]) == (number, "Model", "answering")
                and one["completion_tokens"] > 0
                for one in seen
            )

        page.until(is_shown)
        now = page.until(lambda seen: isinstance(seen, dict) and seen["in_flight"] == 1)[-1]
        assert now["models"]["Model"]["in_flight"] == 1
        page.until(lambda seen: isinstance(seen, dict) and seen["completion_tokens_per_second"] > 0)
        active = program.get("/api/activity").json()["requests"]
        assert [one["id"] for one in active] == [number]
    page.until(lambda seen: seen == [])
    assert sum(program.get("/api/activity").json()["history"]["completion_tokens"]) > 0
    page.close()


def test_a_page_gets_a_models_log_in_its_one_stream(program: Program) -> None:
    program.command("Logged", "start")
    page = program.page("/api/events?only=&log=model/Logged&lines=5", "lines")
    assert any("listening on" in line for line in page.next())
    program.command("Logged", "restart")
    page.until(lambda lines: any("listening on" in line for line in lines))
    page.close()


def test_the_programs_own_log_is_read_and_followed(program: Program) -> None:
    page = program.page("/api/events?only=&log=program&lines=1", "lines")
    program.command("Logged", "restart")
    page.until(lambda lines: any("Logged is ready" in line for line in lines))
    assert "Logged is ready" in program.get("/api/log?lines=50").text
    page.close()


def test_a_stream_outlives_the_model_whose_log_it_was_to_show(program: Program) -> None:
    page = program.page("/api/events?only=throughput&log=model/Missing", "lines", "throughput")
    (line,) = page.until(lambda data: isinstance(data, list))[-1]
    assert "'Missing' does not exist" in line
    page.until(lambda data: isinstance(data, dict))  # all else goes on
    page.close()


@pytest.mark.parametrize("query", ["only=models", "log=Model", "log=model/Model&lines=0", "x=1"])
def test_a_stream_that_cannot_be_is_refused(program: Program, query: str) -> None:
    answer = program.get(f"/api/events?{query}")
    assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_parameter")


def test_a_page_that_is_closed_releases_its_slot_and_pages_never_take_all(
    program: Program,
) -> None:
    for path in ("/api/events", "/api/models/Model/logs/stream"):
        for _ in range(3):
            page = program.page(path)
            another = program.get("/api/events")
            assert another.status_code == 503
            assert error_of(another)["code"] == "busy"
            assert "Retry-After" in another.headers
            assert program.ask("Model").status_code == 200
            page.close()


# --- config -----------------------------------------------------------------------------


def test_the_config_is_served_without_its_secrets(program: Program) -> None:
    response = program.get("/api/config")
    assert response.status_code == 200
    for secret in ("hf-secret", "not-shown", "sk-in-argument", "sk-behind-argument"):
        assert secret not in response.text
    config = response.json()
    assert config["program"]["threads"] == FEW_THREADS
    assert [model["name"] for model in config["models"]][:2] == ["Model", "Watched"]
    assert "PLAIN" in response.text


def test_no_secret_is_in_the_log_or_in_an_error(program: Program) -> None:
    error = error_of(program.ask("Secretive"))  # its server does not know --api-key
    assert error["code"] == "start_failed"
    assert "hf-secret" not in error["message"] + program.output


# --- metrics ----------------------------------------------------------------------------


def samples(program: Program) -> dict[tuple[str, ...], float]:
    """Each metric's value by its name and the values of its labels, in their names' order."""
    text = program.get("/metrics").text
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_requests_and_tokens_and_report_states(program: Program) -> None:
    before = samples(program)
    for _ in range(3):
        assert program.ask("Counted").status_code == 200
    with program.ask("Counted", stream=True) as answer:
        assert answer.content
    assert program.ask("Counted", {"status": 418}).status_code == 418
    assert program.post("/v1/embeddings", {"model": "Counted"}).status_code == 400
    assert program.ask("Nobody").status_code == 404

    def counted(*name: str) -> float:
        return samples(program).get(name, 0) - before.get(name, 0)

    eventually(lambda: counted("llm_manager_requests_total", "Counted", "418") == 1)
    assert counted("llm_manager_requests_total", "Counted", "200") == 4
    assert counted("llm_manager_requests_total", "Counted", "400") == 1
    assert counted("llm_manager_requests_total", "", "404") == 1
    assert counted("llm_manager_request_seconds_count", "Counted") == 6
    assert counted("llm_manager_first_byte_seconds_count", "Counted") == 5
    assert counted("llm_manager_tokens_total", "prompt", "Counted") == 4 * 17
    assert counted("llm_manager_tokens_total", "completion", "Counted") == 4 * 3
    assert counted("llm_manager_starts_total", "Counted", "ready") == 1
    now = samples(program)
    assert now["llm_manager_model_state", "Counted", "ready"] == 1
    assert now["llm_manager_model_state", "Counted", "stopped"] == 0
    assert now["llm_manager_in_flight", "Counted"] == 0
    assert now["process_resident_memory_bytes",] > 0
    assert "Nobody" not in program.get("/metrics").text


def test_a_client_that_disconnects_is_counted_as_such(program: Program) -> None:
    before = samples(program).get(("llm_manager_requests_total", "Counted", "499"), 0)
    with program.held("Counted"):
        pass
    key = ("llm_manager_requests_total", "Counted", "499")
    eventually(lambda: samples(program).get(key, 0) == before + 1)

"""Bills over everything that ends a process or fills a disk: nothing is lost, nothing is twice."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e.test_first_use import run
from manager.storage.store import MIGRATIONS, Store
from tests.support.fixtures import Launch
from tests.support.program import Program, events_of, eventually, fake
from tests.support.usage_rows import a_request, one, query

ID = "X-LLM-Manager-Request"
INPUT, OUTPUT = 1, 2  # of the currency for a million tokens
PRICE = {"tiers": [{"input": INPUT, "output": OUTPUT}]}
COST = "0.000023"  # of an answer of the fake upstream: 17 and 3 tokens
A_SECOND = {"per_hour": 3600}  # 1 a second
HOUR = 3_600_000
DAY = 24 * HOUR
UNPRICED = "SELECT count(*) FROM requests WHERE cost IS NULL"


def ask(program: Program, **fields: Any) -> str:
    """The id of a request that was answered whole."""
    with program.ask("Model", **fields) as answer:
        assert answer.status_code == 200
        assert not fields.get("stream") or events_of(answer)[-1] == "[DONE]"
        return answer.headers[ID]


def ids(path: Path) -> list[str]:
    """Those of all rows, in the order in which they were written."""
    rows = query(path, "SELECT id FROM requests ORDER BY seq")
    return [str(uuid.UUID(bytes=number)) for (number,) in rows]


def cost_of(program: Program, number: str) -> str:
    """What the program says that a request costs, once it says so."""
    path = f"/api/usage/requests/{number}"
    cost: str = eventually(lambda: program.get(path).json().get("cost"))
    return cost


def summary(program: Program, **asked: Any) -> dict[str, Any]:
    """All sums there are, once everything is in them."""
    end = {"start": 0, "end": time.time() + 10 * DAY / 1000}

    def settled() -> dict[str, Any] | None:
        sums: dict[str, Any] = program.get("/api/usage/summary", params={**end, **asked}).json()
        return sums if sums["pending"] == 0 else None

    return eventually(settled)


# --- processes that are killed ----------------------------------------------------------


def test_whoever_is_killed_there_is_one_worker_and_it_prices_what_is_there(
    launch: Launch,
) -> None:
    program = launch({"Model": fake(price=PRICE)})
    numbers = [ask(program)]
    assert cost_of(program, numbers[0]) == COST
    assert summary(program)["cost"] == COST

    (first,) = eventually(program.workers)
    first.kill()
    numbers.append(ask(program, stream=True))
    assert cost_of(program, numbers[1]) == COST
    (second,) = program.workers()
    assert second != first

    numbers.append(ask(program))
    program.kill()
    eventually(lambda: not program.workers())

    program.start()
    numbers.append(ask(program))
    assert [cost_of(program, number) for number in numbers] == [COST] * 4
    assert len(program.workers()) == 1
    assert ids(program.usage_db) == numbers
    sums = summary(program)
    assert (sums["requests"], sums["cost"]) == (4, "0.000092")
    program.end()
    assert program.workers() == []


def test_a_run_ends_when_it_was_last_seen_alive_or_goes_on_under_the_next_program(
    launch: Launch,
) -> None:
    models = {name: fake(price=A_SECOND) for name in ("Lost", "Kept")}
    program = launch(models)
    for name in models:
        assert program.ask(name).status_code == 200
    lost, kept = (program.model(name)["pid"] for name in models)
    program.kill()
    psutil.Process(lost).kill()
    eventually(lambda: not program.processes("Lost") and not program.workers())
    with closing(sqlite3.connect(program.usage_db)) as connection, connection:
        # As if it had begun an hour ago and was last seen half an hour ago.
        connection.execute(
            "UPDATE runs SET started_ms = started_ms - 2 * ?1, ready_ms = ready_ms - 2 * ?1,"
            " heartbeat_ms = ready_ms - ?1 WHERE model = 'Lost'",
            (HOUR // 2,),
        )
    (kept_run,) = query(program.usage_db, "SELECT id, ready_ms FROM runs WHERE model = 'Kept'")

    program.start()
    program.becomes("Kept", state="ready", pid=kept)
    ends = "SELECT ended_ms - heartbeat_ms, ended_ms - ready_ms FROM runs WHERE model = 'Lost'"
    assert query(program.usage_db, ends) == [(0, HOUR // 2)]
    for name in models:
        assert program.ask(name).status_code == 200
    runs = "SELECT model, count(*), sum(ended_ms IS NULL) FROM runs GROUP BY model"
    assert query(program.usage_db, runs) == [("Kept", 1, 1), ("Lost", 2, 1)]
    eventually(lambda: summary(program, model="Lost")["cost_hours"] == "1800")

    program.command("Kept", "stop")
    assert program.ask("Lost").status_code == 200  # the worker looks for what else there is
    statement = "SELECT id, ready_ms, ended_ms FROM runs WHERE model = 'Kept'"
    ((number, ready_ms, ended_ms),) = query(program.usage_db, statement)
    assert (number, ready_ms) == kept_run
    took = Decimal(ended_ms - ready_ms) / 1000
    eventually(lambda: Decimal(summary(program, model="Kept")["cost_hours"]) == took)


# --- a file that is locked or damaged -------------------------------


def test_while_the_file_is_locked_answers_come_and_their_rows_later(launch: Launch) -> None:
    program = launch({"Model": fake(price=PRICE)})
    numbers = [ask(program)]
    eventually(lambda: ids(program.usage_db))
    with closing(sqlite3.connect(program.usage_db, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(10) as clients:
            asked = [clients.submit(ask, program, stream=n % 2 == 0) for n in range(10)]
            numbers += [each.result() for each in asked]
        assert program.get("/api/usage/summary").status_code == 200
        assert ids(program.usage_db) == numbers[:1]
    program.end()
    assert sorted(ids(program.usage_db)) == sorted(numbers)


@pytest.mark.parametrize("fault", ["damaged", "newer"])
def test_a_file_that_is_not_ours_to_use_is_named_and_left_as_it_is(
    tmp_path: Path, fault: str
) -> None:
    path, config = tmp_path / "data" / "usage.db", tmp_path / "config.yaml"
    config.write_text(json.dumps({"program": {}, "Local-Models": {"Model": fake(price=PRICE)}}))
    path.parent.mkdir()
    store = Store(path)
    store.add_requests([a_request()])
    store.close()
    if fault == "damaged":
        whole = path.read_bytes()
        path.write_bytes(whole[:100] + b"\xff" * 4000 + whole[4100:])
        expected = f"{path} cannot be used: "
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        expected = f"{path} was written by a newer version"
    before = path.read_bytes()

    done = run("--config", config, "--data-dir", path.parent, "--port", "0")
    assert done.returncode == 1
    assert expected in done.stderr
    assert "It was not changed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Listening" not in done.stdout
    assert path.read_bytes() == before


def test_a_program_that_is_started_anew_each_day_deletes_what_is_too_old(launch: Launch) -> None:
    program = launch({"Model": fake(price=PRICE)}, request_retention_days=30)
    kept = ask(program)
    summary(program)
    program.end()
    store = Store(program.usage_db)
    store.add_requests([a_request(int(time.time() * 1000) - 40 * DAY, "Model")])
    store.close()

    program.start()
    eventually(lambda: summary(program)["requests"] == 2 and ids(program.usage_db) == [kept])


# --- a clock that is set -----------------------------------------------------------------

# Found by every Python process of the program: the file says how far its clock is off.
CLOCK = """
import os, time

def seconds(now=time.time, path=os.environ["CLOCK_OFF_BY"]):
    with open(path) as file:
        return now() + float(file.read())

time.time, time.time_ns = seconds, lambda: int(seconds() * 1e9)
"""


def test_a_clock_that_is_set_bends_no_span_and_loses_no_row(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    off_by = tmp_path / "off-by"

    def set_clock(seconds: float) -> None:
        new = off_by.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(off_by)

    set_clock(0)
    env = {"PYTHONPATH": str(tmp_path), "CLOCK_OFF_BY": str(off_by)}
    program = launch({"Model": fake(price={**PRICE, **A_SECOND})}, env=env)
    numbers = [ask(program)]
    for days in (2, -3, 1):  # forward, back behind the beginning, forward again
        with program.held("Model") as answer:
            set_clock(days * DAY / 1000)
            numbers += [ask(program), answer.headers[ID]]
        numbers.append(ask(program, stream=True))
        program.becomes("Model", in_flight=0)
    set_clock(-DAY / 1000)
    program.command("Model", "stop")
    numbers.append(program.ask("Nobody").headers[ID])  # the worker looks for what else there is

    eventually(lambda: sorted(ids(program.usage_db)) == sorted(numbers))
    for began, *moments in query(
        program.usage_db, "SELECT started_ms, leased_ms, first_byte_ms, ended_ms FROM requests"
    ):
        known = [moment for moment in moments if moment is not None]
        assert [began, *known] == sorted([began, *known])
        assert known[-1] - began < HOUR
    started = {
        began for (began,) in query(program.usage_db, "SELECT started_ms / 86400000 FROM requests")
    }
    assert len(started) >= 3  # the clock was really another one
    ((begun, ready, ended),) = query(
        program.usage_db, "SELECT started_ms, ready_ms, ended_ms FROM runs"
    )
    assert begun <= ready <= ended < ready + HOUR
    eventually(lambda: one(program.usage_db, "SELECT billed_ms FROM runs") == ended)
    sums = summary(program)
    assert sums["requests"] == len(numbers)
    assert sums["run_seconds"] * 1000 == ended - ready
    assert Decimal(sums["cost_hours"]) == Decimal(ended - ready) / 1000

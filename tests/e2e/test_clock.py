"""The program under a wall clock that is set while it runs."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from tests.support.fixtures import Launch
from tests.support.program import CHAT, PATIENCE, ROOT, Program, chat, eventually, fake
from tests.support.usage_rows import one, query
from tests.support.wall_clock import WallClock, needs_wall_clock

pytestmark = needs_wall_clock

HOUR, DAY = 3600, 86_400
A_SECOND = 0.02  # minutes
PRICE = {"tiers": [{"input": 1, "output": 2}], "per_hour": 3600}
RUN = "SELECT ended_ms - ready_ms FROM runs WHERE model = ?"


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


def keys(program: Program, *arguments: str) -> str:
    """Runs `llm-manager keys` beside the program, under the system's own clock."""
    command = [sys.executable, "-m", "commands", "keys", *arguments, "--data-dir", program.data]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    return done.stdout


def priced(program: Program) -> bool:
    rows = one(program.usage_db, "SELECT count(*) FROM requests")
    unpriced = one(program.usage_db, "SELECT count(*) FROM requests WHERE cost IS NULL")
    return bool(rows) and not unpriced


@pytest.mark.parametrize("set_by", [-HOUR, 8 * HOUR])
def test_all_goes_on_under_a_clock_that_is_set(
    launch: Launch, clock: WallClock, set_by: int
) -> None:
    models = {"Idle": fake(alive_time=A_SECOND, price=PRICE), "Held": fake(alive_time=0)}
    program = launch(models, env=clock.env)
    (secret,) = [word for word in keys(program, "add", "guest").split() if "k-llm-" in word]
    key = {"Authorization": f"Bearer {secret}"}

    def ask(model: str) -> int:
        return program.post(CHAT, chat(model), headers=key).status_code

    assert [ask("Held"), ask("Idle")] == [200, 200]
    eventually(lambda: priced(program))

    clock.set_by(set_by)
    assert ask("Idle") == 200
    program.becomes("Idle", state="stopped")
    log = program.data / "logs" / "llm-manager.log"
    eventually(lambda: log.read_text().rstrip().endswith("Idle stopped: idle"))
    eventually(lambda: priced(program))
    keys(program, "revoke", "guest")
    eventually(lambda: ask("Held") == 401)
    assert all(0 < ran < HOUR * 1000 for (ran,) in query(program.usage_db, RUN, "Idle"))


@pytest.mark.parametrize("set_by", [-HOUR, 8 * HOUR])
def test_a_model_that_is_taken_over_under_a_clock_that_is_set_is_billed_what_it_ran(
    launch: Launch, clock: WallClock, set_by: int
) -> None:
    program = launch({"Model": fake(alive_time=0, price=PRICE)}, env=clock.env)
    assert program.ask("Model").status_code == 200
    pid = program.model("Model")["pid"]
    clock.set_by(set_by)
    program.kill()
    program.start()
    program.becomes("Model", state="ready", pid=pid)
    program.command("Model", "stop")
    ran = one(program.usage_db, RUN, "Model")
    assert 0 < ran < HOUR * 1000
    billed = "SELECT sum(ms) FROM run_hours"
    eventually(lambda: query(program.usage_db, billed) == [(ran,)])


def test_each_month_that_the_program_was_off_in_has_its_bill(
    launch: Launch, clock: WallClock
) -> None:
    now = datetime.now(timezone.utc).timestamp()
    export = {"schedule": "0 0 1 * *", "period": "month"}
    moments = [-100 * DAY, -66 * DAY]
    clock.set_by(moments[0])
    program = launch({"Model": fake()}, env=clock.env, export=export, timezone="UTC")
    for moment in moments:
        clock.set_by(moment)
        assert program.ask("Model").status_code == 200
        program.kill()
        program.start()
    clock.set_by(0)
    for name in (f"{datetime.fromtimestamp(now + at, timezone.utc):%Y-%m}" for at in moments):
        path = program.data / "exports" / f"bill-{name}.csv"
        eventually(path.exists)
        with path.open(encoding="utf-8-sig", newline="") as file:
            assert [row["requests"] for row in csv.DictReader(file)][-1] == "1"


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_days_bill_has_every_second_up_to_midnight_and_each_request_begun_before(
    launch: Launch, clock: WallClock, is_killed: bool
) -> None:
    export = {"schedule": "0 0 * * *", "period": "day"}
    midnight = int(time.time()) // DAY * DAY + DAY

    def set_clock(before: int) -> int:
        """So many seconds before midnight; how far that is ahead."""
        ahead = midnight - before - int(time.time())
        clock.set_by(ahead)
        return ahead

    set_clock(HOUR)
    models = {"Model": fake(alive_time=0, price=PRICE)}
    program = launch(models, env=clock.env, export=export, timezone="UTC")
    ahead = set_clock(15)
    assert program.ask("Model").status_code == 200
    if is_killed:
        program.kill()
        eventually(lambda: time.time() + ahead > midnight + 2)
        program.start()
    else:
        with program.held("Model"):
            eventually(lambda: "waits for requests that are under way (1)" in program.output)

    path = (
        program.data
        / "exports"
        / f"bill-{datetime.fromtimestamp(midnight - 1, timezone.utc):%F}.csv"
    )
    eventually(path.exists)
    with path.open(encoding="utf-8-sig", newline="") as file:
        total = list(csv.DictReader(file))[-1]
    ran = midnight * 1000 - one(program.usage_db, "SELECT ready_ms FROM runs")
    assert Decimal(total["cost_hours"]) == Decimal(ran) / 1000
    assert total["requests"] == ("1" if is_killed else "2")

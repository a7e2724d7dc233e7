"""A database of the version before, with the sums of local hours, says what it said before.

schema4.sql was written by that version in two time zones (Europe/Berlin, then Asia/Kolkata, whose
hours begin at half past), with prices in several versions, tiers, cached tokens, runs, adjustments,
requests that retention has deleted and some that are not billed yet. schema4.json is what its
reports and bills said.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from jobs import billing, run_hours
from manager.billing import calendar, statements
from manager.billing.statements import Period
from manager.storage import latency, maintenance, utc_rollups
from manager.storage.store import Store, StoreError
from manager.usage.reports import Reports
from manager.usage.totals import Totals
from tests.support.usage_rows import one, query, sums_agree

HERE = Path(__file__).parent
SAID = json.loads((HERE / "schema4.json").read_text(encoding="utf-8"))
ZONE = calendar.zone(SAID["zone"])


@pytest.fixture
def before(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((HERE / "schema4.sql").read_text(encoding="utf-8"))
    return path


@pytest.fixture
def path(before: Path) -> Path:
    Store(before).close()
    return before


def shown(totals: Totals) -> dict[str, Any]:
    found = {name: value for name, value in asdict(totals).items() if value}
    for name in found.keys() & {"first_byte", "whole"}:
        found[name] = latency.percentiles(found[name], [0.5, 0.95, 0.99])
    return found


def test_summaries_say_what_they_said(path: Path) -> None:
    for said in SAID["summaries"]:
        found = Reports(path).summary(said["start"], said["end"], ZONE, group=said["group"])
        assert shown(found.totals) == said["totals"]
        assert {name: shown(totals) for name, totals in found.groups.items()} == said["groups"]


def test_series_say_what_they_said(path: Path) -> None:
    for said in SAID["series"]:
        found = Reports(path).series(
            said["start"], said["end"], ZONE, bucket=said["bucket"], group=said["group"]
        )
        buckets = [[part.start_ms, part.group, shown(part.totals)] for part in found.buckets]
        assert [bucket for bucket in buckets if bucket[2]] == said["buckets"]


def test_bills_are_the_same_to_the_last_byte(path: Path) -> None:
    with closing(maintenance.connect(path)) as connection:
        for period, said in SAID["bills"].items():
            bill = statements.render_csv(connection, Period.parse(period), ZONE, "CNY")
            assert bill.decode() == said


def test_sums_of_each_span_are_those_of_the_others(path: Path) -> None:
    assert sums_agree(path)
    totals = "SELECT sum(requests), sum(cost_tokens), sum(run_ms), sum(cost_hours) FROM rollups"
    quarters, hours, days = (
        query(path, f"{totals} WHERE span = ?", span) for span in ("quarter", "hour", "day")
    )
    assert quarters == hours == days
    assert one(path, "SELECT count(*) FROM marks WHERE name IN ('timezone', 'move')") == 0


def test_hours_of_deleted_requests_stay_whole_where_they_began(before: Path) -> None:
    (oldest,) = query(before, "SELECT min(started_ms) FROM requests")[0]
    lost = "SELECT start_ms, sum(requests) FROM rollups WHERE span = ? AND key = '*'"
    lost += " AND requests != 0 AND start_ms < ? GROUP BY start_ms"
    hours = query(before, lost, "hour", oldest - calendar.HOUR_MS)
    assert hours
    Store(before).close()
    assert query(before, lost, "quarter", oldest - calendar.HOUR_MS) == hours


def test_the_worker_goes_on_where_the_version_before_was(path: Path) -> None:
    with closing(maintenance.connect(path)) as connection:
        assert billing.price_new(connection) == 5
        now_ms = one(path, "SELECT heartbeat_ms FROM runs WHERE ended_ms IS NULL") + 10**7
        connection.execute("UPDATE runs SET heartbeat_ms = ? WHERE ended_ms IS NULL", (now_ms,))
        assert run_hours.bill_runs(connection, now_ms) == 1
    assert sums_agree(path)
    # The hour that was begun as a local one is filled up, and rounded once.
    rows = query(
        path,
        "SELECT hour_ms, ms FROM run_hours JOIN runs ON runs.id = run WHERE ended_ms IS NULL",
    )
    assert sum(ms for _, ms in rows) == one(
        path, "SELECT billed_ms - ready_ms FROM runs WHERE ended_ms IS NULL"
    )
    assert max(ms for _, ms in rows) == calendar.HOUR_MS


@pytest.mark.parametrize("step", range(len(utc_rollups._STEPS)))
def test_a_migration_that_ends_in_the_middle_changes_nothing(
    before: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def content() -> list[str]:
        with closing(sqlite3.connect(before)) as connection:
            return list(connection.iterdump())

    was = content()
    with monkeypatch.context() as patch:
        steps = (*utc_rollups._STEPS[:step], "SELECT * FROM no_such_table")
        patch.setattr(utc_rollups, "_STEPS", steps)
        with pytest.raises(StoreError):
            Store(before)
    assert content() == was
    Store(before).close()
    assert sums_agree(before)

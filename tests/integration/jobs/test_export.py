"""Bills: complete, exact, the same bytes from the same rows, and safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import shutil
import sqlite3
import subprocess
import sys
import zoneinfo
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from commands.__main__ import main
from jobs import export
from jobs.scheduled_export import ScheduledExport
from jobs.tasks import TaskRunner, WorkerSettings, lock_billing
from jobs.watermark import Recorded
from manager.billing import calendar, statements
from manager.billing.statements import Period
from manager.clock import Clock
from manager.config.settings import Export, Program
from manager.storage import RECORDED_UNTIL, data_dir, maintenance, runs
from manager.storage.maintenance_tasks import MaintenanceTasks
from manager.storage.spool import Spool, has_uncommitted
from manager.storage.store import Store
from routes.api import exports
from tests.support.usage_rows import (
    DAY,
    NOON,
    TIERS,
    a_request,
    add_price,
    add_request,
    add_run,
    new_store,
)

ROOT = Path(__file__).resolve().parents[3]
HOUR = 3_600_000
UTC = timezone.utc
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
APIA = zoneinfo.ZoneInfo("Pacific/Apia")  # had no 2011-12-30


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = new_store(tmp_path / "usage.db")
    add_price(store)
    yield store
    store.close()


@pytest.fixture
def work(tmp_path: Path, store: Store) -> TaskRunner:  # noqa: ARG001 - makes the database
    return TaskRunner(WorkerSettings(tmp_path, "INFO", "UTC", "CNY", 0, tmp_path / "exports"))


def adjust(store: Store, model: str, key: str, at_ms: int, amount: int) -> None:
    store.write(
        "INSERT INTO adjustments (model, key, at_ms, amount, note, created_ms)"
        " VALUES (?, ?, ?, ?, 'note', 0)",
        (model, key, at_ms, amount),
    )


def bill_of(work: TaskRunner, period: str = "2026-11") -> bytes:
    with closing(maintenance.connect(work.path)) as connection:
        work.bring_up_to_date(connection)
        return work.export(connection, Period.parse(period), NOON + 40 * DAY).read_bytes()


def rows_of(bill: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(bill.decode("utf-8-sig"), newline="")))


def ms(text: str, zone: zoneinfo.ZoneInfo | timezone = UTC) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp() * 1000)


# --- what is in a bill ---------------------------------------------------------------------


def test_a_bill_has_a_row_for_each_model_key_and_day_and_the_total_last(
    store: Store, work: TaskRunner
) -> None:
    add_price(store, "Hourly", per_hour=1_500_000_000)
    add_request(store, a_request(NOON, key="team", cached_tokens=10))
    add_request(store, a_request(NOON + HOUR, key="team", status=500, prompt_tokens=1))
    add_request(store, a_request(NOON + DAY, key="team", estimated=True))
    add_request(store, a_request(NOON, "Free"))
    add_run(store, "r", NOON, NOON + HOUR // 2, "Hourly")
    adjust(store, "Qwen", "team", NOON, -1)
    adjust(store, "", "guest", NOON, 5_000_000_000)
    add_request(store, a_request(NOON - 40 * DAY))  # of another month
    bill = bill_of(work)
    assert bill.startswith(b"\xef\xbb\xbfdate,model,key,requests,")
    assert bill.count(b"\n") == bill.count(b"\r\n") == 7
    columns = ("date", "model", "key", "requests", "hours", "cost_tokens", "cost_hours")
    columns += ("adjustments", "cost", "unpriced")
    assert [tuple(row[name] for name in columns) for row in rows_of(bill)] == [
        ("2026-11-05", "", "guest", "0", "0", "0", "0", "5", "5", "0"),
        ("2026-11-05", "Free", "", "1", "0", "0", "0", "0", "0", "1"),
        ("2026-11-05", "Hourly", "", "0", "0.5", "0", "0.75", "0", "0.75", "0"),
        (
            "2026-11-05",
            "Qwen",
            "team",
            "2",
            "0",
            "0.003001",
            "0",
            "-0.000000001",
            "0.003000999",
            "0",
        ),
        ("2026-11-06", "Qwen", "team", "1", "0", "0.002", "0", "0", "0.002", "0"),
        ("total", "", "", "4", "0.5", "0.005001", "0.75", "4.999999999", "5.755000999", "1"),
    ]


def test_money_that_no_integer_of_the_database_holds_stops_neither_bill_nor_prices(
    store: Store, work: TaskRunner
) -> None:
    """Such as a price with zeros too many, and a server that tells tokens it cannot have had."""
    dear = TIERS.replace("1000000000", str(10**15), 1)
    store.write("UPDATE prices SET tiers = ?", (dear,))
    for mode in ("Chat", "Other"):
        for _ in range(3):
            add_request(store, a_request(mode=mode, prompt_tokens=2**31 - 1, completion_tokens=0))
    assert rows_of(bill_of(work))[-1]["cost"] == str(6 * (2**31 - 1))
    for zone in ("Asia/Tokyo", "UTC"):
        work.settings = replace(work.settings, timezone=zone)
        add_request(store, a_request(NOON + DAY, "Free"))
        bill_of(work)
    assert [row["requests"] for row in rows_of(bill_of(work)) if row["model"] == "Free"] == ["2"]


def test_a_days_bill_has_that_day_only(store: Store, work: TaskRunner) -> None:
    for days in (0, 1, 2):
        add_request(store, a_request(NOON + days * DAY))
    assert [row["date"] for row in rows_of(bill_of(work, "2026-11-06"))] == ["2026-11-06", "total"]


def test_nothing_in_a_month_is_a_bill_of_nothing(work: TaskRunner) -> None:
    (total,) = rows_of(bill_of(work, "2025-01"))
    assert (total["date"], total["requests"], total["cost"]) == ("total", "0", "0")


def test_the_same_rows_give_the_same_bytes(store: Store, work: TaskRunner) -> None:
    for number in range(50):
        add_request(store, a_request(NOON + number * HOUR, f"m{number % 7}", key=f"k{number % 3}"))
    first = bill_of(work)
    assert bill_of(work) == first
    # Also after another zone was configured for a while.
    work.settings = replace(work.settings, timezone="Asia/Tokyo")
    assert bill_of(work) != first
    work.settings = replace(work.settings, timezone="UTC")
    assert bill_of(work) == first


def test_the_columns_add_up_to_the_total(store: Store, work: TaskRunner) -> None:
    for number in range(60):
        add_request(
            store, a_request(NOON + number * 7 * HOUR, f"m{number % 3}", key=f"{number % 4}")
        )
        add_price(store, f"m{number}")
    *lines, total = rows_of(bill_of(work))
    for name in ("requests", "prompt_tokens", "completion_tokens", "cost_tokens", "cost"):
        assert sum(Decimal(line[name]) for line in lines) == Decimal(total[name])


@pytest.mark.parametrize(
    "name",
    ["=1+2", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1+2", '=HYPERLINK("http://x","y")'],  # noqa: RUF001
)
def test_no_name_is_taken_for_a_formula(store: Store, work: TaskRunner, name: str) -> None:
    add_request(store, a_request(NOON, name, key=name))
    row = rows_of(bill_of(work))[0]
    assert (row["model"], row["key"]) == (f"'{name}", f"'{name}")


@pytest.mark.parametrize("name", ["通义千问", 'a "b", c', "line\nbreak", "a;b", "1=2", "é😀"])
def test_every_name_is_read_back_as_it_is(store: Store, work: TaskRunner, name: str) -> None:
    add_request(store, a_request(NOON, name))
    assert rows_of(bill_of(work))[0]["model"] == name


def test_a_bill_replaces_the_one_before_and_leaves_nothing_beside_it(
    tmp_path: Path, store: Store, work: TaskRunner
) -> None:
    add_request(store, a_request())
    first = bill_of(work)
    add_request(store, a_request())
    assert bill_of(work) != first
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["bill-2026-11.csv"]
    assert statements.list_files(tmp_path / "exports") == [
        tmp_path / "exports" / "bill-2026-11.csv"
    ]


SOFFICE = shutil.which("soffice")


@pytest.mark.skipif(SOFFICE is None, reason="needs LibreOffice: apt-get install libreoffice-calc")
def test_libreoffice_opens_it_with_names_and_numbers_and_runs_no_formula(
    tmp_path: Path, store: Store, work: TaskRunner
) -> None:
    add_price(store, "通义千问")
    add_price(store, "=1+2")
    add_request(store, a_request(NOON, "通义千问"))
    add_request(store, a_request(NOON, "=1+2"))
    bill_of(work)
    subprocess.run(
        [
            *(SOFFICE, f"-env:UserInstallation={(tmp_path / 'profile').as_uri()}", "--headless"),
            *("--infilter=CSV:44,34,76,1", "--convert-to", "fods", "--outdir", tmp_path),
            tmp_path / "exports" / "bill-2026-11.csv",
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    sheet = (tmp_path / "bill-2026-11.fods").read_text(encoding="utf-8")
    assert "通义千问" in sheet
    assert 'office:value-type="float" office:value="0.002"' in sheet
    assert 'office:value-type="float" office:value="0.004"' in sheet
    assert "table:formula" not in sheet


# --- periods -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "zone", "start", "hours"),
    [
        ("2026-11", UTC, "2026-11-01", 30 * 24),
        ("2024-02", UTC, "2024-02-01", 29 * 24),
        ("2026-12", UTC, "2026-12-01", 31 * 24),
        ("2026-03-29", BERLIN, "2026-03-29", 23),
        ("2026-10-25", BERLIN, "2026-10-25", 25),
        ("2026-10", BERLIN, "2026-10-01", 31 * 24 + 1),
        ("2011-12", APIA, "2011-12-01", 30 * 24),
    ],
)
def test_a_period_has_all_its_hours(
    text: str, zone: zoneinfo.ZoneInfo, start: str, hours: int
) -> None:
    begin = ms(start, zone)
    assert Period.parse(text).bounds_ms(zone) == (begin, begin + hours * HOUR)


def test_a_day_that_its_zone_has_skipped_is_told() -> None:
    with pytest.raises(ValueError, match="there is no 2011-12-30 in Pacific/Apia"):
        Period.parse("2011-12-30").bounds_ms(APIA)


@given(st.dates(datetime(1971, 1, 1).date(), datetime(2100, 1, 1).date()))
def test_days_follow_each_other_without_a_gap(day: datetime) -> None:
    _, end = Period.parse(day.isoformat()).bounds_ms(BERLIN)
    start, _ = Period.parse((day + timedelta(days=1)).isoformat()).bounds_ms(BERLIN)
    assert start == end


@pytest.mark.parametrize(
    ("kind", "now", "zone", "period"),
    [
        ("month", "2026-11-01T00:00", UTC, "2026-10"),
        ("month", "2026-01-31T12:00", UTC, "2025-12"),
        ("day", "2026-11-01T00:00", UTC, "2026-10-31"),
        ("day", "2026-03-01T00:30", BERLIN, "2026-02-28"),
    ],
)
def test_the_schedule_bills_the_last_whole_period(
    kind: str, now: str, zone: zoneinfo.ZoneInfo, period: str
) -> None:
    assert Period.last_complete(kind, ms(now, zone), zone).text == period


# --- the schedule --------------------------------------------------------------------------


class Office:
    """The route over a program that was started with these settings."""

    def __init__(self, folder: Path, program: Program, clock: Clock) -> None:
        self.fleet = SimpleNamespace(config=SimpleNamespace(program=program))
        self.data_dir = folder
        self.clock = clock
        self.orders = SimpleNamespace(load_all=list)
        app, services = Flask("test"), self
        app.register_blueprint(exports.blueprint(services))  # type: ignore[arg-type]
        self._client = app.test_client()

    @property
    def schedule(self) -> Any:
        return self._client.get("/api/exports").get_json()["schedule"]


def at(moment: str) -> Clock:
    return Clock(wall=lambda: ms(moment) / 1000)


MONTHLY = Export("0 3 1 * *", "month", None)


@pytest.mark.parametrize(
    ("line", "now", "next_at"),
    [
        ("0 3 1 * *", "2026-11-05T12:00", "2026-11-30T19:00:00.000+00:00"),
        ("0 3 1 * *", "2026-11-30T18:59:59.999", "2026-11-30T19:00:00.000+00:00"),
        ("0 3 1 * *", "2026-11-30T19:00", "2026-12-31T19:00:00.000+00:00"),
        ("30 0 * * 0", "2026-11-05T12:00", "2026-11-07T16:30:00.000+00:00"),  # cron's Sunday
        ("0 3 31 2 *", "2026-11-05T12:00", None),
    ],
)
def test_it_is_told_when_the_next_bill_is_made_by_the_clock_of_the_zone(
    tmp_path: Path, line: str, now: str, next_at: str | None
) -> None:
    program = Program(timezone="Asia/Shanghai", export=Export(line, "day", tmp_path / "账单"))
    assert Office(tmp_path, program, at(now)).schedule == {
        "schedule": line,
        "period": "day",
        "directory": str(tmp_path / "账单"),
        "next_at": next_at,
    }


def test_without_export_there_is_no_schedule(tmp_path: Path) -> None:
    assert Office(tmp_path, Program(timezone="UTC"), Clock()).schedule is None


def test_what_is_told_is_when_it_is_ordered(tmp_path: Path, store: Store) -> None:
    program = Program(timezone="America/New_York", export=MONTHLY)
    shown = Office(tmp_path, program, at("2026-11-05T12:00")).schedule
    orders = MaintenanceTasks(store, tmp_path / "usage.db", Clock(), lambda _kind: None)
    bills = ScheduledExport(program, MONTHLY, tmp_path, orders, Clock(), lambda: Recorded(0, ""))
    due = calendar.iso(bills.due_ms(Period.parse("2026-11")) or 0)
    assert (shown["next_at"], shown["directory"]) == (due, str(tmp_path / "exports"))


def test_a_config_that_is_read_anew_changes_the_schedule_at_the_next_start_only(
    tmp_path: Path,
) -> None:
    program = Program(timezone="UTC", export=MONTHLY)
    office = Office(tmp_path, program, at("2026-11-05T12:00"))
    before = office.schedule
    for changed in (replace(program, timezone="Asia/Tokyo"), Program(timezone="UTC")):
        office.fleet.config = SimpleNamespace(program=changed)
        assert office.schedule == before


# --- from a shell --------------------------------------------------------------------------


def arguments(folder: Path, *period: str) -> list[str]:
    config = folder / "config.yaml"
    program = {"timezone": "UTC", "currency": "EUR"}
    config.write_text(yaml.safe_dump({"program": program, "Local-Models": {}}))
    return ["export", "--data-dir", str(folder), "--config", str(config), *period]


def test_a_shell_gets_a_bill_with_everything_priced(tmp_path: Path, store: Store) -> None:
    add_request(store, a_request())
    done = subprocess.run(
        [sys.executable, "-m", "commands", *arguments(tmp_path, "--month", "2026-11")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    total = rows_of(Path(done.stdout.strip()).read_bytes())[-1]
    assert (total["cost"], total["currency"]) == ("0.002", "EUR")


def test_a_shell_bills_what_a_killed_program_has_left_beside_the_database(
    tmp_path: Path,
    store: Store,  # noqa: ARG001 - makes the database
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(_rows: object) -> None:
        raise sqlite3.OperationalError("killed before")

    left = Spool(tmp_path, refuse)
    left.add(a_request())
    left.close()
    given = arguments(tmp_path, "--month", "2026-11")

    def total() -> dict[str, str]:
        assert main(given) == 0
        return rows_of(Path(capsys.readouterr().out.strip()).read_bytes())[-1]

    with data_dir.lock(tmp_path):  # while another program runs, it is that one's
        assert total()["requests"] == "0"
    assert (total()["requests"], total()["cost"]) == ("1", "0.002")
    assert not has_uncommitted(tmp_path)


def test_beside_a_worker_it_waits_until_that_has_priced_what_is_there(
    tmp_path: Path,
    store: Store,
    work: TaskRunner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The two never add up at the same time."""
    monkeypatch.setattr(export, "_WORKER_SECONDS", 0.2)
    given = arguments(tmp_path, "--day", "2026-11-05")
    add_request(store, a_request())
    with lock_billing(tmp_path, 0), closing(maintenance.connect(work.path)) as connection:
        assert main(given) == 1
        assert "has not priced all requests" in capsys.readouterr().err
        work.bring_up_to_date(connection)
        assert main(given) == 0
    bill = Path(capsys.readouterr().out.strip())
    assert rows_of(bill.read_bytes())[-1]["cost"] == "0.002"


JANUARY = Period.parse("2025-01")
IN_JANUARY, AFTER_JANUARY = ms("2025-01-31T23:00"), ms("2025-02-01")


def record(store: Store, until_ms: int) -> None:
    store.write(
        "INSERT OR REPLACE INTO marks (name, value) VALUES (?, ?)", (RECORDED_UNTIL, str(until_ms))
    )


@pytest.mark.parametrize(("until_ms", "is_whole"), [(AFTER_JANUARY, True), (IN_JANUARY, False)])
def test_beside_the_program_a_shell_is_told_where_a_bill_is_not_whole(
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    until_ms: int,
    is_whole: bool,
) -> None:
    monkeypatch.setattr(export, "_RECORD_SECONDS", 0.2)
    record(store, until_ms)
    with data_dir.lock(tmp_path):
        assert main(arguments(tmp_path, "--month", "2025-01")) == 0
    printed = capsys.readouterr()
    path = Path(printed.out.strip())
    assert ("not all of the period is recorded" in printed.err) is not is_whole
    assert statements.is_made(path, JANUARY, UTC) is is_whole


@pytest.mark.parametrize("seen_ms", [None, IN_JANUARY, AFTER_JANUARY])
def test_after_a_kill_a_shell_is_told_where_a_model_may_have_run_on(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str], seen_ms: int | None
) -> None:
    if seen_ms is not None:
        add_run(store, "left", IN_JANUARY - HOUR, None)
        runs.heartbeat(store, {"left": seen_ms})
    assert main(arguments(tmp_path, "--month", "2025-01")) == 0
    printed = capsys.readouterr()
    bill = Path(printed.out.strip())
    is_whole = seen_ms != IN_JANUARY
    assert ("models run on that a killed program has left" in printed.err) is not is_whole
    assert statements.is_made(bill, JANUARY, UTC) is is_whole
    hours = {None: "0", IN_JANUARY: "1", AFTER_JANUARY: "2"}[seen_ms]
    assert rows_of(bill.read_bytes())[-1]["hours"] == hours


def test_beside_a_worker_it_waits_until_all_hours_of_the_period_are_added_up(
    tmp_path: Path,
    store: Store,
    work: TaskRunner,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(export, "_WORKER_SECONDS", 0.2)
    given = arguments(tmp_path, "--month", "2025-01")
    add_run(store, "over", IN_JANUARY - HOUR, IN_JANUARY)
    add_run(store, "goes on", IN_JANUARY, None)
    record(store, AFTER_JANUARY + HOUR)
    with (
        data_dir.lock(tmp_path),
        lock_billing(tmp_path, 0),
        closing(maintenance.connect(work.path)) as connection,
    ):
        for heartbeat_ms in (IN_JANUARY + HOUR // 2, AFTER_JANUARY + HOUR):
            runs.heartbeat(store, {"goes on": heartbeat_ms})
            assert main(given) == 1
            assert "has not priced" in capsys.readouterr().err
            work.bring_up_to_date(connection)
        runs.heartbeat(store, {"goes on": AFTER_JANUARY + 2 * HOUR})  # of February
        assert main(given) == 0
    printed = capsys.readouterr()
    assert rows_of(Path(printed.out.strip()).read_bytes())[-1]["hours"] == "2"
    assert printed.err == ""


@pytest.mark.parametrize(
    ("period", "message"),
    [
        (("--month", "2026-13"), "expected a month such as 2026-11"),
        (("--month", "2026-11-05"), "is no month"),
        ((), "required"),
    ],
)
def test_a_wrong_period_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    period: tuple[str, ...],
    message: str,
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(tmp_path, *period))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_data_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path, "--month", "2026-11")) == 1
    assert "usage.db is missing" in capsys.readouterr().err

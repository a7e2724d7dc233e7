"""The schedule's bills: one of each period, whatever was missed and whatever the clock does."""

from __future__ import annotations

import csv
import io
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from jobs import tasks
from jobs.scheduled_export import ScheduledExport
from jobs.tasks import TaskRunner, WorkerSettings
from jobs.watermark import Watermark
from manager.billing import Period, statements
from manager.clock import Clock
from manager.config.settings import Export, Program
from manager.events import Events
from manager.storage import uuid7
from manager.storage.maintenance_tasks import MaintenanceTasks
from manager.storage.store import Store
from manager.usage import ActiveRequest, Activity
from tests.support.usage_rows import a_request, add_price, add_request, new_store

BERLIN = "Europe/Berlin"


def ms(moment: str, zone: str = "UTC") -> int:
    at = datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo(zone))
    return int(at.timestamp() * 1000)


@dataclass
class Bills:
    """A data folder, what orders its bills, and the worker, all by one clock."""

    folder: Path
    store: Store
    monkeypatch: pytest.MonkeyPatch
    schedule: str = "0 3 1 * *"
    period: str = "month"
    zone: str = "UTC"
    now_ms: int = 0
    monotonic: float = 1e6
    runs: dict[str, int] = field(default_factory=dict)  # up to when they are recorded
    has_rows_left: bool = False  # that the database has not taken

    def __post_init__(self) -> None:
        self.clock = Clock(lambda: self.monotonic, lambda: self.now_ms / 1000)
        self.activity = Activity(self.clock, Events())

    def start(self, moment: str) -> None:
        """A program that is started then."""
        program = Program(timezone=self.zone, export=Export(self.schedule, self.period, None))
        clock = self.clock
        orders = MaintenanceTasks(self.store, self.folder / "usage.db", clock, lambda _kind: None)
        assert program.export is not None
        self.orders = orders
        parts: dict[str, Any] = {
            "fleet": SimpleNamespace(heartbeat=lambda: self.runs),
            "activity": self.activity,
            "spool": SimpleNamespace(flush=lambda _seconds: not self.has_rows_left),
        }
        self.watermark = Watermark(**parts, store=self.store, clock=clock)
        self.scheduled = ScheduledExport(
            program, program.export, self.folder, orders, clock, self.watermark.advance
        )
        exports = self.folder / "exports"
        self.worker = TaskRunner(WorkerSettings(self.folder, "INFO", self.zone, "CNY", 0, exports))
        self.monkeypatch.setattr(tasks, "_now_ms", lambda: self.now_ms)
        self.at(moment)

    def at(self, moment: str) -> None:
        """The clock shows that; what is due is done."""
        self.now_ms = ms(moment, self.zone)
        for _ in range(1000):
            self.scheduled.tick()
            if not self.orders.load_all():
                return
            self.worker.run("export")
            if any(order.error for order in self.orders.load_all()):
                return
        raise AssertionError("there is no end of it")

    def ask(self, period: str, moment: str) -> None:
        """Somebody asks for a bill then."""
        self.now_ms = ms(moment, self.zone)
        self.watermark.advance()
        self.orders.enqueue("export", period)
        self.at(moment)

    def request(self, moment: str) -> None:
        add_request(self.store, a_request(ms(moment, self.zone)))

    def path(self, period: str) -> Path:
        return self.folder / "exports" / f"bill-{period}.csv"

    @property
    def files(self) -> dict[str, bytes]:
        """The bills' bytes by their periods."""
        paths = sorted((self.folder / "exports").glob("bill-*.csv"))
        return {path.stem.removeprefix("bill-"): path.read_bytes() for path in paths}

    def requests(self) -> dict[str, str]:
        """How many requests each bill has."""
        texts = {period: bill.decode("utf-8-sig") for period, bill in self.files.items()}
        return {
            period: list(csv.DictReader(io.StringIO(text, newline="")))[-1]["requests"]
            for period, text in texts.items()
        }


@pytest.fixture
def bills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bills]:
    store = new_store(tmp_path / "usage.db")
    add_price(store)
    bills = Bills(tmp_path, store, monkeypatch)
    write = statements.write

    def dated(*written: Any) -> Path:
        """Files are dated by the test's clock, as by the system's."""
        *what, as_of_ms = written
        return write(*what, bills.now_ms if as_of_ms is None else as_of_ms)

    monkeypatch.setattr(statements, "write", dated)
    yield bills
    store.close()


# --- each period, once ---------------------------------------------------------------------


def test_each_month_has_its_bill_over_daylight_saving(bills: Bills) -> None:
    bills.schedule, bills.zone = "0 0 1 * *", BERLIN
    bills.start("2026-01-15T12:00")
    for month in range(1, 13):
        bills.request(f"2026-{month:02}-15T12:00")
    for month in range(2, 13):
        bills.at(f"2026-{month:02}-01T00:00:01")
    bills.at("2027-01-01T00:00:01")
    assert bills.requests() == {f"2026-{month:02}": "1" for month in range(1, 13)}


def test_a_bill_comes_at_its_time_and_not_before(bills: Bills) -> None:
    bills.start("2026-11-15T12:00")
    bills.request("2026-11-15T12:00")
    bills.at("2026-12-01T02:59:59")
    assert bills.files == {}
    bills.at("2026-12-01T03:00:00")
    assert list(bills.files) == ["2026-11"]


def test_a_month_in_which_nothing_was_asked_has_a_bill_of_nothing_while_the_program_runs(
    bills: Bills,
) -> None:
    bills.start("2026-11-15T12:00")
    bills.request("2026-10-15T12:00")
    bills.at("2026-12-01T03:00")
    assert bills.requests()["2026-11"] == "0"


@pytest.mark.parametrize("last_seen", ["2026-08-15T12:00", "2026-08-31T12:00", "2026-09-01T03:00"])
def test_all_bills_that_were_due_while_the_program_was_off_are_made_up_for(
    bills: Bills, last_seen: str
) -> None:
    bills.request("2026-06-15T12:00")  # before there was a schedule
    bills.start("2026-08-15T12:00")
    bills.request("2026-08-14T12:00")
    bills.at(last_seen)
    assert len(bills.files) == (last_seen > "2026-09")
    for month in ("09", "11"):
        bills.request(f"2026-{month}-15T12:00")
    bills.start("2026-12-05T09:00")
    # In October, all of which the program was off, nothing was asked.
    assert bills.requests() == {"2026-08": "1", "2026-09": "1", "2026-11": "1"}


def test_days_that_a_schedule_comes_to_once_a_month_have_all_their_bills(bills: Bills) -> None:
    bills.schedule, bills.period = "0 3 15 * *", "day"
    bills.start("2026-11-15T12:00")
    for day in range(15, 31):
        bills.request(f"2026-11-{day}T12:00")
    bills.at("2026-12-15T03:00:01")
    expected = {f"2026-11-{day}": "1" for day in range(15, 31)}
    assert {name: count for name, count in bills.requests().items() if count != "0"} == expected


def test_after_years_off_the_worker_is_given_a_month_of_days_at_once(bills: Bills) -> None:
    bills.schedule, bills.period = "0 3 * * *", "day"
    bills.start("2024-11-10T12:00")
    bills.request("2024-11-10T12:00")
    bills.request("2026-11-08T12:00")
    bills.start("2024-11-11T00:00")
    bills.now_ms = ms("2026-11-09T12:00")
    bills.scheduled.tick()
    ordered = sorted(order.subject for order in bills.orders.load_all())
    assert ordered[::30] == ["2024-11-10", "2024-12-10"]
    bills.scheduled.tick()  # the worker has not come to them yet
    assert len(bills.orders.load_all()) == 31
    bills.start("2026-11-09T12:00")
    assert bills.requests() == {"2024-11-10": "1", "2026-11-08": "1"}


def test_a_day_that_the_zone_has_skipped_has_no_bill(bills: Bills) -> None:
    bills.schedule, bills.period, bills.zone = "0 3 * * *", "day", "Pacific/Apia"
    bills.start("2011-12-28T12:00")
    for day in (28, 29, 31):
        bills.request(f"2011-12-{day}T12:00")
    bills.at("2012-01-01T12:00")
    assert list(bills.files) == ["2011-12-28", "2011-12-29", "2011-12-31"]


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_a_time_zone_that_is_changed_leaves_out_no_month_and_makes_none_again(
    bills: Bills, zone: str
) -> None:
    bills.zone = BERLIN
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    bills.at("2026-11-01T03:00")
    first = bills.files
    bills.request("2026-10-31T23:30")
    bills.request("2026-11-01T00:30")
    bills.zone = zone
    bills.start("2026-11-05T12:00")
    assert bills.files == first
    bills.at("2026-12-01T03:00")
    assert list(bills.files) == ["2026-10", "2026-11"]


# --- what is there -------------------------------------------------------------------------


def test_a_bill_that_is_there_stays_as_it_is(bills: Bills) -> None:
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    bills.at("2026-11-01T03:00")
    before = bills.files
    bills.request("2026-10-31T23:59")  # that had not ended then
    bills.start("2026-11-20T12:00")
    bills.at("2026-11-25T12:00")
    assert bills.files == before


def test_one_that_somebody_has_made_of_the_whole_period_stays_and_one_of_a_part_is_replaced(
    bills: Bills,
) -> None:
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    bills.ask("2026-10", "2026-10-20T12:00")
    bills.request("2026-10-25T12:00")
    assert bills.requests() == {"2026-10": "1"}
    bills.at("2026-11-01T03:00")
    assert bills.requests() == {"2026-10": "2"}

    bills.request("2026-11-15T12:00")
    bills.ask("2026-11", "2026-12-01T02:00")
    bills.request("2026-11-16T12:00")
    bills.at("2026-12-01T03:00")
    assert bills.requests()["2026-11"] == "1"


def test_a_bill_that_was_deleted_stays_deleted(bills: Bills) -> None:
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    bills.at("2026-11-01T03:00")
    bills.path("2026-10").unlink()
    bills.start("2026-11-20T12:00")
    assert bills.files == {}


def test_the_first_schedule_of_a_folder_with_years_of_usage_begins_with_the_last_month(
    bills: Bills,
) -> None:
    for month in ("2019-03", "2026-09", "2026-10"):
        bills.request(f"{month}-15T12:00")
    bills.start("2026-11-05T12:00")
    assert list(bills.files) == ["2026-10"]


def test_the_first_schedule_counts_from_that_moment_on(bills: Bills) -> None:
    bills.request("2026-10-15T12:00")
    bills.schedule = "0 3 25 * *"
    bills.start("2026-11-05T12:00")
    assert bills.files == {}  # October's is due on the 25th
    bills.request("2026-11-15T12:00")
    bills.start("2027-02-01T12:00")
    assert list(bills.files) == ["2026-10", "2026-11"]


def test_bills_of_an_earlier_version_are_gone_on_with(bills: Bills) -> None:
    for month in ("07", "08", "09", "10"):
        bills.request(f"2026-{month}-15T12:00")
    exports = bills.folder / "exports"
    exports.mkdir()
    bills.path("2026-08").write_text("as it was")  # that version had made the others not
    bills.start("2026-11-05T12:00")
    assert list(bills.files) == ["2026-08", "2026-09", "2026-10"]
    assert bills.path("2026-08").read_text() == "as it was"


def test_in_a_new_folder_each_month_with_something_on_it_has_its_bill(bills: Bills) -> None:
    bills.start("2026-11-05T12:00")
    for month in ("08", "10"):  # as an import brings them
        bills.request(f"2026-{month}-15T12:00")
    bills.start("2026-11-06T12:00")
    assert list(bills.files) == ["2026-08", "2026-10"]


def test_one_that_could_not_be_written_is_tried_again_at_the_next_start(bills: Bills) -> None:
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    exports = bills.folder / "exports"
    exports.write_text("a file where the folder is to be")
    bills.at("2026-11-01T03:00")
    assert [order.error is not None for order in bills.orders.load_all()] == [True]
    exports.unlink()
    bills.start("2026-11-02T12:00")
    assert list(bills.files) == ["2026-10"]


def test_what_a_killed_program_had_not_priced_is_on_the_bill(bills: Bills) -> None:
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    bills.start("2026-11-02T12:00")
    assert bills.requests() == {"2026-10": "1"}


# --- a clock that is set -------------------------------------------------------------------


def test_a_clock_that_is_set_back_an_hour_makes_no_bill_twice(bills: Bills) -> None:
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    bills.at("2026-11-01T03:00")
    before = bills.files
    bills.request("2026-10-31T23:59:59")
    for moment in ("2026-11-01T02:00", "2026-11-01T03:00"):
        bills.at(moment)
    assert bills.files == before


def test_a_clock_that_was_far_ahead_for_a_moment_costs_no_bill(bills: Bills) -> None:
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-10T12:00")
    bills.at("2030-01-01T12:00")
    bills.at("2026-10-15T12:01")
    bills.request("2026-10-20T12:00")
    bills.at("2026-11-01T03:00")
    bills.request("2026-11-20T12:00")
    bills.at("2026-12-01T03:00")
    found = bills.requests()
    assert (found["2026-10"], found["2026-11"]) == ("2", "1")


def test_a_program_that_starts_with_a_clock_of_1970_leaves_all_bills_as_they_are(
    bills: Bills,
) -> None:
    bills.start("2026-09-15T12:00")
    for month in ("09", "10"):
        bills.request(f"2026-{month}-15T12:00")
    bills.at("2026-11-01T03:00")
    before = bills.files
    for month in ("09", "10"):
        bills.request(f"2026-{month}-16T12:00")
    bills.start("1970-01-01T00:00:10")
    bills.start("2020-01-01T00:00:10")
    bills.at("2026-11-02T12:00")
    assert bills.files == before
    bills.at("2026-12-01T03:00")
    assert list(bills.files) == ["2026-09", "2026-10", "2026-11"]


def test_periods_follow_each_other_in_both_directions() -> None:
    for texts in (["2026-12", "2027-01"], ["2024-02-28", "2024-02-29", "2024-03-01"]):
        periods = [Period.parse(text) for text in texts]
        assert [period.after() for period in periods[:-1]] == periods[1:]
        assert [period.before() for period in periods[1:]] == periods[:-1]


# --- what is not recorded yet --------------------------------------------------------------


def under_way(bills: Bills, moment: str) -> ActiveRequest:
    """A request that began then and goes on."""
    at_ms = ms(moment, bills.zone)
    request = ActiveRequest(uuid7(at_ms), "/v1/chat/completions", bills.monotonic, at_ms)
    bills.activity.begin(request)
    return request


def test_a_bill_waits_for_the_requests_of_its_period_that_are_under_way(
    bills: Bills, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    late = under_way(bills, "2026-10-31T23:59:50")
    for moment in ("2026-11-01T03:00", "2026-11-01T03:00:01"):
        bills.at(moment)
        assert bills.files == {}
    assert caplog.text.count("bill of 2026-10 waits for requests that are under way (1)") == 1
    bills.request("2026-10-31T23:59:50")
    bills.activity.end(late, 200, None)
    under_way(bills, "2026-11-01T00:00")  # of the next month
    bills.at("2026-11-01T03:00:02")
    assert bills.requests() == {"2026-10": "2"}


def test_a_request_that_has_no_end_keeps_a_bill_for_a_day(
    bills: Bills, caplog: pytest.LogCaptureFixture
) -> None:
    bills.schedule, bills.period = "0 0 * * *", "day"
    bills.start("2026-11-05T12:00")
    under_way(bills, "2026-11-05T13:00")
    bills.request("2026-11-05T12:30")
    bills.monotonic += 23 * 3600
    bills.at("2026-11-06T12:00")
    assert bills.files == {}
    bills.monotonic += 2 * 3600
    bills.at("2026-11-06T14:00")
    bills.at("2026-11-07T00:00:01")
    assert list(bills.files) == ["2026-11-05", "2026-11-06"]
    assert caplog.text.count("under way for more than a day: bills no longer wait for it") == 1


def test_no_wall_clock_that_is_set_makes_a_request_an_old_one(bills: Bills) -> None:
    bills.schedule, bills.period = "0 0 * * *", "day"
    bills.start("2026-11-05T12:00")
    under_way(bills, "2026-11-05T13:00")
    bills.at("2026-11-09T12:00")
    assert bills.files == {}


def test_a_bill_waits_for_rows_that_the_database_has_not_taken(bills: Bills) -> None:
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    bills.has_rows_left = True
    bills.at("2026-11-01T03:00")
    assert bills.files == {}
    bills.has_rows_left = False
    bills.request("2026-10-31T23:59:50")
    bills.at("2026-11-01T03:00:01")
    assert bills.requests() == {"2026-10": "2"}


def test_a_bill_waits_for_the_time_of_runs_and_never_for_one_that_is_dated_far_back(
    bills: Bills, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one that was started before the clock of a small machine was set."""
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    bills.runs = {"of 1970": 77_000, "run": ms("2026-10-31T23:59:59.999")}
    bills.at("2026-11-01T03:00")
    assert bills.files == {}
    bills.runs["run"] = ms("2026-11-01T00:00")
    bills.at("2026-11-01T03:00:01")
    assert list(bills.files) == ["2026-10"]
    assert caplog.text.count("run of 1970 are dated more than a day before") == 1


def test_all_bills_that_were_due_come_when_what_they_waited_for_is_recorded(bills: Bills) -> None:
    bills.schedule, bills.period = "0 0 * * *", "day"
    bills.start("2026-11-01T12:00")
    for day in (1, 2, 3):
        bills.request(f"2026-11-0{day}T12:00")
    bills.runs = {"run": ms("2026-11-02T12:00")}  # is being taken over
    bills.start("2026-11-03T06:00")
    assert list(bills.files) == ["2026-11-01"]
    bills.at("2026-11-03T06:00:01")
    bills.runs = {}
    bills.at("2026-11-03T06:00:02")
    assert list(bills.files) == ["2026-11-01", "2026-11-02"]


def test_a_bill_that_somebody_asks_for_too_early_is_of_a_part_and_is_replaced(bills: Bills) -> None:
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    late = under_way(bills, "2026-10-31T23:59:50")
    bills.ask("2026-10", "2026-11-01T00:00:10")
    period = Period.parse("2026-10")
    assert not statements.is_made(bills.path("2026-10"), period, ZoneInfo("UTC"))
    bills.request("2026-10-31T23:59:50")
    bills.activity.end(late, 200, None)
    bills.at("2026-11-01T03:00")
    assert bills.requests() == {"2026-10": "2"}
    assert statements.is_made(bills.path("2026-10"), period, ZoneInfo("UTC"))


def test_what_is_recorded_while_the_worker_prices_is_on_a_bill_that_is_ordered_after_that(
    bills: Bills,
) -> None:
    bills.start("2026-10-15T12:00")
    bills.request("2026-10-15T12:00")
    bills.now_ms = ms("2026-11-01T03:00")
    price = bills.worker.bring_up_to_date

    def price_meanwhile(connection: sqlite3.Connection) -> None:
        price(connection)
        bills.worker.bring_up_to_date = price  # type: ignore[method-assign]
        bills.request("2026-10-31T23:59:59")
        bills.scheduled.tick()

    bills.worker.bring_up_to_date = price_meanwhile  # type: ignore[method-assign]
    bills.worker.run("bill")
    assert bills.requests() == {"2026-10": "2"}

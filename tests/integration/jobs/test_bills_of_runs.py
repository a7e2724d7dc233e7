"""A bill has all hours of its period: those of a real server, over kills of the program, by two
clocks that the test moves."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs import tasks
from jobs.scheduled_export import ScheduledExport
from jobs.tasks import TaskRunner, WorkerSettings
from jobs.watermark import Watermark
from manager.config.settings import Export, Program
from manager.events import Events
from manager.models import Fleet, server_process
from manager.storage import MaintenanceTasks, Spool
from manager.usage import Activity
from tests.support.machine import HOUR, NOON, Machine, ready
from tests.support.usage_rows import add_price, one

Eventually = Callable[[Callable[[], Any]], Any]
A_SECOND = 3600 * 10**9  # an hour, for 1 of the currency a second
MIDNIGHT = NOON + 12 * HOUR
DAY = 24 * HOUR
HOURS_12, HOURS_24 = 12 * 3600, 24 * 3600  # what they cost
HEARTBEAT = "SELECT heartbeat_ms FROM runs"


@dataclass
class Office:
    """The bills of a machine, one of each day."""

    machine: Machine
    spools: list[Spool] = field(default_factory=list)

    def start(self) -> Fleet:
        """A program that has just started; an earlier one is as if it had been killed."""
        machine, folder = self.machine, self.machine.folder
        models = machine.program()
        clock = machine.clock
        self.spools.append(Spool(folder, machine.store.add_requests))
        activity = Activity(clock, Events())
        self.watermark = Watermark(models, activity, self.spools[-1], machine.store, clock)
        program = Program(timezone="UTC", export=Export("0 0 * * *", "day", None))
        assert program.export is not None
        self.orders = MaintenanceTasks(
            machine.store, folder / "usage.db", clock, lambda _kind: None
        )
        self.scheduled = ScheduledExport(
            program, program.export, folder, self.orders, clock, self.watermark.advance
        )
        self.worker = TaskRunner(
            WorkerSettings(folder, "INFO", "UTC", "CNY", 0, folder / "exports")
        )
        return models

    def tick(self) -> dict[str, Decimal]:
        """What costs on each day's bill, in seconds, once what can be billed now is billed."""
        for _ in range(10):
            self.scheduled.tick()
            if not self.orders.load_all():
                break
            self.worker.run("bill")
        found = {}
        for path in sorted((self.machine.folder / "exports").glob("bill-*.csv")):
            with path.open(encoding="utf-8-sig", newline="") as file:
                found[path.stem[-2:]] = Decimal(list(csv.DictReader(file))[-1]["cost_hours"])
        return found


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    machine = Machine(tmp_path)
    add_price(machine.store, "Model", A_SECOND)
    monkeypatch.setattr(tasks, "_now_ms", lambda: machine.wall_ms)
    office = Office(machine)
    yield office
    for spool in office.spools:
        spool.close()
    machine.close()


def test_a_run_that_goes_on_over_midnight_is_on_the_days_bill_up_to_midnight(
    office: Office,
) -> None:
    models = office.start()
    office.machine.passes(MIDNIGHT - NOON - 26_000)
    ready(models)
    office.machine.passes(26_000 + 1000)  # and no heartbeat
    assert office.tick() == {"05": 26}


@pytest.mark.parametrize("set_by", [0, -HOUR, 8 * HOUR])
def test_what_a_model_ran_while_the_program_was_off_is_on_the_bills_of_all_those_days(
    office: Office, set_by: int
) -> None:
    machine = office.machine
    ready(office.start())
    assert office.tick() == {}
    # The program was killed, and the model answered on.
    machine.passes(2 * DAY + 13 * HOUR + 2000, set_by)
    ready(office.start())
    bills = {"05": HOURS_12, "06": HOURS_24, "07": HOURS_24}
    assert office.tick() == bills
    machine.passes(30_000)
    assert office.tick() == bills


def test_a_bill_waits_for_hours_that_are_dated_before_a_clock_that_was_set_ahead(
    office: Office,
) -> None:
    ready(office.start())
    office.machine.passes(6 * HOUR, set_by=8 * HOUR)
    assert office.tick() == {}
    office.machine.passes(6 * HOUR)
    assert office.tick() == {"05": HOURS_12}


def test_a_model_that_does_not_answer_while_it_is_taken_over_keeps_no_bill_back(
    office: Office, eventually: Eventually
) -> None:
    pid = one_pid(ready(office.start()))
    office.machine.passes(13 * HOUR)
    os.kill(pid, signal.SIGSTOP)
    try:
        office.start()
        assert eventually(office.tick) == {"05": HOURS_12}
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_bill_waits_for_a_model_of_which_it_is_not_known_yet_how_long_it_ran(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = one_pid(ready(office.start()))
    office.machine.passes(13 * HOUR)
    # As where the disk does not take it.
    monkeypatch.setattr("manager.models.startup.record_alive", lambda *_: None)
    os.kill(pid, signal.SIGSTOP)
    try:
        models = office.start()
        assert office.tick() == {}
    finally:
        os.kill(pid, signal.SIGCONT)
    ready(models)
    assert office.tick() == {"05": HOURS_12}


def test_a_program_that_is_killed_every_25_seconds_bills_what_a_model_runs(office: Office) -> None:
    ready(office.start())
    for _ in range(4):
        office.machine.passes(25_000)
        ready(office.start())
    assert one(office.machine.folder / "usage.db", HEARTBEAT) == NOON + 100_000


def test_what_is_left_over_and_cannot_be_stopped_is_billed_as_long_as_it_lives(
    office: Office, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    machine = office.machine
    pid = one_pid(ready(office.start()))
    machine.store.write("UPDATE runs SET model = 'Removed'", ())
    add_price(machine.store, "Removed", A_SECOND)
    machine.passes(13 * HOUR)
    monkeypatch.setattr(server_process.Attached, "stop", lambda _self, _grace: "it does not die")
    models = office.start()
    assert models._strays is not None
    models._strays.join()
    assert office.tick() == {"05": HOURS_12}
    machine.passes(DAY)
    assert office.tick()["06"] == HOURS_24

    psutil.Process(pid).kill()
    eventually(lambda: has_ended(pid))
    machine.passes(DAY)
    assert office.tick()["07"] == 3600


def test_a_run_whose_end_could_not_be_recorded_keeps_no_bill_back(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = office.machine
    model = ready(office.start())
    machine.passes(HOUR)
    office.watermark.advance()
    monkeypatch.setattr("manager.models.server.end_run", lambda *_: None)  # as on a full disk
    model.stop()
    model.wait_idle(20)
    machine.passes(12 * HOUR)
    assert office.tick() == {"05": 3600}
    monkeypatch.undo()
    office.start()
    assert office.tick() == {"05": 3600}


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def one_pid(model: Any) -> int:
    pid: int = model.to_json()["pid"]
    return pid

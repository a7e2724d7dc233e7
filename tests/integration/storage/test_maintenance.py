"""Care of the data: what is stored, deleting a model, retention, freeing space; in pieces that
keep nobody waiting, and that a kill does not leave half done."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from jobs.tasks import TaskRunner, WorkerSettings
from manager.clock import Clock
from manager.config.settings import Config, Model, Program
from manager.errors import ApiError
from manager.storage import RECORDED_UNTIL, maintenance, maintenance_tasks
from manager.storage.maintenance_tasks import MaintenanceTasks
from manager.storage.store import Store, StoreError
from routes import app as app_module
from routes.api import data, exports
from routes.http.slots import Slots
from tests.support.usage_rows import (
    DAY,
    NOON,
    a_request,
    add_price,
    add_request,
    add_run,
    new_store,
    one,
    query,
    sums_agree,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "usage.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("PRAGMA auto_vacuum = 2; VACUUM")
    return path


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = new_store(path)
    add_price(store, per_hour=1_000_000_000)
    yield store
    store.close()


@pytest.fixture
def work(tmp_path: Path, store: Store) -> TaskRunner:  # noqa: ARG001 - makes the database
    return TaskRunner(WorkerSettings(tmp_path, "INFO", "UTC", "CNY", 0, tmp_path / "exports"))


@pytest.fixture
def placed(path: Path, store: Store) -> MaintenanceTasks:
    return MaintenanceTasks(store, path, Clock(), lambda _kind: None)


def sums(path: Path, model: str) -> list[Any]:
    assert sums_agree(path)
    return query(
        path,
        "SELECT span, sum(requests), sum(cost_tokens), sum(cost_hours), sum(run_ms) FROM rollups"
        " WHERE model = ? AND key = '*' GROUP BY span",
        model,
    )


def counts(path: Path, model: str) -> tuple[int, ...]:
    """Requests, runs, rollups, latencies and hours of a model."""
    tables = ("requests", "runs", "rollups", "latencies")
    each = [one(path, f"SELECT count(*) FROM {table} WHERE model = ?", model) for table in tables]
    hours = "SELECT count(*) FROM run_hours WHERE run IN (SELECT id FROM runs WHERE model = ?)"
    return (*each, one(path, hours, model))


def fill(store: Store, model: str, number: int = 50) -> None:
    for i in range(number):
        add_request(store, a_request(NOON + i * DAY // 10, model))
    add_run(store, f"{model} ended", NOON, NOON + 3 * DAY, model)


# --- what there is -------------------------------------------------------------------------


def test_each_model_is_listed_with_its_rows_also_when_it_is_in_no_config(
    path: Path, store: Store, work: TaskRunner
) -> None:
    fill(store, '模型, "quoted"', 3)
    fill(store, "Old", 2)
    work.run("bill")
    store.write("INSERT INTO adjustments VALUES (1, 'Only paid', '', 5, 7, 'n', 0)", ())
    with closing(maintenance.connect(path)) as connection:
        found = {each.model: each for each in maintenance.stored_by_model(connection)}
    assert set(found) == {'模型, "quoted"', "Old", "Only paid", "Qwen"}
    old = found["Old"]
    assert (old.requests, old.billed_requests, old.runs) == (2, 2, 1)
    assert (old.oldest_ms, old.newest_ms) == (NOON, NOON + DAY // 10)
    assert (found["Qwen"].prices, found["Only paid"].adjustments) == (1, 1)


def test_the_first_moment_that_there_is_something_of_is_known(
    path: Path, store: Store, work: TaskRunner
) -> None:
    def oldest() -> int | None:
        with closing(maintenance.connect(path)) as connection:
            return maintenance.oldest_ms(connection)

    assert oldest() is None
    add_request(store, a_request(NOON))
    assert oldest() == NOON
    add_run(store, "run", NOON - 7, NOON + 5)
    assert oldest() == NOON - 7
    work.run("bill")
    assert oldest() == NOON - DAY // 2  # the day's sums
    store.write("INSERT INTO adjustments VALUES (1, 'Qwen', '', 5, 7, 'n', 0)", ())
    assert oldest() == 5


def test_a_database_of_another_version_is_not_touched(tmp_path: Path, path: Path) -> None:
    with pytest.raises(StoreError, match="is missing"):
        maintenance.connect(tmp_path / "no" / "usage.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="schema 99"):
        maintenance.connect(path)


# --- deleting a model ------------------------------------------------------------------------


def test_deleting_a_model_takes_all_that_was_recorded_of_it_and_nothing_else(
    path: Path, store: Store, work: TaskRunner, placed: MaintenanceTasks
) -> None:
    fill(store, "Qwen")
    fill(store, "Other")
    work.run("bill")
    other, before = counts(path, "Other"), sums(path, "Other")
    placed.enqueue("delete", "Qwen")
    work.run("delete")
    assert counts(path, "Qwen") == (0, 0, 0, 0, 0)
    assert one(path, "SELECT count(*) FROM run_hours WHERE run LIKE 'Qwen%'") == 0
    assert one(path, "SELECT count(*) FROM prices WHERE model = 'Qwen'") == 1
    assert (counts(path, "Other"), sums(path, "Other")) == (other, before)
    assert placed.load_all() == []


class Killed(BaseException):
    """Stands for a kill: nothing handles it."""


@pytest.mark.parametrize("pieces", [0, 1, 2, 3, 5, 8, 13])
def test_a_kill_in_the_middle_leaves_it_to_the_next_worker(
    path: Path, store: Store, work: TaskRunner, placed: MaintenanceTasks, pieces: int
) -> None:
    """What came after the first attempt is kept, with sums of its own."""
    fill(store, "Qwen")
    add_run(store, "goes on", NOON, None)
    store.write("UPDATE runs SET heartbeat_ms = ? WHERE id = 'goes on'", (NOON + DAY,))
    work.run("bill")
    order = placed.enqueue("delete", "Qwen")
    left = pieces

    def rest(_seconds: float) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed

    with closing(maintenance.connect(path)) as connection:
        try:
            maintenance.delete_model(connection, order, rest)
        except Killed:
            pass
        else:
            maintenance_tasks.complete(connection, order)
    add_request(store, a_request(NOON + 40 * DAY))
    work.run("bill")
    assert one(path, "SELECT count(*) FROM requests WHERE model = 'Qwen'") == 1
    assert query(path, "SELECT id FROM runs") == [("goes on",)]
    assert sums(path, "Qwen") == [
        (span, 1, 2_000_000, 24 * 1_000_000_000, DAY) for span in ("day", "hour", "quarter")
    ]
    assert placed.load_all() == []


def test_others_write_while_a_model_is_deleted(
    path: Path, store: Store, work: TaskRunner, placed: MaintenanceTasks
) -> None:
    """Between any two pieces the lock is free."""
    fill(store, "Qwen", 500)
    work.run("bill")
    written = 0

    def rest(_seconds: float) -> None:
        nonlocal written
        with closing(sqlite3.connect(path, timeout=0)) as connection:
            connection.execute("INSERT INTO marks VALUES (?, '')", (f"other {written}",))
            connection.commit()
        written += 1

    with closing(maintenance.connect(path)) as connection:
        maintenance.delete_model(connection, placed.enqueue("delete", "Qwen"), rest)
    assert written > 5


# --- retention -----------------------------------------------------------------------------


def test_retention_deletes_old_billed_requests_and_keeps_their_sums(
    tmp_path: Path, path: Path, store: Store
) -> None:
    now = Clock().wall_ms()
    for days in (0, 1, 5, 6, 100):
        add_request(store, a_request(now - days * DAY))
    work = TaskRunner(WorkerSettings(tmp_path, "INFO", "UTC", "CNY", 3, tmp_path / "exports"))
    work.run("bill")
    before = sums(path, "Qwen")
    with closing(maintenance.connect(path)) as connection:
        assert maintenance.billed_seq(connection) == 5
    store.write("UPDATE marks SET value = '4' WHERE name = 'billed_seq'", ())
    with closing(maintenance.connect(path)) as connection:  # the oldest is not billed yet
        assert maintenance.delete_requests_before(connection, now - 3 * DAY) == 2
    store.write("UPDATE marks SET value = '5' WHERE name = 'billed_seq'", ())
    work.run("clean_up")
    left = query(path, "SELECT started_ms FROM requests ORDER BY id DESC")
    assert left == [(now,), (now - DAY,)]
    assert sums(path, "Qwen") == before


def test_without_retention_every_request_is_kept(
    path: Path, store: Store, work: TaskRunner
) -> None:
    add_request(store, a_request(DAY))
    work.run("clean_up")
    assert one(path, "SELECT count(*) FROM requests") == 1


# --- returning free space ------------------------------------------------------------------------


def test_room_is_given_back_in_steps_between_which_others_write(
    path: Path, store: Store, work: TaskRunner, placed: MaintenanceTasks
) -> None:
    fill(store, "Qwen", 3000)
    work.run("bill")
    placed.enqueue("delete", "Qwen")
    work.run("delete")
    pages = one(path, "PRAGMA page_count")
    steps = 0

    def rest(_seconds: float) -> None:
        nonlocal steps
        with closing(sqlite3.connect(path, timeout=0)) as other:
            other.execute("UPDATE marks SET value = value")
            other.commit()
        steps += 1

    with closing(maintenance.connect(path)) as connection:
        given = maintenance.vacuum(connection, rest)
    assert one(path, "PRAGMA freelist_count") == 0
    assert one(path, "PRAGMA page_count") < pages / 2
    assert given > 0
    assert steps > 1


def test_a_copy_of_a_file_that_cannot_be_shrunk_can(tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript("CREATE TABLE t (x)")
        with pytest.raises(StoreError, match="llm-manager backup"):
            maintenance.vacuum(connection)
    maintenance.backup(old, tmp_path / "copy.db")
    assert one(tmp_path / "copy.db", "PRAGMA auto_vacuum") == 2


# --- orders --------------------------------------------------------------------------------


def test_an_order_that_is_placed_again_while_it_is_carried_out_is_carried_out_again(
    path: Path, placed: MaintenanceTasks
) -> None:
    first = placed.enqueue("export", "2026-11")
    second = placed.enqueue("export", "2026-11")
    with closing(maintenance.connect(path)) as connection:
        maintenance_tasks.complete(connection, first)
        maintenance_tasks.fail(connection, first, "an earlier fault")
        assert maintenance_tasks.pending(connection, "export") == [second]
        maintenance_tasks.complete(connection, second)
    assert placed.load_all() == []


@pytest.mark.usefixtures("store")
def test_one_that_fails_says_why_and_is_not_tried_for_ever(
    tmp_path: Path, placed: MaintenanceTasks, work: TaskRunner
) -> None:
    (tmp_path / "exports").write_text("a file where the folder has to be")
    order = placed.enqueue("export", "2026-11")
    work.run("export")
    failed = placed.wait(order, 0, lambda: False)
    assert failed is not None
    assert "exports" in str(failed.error)
    (tmp_path / "exports").unlink()
    work.run("bill")
    assert not (tmp_path / "exports").exists()
    placed.enqueue("export", "2026-11")
    work.run("bill")
    assert (tmp_path / "exports" / "bill-2026-11.csv").exists()


def test_a_locked_database_is_told_and_tried_again(
    path: Path, store: Store, work: TaskRunner, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(maintenance, "_BUSY_SECONDS", 0.05)
    add_request(store, a_request())
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        work.run("bill")
        work.run("bill")
    assert caplog.text.count("database is locked") == 1
    work.run("bill")
    assert one(path, "SELECT cost FROM requests") == 2_000_000


# --- over HTTP -----------------------------------------------------------------------------


class FakeModel:
    is_remote = False

    def __init__(self, name: str, state: str) -> None:
        self.settings = Model(name)
        self.state = state

    def to_json(self) -> dict[str, str]:
        return {"state": self.state}


@pytest.fixture
def client(tmp_path: Path, store: Store, work: TaskRunner) -> FlaskClient:
    """The routes, over a worker that works at once."""
    models = [FakeModel("Qwen", "stopped"), FakeModel("Busy", "ready")]
    config = Config(
        tmp_path, Program(timezone="UTC"), {m.settings.name: m.settings for m in models}
    )
    services: Any = SimpleNamespace(
        fleet=SimpleNamespace(config=config, models=lambda: models),
        orders=MaintenanceTasks(store, tmp_path / "usage.db", Clock(), work.run),
        worker=SimpleNamespace(view=lambda: {"alive": True, "pid": 7}),
        data_dir=tmp_path,
        clock=Clock(wall=lambda: (NOON + DAY) / 1000),
        slots=Slots(64),
        record_all=list,
        closing=threading.Event(),
    )
    app = Flask("test")
    app.register_blueprint(data.blueprint(services))
    app.register_blueprint(exports.blueprint(services))
    app.register_error_handler(ApiError, app_module._error_response)
    return app.test_client()


def code_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["error"]["code"]


def test_the_data_page_says_what_is_stored_and_whether_the_worker_lives(
    client: FlaskClient, store: Store, work: TaskRunner
) -> None:
    fill(store, "Qwen", 2)
    fill(store, "Gone", 2)
    add_request(store, a_request())
    before = client.get("/api/data").get_json()
    assert before["unbilled_requests"] == 5
    assert before["worker"] == {"alive": True, "pid": 7}
    assert before["database_bytes"] > 4096
    work.run("bill")
    assert client.get("/api/data").get_json()["unbilled_requests"] == 0
    models = client.get("/api/data/models").get_json()["models"]
    assert [(m["name"], m["configured"], m["requests"]) for m in models] == [
        ("Gone", False, 2),
        ("Qwen", True, 3),
    ]
    assert models[0]["oldest_at"] == "2026-11-05T12:00:00.000+00:00"


def test_only_a_model_that_does_not_run_is_deleted(
    client: FlaskClient, store: Store, path: Path
) -> None:
    fill(store, "Qwen", 2)
    fill(store, "Busy", 2)
    assert code_of(client.delete("/api/data/models/Busy")) == (409, "model_running")
    assert code_of(client.delete("/api/data/models/Nobody")) == (404, "no_data")
    done = client.delete("/api/data/models/Qwen?wait=1")
    assert (done.status_code, done.get_json()["done"]) == (200, True)
    assert counts(path, "Qwen")[:2] == (0, 0)
    assert counts(path, "Busy")[:2] == (2, 1)


def test_a_model_with_a_slash_in_its_name_is_deleted(client: FlaskClient, store: Store) -> None:
    fill(store, "qwen/7b", 1)
    assert client.delete("/api/data/models/qwen/7b?wait=1").status_code == 200
    assert client.get("/api/data/models").get_json()["models"][0]["name"] == "Qwen"


def test_copies_are_made_and_listed(client: FlaskClient, tmp_path: Path) -> None:
    assert client.post("/api/data/backup?wait=1").status_code == 200
    (copy,) = client.get("/api/data").get_json()["backups"]
    assert (tmp_path / "backups" / copy["file"]).stat().st_size == copy["bytes"]


def test_room_is_given_back_over_http(client: FlaskClient) -> None:
    assert client.post("/api/data/vacuum?wait=1").status_code == 200


def test_what_had_no_price_gets_the_one_it_has_now(
    client: FlaskClient, store: Store, path: Path, work: TaskRunner
) -> None:
    fill(store, "Late", 2)
    work.run("bill")
    assert sums(path, "Late")[0][2] == 0
    add_price(store, "Late")
    assert client.post("/api/data/reprice?wait=1", json={"model": "Late"}).status_code == 200
    assert sums(path, "Late")[0][2] == 2 * 2_000_000
    assert code_of(client.post("/api/data/reprice", json={})) == (400, "bad_parameter")


def test_a_bill_is_made_listed_and_downloaded(
    client: FlaskClient, store: Store, tmp_path: Path
) -> None:
    add_request(store, a_request())
    made = client.post("/api/exports?wait=1", json={"month": "2026-11"})
    assert made.status_code == 200
    assert made.get_json()["file"] == "bill-2026-11.csv"
    (listed,) = client.get("/api/exports").get_json()["exports"]
    assert (listed["file"], listed["period"]) == ("bill-2026-11.csv", "2026-11")
    assert listed["bytes"] == (tmp_path / "exports" / "bill-2026-11.csv").stat().st_size
    bill = client.get("/api/exports/bill-2026-11.csv")
    assert bill.headers["Content-Type"].startswith("text/csv")
    assert bill.headers["Content-Disposition"] == "attachment; filename=bill-2026-11.csv"
    assert bill.data.splitlines()[1].startswith(b"2026-11-05,Qwen,,1,")


@pytest.mark.parametrize("is_whole", [True, False])
def test_whoever_asks_for_a_bill_is_told_whether_all_of_the_period_is_on_it(
    client: FlaskClient, store: Store, is_whole: bool
) -> None:
    end_ms = 1_738_368_000_000  # of January 2025
    store.write(
        "INSERT INTO marks (name, value) VALUES (?, ?)",
        (RECORDED_UNTIL, str(end_ms - 1 + is_whole)),
    )
    made = client.post("/api/exports?wait=1", json={"month": "2025-01"}).get_json()
    (listed,) = client.get("/api/exports").get_json()["exports"]
    assert (made["complete"], listed["complete"]) == (is_whole, is_whole)


@pytest.mark.parametrize(
    "name",
    [
        "usage.db",
        "..%2Fusage.db",
        "%2e%2e%2fusage.db",
        "..",
        "bill-2026-11.csv%00",
        "bill-2026-13.csv",
        "bill-2026-10.csv",
        ".bill-2026-11.csv.part",
    ],
)
def test_nothing_but_a_bill_is_downloaded(client: FlaskClient, name: str) -> None:
    assert client.get(f"/api/exports/{name}").status_code == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"month": "2026-13"}, "month"),
        ({"month": "2026-11-05"}, "month"),
        ({"day": "2026-11"}, "day"),
        ({"day": "2026-02-30"}, "day"),
        ({"month": "../../etc"}, "month"),
        ({"month": 202611}, "month"),
        ({"month": "2031-01"}, "month"),
        ({"month": "\u0662\u0660\u0662\u0666-11"}, "month"),
        ({}, "month"),
        ({"month": "2026-11", "day": "2026-11-05"}, "month"),
        ({"moth": "2026-11"}, "moth"),
    ],
)
def test_a_period_that_is_none_is_told(client: FlaskClient, body: Any, param: str) -> None:
    answer = client.post("/api/exports", json=body)
    assert code_of(answer) == (400, "bad_parameter")
    assert answer.get_json()["error"]["param"] == param


def test_a_bill_that_cannot_be_written_says_why(client: FlaskClient, tmp_path: Path) -> None:
    (tmp_path / "exports").write_text("in the way")
    answer = client.post("/api/exports?wait=1", json={"month": "2026-11"})
    assert code_of(answer) == (500, "not_done")
    (order,) = client.get("/api/exports").get_json()["orders"]
    assert order["subject"] == "2026-11"
    assert "exports" in order["error"]

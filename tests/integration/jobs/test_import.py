"""The history of LLM-Manager 2.2 is taken over whole, once, and what cannot be is named."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs.import_history import UnsupportedDatabase, import_file
from jobs.tasks import TaskRunner, WorkerSettings
from manager.billing.pricing import Price, Tier, tiers_from_json
from manager.storage import maintenance
from manager.storage.store import Store
from tests.support.usage_rows import NOON, a_request, add_request, new_store, one, query

ROOT = Path(__file__).resolve().parents[3]
T = NOON / 1000  # epoch seconds, as 2.2 wrote them
CHAT, HOURLY, NEW = '通义 "千问", 7B', "Qwen-14B", "Never-Used"

Old = Callable[..., Path]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database as 2.2 makes and fills it: a set of tables for each model of its config."""
    path = tmp_path / "monitoring.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE model_name_mapping (id INTEGER PRIMARY KEY AUTOINCREMENT,"
            " original_name TEXT UNIQUE NOT NULL, safe_name TEXT UNIQUE NOT NULL,"
            " created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);"
            "CREATE TABLE program_runtime (id INTEGER PRIMARY KEY AUTOINCREMENT,"
            " start_time REAL NOT NULL, end_time REAL NOT NULL);"
        )
        for model in (CHAT, HOURLY, NEW):
            safe = safe_name(model)
            connection.execute(
                "INSERT INTO model_name_mapping (original_name, safe_name) VALUES (?, ?)",
                (model, safe),
            )
            connection.executescript(
                f"CREATE TABLE {safe}_runtime (id INTEGER PRIMARY KEY AUTOINCREMENT,"
                " start_time REAL NOT NULL, end_time REAL NOT NULL);"
                f"CREATE TABLE {safe}_requests (id INTEGER PRIMARY KEY AUTOINCREMENT,"
                " start_time REAL NOT NULL, end_time REAL NOT NULL,"
                " input_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,"
                " cache_n INTEGER NOT NULL, prompt_n INTEGER NOT NULL);"
                f"CREATE TABLE {safe}_tier_pricing (tier_index INTEGER PRIMARY KEY,"
                " min_input_tokens INTEGER NOT NULL, max_input_tokens INTEGER NOT NULL,"
                " min_output_tokens INTEGER NOT NULL, max_output_tokens INTEGER NOT NULL,"
                " input_price REAL NOT NULL, output_price REAL NOT NULL,"
                " support_cache BOOLEAN NOT NULL DEFAULT 0,"
                " cache_write_price REAL NOT NULL DEFAULT 0.0,"
                " cache_read_price REAL NOT NULL DEFAULT 0.0);"
                f"INSERT INTO {safe}_tier_pricing VALUES (1,0,32768,0,32768,0.0,0.0,0,0.0,0.0);"
                f"CREATE TABLE {safe}_hourly_price (id INTEGER PRIMARY KEY CHECK (id = 1),"
                " hourly_price REAL NOT NULL DEFAULT 0);"
                f"INSERT INTO {safe}_hourly_price VALUES (1, 0);"
                f"CREATE TABLE {safe}_billing_method (id INTEGER PRIMARY KEY CHECK (id = 1),"
                " use_tier_pricing BOOLEAN NOT NULL DEFAULT 1);"
                f"INSERT INTO {safe}_billing_method VALUES (1, 1);"
            )
        chat, hourly = safe_name(CHAT), safe_name(HOURLY)
        connection.execute(f"DELETE FROM {chat}_tier_pricing")
        tiers = [
            (1, 0, 1000, 0, -1, 0.1, 0.25, 1, 0.05, 0.02),
            (2, 1000, -1, 0, -1, 1.5, 3, 0, 0, 0),
        ]
        connection.executemany(f"INSERT INTO {chat}_tier_pricing VALUES ({marks(10)})", tiers)
        requests = [(T, T + 1.25, 1000, 500, 400, 600), (T + 60.5, T + 61, 3000, 10, 0, 3000)]
        connection.executemany(
            f"INSERT INTO {chat}_requests (start_time, end_time, input_tokens, output_tokens,"
            f" cache_n, prompt_n) VALUES ({marks(6)})",
            [*requests, requests[1]],  # two that are alike are two
        )
        connection.execute(f"UPDATE {hourly}_billing_method SET use_tier_pricing = 0")
        connection.execute(f"UPDATE {hourly}_hourly_price SET hourly_price = 1.2")
        connection.executemany(
            f"INSERT INTO {hourly}_runtime (start_time, end_time) VALUES (?, ?)",
            [(T, T + 5400), (T + 9000, T + 9000)],
        )
        connection.execute("INSERT INTO program_runtime VALUES (1, ?, ?)", (T, T + 9))
        connection.commit()
    return path


def safe_name(model: str) -> str:
    return f"model_{hashlib.sha256(model.encode()).hexdigest()[:16]}"


def marks(number: int) -> str:
    return ", ".join("?" * number)


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, values)
        connection.commit()


def counts(path: Path) -> tuple[int, int, int]:
    tables = ("requests", "runs", "prices")
    one_, two, three = (one(path, f"SELECT count(*) FROM {table}") for table in tables)
    return one_, two, three


def test_requests_runs_and_prices_are_taken_over_and_billed_by_them(
    tmp_path: Path, old: Path
) -> None:
    path = tmp_path / "usage.db"
    report = import_file(old, path)
    assert (report.requests, report.runs, report.prices, report.left_out) == (3, 2, 2, [])
    TaskRunner(WorkerSettings(tmp_path, "INFO", "UTC", "CNY", 0, tmp_path)).run("bill")
    assert query(
        path,
        "SELECT model, started_ms, ended_ms, prompt_tokens, cached_tokens, completion_tokens,"
        " tier, cost FROM requests ORDER BY seq",
    ) == [
        # 400 x 0.02 + 600 x (0.1 + 0.05) + 500 x 0.25, a million tokens
        (CHAT, NOON, NOON + 1250, 1000, 400, 500, 0, 223_000),
        # 3,000 x 1.5 + 10 x 3
        (CHAT, NOON + 60_500, NOON + 61_000, 3000, 0, 10, 1, 4_530_000),
        (CHAT, NOON + 60_500, NOON + 61_000, 3000, 0, 10, 1, 4_530_000),
    ]
    assert query(
        path,
        "SELECT model, ready_ms, ended_ms, end_reason, billed_ms FROM runs ORDER BY started_ms",
    ) == [
        (HOURLY, NOON, NOON + 5_400_000, "imported", NOON + 5_400_000),
        (HOURLY, NOON + 9_000_000, NOON + 9_000_000, "imported", NOON + 9_000_000),
    ]
    hours = "SELECT sum(cost_hours) FROM rollups WHERE span = 'day' AND key = '*'"
    assert one(path, hours) == 1_800_000_000  # an hour and a half at 1.2


def test_prices_are_exact_and_hold_from_the_beginning(tmp_path: Path, old: Path) -> None:
    import_file(old, tmp_path / "usage.db")
    (chat, hourly) = query(
        tmp_path / "usage.db",
        "SELECT model, effective_ms, per_hour, tiers FROM prices ORDER BY per_hour",
    )
    assert (chat[:3], hourly) == ((CHAT, 0, None), (HOURLY, 0, 1_200_000_000, "[]"))
    assert Price(None, tiers_from_json(chat[3])) == Price(
        None,
        (
            Tier(0, 1000, 0, -1, 100_000_000, 250_000_000, 20_000_000, 50_000_000, True),
            Tier(1000, -1, 0, -1, 1_500_000_000, 3_000_000_000, 0, 0, False),
        ),
    )


def test_a_second_import_adds_nothing(tmp_path: Path, old: Path) -> None:
    path = tmp_path / "usage.db"
    import_file(old, path)
    before = counts(path)
    again = import_file(old.rename(tmp_path / "renamed.db"), path)
    assert (again.requests, again.runs, again.prices, again.known) == (0, 0, 0, 5)
    assert counts(path) == before


def test_a_later_copy_adds_what_came_after_the_first(tmp_path: Path, old: Path) -> None:
    path, hourly = tmp_path / "usage.db", safe_name(HOURLY)
    import_file(old, path)
    work = TaskRunner(WorkerSettings(tmp_path, "INFO", "UTC", "CNY", 0, tmp_path))
    work.run("bill")
    change(old, f"UPDATE {hourly}_runtime SET end_time = ? WHERE id = 2", T + 9000 + 3600)
    change(
        old,
        f"INSERT INTO {safe_name(NEW)}_requests (start_time, end_time, input_tokens,"
        " output_tokens, cache_n, prompt_n) VALUES (?, ?, 1, 1, 0, 1)",
        *(T, T + 1),
    )
    report = import_file(old, path)
    assert (report.requests, report.runs) == (1, 1)
    work.run("bill")
    assert (
        one(path, "SELECT sum(cost_hours) FROM rollups WHERE span = 'day' AND key = '*'")
        == 3_000_000_000
    )


def test_a_price_of_ours_stays(tmp_path: Path, old: Path) -> None:
    path = tmp_path / "usage.db"
    store = new_store(path)
    for model, since in ((CHAT, 0), (HOURLY, NOON + 1)):
        store.write(
            "INSERT INTO prices (model, effective_ms, per_hour, tiers, created_ms)"
            " VALUES (?, ?, 7, '[]', 0)",
            (model, since),
        )
    store.close()
    import_file(old, path)
    assert query(path, "SELECT model, effective_ms, per_hour FROM prices ORDER BY id") == [
        (CHAT, 0, 7),
        (HOURLY, NOON + 1, 7),
        (HOURLY, 0, 1_200_000_000),  # for what was before ours
    ]


def test_a_price_that_nobody_had_set_is_none(tmp_path: Path, old: Path) -> None:
    import_file(old, tmp_path / "usage.db")
    assert one(tmp_path / "usage.db", "SELECT count(*) FROM prices WHERE model = ?", NEW) == 0


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("input_tokens", -1, "input_tokens is -1"),
        ("output_tokens", 2**31, "output_tokens is 2147483648"),
        ("input_tokens", "many", "input_tokens is 'many'"),
        ("output_tokens", 1.5, "output_tokens is 1.5"),
        ("cache_n", 1001, "more than all 1000 input_tokens"),
        ("start_time", "yesterday", "start_time is 'yesterday'"),
        ("end_time", float("inf"), "end_time is inf"),
        ("start_time", 1e15, "1970 to 9997"),
        ("start_time", -5.0, "1970 to 9997"),
    ],
)
def test_a_row_that_makes_no_sense_is_named_and_the_others_are_taken(
    tmp_path: Path, old: Path, column: str, value: Any, message: str
) -> None:
    change(old, f"UPDATE {safe_name(CHAT)}_requests SET {column} = ? WHERE id = 1", value)
    report = import_file(old, tmp_path / "usage.db")
    assert (report.requests, report.runs) == (2, 2)
    (left_out,) = report.left_out
    assert left_out.startswith(f"{CHAT}: row 1 of {safe_name(CHAT)}_requests: ")
    assert message in left_out


def test_a_price_that_makes_no_sense_is_named(tmp_path: Path, old: Path) -> None:
    change(old, f"UPDATE {safe_name(HOURLY)}_hourly_price SET hourly_price = -1")
    change(
        old, f"UPDATE {safe_name(CHAT)}_tier_pricing SET max_input_tokens = 5 WHERE tier_index = 2"
    )
    report = import_file(old, tmp_path / "usage.db")
    assert report.prices == 0
    assert [line.split(":")[0] for line in report.left_out] == [CHAT, HOURLY]
    assert "tier 2: max_input 5 is not above min_input 1000" in report.left_out[0]


def test_a_request_whose_start_2_2_did_not_know_counts_when_it_ended(
    tmp_path: Path, old: Path
) -> None:
    change(old, f"UPDATE {safe_name(CHAT)}_requests SET start_time = 0 WHERE id = 1")
    import_file(old, tmp_path / "usage.db")
    started = "SELECT started_ms FROM requests WHERE cached_tokens = 400"
    assert one(tmp_path / "usage.db", started) == NOON + 1250


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DROP TABLE model_name_mapping", "no table model_name_mapping"),
        (f"DROP TABLE {safe_name(CHAT)}_runtime", "_runtime has no end_time, id, start_time"),
        (
            f"ALTER TABLE {safe_name(CHAT)}_requests RENAME COLUMN cache_n TO hits",
            "_requests has no cache_n",
        ),
        ("UPDATE model_name_mapping SET safe_name = 'a; DROP TABLE x' WHERE id = 1", "no names"),
    ],
)
def test_another_structure_is_refused_before_anything_is_added(
    tmp_path: Path, old: Path, statement: str, message: str
) -> None:
    change(old, statement)
    with pytest.raises(UnsupportedDatabase, match=message):
        import_file(old, tmp_path / "usage.db")
    assert not (tmp_path / "usage.db").exists()


@pytest.mark.parametrize("content", [b"", b"not a database at all, but a long text" * 200])
def test_what_is_no_database_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "monitoring.db").write_bytes(content)
    with pytest.raises(UnsupportedDatabase):
        import_file(tmp_path / "monitoring.db", tmp_path / "usage.db")
    with pytest.raises(UnsupportedDatabase, match="missing"):
        import_file(tmp_path / "no.db", tmp_path / "usage.db")


def test_a_worker_that_prices_each_row_at_once_finds_its_price(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it once found no price for costs nothing, until somebody notices."""
    path = tmp_path / "usage.db"
    work = TaskRunner(WorkerSettings(tmp_path, "INFO", "UTC", "CNY", 0, tmp_path / "exports"))
    transaction = maintenance.transaction

    @contextmanager
    def then_priced(connection: sqlite3.Connection) -> Iterator[None]:
        with transaction(connection):
            yield
        monkeypatch.undo()  # the worker has transactions of its own
        with closing(maintenance.connect(path)) as other:
            work.bring_up_to_date(other)
        monkeypatch.setattr(maintenance, "transaction", then_priced)

    monkeypatch.setattr(maintenance, "transaction", then_priced)
    import_file(old, path)
    monkeypatch.undo()
    assert one(path, "SELECT count(*) FROM requests WHERE price IS NULL") == 0
    assert one(path, "SELECT count(*) FROM run_hours WHERE price = 0") == 0
    assert one(path, "SELECT sum(cost_hours) FROM rollups WHERE span = 'day' AND key = ''") > 0


def test_it_works_from_a_shell_beside_a_running_program(tmp_path: Path, old: Path) -> None:
    store = Store(tmp_path / "data" / "usage.db") if (tmp_path / "data").mkdir() is None else None
    assert store is not None
    change(old, f"UPDATE {safe_name(CHAT)}_requests SET input_tokens = -1 WHERE id = 2")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "commands", "import", "usage", str(old)),
            *("--data-dir", str(tmp_path / "data")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1  # something was left out
    assert "2 requests, 2 runs and 2 prices added" in done.stdout
    assert "left out" in done.stderr
    add_request(store, a_request())
    store.close()
    assert counts(tmp_path / "data" / "usage.db") == (3, 2, 2)

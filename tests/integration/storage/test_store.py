"""usage.db: what is reported as written is on the disk, and nothing else is."""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.storage import runs
from manager.storage import store as store_module
from manager.storage.rows import Launch, RequestRow, Run
from manager.storage.store import MIGRATIONS, Store, StoreError

ROOT = Path(__file__).resolve().parents[3]
ADD = "INSERT INTO runs (id, model, scheme, fingerprint, port, started_ms) VALUES (?,?,?,?,?,?)"


def a_run(name: str = "1", **changes: Any) -> Run:
    fields: dict[str, Any] = {
        "id": name,
        "model": "Qwen",
        "scheme": "CPU",
        "fingerprint": "f",
        "port": 21000,
        "pid": None,
        "pid_created": None,
        "started_ms": 1000,
        "ready_ms": None,
    }
    return Run(**(fields | changes))


def row(name: object) -> tuple[object, ...]:
    return (name, "Qwen", "CPU", "f", 21000, 1000)


def query(path: Path, statement: str) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def ids(path: Path) -> set[Any]:
    return {name for (name,) in query(path, "SELECT id FROM runs")}


def outcome(action: Callable[[], None]) -> sqlite3.Error | None:
    """The database's complaint about a write; None where the write is reported as done."""
    try:
        action()
    except sqlite3.Error as error:
        return error
    return None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "usage.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


# --- runs -------------------------------------------------------------------------------


def test_a_run_without_an_end_is_found_again_with_all_that_is_known_of_it(path: Path) -> None:
    first = Store(path)
    runs.begin(first, a_run("early", started_ms=1))
    runs.begin(first, a_run("late", started_ms=2, model="中文 'quoted'"))
    runs.launched(first, "late", 4321, 1700000000.25)
    # The script has handed over meanwhile.
    runs.ready(first, "late", 5, 4322, 1700000001.5, boot_id="boot", clock_ms=77)
    runs.heartbeat(first, {"late": 30, "unknown": 40})
    first.close()
    second = Store(path)
    early, late = runs.unfinished(second)
    second.close()
    assert early == a_run("early", started_ms=1)
    assert late == a_run(
        "late",
        started_ms=2,
        model="中文 'quoted'",
        pid=4322,
        pid_created=1700000001.5,
        ready_ms=5,
        heartbeat_ms=30,
        boot_id="boot",
        ready_clock_ms=77,
    )


def test_a_run_that_is_not_ready_yet_is_found_by_the_process_that_was_launched(
    store: Store,
) -> None:
    runs.begin(store, a_run())
    runs.launched(store, "1", 4321, 1700000000.25)
    assert runs.unfinished(store) == [a_run(pid=4321, pid_created=1700000000.25)]


def test_an_ended_run_is_not_found_again_and_keeps_its_first_end(path: Path, store: Store) -> None:
    runs.begin(store, a_run())
    runs.end(store, "1", 2000, "idle")
    runs.end(store, "1", 3000, "found ended at the program's start")
    assert runs.unfinished(store) == []
    assert query(path, "SELECT ended_ms, end_reason FROM runs") == [(2000, "idle")]


def test_a_run_can_be_begun_only_once(store: Store) -> None:
    runs.begin(store, a_run())
    with pytest.raises(sqlite3.IntegrityError):
        runs.begin(store, a_run())
    assert runs.unfinished(store) == [a_run()]


@pytest.mark.parametrize("heartbeat", [None, 1500, 9000])
def test_a_run_spans_no_negative_time_whatever_the_clock_says(
    path: Path, store: Store, heartbeat: int | None
) -> None:
    """It was set back by hours between any two of these."""
    last = max(1000, heartbeat or 0)
    for name, end in (
        ("seen", lambda: runs.end(store, "seen", 5, "idle")),
        ("unseen", lambda: runs.end_unseen(store, "unseen", "found ended")),
    ):
        runs.begin(store, a_run(name, started_ms=1000))
        runs.ready(store, name, 500, 4322, 1700000001.5)
        if heartbeat is not None:
            runs.heartbeat(store, {name: heartbeat})
            runs.heartbeat(store, {name: 7})
        end()
        times = f"SELECT started_ms, ready_ms, ended_ms FROM runs WHERE id = '{name}'"
        assert query(path, times) == [(1000, 1000, last)]


# --- writes -----------------------------------------------------------------------------


def test_what_is_written_can_be_read_by_others_as_soon_as_write_returns(
    path: Path, store: Store
) -> None:
    for number in range(20):
        store.write(ADD, row(str(number)))
        assert str(number) in ids(path)


def test_many_threads_write_at_once_and_nothing_is_lost(path: Path, store: Store) -> None:
    names = {f"{number}" for number in range(300)}
    with ThreadPoolExecutor(30) as threads:
        list(threads.map(lambda name: store.write(ADD, row(name)), names))
    assert ids(path) == names


@pytest.fixture
def together(
    path: Path, store: Store, eventually: Callable[[Callable[[], Any]], Any]
) -> Callable[[list[tuple[str, tuple[object, ...]]]], list[sqlite3.Error | None]]:
    """Has writes meet in the writer, in this order, by keeping the disk from it until then."""

    def together(writes: list[tuple[str, tuple[object, ...]]]) -> list[sqlite3.Error | None]:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        results: dict[int, sqlite3.Error | None] = {}

        def write(number: int) -> None:
            results[number] = outcome(lambda: store.write(*writes[number]))

        threads = []
        for number in range(len(writes)):
            before = store._queue.qsize()
            threads.append(threading.Thread(target=write, args=(number,)))
            threads[-1].start()
            # The writer takes the first at once, and then waits for the disk.
            eventually(
                lambda before=before, first=not number: first or store._queue.qsize() > before
            )
            if not number:
                eventually(lambda: store._queue.empty())
        blocker.execute("COMMIT")
        blocker.close()
        for thread in threads:
            thread.join()
        return [results[number] for number in range(len(writes))]

    return together


Together = Callable[[list[tuple[str, tuple[object, ...]]]], list[Any]]


def test_a_failing_write_is_told_and_does_not_harm_its_neighbours(
    path: Path, together: Together
) -> None:
    writes = [
        (ADD, row("before")),
        (ADD, row("before")),
        ("INSERT INTO nothing VALUES (?)", (1,)),
        ("this is not SQL", ()),
        ("INSERT INTO runs (id) VALUES (?)", ()),
        (ADD, row("after")),
    ]
    results = together(writes)
    assert results[0] is None
    assert all(isinstance(result, sqlite3.Error) for result in results[1:5])
    assert results[5] is None
    assert ids(path) == {"before", "after"}


@pytest.mark.parametrize("value", [2**70, "\ud800", object()])
def test_a_value_that_the_database_cannot_hold_harms_nobody_either(
    path: Path, together: Together, value: object
) -> None:
    results = together([(ADD, row("before")), (ADD, row(value)), (ADD, row("after"))])
    assert results[0] is None
    assert isinstance(results[1], sqlite3.Error)
    assert results[2] is None
    assert ids(path) == {"before", "after"}


def test_on_a_full_disk_no_write_is_reported_as_done_that_is_not(
    path: Path, store: Store, together: Together
) -> None:
    """SQLite takes all of a transaction back when the disk is full, also what went well."""
    pages = query(path, "PRAGMA page_count")[0][0]
    store.write(f"PRAGMA max_page_count = {pages + 2}", ())
    names = ["small", "x" * 100_000, "small too"]
    results = together([(ADD, row(name)) for name in names])
    assert isinstance(results[1], sqlite3.Error)
    assert ids(path) == {name for name, error in zip(names, results, strict=True) if error is None}
    store.write(ADD, row("once there is space"))
    assert "once there is space" in ids(path)


def test_a_locked_database_fails_no_write_while_the_lock_is_short(together: Together) -> None:
    assert together([(ADD, row("1"))]) == [None]


WRITES = st.lists(
    st.one_of(
        st.integers(0, 5).map(lambda number: (ADD, row(str(number)))),
        st.sampled_from(
            [
                ("this is not SQL", ()),
                (ADD, (1, 2)),
                (ADD, row(2**70)),
                ("DELETE FROM runs WHERE id = ?", ("3",)),
                ("UPDATE runs SET port = NULL", ()),
            ]
        ),
    ),
    max_size=12,
)


@settings(max_examples=25)
@given(WRITES)
def test_after_any_writes_the_file_holds_what_a_plain_database_would(
    tmp_path: Path, writes: list[tuple[str, tuple[object, ...]]]
) -> None:
    path = tmp_path / "usage.db"
    path.unlink(missing_ok=True)
    plain = sqlite3.connect(":memory:", isolation_level=None)
    plain.executescript("".join(one for one in MIGRATIONS if isinstance(one, str)))
    store = Store(path)
    for statement, values in writes:
        expected = None
        try:
            plain.execute(statement, values)
        except (sqlite3.Error, OverflowError) as error:
            expected = error
        assert bool(outcome(lambda: store.write(statement, values))) == bool(expected)  # noqa: B023
    store.close()
    everything = "SELECT * FROM runs ORDER BY id"
    assert query(path, everything) == plain.execute(everything).fetchall()
    plain.close()


def test_close_writes_what_is_queued(
    path: Path, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    store = Store(path)
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(21) as threads:
        results = [threads.submit(store.write, ADD, row(str(number))) for number in range(20)]
        eventually(lambda: store._queue.qsize() >= 19)
        closing = threads.submit(store.close)
        blocker.execute("COMMIT")
        blocker.close()
        closing.result()
        for result in results:
            result.result()
    assert ids(path) == {str(number) for number in range(20)}


WRITER = """
import sys
from pathlib import Path
from manager.storage import runs
from manager.storage.rows import Run
from manager.storage.store import Store

store = Store(Path(sys.argv[1]))
for number in range(10**6):
    runs.begin(store, Run(str(number), "m", "s", "f", 1, None, None, number, None))
    print(number, flush=True)
"""


def test_what_was_written_survives_kill_9(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = [next(process.stdout) for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    told += process.stdout.readlines()
    process.stdout.close()
    process.wait()
    store = Store(path)
    found = {run.id for run in runs.unfinished(store)}
    store.close()
    assert {line.strip() for line in told if line.endswith("\n")} <= found


def test_all_who_wait_for_a_lock_are_told_when_the_first_of_them_is(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One after the other, each as long, the last would wait for minutes."""
    monkeypatch.setattr(store_module, "_BUSY_SECONDS", 0.5)
    store, other = Store(path), sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(20) as threads:
        refused = [
            threads.submit(outcome, functools.partial(store.write, ADD, row(f"{number}")))
            for number in range(20)
        ]
        assert all("locked" in str(one.result()) for one in refused)
    assert caplog.text.count("writes to") < 20
    other.close()
    store.close()


# --- the file ---------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_a_message_not_a_traceback(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"usage\.db cannot be used"):
        Store(tmp_path / "missing" / "usage.db")


def test_a_file_is_made_and_found_again_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "100% ?mode=ro#账单.db"
    for _ in range(2):
        store = Store(path)
        store.close()
    assert query(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]


LAUNCH = Launch(("docker", "stop", "m"), "/srv", {"HF_TOKEN": "hunter2"}, detached=True)


def test_what_stops_a_run_is_kept_until_its_end(path: Path) -> None:
    store = Store(path)
    for name in ("ended", "unseen", "runs"):
        runs.begin(store, a_run(name, launch=LAUNCH))
    ready = replace(LAUNCH, host="::1", listeners=("boot/1", "boot/2"))
    runs.record_launch(store, "runs", ready)
    runs.end(store, "ended", 2000, "idle")
    runs.end_unseen(store, "unseen", "found ended")
    assert runs.unfinished(store) == [a_run("runs", launch=ready)]
    runs.end(store, "runs", 2000, "idle")
    store.close()
    assert query(path, "SELECT DISTINCT launch FROM runs") == [(None,)]
    assert b"hunter2" not in path.read_bytes()  # nor in what is free in its pages


def test_nothing_is_recorded_of_a_run_that_is_as_usual(store: Store, path: Path) -> None:
    runs.begin(store, a_run())
    assert query(path, "SELECT launch FROM runs") == [(None,)]
    assert runs.unfinished(store) == [a_run()]
    assert "hunter2" not in repr(a_run(launch=LAUNCH))


def test_an_older_file_is_migrated_and_keeps_its_rows(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Store(path)
    runs.begin(old, a_run())
    old.close()
    further = ("ALTER TABLE runs ADD COLUMN a TEXT", "CREATE TABLE b (c); INSERT INTO b VALUES (7)")
    monkeypatch.setattr(store_module, "MIGRATIONS", MIGRATIONS + further)
    for _ in range(2):  # the second time there is nothing left to do
        new = Store(path)
        assert runs.unfinished(new) == [a_run()]
        new.close()
    assert query(path, "PRAGMA user_version") == [(len(MIGRATIONS) + 2,)]
    assert query(path, "SELECT a FROM runs") == [(None,)]
    assert query(path, "SELECT c FROM b") == [(7,)]


def test_a_migration_that_fails_half_way_leaves_the_file_at_its_old_version(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Store(path)
    runs.begin(old, a_run())
    old.close()
    schema = query(path, "SELECT sql FROM sqlite_master")
    half = ("CREATE TABLE extra (a); UPDATE runs SET model = 'x'; INSERT INTO nothing VALUES (1)",)
    monkeypatch.setattr(store_module, "MIGRATIONS", MIGRATIONS + half)
    with pytest.raises(StoreError, match="nothing"):
        Store(path)
    monkeypatch.undo()
    assert query(path, "SELECT sql FROM sqlite_master") == schema
    again = Store(path)
    assert runs.unfinished(again) == [a_run()]
    again.close()


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_file_of_a_newer_version_is_refused_and_stays_as_it_is(path: Path, journal: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA journal_mode = {journal}")
    connection.execute("CREATE TABLE tomorrow (a)")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"newer version.*schema {len(MIGRATIONS) + 1}"):
        Store(path)
    assert path.read_bytes() == before


def test_a_newer_version_that_was_killed_finds_its_file_as_it_left_it(path: Path) -> None:
    """Its last writes are in the file beside: they are not ours to move."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.execute("PRAGMA wal_checkpoint")
    connection.execute("CREATE TABLE tomorrow (a)")
    journal = path.with_name("usage.db-wal")
    killed = {file: file.read_bytes() for file in (path, journal)}
    connection.close()
    for file, content in killed.items():
        file.write_bytes(content)
    with pytest.raises(StoreError, match="newer version"):
        Store(path)
    assert {file: file.read_bytes() for file in killed} == killed


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"this is not a database",
        lambda _: b"\0" * 8192,
        lambda whole: b"\0" * 16 + whole[16:],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:50],
        lambda whole: whole[:100] + b"\xff" * 400 + whole[500:],
    ],
)
def test_a_damaged_file_is_refused_and_stays_as_it_is(
    path: Path, damage: Callable[[bytes], bytes]
) -> None:
    store = Store(path)
    for number in range(100):
        runs.begin(store, a_run(f"{number:0100}"))
    store.close()
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(StoreError, match="move it away or restore a backup"):
        Store(path)
    assert path.read_bytes() == damaged


def test_a_request_row_has_the_columns_of_its_table(tmp_path: Path) -> None:
    Store(tmp_path / "usage.db").close()
    columns = [name for _, name, *_ in query(tmp_path / "usage.db", "PRAGMA table_info(requests)")]
    assert tuple(columns) == ("seq", *RequestRow._fields)

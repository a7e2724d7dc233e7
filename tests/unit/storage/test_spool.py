"""Rows of requests on their way to usage.db: none is lost, none is there twice."""

from __future__ import annotations

import errno
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from manager.storage import spool as spool_module
from manager.storage import store as store_module
from manager.storage.rows import RequestRow
from manager.storage.spool import Spool
from manager.storage.store import Store, StoreError
from tests.support.servers import PATIENCE
from tests.support.usage_rows import a_request, query

Eventually = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "usage.db")
    yield store
    store.close()


@pytest.fixture
def spool(tmp_path: Path, store: Store) -> Iterator[Spool]:
    spool = Spool(tmp_path, store.add_requests)
    yield spool
    spool.close()


def ids(folder: Path) -> list[bytes]:
    return [number for (number,) in query(folder / "usage.db", "SELECT id FROM requests")]


def left(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("requests-?.jsonl")))


def test_a_row_comes_to_the_database_as_it_was_and_its_file_is_emptied(
    tmp_path: Path, spool: Spool, eventually: Eventually
) -> None:
    row = a_request(
        model="通义 \"q\", 'x'\r\n=1",
        asked_for="\t",
        error="\u2028 broken\n",
        first_byte_ms=None,
        leased_ms=None,
        streamed=True,
        estimated=True,
    )
    spool.add(row)
    eventually(lambda: ids(tmp_path))
    columns = ", ".join(RequestRow._fields)
    assert query(tmp_path / "usage.db", f"SELECT {columns} FROM requests") == [tuple(row)]
    eventually(lambda: left(tmp_path) == b"")


def test_many_threads_add_at_once_and_each_row_is_there_once(tmp_path: Path, store: Store) -> None:
    spool = Spool(tmp_path, store.add_requests)
    rows = [a_request() for _ in range(3000)]
    with ThreadPoolExecutor(30) as threads:
        list(threads.map(spool.add, rows))
    spool.close()
    assert sorted(ids(tmp_path)) == sorted(row.id for row in rows)
    assert left(tmp_path) == b""


def test_after_a_flush_the_database_has_all_that_was_added_before(
    tmp_path: Path, spool: Spool
) -> None:
    assert spool.flush(PATIENCE)  # of nothing
    for _ in range(5):
        rows = [a_request() for _ in range(40)]
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(spool.add, rows))
        assert spool.flush(PATIENCE)
        assert {row.id for row in rows} <= set(ids(tmp_path))


@pytest.mark.parametrize("failing", [{1}, {2}, {1, 3}, {2, 4, 5}])
def test_a_flush_waits_until_rows_that_were_refused_are_committed(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    """In both files: one is emptied and takes none while the other takes what is new."""
    monkeypatch.setattr(spool_module, "_AGAIN_SECONDS", 0.01)
    commits = itertools.count(1)
    added: list[RequestRow] = [a_request()]

    def commit(rows: Sequence[RequestRow]) -> None:
        if next(commits) in failing:
            spool.add(row := a_request())
            added.append(row)
            raise sqlite3.OperationalError("database is locked")
        store.add_requests(rows)

    spool = Spool(tmp_path, commit)
    spool.add(added[0])
    assert spool.flush(PATIENCE)
    assert {row.id for row in added[:1]} <= set(ids(tmp_path))
    assert spool.flush(PATIENCE)
    assert {row.id for row in added} == set(ids(tmp_path))
    spool.close()


def test_a_flush_that_the_database_refuses_says_so_in_time(tmp_path: Path) -> None:
    def refuse(_rows: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    spool = Spool(tmp_path, refuse)
    spool.add(a_request())
    assert not spool.flush(0.05)
    spool.close()
    assert not spool.flush(PATIENCE)  # nor does it wait for what has ended


def test_rows_of_a_dead_program_are_there_once_and_half_a_row_harms_none(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    rows = [a_request() for _ in range(6)]
    lines = [spool_module._line(row) for row in rows]
    store.add_requests(rows[:2])  # it died between the commit and emptying the file
    (tmp_path / "requests-0.jsonl").write_bytes(lines[0] + lines[1] + lines[2][:-30])
    damaged = lines[5].replace(b'"Chat"', b'{"Chat": 1}')
    (tmp_path / "requests-1.jsonl").write_bytes(
        lines[3] + b"\n[]\n{}\n7\n\x00\xff\n" + damaged + lines[4]
    )
    spool = Spool(tmp_path, store.add_requests)
    eventually(lambda: len(ids(tmp_path)) == 4)  # with nothing that is new
    spool.add(rows[5])
    spool.close()
    assert sorted(ids(tmp_path)) == sorted(rows[place].id for place in (0, 1, 3, 4, 5))
    assert caplog.text.count("half a row") == 6
    assert left(tmp_path) == b""


def test_while_the_database_is_locked_rows_wait_in_the_file_and_nobody_for_them(
    tmp_path: Path,
    spool: Spool,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(store_module, "_BUSY_SECONDS", 0.05)
    monkeypatch.setattr(spool_module, "_AGAIN_SECONDS", 0.01)
    other = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(spool_module, "_MAX_HELD", 1000)
    rows = [a_request() for _ in range(1500)]  # more than a group, and than is held
    for row in rows[:700]:
        spool.add(row)
    eventually(lambda: "wait for the database: database is locked" in caplog.text)
    for row in rows[700:]:
        spool.add(row)
    assert left(tmp_path).count(b"[") == 1500
    assert ids(tmp_path) == []
    other.execute("ROLLBACK")
    other.close()
    eventually(lambda: len(ids(tmp_path)) == 1500)
    assert sorted(ids(tmp_path)) == sorted(row.id for row in rows)
    eventually(lambda: left(tmp_path) == b"")
    assert caplog.text.count("wait for the database") == 1


def test_what_the_database_does_not_take_at_the_end_is_for_the_next_program(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_BUSY_SECONDS", 0.05)
    other = sqlite3.connect(tmp_path / "usage.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    row = a_request()
    spool = Spool(tmp_path, store.add_requests)
    spool.add(row)
    spool.close()
    other.close()
    assert ids(tmp_path) == []
    Spool(tmp_path, store.add_requests).close()
    assert ids(tmp_path) == [row.id]


@pytest.mark.parametrize("taken", [0, 100])
def test_a_row_that_the_disk_has_no_room_for_is_kept_until_it_has(
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    taken: int,
) -> None:
    """A full disk takes a part of a line, or nothing."""
    write = os.write

    def full(file: int, data: bytes) -> int:
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:taken])

    spool = Spool(tmp_path, store.add_requests)
    rows = [a_request() for _ in range(3)]
    spool.add(rows[0])
    monkeypatch.setattr(os, "write", full)
    spool.add(rows[1])
    monkeypatch.undo()
    spool.add(rows[2])
    spool.close()
    assert sorted(ids(tmp_path)) == sorted(row.id for row in rows)
    assert "was not written and is kept" in caplog.text
    assert repr(rows[1]) in caplog.text  # who ends it now can still find it there


def test_a_request_that_ends_after_all_else_has_its_row_in_the_next_program(
    tmp_path: Path, store: Store
) -> None:
    spool = Spool(tmp_path, store.add_requests)
    spool.close()
    row = a_request()
    spool.add(row)
    assert ids(tmp_path) == []
    Spool(tmp_path, store.add_requests).close()
    assert ids(tmp_path) == [row.id]


def test_a_row_that_no_database_can_hold_keeps_no_other_back(
    tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, store.add_requests)
    fine = [a_request() for _ in range(2)]
    for row in (fine[0], a_request(model="half a character: \ud800"), fine[1]):
        spool.add(row)
    spool.close()
    assert sorted(ids(tmp_path)) == sorted(row.id for row in fine)
    assert "cannot be written" in caplog.text


def test_a_folder_that_is_not_there_is_a_message_not_a_traceback(
    tmp_path: Path, store: Store
) -> None:
    with pytest.raises(StoreError, match="cannot be kept in"):
        Spool(tmp_path / "missing", store.add_requests)

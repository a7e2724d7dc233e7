"""A backup is the whole database as it was at one moment, made while the program serves."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from manager.storage import Launch, Run, maintenance, runs
from manager.storage.store import Store, StoreError
from tests.support.usage_rows import NOON, a_request, add_price, add_request, one

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "usage.db")
    add_price(store)
    yield store
    store.close()


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "commands", "backup", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_copy_has_no_variable_of_a_running_model(tmp_path: Path, store: Store) -> None:
    launch = Launch(("docker", "stop", "m"), "/srv", {"HF_TOKEN": "hunter2" * 3000})
    for name in ("small", "large"):
        runs.begin(store, Run(name, "m", "s", "f", 1, None, None, NOON, None, launch=launch))
        launch = replace(launch, env={"HF_TOKEN": "hunter2"})
    maintenance.backup(store.path, tmp_path / "copy.db")
    assert b"hunter2" not in (tmp_path / "copy.db").read_bytes()
    assert len(runs.unfinished(store)) == 2
    copy = Store(tmp_path / "copy.db")
    assert [run.launch for run in runs.unfinished(copy)] == [Launch(), Launch()]
    copy.close()


def test_a_database_of_an_earlier_version_can_be_copied(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "old.db")) as old:
        old.executescript((ROOT / "tests/integration/storage/schema4.sql").read_text())
    assert maintenance.backup(tmp_path / "old.db", tmp_path / "copy.db")


def test_it_works_while_rows_come_in_and_opens_like_the_original(
    tmp_path: Path, store: Store
) -> None:
    for number in range(500):
        add_request(store, a_request(NOON + number))
    stop = threading.Event()

    def serve() -> None:
        number = 500
        while not stop.is_set():
            add_request(store, a_request(NOON + number))
            number += 1

    serving = threading.Thread(target=serve)
    serving.start()
    try:
        done = command(tmp_path / "copy.db", "--data-dir", tmp_path)
    finally:
        stop.set()
        serving.join()
    assert done.returncode == 0, done.stderr
    assert "copy.db" in done.stdout
    copied = one(tmp_path / "copy.db", "SELECT count(*) FROM requests")
    assert 500 <= copied <= one(tmp_path / "usage.db", "SELECT count(*) FROM requests")
    restored = Store(tmp_path / "copy.db")  # the program starts on it
    add_request(restored, a_request())
    restored.close()
    assert one(tmp_path / "copy.db", "SELECT count(*) FROM requests") == copied + 1


@pytest.mark.usefixtures("store")
def test_an_earlier_copy_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    maintenance.backup(tmp_path / "usage.db", copy)
    before = copy.read_bytes()
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(before[:4096] + b"\xff" * 8192 + before[12288:])
    with pytest.raises(StoreError, match=r"copied|damaged"):
        maintenance.backup(damaged, copy)
    assert copy.read_bytes() == before
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.usefixtures("store")
def test_the_database_is_not_replaced_by_its_own_copy(tmp_path: Path) -> None:
    done = command(tmp_path / "usage.db", "--data-dir", tmp_path)
    assert done.returncode == 1
    assert "is the database itself" in done.stderr


def test_a_folder_without_a_database_is_told(tmp_path: Path) -> None:
    done = command(tmp_path / "copy.db", "--data-dir", tmp_path)
    assert done.returncode == 1
    assert "usage.db is missing" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("store")
def test_a_folder_that_is_no_target_is_told(tmp_path: Path) -> None:
    done = command(tmp_path, "--data-dir", tmp_path)
    assert done.returncode == 1
    assert "is a folder" in done.stderr
    missing = command(tmp_path / "no" / "copy.db", "--data-dir", tmp_path)
    assert missing.returncode == 1
    assert "cannot be copied" in missing.stderr

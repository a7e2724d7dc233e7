"""`python -m bench.billing`: how fast the worker prices requests and adds them up.

It makes a usage.db with requests of two months in a scratch folder, then does what the worker
does with them, while another process measures how long the server's own rows would wait for the
lock that every write needs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from datetime import tzinfo
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

from bench import usage_rows
from jobs import billing, rezone, run_hours
from manager.billing import calendar
from manager.storage import maintenance
from manager.storage.store import Store

_EVERY_SECONDS = 0.01  # a lock is asked for


def ask_for_lock(path: Path, until: Event, waits: Connection) -> None:
    """Takes the lock as the server does for a row, and gives it back, until told to stop; then
    sends how many seconds each took."""
    took = []
    with closing(Store(path)) as store:
        while not until.wait(_EVERY_SECONDS):
            began = time.perf_counter()
            store.transact(lambda _connection: None)
            took.append(time.perf_counter() - began)
    waits.send(took)


def measure(what: str, path: Path, work: Callable[[], int]) -> None:
    """``work`` says how many it has done."""
    mine, others = multiprocessing.Pipe()
    done = multiprocessing.Event()
    asker = multiprocessing.Process(target=ask_for_lock, args=(path, done, others))
    asker.start()
    began, cpu = time.perf_counter(), time.process_time()
    count = work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    done.set()
    waits = sorted(mine.recv())
    asker.join()
    print(
        f"{what}: {count:,} in {seconds:.1f} s, {count / seconds:,.0f} a second"
        f" ({count / cpu:,.0f} a second of CPU); a row would wait"
        f" {statistics.median(waits) * 1000:.1f} ms at p50,"
        f" {waits[int(len(waits) * 0.99)] * 1000:.1f} at p99, {waits[-1] * 1000:.1f} at most",
        flush=True,
    )


def price_all(connection: sqlite3.Connection, zone: tzinfo) -> int:
    done = 0
    while count := billing.price_new(connection, zone):
        done += count
    return done


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.billing", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=usage_rows.DAYS)
    parser.add_argument("--rebuild", action="store_true", help="then change the time zone")
    given = parser.parse_args()
    zone = calendar.zone("Asia/Shanghai")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "usage.db"
        began = time.perf_counter()
        usage_rows.fill(path, given.rows, zone, rolled_up=False, days=given.days)
        print(f"made {given.rows:,} requests in {time.perf_counter() - began:.1f} s", flush=True)
        with closing(maintenance.connect(path)) as connection:
            measure("priced and added up", path, lambda: price_all(connection, zone))
            later = usage_rows.START_MS * 2
            measure("runs billed", path, lambda: run_hours.bill_runs(connection, zone, later))
            if given.rebuild:
                measure(
                    "moved to another time zone",
                    path,
                    lambda: given.rows * rezone.rebuild(connection, calendar.zone("Asia/Kolkata")),
                )
            for table in ("requests", "rollups", "latencies", "run_hours"):
                (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
                print(f"{table}: {count:,} rows")
        print(f"{path.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()

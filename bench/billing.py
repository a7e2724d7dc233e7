"""`python -m bench.billing`: how fast the worker prices requests and adds them up.

It makes a usage.db with requests of two months in a scratch folder, then does what the worker
does with them, while it measures how long each transaction keeps the lock that the server's own
rows wait for.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from bench import usage_rows
from jobs import billing
from manager import calendar


class Timed(sqlite3.Connection):
    """Notes how long its write transactions take."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: list[float] = []
        self._began = 0.0

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        result = super().execute(statement, *values)
        if statement.startswith("BEGIN"):
            self._began = time.perf_counter()
        elif statement in ("COMMIT", "ROLLBACK"):
            self.held.append(time.perf_counter() - self._began)
        return result


def connect(path: Path) -> Timed:
    connection = sqlite3.connect(path, isolation_level=None, timeout=10, factory=Timed)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def report(what: str, rows: int, seconds: float, held: list[float]) -> None:
    ordered = sorted(held)
    print(
        f"{what}: {rows:,} in {seconds:.1f} s, {rows / seconds:,.0f} a second; the lock was held"
        f" {statistics.median(ordered) * 1000:.1f} ms at p50,"
        f" {ordered[int(len(ordered) * 0.99)] * 1000:.1f} at p99, {ordered[-1] * 1000:.1f} at most",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.billing", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=billing.BATCH, help="rows in one transaction")
    parser.add_argument("--rebuild", action="store_true", help="then change the time zone")
    given = parser.parse_args()
    zone = calendar.zone("Asia/Shanghai")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "usage.db"
        began = time.perf_counter()
        usage_rows.fill(path, given.rows, zone, rolled_up=False)
        print(f"made {given.rows:,} requests in {time.perf_counter() - began:.1f} s", flush=True)
        with closing(connect(path)) as connection:
            connection.held.clear()
            began = time.perf_counter()
            done = 0
            while count := billing.price_new(connection, zone, given.batch):
                done += count
            report("priced and added up", done, time.perf_counter() - began, connection.held)
            connection.held.clear()
            began = time.perf_counter()
            runs = billing.bill_runs(connection, zone, usage_rows.START_MS * 2)
            report("runs billed", runs, time.perf_counter() - began, connection.held)
            if given.rebuild:
                connection.held.clear()
                began = time.perf_counter()
                billing.rebuild(connection, calendar.zone("Asia/Kolkata"))
                seconds = time.perf_counter() - began
                report("moved to another time zone", done, seconds, connection.held)
            for table in ("requests", "rollups", "latencies", "run_hours"):
                (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
                print(f"{table}: {count:,} rows")
        print(f"{path.stat().st_size / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()

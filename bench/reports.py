"""`python -m bench.reports --rows 10000000`: how long a report takes with so many requests.

It makes a usage.db with requests of two months (minutes for ten million; with `--keep FILE` it is
kept, and used as it is the next time), then asks for what pages ask for: each figure is the median
and the longest of several times, the first of which finds nothing in SQLite's own memory.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from bench import usage_rows
from manager.billing import calendar, statements
from manager.billing.statements import Period
from manager.storage.store import reading
from manager.usage.reports import Reports
from manager.usage.request_search import EVERYTHING, GROUPS, Filters, Search

SUMMARY_MS, PAGE_MS, BILL_MS = 50, 20, 5000
TIMES = 9
PAGE = 100
ZONE = calendar.zone("UTC")


def main() -> int:
    arguments = _arguments()
    with _database(arguments.rows, arguments.keep) as path:
        before = _memory_mb()
        period = Period.read("2026-09")

        def bill() -> bytes:
            with reading(path) as connection:
                return statements.make(connection, period, ZONE, "CNY")

        print(f"{arguments.rows:,} requests, usage.db has {path.stat().st_size / 1e6:,.0f} MB\n")
        slow = [
            what for what, ask, limit in _questions(Reports(path)) if not _measure(what, ask, limit)
        ]
        print(f"\nmemory before: {before:.0f} MB, after: {_memory_mb():.0f} MB")
        # The worker makes it.
        slow += [] if _measure("bill of a month", bill, BILL_MS) else ["bill of a month"]
    print(f"too slow: {', '.join(slow)}" if slow else "all within their limits")
    return 1 if slow else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.reports", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="the database, made if missing")
    return parser.parse_args()


@contextlib.contextmanager
def _database(rows: int, keep: Path | None) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = keep or Path(folder) / "usage.db"
        if not path.exists():
            usage_rows.fill(path, rows, ZONE)
        yield path


def _questions(reports: Reports) -> Iterator[tuple[str, Callable[[], object], float]]:
    """What is asked, how, and the milliseconds that it may take."""
    start = usage_rows.START_MS
    end = calendar.next_month_ms(start, ZONE)
    last = start + usage_rows.DAYS * 24 * calendar.HOUR_MS
    (model, *_), key = reports.models(), "key-1"
    for what, filters in (
        ("", EVERYTHING),
        (" of a model", Filters(model=model)),
        (" of a key", Filters(key=key)),
        (" of a mode", Filters(mode="Embedding")),
        (" of a model and a key", Filters(model=model, key=key)),
    ):
        yield (
            f"summary of a month{what}",
            lambda filters=filters: reports.summary(start, end, ZONE, filters),
            SUMMARY_MS,
        )
        yield (
            f"series of a month{what}",
            lambda filters=filters: reports.series(start, end, ZONE, filters),
            SUMMARY_MS,
        )
    for group in GROUPS:
        yield (
            f"summary of a month by {group}",
            lambda group=group: reports.summary(start, end, ZONE, group=group),
            SUMMARY_MS,
        )
        yield (
            f"series of a month by {group}",
            lambda group=group: reports.series(start, end, ZONE, group=group),
            SUMMARY_MS,
        )
    yield (
        "summary of a month, from noon to noon",
        lambda: reports.summary(start + 12 * calendar.HOUR_MS, end - 12 * calendar.HOUR_MS, ZONE),
        SUMMARY_MS,
    )
    for what, filters, search in (
        ("", EVERYTHING, Search()),
        (" of a model", Filters(model=model), Search()),
        (" of a key", Filters(key=key), Search()),
        (" of a mode", Filters(mode="Embedding"), Search()),
        (" of a model and a key", Filters(model=model, key=key), Search()),
        (" that failed", EVERYTHING, Search(failed=True)),
        (" that failed, of a model", Filters(model=model), Search(failed=True)),
        (" with a text that none has", EVERYTHING, Search(text="no such text")),
    ):
        for where, at_ms in (
            ("first", last),
            ("middle", (start + last) // 2),
            ("last", start + calendar.HOUR_MS // 10),
        ):
            before = at_ms.to_bytes(6, "big") + bytes(10)
            yield (
                f"{where} page of requests{what}",
                lambda filters=filters, search=search, before=before: reports.requests(
                    filters, search, PAGE, before
                ),
                PAGE_MS,
            )


def _measure(what: str, ask: Callable[[], object], limit: float) -> bool:
    """Whether it took no longer than its limit, at the median."""
    took = []
    for _ in range(TIMES):
        began = time.perf_counter()
        ask()
        took.append((time.perf_counter() - began) * 1000)
    median = statistics.median(took)
    print(f"{what:50} {median:8.1f} ms, at most {max(took):8.1f} (limit {limit})", flush=True)
    return median <= limit


def _memory_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


if __name__ == "__main__":
    sys.exit(main())

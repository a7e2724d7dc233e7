"""`python -m bench.storage --rows 1000000`: usage.db with many requests.

It writes requests of two months as the program does, has the worker's functions price them and
add them up, and then asks for reports and a bill. While the worker works, another process takes
the write lock as the server does for its rows, and measures how long that takes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from jobs import billing, run_hours
from manager.billing import calendar, statements
from manager.billing.price_versions import PriceBook
from manager.billing.pricing import Price, Tier
from manager.clock import Clock
from manager.storage import maintenance, runs
from manager.storage.rows import RequestRow, Run, uuid7
from manager.storage.store import Store, read_connection
from manager.usage.reports import Reports
from manager.usage.request_search import GROUPS, Filters, RequestFilter

MODELS, KEYS, DAYS = 50, 20, 60
START_MS = 1_788_220_800_000  # 2026-09-01 in UTC
ZONE = calendar.zone("UTC")
BATCH = 1000  # rows that are written together
TIMES = 9  # that each report is asked for
SUMMARY_MS, PAGE_MS, BILL_MS = 50, 20, 5000  # medians that are asked for
PRICE = Price(
    500_000_000,
    (
        Tier(0, 32000, 0, -1, 2_400_000_000, 9_600_000_000, 240_000_000, 600_000_000, True),
        Tier(32000, -1, 0, -1, 4_800_000_000, 14_400_000_000, 0, 0, False),
    ),
)


def name_of(number: int) -> str:
    return f"model-{number:02}"


def mode_of(number: int) -> tuple[str, str]:
    return ("Embedding", "/v1/embeddings") if number % 5 == 4 else ("Chat", "/v1/chat/completions")


def requests(count: int, days: int) -> Iterator[RequestRow]:
    """In the order of time, the same each time: few models and keys have most of them."""
    dice = random.Random(1)
    step = days * 24 * calendar.HOUR_MS / count
    for number in range(count):
        started = START_MS + int(number * step)
        model = int(MODELS * dice.random() ** 3)
        mode, endpoint = mode_of(model)
        failed = dice.random() < 0.02
        prompt = min(200_000, int(dice.lognormvariate(6.5, 1.4)) + 1)
        completion = min(16_000, int(dice.lognormvariate(5.3, 1.0)) + 1)
        first = started + int(dice.lognormvariate(5.5, 0.8))
        yield RequestRow(
            id=uuid7(started),
            model=name_of(model),
            asked_for=name_of(model),
            mode=mode,
            scheme="two-cards" if model % 3 == 2 else "one-card",
            key=f"key-{int(KEYS * dice.random() ** 3)}",
            endpoint=endpoint,
            streamed=dice.random() < 0.7,
            status=502 if failed else 200,
            started_ms=started,
            leased_ms=started,
            first_byte_ms=None if failed else first,
            ended_ms=first if failed else first + completion * dice.randrange(8, 30),
            prompt_tokens=0 if failed else prompt,
            cached_tokens=0 if failed or dice.random() < 0.6 else int(prompt * dice.random()),
            completion_tokens=0 if failed else completion,
            estimated=False,
            error="upstream_error" if failed else None,
        )


def add_prices_and_runs(store: Store, path: Path, days: int) -> int:
    """A price of each model, and a run of it for each day. Returns how many runs."""
    prices = PriceBook(store, path, Clock())
    for number in range(MODELS):
        prices.set_price(name_of(number), PRICE, 0)
    for number in range(MODELS * days):
        model, day = number % MODELS, number // MODELS
        ready = START_MS + day * 24 * calendar.HOUR_MS + model * 60_000
        run = uuid7(ready).hex()
        mode, _ = mode_of(model)
        runs.begin(store, Run(run, name_of(model), "one-card", "", 0, 1, 0.0, ready, None, mode))
        runs.ready(store, run, ready, 1, 0.0)
        runs.end(store, run, ready + 20 * calendar.HOUR_MS, "idle")
    return MODELS * days


def ask_for_lock(path: Path, stop: Connection) -> None:
    """Sends the seconds that each write took, once it is asked to stop."""
    took: list[float] = []
    with closing(Store(path)) as store:
        while not took or not stop.poll(0.01):
            began = time.perf_counter()
            store.transact(lambda _connection: None)
            took.append(time.perf_counter() - began)
    stop.send(took)


def report_rate(what: str, path: Path, work: Callable[[], int]) -> None:
    """Prints how many ``work`` has done a second, and how long others waited for the lock."""
    ours, theirs = multiprocessing.Pipe()
    other = multiprocessing.Process(target=ask_for_lock, args=(path, theirs))
    other.start()
    began = time.perf_counter()
    count = work()
    seconds = time.perf_counter() - began
    ours.send(None)
    waits = sorted(ours.recv())
    other.join()
    p50, p99 = (waits[int(share * (len(waits) - 1))] * 1000 for share in (0.5, 0.99))
    print(
        f"{what}: {count / seconds:,.0f} a second; a row waits for the lock"
        f" {p50:.1f} ms at p50, {p99:.1f} at p99, {waits[-1] * 1000:.1f} at most",
        flush=True,
    )


def write_all(path: Path, rows: int, days: int) -> int:
    with closing(Store(path)) as store:
        batch = []
        for row in requests(rows, days):
            batch.append(row)
            if len(batch) == BATCH:
                store.add_requests(batch)
                batch = []
        store.add_requests(batch)
    return rows


def fill(path: Path, rows: int, days: int) -> None:
    with closing(Store(path)) as store:
        runs = add_prices_and_runs(store, path, days)
    report_rate("rows written", path, lambda: write_all(path, rows, days))
    with closing(maintenance.connect(path)) as connection:

        def price_all() -> int:
            while billing.price_new(connection):
                pass
            return rows

        def bill_all() -> int:
            run_hours.bill_runs(connection, START_MS * 2)
            return runs

        report_rate("requests priced and added up", path, price_all)
        report_rate("runs billed", path, bill_all)


def questions(path: Path, days: int) -> Iterator[tuple[str, Callable[[], object], float]]:
    """What is asked, how, and the milliseconds that it may take."""
    reports = Reports(path)
    start, end = START_MS, calendar.next_month_ms(START_MS, ZONE)
    last = START_MS + days * 24 * calendar.HOUR_MS
    model, key = name_of(0), "key-1"
    for report in (reports.summary, reports.series):
        name = f"{report.__name__} of a month"
        for filters in (Filters(), Filters(model=model), Filters(model=model, key=key)):
            chosen = " and ".join(filter(None, (filters.model, filters.key)))
            yield (
                f"{name} {chosen}".rstrip(),
                lambda report=report, filters=filters: report(start, end, ZONE, filters),
                SUMMARY_MS,
            )
        for group in GROUPS:
            yield (
                f"{name} by {group}",
                lambda report=report, group=group: report(start, end, ZONE, group=group),
                SUMMARY_MS,
            )
    for what, filters, search in (
        ("", Filters(), RequestFilter()),
        (f" of {model} and {key}", Filters(model=model, key=key), RequestFilter()),
        (" that failed", Filters(), RequestFilter(failed=True)),
        (" with a text that none has", Filters(), RequestFilter(text="no such text")),
    ):
        for where, at_ms in (("last", last), ("middle", (start + last) // 2)):
            before = at_ms.to_bytes(6, "big") + bytes(10)
            yield (
                f"{where} page of requests{what}",
                lambda filters=filters, search=search, before=before: reports.requests(
                    filters, search, 100, before
                ),
                PAGE_MS,
            )

    def bill() -> bytes:
        with read_connection(path) as connection:
            return statements.render_csv(
                connection, statements.Period.parse("2026-09"), ZONE, "CNY"
            )

    yield "bill of a month", bill, BILL_MS


def is_fast(what: str, ask: Callable[[], object], limit: float) -> bool:
    """Whether the median is within the limit. The first time finds nothing in memory."""
    took = []
    for _ in range(TIMES):
        began = time.perf_counter()
        ask()
        took.append((time.perf_counter() - began) * 1000)
    median = statistics.median(took)
    print(f"{what:50} {median:8.1f} ms, at most {max(took):8.1f} (limit {limit})", flush=True)
    return median <= limit


def main() -> int:
    """1 where a report is over its limit."""
    parser = argparse.ArgumentParser(prog="python -m bench.storage", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--keep", type=Path, metavar="FILE", help="the database, made if missing")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.keep or Path(folder) / "usage.db"
        if not path.exists():
            fill(path, given.rows, given.days)
        print(f"usage.db: {path.stat().st_size / 1e6:,.0f} MB\n")
        slow = [each[0] for each in questions(path, given.days) if not is_fast(*each)]
    print(f"\ntoo slow: {', '.join(slow)}" if slow else "\nall within their limits")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

"""Reports: what they add up is what the rows say, and pages show each request once."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import tzinfo
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import billing, run_hours
from manager.billing import calendar
from manager.billing.price_versions import PriceBook
from manager.billing.pricing import Price, Tier
from manager.clock import Clock
from manager.storage import latency, maintenance, runs
from manager.storage.rollups import spread
from manager.storage.rows import RequestRow, Run, uuid7
from manager.storage.store import read_connection
from manager.usage import request_search
from manager.usage.reports import MAX_BUCKETS, Reports, Series, TooManyBuckets
from manager.usage.request_search import Filters, RequestFilter
from manager.usage.totals import Totals, TotalsQuery
from tests.support.usage_rows import new_store

HOUR, DAY = calendar.HOUR_MS, 24 * calendar.HOUR_MS
UTC = calendar.zone("UTC")
# Days on which the clock is set, by an hour and by half of one, and a zone that is never whole.
ZONES = [
    ("UTC", 1_792_886_400_000),
    ("Europe/Berlin", 1_792_886_400_000),
    ("Australia/Lord_Howe", 1_791_072_000_000),
    ("Asia/Kathmandu", 1_792_886_400_000),
]
MODELS = ["m", "", '通义 "千问", \'; --', "=1+1"]
COLUMNS = ["model", "key", "mode", "scheme"]


def a_row(at_ms: int, **changes: Any) -> RequestRow:
    row = RequestRow(
        *(uuid7(at_ms), "m", "m", "Chat", "gpu", "", "/v1/chat/completions", True, 200),
        *(at_ms, at_ms + 1, at_ms + 20, at_ms + 120, 100, 40, 50, False, None),
    )
    return row._replace(**changes)


class Books:
    """A database, what writes it, and what reads it."""

    def __init__(self, path: Path, zone: tzinfo = UTC) -> None:
        self.path = path
        self.zone = zone
        self.store = new_store(path)
        self.prices = PriceBook(self.store, path, Clock(wall=lambda: 1.0))
        self.reports = Reports(path)

    def add(self, *rows: RequestRow) -> None:
        self.store.add_requests(rows)

    def run(self, number: int, start_ms: int, end_ms: int, model: str) -> None:
        run = Run(f"run {number}", model, "gpu", "f", 1, None, None, start_ms, None, "Chat")
        runs.begin(self.store, run)
        runs.ready(self.store, run.id, start_ms, 1, 1.0)
        runs.end(self.store, run.id, end_ms, "idle")

    def bill(self) -> None:
        with closing(maintenance.connect(self.path)) as connection:
            while billing.price_new(connection):
                pass
            run_hours.bill_runs(connection, 2**47)

    def query(self, statement: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection:
            connection.row_factory = sqlite3.Row
            return connection.execute(statement, values).fetchall()


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(tmp_path / "usage.db")
    yield books
    books.store.close()


# --- sums -------------------------------------------------------------------------------


def is_wanted(filters: Filters, **has: object) -> bool:
    wanted = {name: value for name, value in vars(filters).items() if value is not None}
    return wanted.items() <= has.items()


def of_requests(books: Books, start_ms: int, end_ms: int, filters: Filters) -> Totals:
    """The sums of requests from the rows, one by one."""
    totals = Totals()
    marks = dict(map(tuple, books.query("SELECT name, value FROM marks")))
    billed_seq = int(marks.get("billed_seq", 0))
    for row in books.query("SELECT * FROM requests"):
        if not (
            start_ms <= row["started_ms"] < end_ms
            and is_wanted(filters, **{c: row[c] for c in COLUMNS})
        ):
            continue
        totals.requests += 1
        totals.errors += row["status"] >= 400
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "estimated"):
            setattr(totals, name, getattr(totals, name) + row[name])
        totals.pending += row["cost"] is None
        totals.cost_tokens += row["cost"] or 0
        has_tokens = row["prompt_tokens"] + row["completion_tokens"] > 0
        if row["seq"] <= billed_seq and has_tokens and row["tier"] is None:
            totals.unpriced += 1
        totals.whole += latency.histogram(row["ended_ms"] - row["started_ms"])
        if row["first_byte_ms"] is not None:
            totals.first_byte += latency.histogram(row["first_byte_ms"] - row["started_ms"])
            if row["streamed"]:
                totals.generated_tokens += row["completion_tokens"]
                totals.generated_ms += max(row["ended_ms"] - row["first_byte_ms"], 0)
    return totals


def summed(books: Books, start_ms: int, end_ms: int, filters: Filters) -> Totals:
    """The same, and of runs and adjustments."""
    totals = of_requests(books, start_ms, end_ms, filters)
    for row in books.query(
        "SELECT hour_ms, ms, cost, ready_ms, model, mode, scheme"
        " FROM run_hours JOIN runs ON runs.id = run"
    ):
        if is_wanted(filters, model=row["model"], key="", mode=row["mode"], scheme=row["scheme"]):
            # One price an hour: the time begins with the hour, or with the run in it.
            begin_ms = max(row["hour_ms"], row["ready_ms"])
            for quarter_ms, ms, cost in spread(begin_ms, row["ms"], row["cost"]):
                if start_ms <= quarter_ms < end_ms:
                    totals.run_ms += ms
                    totals.cost_hours += cost
    for row in books.query("SELECT * FROM adjustments"):
        if start_ms <= row["at_ms"] < end_ms and is_wanted(
            filters, model=row["model"], key=row["key"], mode="", scheme=""
        ):
            totals.adjustments += row["amount"]
    return totals


# Around the borders of some hours and days, where mistakes are.
OFFSETS = st.builds(
    lambda halves, ms: halves * HOUR // 2 + ms,
    st.sampled_from([-60, -49, -48, -46, -2, -1, 0, 1, 2, 3, 4, 7, 47, 48, 49, 50, 96, 119, 120]),
    st.integers(-1, 1),
)
# The same of some minutes and of a few times ten seconds.
SHORT_OFFSETS = st.builds(
    lambda fives, ms: fives * 5_000 + ms,
    st.sampled_from([-25, -24, -13, -12, -3, -2, -1, 0, 1, 2, 3, 11, 12, 13, 23, 24, 25]),
    st.integers(-1, 1),
)
FIELDS = st.builds(
    lambda **fields: fields,
    model=st.sampled_from(MODELS),
    key=st.sampled_from(["", "kim"]),
    mode=st.sampled_from(["Chat", "Base"]),
    scheme=st.sampled_from(["", "gpu"]),
    status=st.sampled_from([200, 499, 503]),
    streamed=st.booleans(),
    first=st.none() | st.integers(-5, 10**6),
    took=st.integers(-5, 10**8),
    prompt_tokens=st.sampled_from([0, 1, 999, 2**31 - 1]),
    completion_tokens=st.sampled_from([0, 7, 2**31 - 1]),
    estimated=st.booleans(),
)
ROWS = st.tuples(OFFSETS, FIELDS)
SHORT_ROWS = st.tuples(SHORT_OFFSETS, FIELDS)
RUNS = st.tuples(OFFSETS, st.integers(0, 40 * HOUR), st.sampled_from(MODELS))
ADJUSTMENTS = st.tuples(
    OFFSETS, st.sampled_from(MODELS), st.sampled_from(["", "kim"]), st.integers(-(10**15), 10**15)
)
FILTERS = st.one_of(
    st.just(Filters()),
    st.builds(Filters, model=st.sampled_from(MODELS)),
    st.builds(Filters, key=st.sampled_from(["", "kim"])),
    st.builds(
        Filters,
        model=st.none() | st.sampled_from(MODELS),
        key=st.none() | st.sampled_from(["", "kim", "nobody's"]),
        mode=st.none() | st.sampled_from(["", "Chat"]),
        scheme=st.none() | st.sampled_from(["", "gpu"]),
    ),
)


Given = tuple[int, dict[str, Any]]


def rows_of(midnight: int, given: Sequence[Given]) -> list[RequestRow]:
    made = []
    for offset, fields in given:
        fields = dict(fields)
        at_ms, first = midnight + offset, fields.pop("first")
        first_ms = None if first is None else at_ms + first
        ended_ms = at_ms + fields.pop("took")
        cached = fields["prompt_tokens"] // 3
        made.append(
            a_row(at_ms, first_byte_ms=first_ms, ended_ms=ended_ms, cached_tokens=cached, **fields)
        )
    return made


def filled(
    folder: Path,
    where: tuple[str, int],
    billed: Sequence[Given],
    live: Sequence[Given],
    runs: Sequence[tuple[int, int, str]],
    adjustments: Sequence[tuple[int, str, str, int]],
) -> Books:
    """With all of that at offsets from a midnight, and with prices."""
    for file in folder.iterdir():
        file.unlink()
    name, midnight = where
    books = Books(folder / "usage.db", calendar.zone(name))
    tier = Tier(0, 1000, 0, -1, 123_456_789, 987_654_321, 1, 0, True)
    books.prices.set_price("m", Price(3_333_333_333, (tier,)), 0)
    books.prices.set_price(MODELS[2], Price(None, (replace(tier, max_input=-1),)), midnight)
    for number, (offset, took, model) in enumerate(runs):
        books.run(number, midnight + offset, midnight + offset + took, model)
    for offset, model, key, amount in adjustments:
        books.prices.add_adjustment(model, key, midnight + offset, amount, "x")
    books.add(*rows_of(midnight, billed))
    books.bill()
    books.add(*rows_of(midnight, live))
    return books


@settings(max_examples=50)
@given(
    where=st.sampled_from(ZONES),
    billed=st.lists(ROWS, max_size=12),
    live=st.lists(ROWS, max_size=5),
    runs=st.lists(RUNS, max_size=3),
    adjustments=st.lists(ADJUSTMENTS, max_size=3),
    ranges=st.tuples(OFFSETS, OFFSETS),
    filters=FILTERS,
    bucket=st.sampled_from([None, "hour", "day", "month"]),
    group=st.sampled_from([None, *COLUMNS]),
)
def test_sums_are_what_the_rows_say_in_any_zone_range_and_choice(
    tmp_path: Path,
    where: tuple[str, int],
    billed: list[Given],
    live: list[Given],
    runs: list[tuple[int, int, str]],
    adjustments: list[tuple[int, str, str, int]],
    ranges: tuple[int, int],
    filters: Filters,
    bucket: str | None,
    group: str | None,
) -> None:
    books, midnight = filled(tmp_path, where, billed, live, runs, adjustments), where[1]
    zone = books.zone
    start_ms, end_ms = (midnight + offset for offset in sorted(ranges))
    end_ms += 1
    found = books.reports.summary(start_ms, end_ms, zone, filters, group)
    assert start_ms - HOUR < found.start_ms <= start_ms
    assert end_ms <= found.end_ms < end_ms + HOUR
    assert found.totals == summed(books, found.start_ms, found.end_ms, filters)
    for value, totals in found.groups.items():
        one = replace(filters, **{group or "": value})
        assert totals == summed(books, found.start_ms, found.end_ms, one)

    series = books.reports.series(start_ms, end_ms, zone, filters, bucket, group)
    assert (series.start_ms, series.end_ms) == (found.start_ms, found.end_ms)
    for part in series.buckets:
        one = filters if group is None else replace(filters, **{group: part.group})
        assert part.totals == summed(books, part.start_ms, part.end_ms, one)
    whole = Totals()
    for part in series.buckets:
        whole.add(part.totals)
    assert whole == found.totals
    books.store.close()


@settings(max_examples=50)
@given(
    where=st.sampled_from(ZONES),
    billed=st.lists(SHORT_ROWS, max_size=12),
    live=st.lists(SHORT_ROWS, max_size=5),
    runs=st.lists(RUNS, max_size=1),
    adjustments=st.lists(ADJUSTMENTS, max_size=1),
    ranges=st.tuples(SHORT_OFFSETS, SHORT_OFFSETS),
    filters=FILTERS,
    unit=st.sampled_from(["10s", "minute"]),
    group=st.sampled_from([None, *COLUMNS]),
)
def test_sums_of_less_than_an_hour_are_those_of_the_requests_in_any_zone_range_and_choice(
    tmp_path: Path,
    where: tuple[str, int],
    billed: list[Given],
    live: list[Given],
    runs: list[tuple[int, int, str]],
    adjustments: list[tuple[int, str, str, int]],
    ranges: tuple[int, int],
    filters: Filters,
    unit: str,
    group: str | None,
) -> None:
    books, midnight = filled(tmp_path, where, billed, live, runs, adjustments), where[1]
    length = {"10s": 10_000, "minute": 60_000}[unit]
    start_ms, end_ms = (midnight + offset for offset in sorted(ranges))
    end_ms += 1
    found = books.reports.summary(start_ms, end_ms, books.zone, filters, group, unit)
    assert found.start_ms % length == found.end_ms % length == 0
    assert start_ms - length < found.start_ms <= start_ms
    assert end_ms <= found.end_ms < end_ms + length
    assert found.totals == of_requests(books, found.start_ms, found.end_ms, filters)
    for value, totals in found.groups.items():
        one = replace(filters, **{group or "": value})
        assert totals == of_requests(books, found.start_ms, found.end_ms, one)

    series = books.reports.series(start_ms, end_ms, books.zone, filters, unit, group)
    assert (series.start_ms, series.end_ms) == (found.start_ms, found.end_ms)
    if group is None:
        assert borders(series) == [*range(found.start_ms, found.end_ms + 1, length)]
    whole = Totals()
    for part in series.buckets:
        assert part.end_ms - part.start_ms == length
        one = filters if group is None else replace(filters, **{group: part.group})
        assert part.totals == of_requests(books, part.start_ms, part.end_ms, one)
        whole.add(part.totals)
    assert whole == found.totals
    books.store.close()


@pytest.mark.parametrize("filters", [Filters(), Filters(model="m"), Filters(key="", mode="Chat")])
def test_sums_read_ranges_of_rollups_and_the_newest_requests_and_nothing_else(
    books: Books, filters: Filters, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[str] = []
    rows = TotalsQuery._rows

    def explained(self: Any, statement: str, values: Sequence[object]) -> Any:
        plan = self._connection.execute(f"EXPLAIN QUERY PLAN {statement}", (*values, *self._values))
        plans.extend(row[3] for row in plan)
        return rows(self, statement, values)

    monkeypatch.setattr(TotalsQuery, "_rows", explained)
    books.reports.summary(0, DAY, UTC, filters)
    # Which prices have tiers is looked up once; they are few.
    others = ("TEMP B-TREE", "SUBQUERY", "SCAN prices")
    searches = [plan for plan in plans if not any(other in plan for other in others)]
    assert "SEARCH requests USING INTEGER PRIMARY KEY (rowid>?)" in searches
    for plan in searches:
        assert plan.startswith("SEARCH ")
        assert "KEY (" in plan or "INDEX adjustments_at" in plan or "id>? AND id<?" in plan


def explained(connection: sqlite3.Connection, plans: list[str]) -> Any:
    """Answers as the connection does, and notes how it finds its answers."""

    class Explained:
        def execute(self, statement: str, values: Sequence[Any]) -> sqlite3.Cursor:
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)
            plans.extend(row[3] for row in plan)
            return connection.execute(statement, values)

    return Explained()


def borders(series: Series) -> list[int]:
    return [part.start_ms for part in series.buckets] + [series.buckets[-1].end_ms]


def test_a_series_has_a_bucket_for_each_day_also_for_those_without_anything(books: Books) -> None:
    books.add(a_row(3 * DAY + 5))
    books.bill()
    series = books.reports.series(DAY, 6 * DAY, UTC, bucket="day")
    assert borders(series) == [DAY * number for number in range(1, 7)]
    assert [part.totals.requests for part in series.buckets] == [0, 0, 1, 0, 0]


def test_a_series_may_begin_before_1970_as_its_first_hour_does_in_some_zones(books: Books) -> None:
    series = books.reports.series(-1_800_000, 60_000, UTC, bucket="minute")
    assert len(series.buckets) == 31


def test_the_days_of_a_series_are_those_of_the_zone(books: Books) -> None:
    zone = calendar.zone("Europe/Berlin")
    sunday = 1_792_879_200_000  # the clock is set back on it
    series = books.reports.series(sunday, sunday + 3 * DAY, zone, bucket="day")
    assert borders(series) == [sunday, sunday + 25 * HOUR, sunday + 49 * HOUR, sunday + 3 * DAY]


@pytest.mark.parametrize(
    ("days", "bucket"), [(1, "hour"), (16, "hour"), (17, "day"), (400, "day"), (401, "month")]
)
def test_a_series_chooses_a_bucket_of_which_there_are_not_too_many(
    books: Books, days: int, bucket: str
) -> None:
    series = books.reports.series(0, days * DAY, UTC)
    assert series.bucket == bucket
    assert len(series.buckets) <= 400


def test_a_series_of_too_many_buckets_is_refused(books: Books) -> None:
    assert books.reports.series(0, MAX_BUCKETS * HOUR, UTC, bucket="hour").buckets
    with pytest.raises(TooManyBuckets):
        books.reports.series(0, (MAX_BUCKETS + 1) * HOUR, UTC, bucket="hour")


@pytest.mark.parametrize(("unit", "length"), [("10s", 10_000), ("minute", 60_000)])
def test_no_more_requests_are_added_up_one_by_one_than_a_series_could_show(
    books: Books, unit: str, length: int
) -> None:
    most = MAX_BUCKETS * length
    assert len(books.reports.series(0, most, UTC, bucket=unit).buckets) == MAX_BUCKETS
    assert books.reports.summary(1, most, UTC, unit=unit).end_ms == most
    with pytest.raises(TooManyBuckets):
        books.reports.series(0, most + 1, UTC, bucket=unit)
    with pytest.raises(TooManyBuckets):
        books.reports.summary(0, most + 1, UTC, unit=unit)


@pytest.mark.parametrize(
    ("filters", "index"),
    [
        (Filters(), "sqlite_autoindex_requests_1 (id>? AND id<?)"),
        (Filters(mode="Chat"), "sqlite_autoindex_requests_1 (id>? AND id<?)"),
        (Filters(model="m", key="k"), "requests_model (model=? AND id>? AND id<?)"),
        (Filters(key="k"), "requests_key (key=? AND id>? AND id<?)"),
    ],
)
def test_what_is_shorter_than_an_hour_reads_the_requests_of_its_range_and_no_others(
    books: Books, filters: Filters, index: str
) -> None:
    plans: list[str] = []
    with closing(sqlite3.connect(books.path)) as connection:
        sums = TotalsQuery(explained(connection, plans), filters, "model", 0)
        sums.add_rows([0, 60_000])
        sums.add_latencies_of_rows([0, 60_000], billed_only=False)
    reads = [plan for plan in plans if "requests" in plan]
    assert reads == [f"SEARCH requests USING INDEX {index}"] * 2


def test_of_less_than_an_hour_the_newest_requests_say_how_long_they_took(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.usage.totals._MAX_TIMED", 3)
    books.add(*(a_row(number, ended_ms=number + 10) for number in range(5)))
    books.bill()
    books.add(a_row(10, ended_ms=20), a_row(60_000))
    totals = books.reports.summary(0, 60_000, UTC, unit="minute").totals
    assert totals.requests == 6
    assert totals.whole == 3 * latency.histogram(10)


def test_a_price_without_tiers_leaves_no_request_unpriced(books: Books) -> None:
    books.prices.set_price("by the hour", Price(5, ()), 0)
    books.add(a_row(1, model="by the hour"), a_row(2, model="free"))
    books.bill()
    for unit in ("10s", "hour"):
        groups = books.reports.summary(0, 10_000, UTC, group="model", unit=unit).groups
        assert {name: totals.unpriced for name, totals in groups.items()} == {
            "by the hour": 0,
            "free": 1,
        }


def test_a_range_that_begins_and_ends_within_days_has_their_hours_and_no_more(books: Books) -> None:
    books.add(*(a_row(number * HOUR + 1) for number in range(96)))
    books.bill()
    for start, end in ((0, 96), (5, 90), (23, 25), (24, 72), (1, 24), (47, 49), (30, 40)):
        found = books.reports.summary(start * HOUR, end * HOUR, UTC)
        assert found.totals.requests == end - start


def test_sums_may_be_more_than_the_databases_integers_hold(books: Books) -> None:
    for day in range(3):
        books.store.write(
            "INSERT INTO rollups (span, start_ms, model, key, mode, scheme, cost_tokens)"
            " VALUES ('hour', ?, 'm', '*', '', '', ?)",
            (day * HOUR, 2**63 - 1 - day),
        )
    assert books.reports.summary(0, 3 * HOUR, UTC).totals.cost == 3 * 2**63 - 6


def test_so_may_those_of_the_requests_themselves(books: Books) -> None:
    books.add(a_row(1), a_row(2), a_row(3))
    books.store.write("UPDATE requests SET cost = ? - started_ms", (2**63 - 1,))
    assert books.reports.summary(0, 10_000, UTC, unit="10s").totals.cost == 3 * 2**63 - 9


# --- single requests --------------------------------------------------------------------


def pages(
    books: Books,
    filters: Filters = request_search.EVERYTHING,
    sought: RequestFilter = RequestFilter(),  # noqa: B008
    limit: int = 3,
    between: Callable[[], None] = lambda: None,
) -> list[RequestRow]:
    found: list[RequestRow] = []
    before = None
    while True:
        page = books.reports.requests(filters, sought, limit, before)
        assert len(page.requests) <= limit
        found += page.requests
        if page.next is None:
            return found
        assert before is None or page.next < before
        before = page.next
        between()


def starts(found: Sequence[RequestRow]) -> list[int]:
    return [request.started_ms for request in found]


def test_a_request_is_shown_as_it_was_written(books: Books) -> None:
    row = a_row(
        5, model=MODELS[2], asked_for="=1", key="k", first_byte_ms=None, leased_ms=None, error="e"
    )
    books.add(row)
    (found,) = books.reports.requests(request_search.EVERYTHING, RequestFilter(), 10).requests
    assert found == row
    assert books.reports.request(row.id) == found
    assert books.reports.request(uuid7(5)) is None


@settings(max_examples=30)
@given(
    offsets=st.lists(st.integers(0, 20), max_size=30),
    meanwhile=st.lists(st.integers(0, 20), max_size=12),
    limit=st.integers(1, 7),
    scanned=st.integers(1, 9),
    sought=st.sampled_from(
        [
            RequestFilter(),
            RequestFilter(failed=True),
            RequestFilter(failed=False),
            RequestFilter(text="BROKE"),
            RequestFilter(200),
        ]
    ),
    model=st.none() | st.sampled_from(MODELS[:2]),
    key=st.none() | st.just("kim"),
    mode=st.none() | st.just("Chat"),
)
def test_pages_show_each_request_once_whatever_is_written_meanwhile(
    tmp_path: Path,
    offsets: list[int],
    meanwhile: list[int],
    limit: int,
    scanned: int,
    sought: RequestFilter,
    model: str | None,
    key: str | None,
    mode: str | None,
) -> None:
    for file in tmp_path.iterdir():
        file.unlink()
    books = Books(tmp_path / "usage.db")
    dice = random.Random(1)

    def row(at_ms: int) -> RequestRow:
        status = dice.choice([200, 404, 499, 500])
        return a_row(
            at_ms,
            model=dice.choice(MODELS[:2]),
            key=dice.choice(["", "kim"]),
            mode=dice.choice(["Chat", "Base"]),
            status=status,
            error=None if status == 200 else "the upstream Broke",
        )

    def is_wanted(one: RequestRow) -> bool:
        return (
            (sought.failed is None or one.status in ((404, 500) if sought.failed else (200,)))
            and (sought.status in (None, one.status))
            and (sought.text is None or "broke" in (one.error or "").lower())
            and model in (None, one.model)
            and key in (None, one.key)
            and mode in (None, one.mode)
        )

    first = [row(at_ms) for at_ms in offsets]
    books.add(*first)
    more = [row(at_ms) for at_ms in meanwhile]
    waiting = list(more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_search, "_MAX_SCANNED", scanned)
        patch.setattr(request_search, "_MAX_JUMPS", scanned)
        found = pages(
            books,
            Filters(model=model, key=key, mode=mode),
            sought,
            limit,
            lambda: books.add(waiting.pop()) if waiting else None,
        )
    shown = [request.id for request in found]
    assert shown == sorted(shown, reverse=True)
    assert max(Counter(shown).values(), default=1) == 1
    wanted = {one.id for one in first if is_wanted(one)}
    assert wanted <= set(shown) <= wanted | {one.id for one in more if is_wanted(one)}
    books.store.close()


def test_start_and_end_are_exact_to_the_millisecond(books: Books) -> None:
    books.add(*(a_row(at_ms) for at_ms in range(10)))
    assert starts(pages(books, sought=RequestFilter(start_ms=3, end_ms=7))) == [6, 5, 4, 3]


def test_a_text_is_found_in_the_error_and_in_the_name_asked_for_as_it_is(books: Books) -> None:
    books.add(
        a_row(1, error="a 100% failure"),
        a_row(2, asked_for="qwen_3!"),
        a_row(3, asked_for="qwen-3", error="1000 failures"),
        a_row(4, error="中文 ' OR 1=1"),
    )
    for text, found in (
        ("0%", [1]),
        ("QWEN_", [2]),
        ("3!", [2]),
        ("qwen", [3, 2]),
        ("' or", [4]),
        ("中文", [4]),
        ("x", []),
    ):
        assert starts(pages(books, sought=RequestFilter(text=text))) == found


def test_a_search_for_what_is_rare_looks_at_so_many_rows_and_no_more(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_search, "_MAX_SCANNED", 10)
    books.add(*(a_row(at_ms, mode="Base" if at_ms == 5 else "Chat") for at_ms in range(100)))
    page = books.reports.requests(Filters(mode="Base"), RequestFilter(), 3)
    assert page.requests == []
    assert page.next is not None
    assert starts(pages(books, Filters(mode="Base"))) == [5]


def test_a_client_that_disconnected_is_no_failure_and_is_found_by_its_status(
    books: Books,
) -> None:
    books.add(a_row(1), a_row(2, status=499), a_row(3, status=503))
    assert starts(pages(books, sought=RequestFilter(failed=True))) == [3]
    assert starts(pages(books, sought=RequestFilter(failed=False))) == [1]
    assert starts(pages(books, sought=RequestFilter(status=499))) == [2]


def test_all_requests_can_be_read_one_after_the_other(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manager.usage.reports._PAGE", 3)
    books.add(*(a_row(at_ms) for at_ms in range(10)))
    assert starts(list(books.reports.each_request(Filters(), RequestFilter(end_ms=9)))) == [
        *range(8, -1, -1)
    ]


@pytest.mark.parametrize(
    ("filters", "sought", "index"),
    [
        (Filters(), RequestFilter(), "sqlite_autoindex_requests_1"),
        (Filters(model="m"), RequestFilter(), "requests_model"),
        (Filters(key="k"), RequestFilter(), "requests_key"),
        (Filters(), RequestFilter(failed=True), "requests_failed"),
        (Filters(model="m"), RequestFilter(status=404), "requests_failed"),
        (Filters(mode="Chat"), RequestFilter(text="x"), "sqlite_autoindex_requests_1"),
    ],
)
def test_pages_walk_down_an_index_and_sort_nothing(
    books: Books, filters: Filters, sought: RequestFilter, index: str
) -> None:
    plans: list[str] = []
    with closing(sqlite3.connect(books.path)) as connection:
        request_search.page(explained(connection, plans), filters, sought, 10, uuid7(5))
    assert plans
    for plan in plans:
        assert plan.startswith("SEARCH requests USING")
        assert f"INDEX {index} (" in plan


def test_the_models_that_there_is_something_of_are_listed(books: Books) -> None:
    books.add(a_row(1, model="asked"), a_row(2, model="asked"), a_row(3, model=""))
    books.run(1, 1, 2, "ran")
    books.prices.set_price("priced", Price(1, ()))
    books.prices.add_adjustment(MODELS[2], "", 1, 1, "x")
    assert books.reports.models() == sorted(["", "asked", "ran", "priced", MODELS[2]])


def test_nothing_is_nothing(books: Books) -> None:
    assert books.reports.models() == []
    assert books.reports.summary(0, DAY, UTC).totals == Totals()
    totals = Totals()
    assert (totals.cache_hit_rate, totals.tokens_per_second) == (None, None)


def test_reading_never_writes(books: Books) -> None:
    """A reader that could write would hold up the writer."""
    with read_connection(books.path) as connection, pytest.raises(sqlite3.OperationalError):
        connection.execute("DELETE FROM requests")

"""PriceBook: versions that hold from a moment on, and never change what was billed."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import billing, run_hours
from manager.billing import calendar
from manager.billing.price_versions import Adjustment, PriceBook
from manager.billing.pricing import Price, PriceVersion, Tier, tier_of, token_cost
from manager.clock import Clock
from manager.errors import ApiError
from manager.storage import maintenance, runs
from manager.storage.rows import RequestRow, Run, uuid7
from manager.usage.reports import Reports
from tests.support.usage_rows import add_request, new_store

UTC = calendar.zone("UTC")
NOON = 1_790_010_000_000  # 2026-09-21 17:00 UTC
MORNING, EVENING = NOON - 3 * calendar.HOUR_MS, NOON + 3 * calendar.HOUR_MS
HOSTILE = '通义 "千问", \'; DROP TABLE prices; --=1+1'


def a_tier(amount: int, **changes: Any) -> Tier:
    return replace(Tier(0, -1, 0, -1, amount, amount, 0, 0, False), **changes)


def a_price(amount: int) -> Price:
    return Price(None, (a_tier(amount),))


CHEAP, DEAR = a_price(1_000_000), a_price(7_000_000)


class Books:
    """A database with its prices, a clock that a test sets, and the worker's part of the work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_ms = EVENING
        self.store = new_store(path)
        self.prices = PriceBook(self.store, path, Clock(wall=lambda: self.now_ms / 1000))
        self.reports = Reports(path)

    def request(self, at_ms: int, model: str = "m", prompt: int = 1000, output: int = 1000) -> None:
        add_request(
            self.store,
            RequestRow(
                *(uuid7(at_ms), model, model, "Chat", "gpu", "", "/v1/chat/completions"),
                *(False, 200, at_ms, at_ms, at_ms + 10, at_ms + 20, prompt, 0, output, False, None),
            ),
        )

    def run(self, ready_ms: int, heartbeat_ms: int, model: str = "m") -> None:
        runs.begin(self.store, Run("run", model, "gpu", "f", 1, None, None, ready_ms, None, "Chat"))
        runs.ready(self.store, "run", ready_ms, 1, 1.0)
        runs.heartbeat(self.store, {"run": heartbeat_ms})

    def bill(self) -> None:
        with closing(maintenance.connect(self.path)) as connection:
            while billing.price_new(connection):
                pass
            run_hours.bill_runs(connection, self.now_ms)

    def query(self, statement: str) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(statement).fetchall()

    def rows(self) -> list[Any]:
        return self.query("SELECT id, price, tier, cost FROM requests ORDER BY id")

    def cost(self) -> int:
        return self.reports.summary(MORNING, EVENING, UTC).totals.cost


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    books = Books(tmp_path / "usage.db")
    yield books
    books.store.close()


# --- versions ---------------------------------------------------------------------------


def test_a_price_that_is_put_holds_from_now_on_and_is_listed_as_it_was_put(books: Books) -> None:
    tiers = (
        Tier(0, 1000, 0, -1, 1, 2, 3, 4, True),
        Tier(1000, -1, 5, 6, 10**15, 10**15 - 1, 0, 0, False),
    )
    made = books.prices.set_price(HOSTILE, Price(123, tiers))
    assert made == PriceVersion(made.id, HOSTILE, EVENING, Price(123, tiers), EVENING)
    assert books.prices.versions(HOSTILE) == books.prices.versions() == [made]
    assert books.prices.versions("another") == []


def test_versions_of_a_model_are_listed_in_the_order_in_which_they_hold(books: Books) -> None:
    later = books.prices.set_price("m", DEAR, EVENING + 1000)
    first = books.prices.set_price("m", CHEAP, 0)
    assert books.prices.versions("m") == [first, later]


def test_a_price_put_at_noon_leaves_the_mornings_bill_the_same(books: Books) -> None:
    books.prices.set_price("m", CHEAP, 0)
    for minute in range(10):
        books.request(MORNING + minute * 60_000, prompt=minute, output=333 * minute)
    books.bill()
    rows, cost = books.rows(), books.cost()
    assert cost == sum(row[3] for row in rows) > 0
    books.now_ms = NOON
    books.prices.set_price("m", DEAR)
    books.request(NOON - 1)
    books.request(NOON)
    books.bill()
    assert books.rows()[: len(rows)] == rows
    before, after = books.rows()[len(rows) :]
    assert (before[3], after[3]) == (2000, 14000)
    assert books.cost() == cost + 16000


def test_a_price_may_be_put_in_the_past_while_nothing_was_billed_since(books: Books) -> None:
    books.request(MORNING)
    books.request(EVENING, model="another")
    books.prices.set_price("another", DEAR, 0)
    books.prices.set_price("m", DEAR, EVENING)
    books.bill()  # what was before the first price is not billed by it
    assert books.prices.set_price("m", CHEAP, MORNING).effective_ms == MORNING


def test_a_price_in_the_past_over_billed_requests_is_refused_with_when_it_can_hold(
    books: Books,
) -> None:
    books.prices.set_price("m", CHEAP, 0)
    books.request(MORNING)
    books.request(NOON)
    books.request(EVENING)  # this one is not billed yet
    with closing(maintenance.connect(books.path)) as connection:
        billing.price_new(connection, 2)
    before = books.rows(), books.prices.versions()
    with pytest.raises(ApiError, match=r"it can is 2026-09-21T17:00:00\.001") as refusal:
        books.prices.set_price("m", DEAR, MORNING)
    assert (refusal.value.status, refusal.value.code) == (409, "already_billed")
    assert refusal.value.param == "effective_from"
    with pytest.raises(ApiError):
        books.prices.set_price("m", DEAR, NOON)
    assert (books.rows(), books.prices.versions()) == before
    books.prices.set_price("m", DEAR, NOON + 1)
    books.bill()
    assert [row[3] for row in books.rows()] == [2000, 2000, 14000]


def test_a_price_in_the_past_over_billed_hours_is_refused_with_when_it_can_hold(
    books: Books,
) -> None:
    books.prices.set_price("m", Price(3600, ()), 0)
    books.run(MORNING, NOON)
    books.bill()
    cost = books.cost()
    with pytest.raises(ApiError, match="earliest moment from which it can is 2026-09-21T17:00:00"):
        books.prices.set_price("m", Price(7200, ()), NOON - 1)
    books.prices.set_price("m", Price(7200, ()), NOON)
    runs.heartbeat(books.store, {"run": NOON + 1000})
    books.bill()
    assert books.cost() == cost + 2


def test_a_version_can_be_replaced_until_something_was_billed_by_it(books: Books) -> None:
    books.prices.set_price("m", CHEAP, 0)
    wrong = books.prices.set_price("m", DEAR, MORNING)
    right = books.prices.set_price("m", CHEAP, MORNING)
    assert wrong not in books.prices.versions("m")
    assert right in books.prices.versions("m")
    assert books.query(f"SELECT replaced_ms FROM prices WHERE id = {wrong.id}") == [(EVENING,)]
    books.request(MORNING)
    books.bill()
    assert books.rows()[0][1] == right.id
    with pytest.raises(ApiError, match="was billed up to"):
        books.prices.set_price("m", DEAR, MORNING)


def test_a_price_from_now_on_is_never_refused_even_if_the_clock_was_set_back(books: Books) -> None:
    books.prices.set_price("m", CHEAP, 0)
    books.request(EVENING)
    books.bill()
    books.now_ms = MORNING
    assert books.prices.set_price("m", DEAR).effective_ms == EVENING + 1


def test_of_prices_put_at_once_for_one_moment_one_holds(books: Books) -> None:
    together = threading.Barrier(8)

    def put(amount: int) -> PriceVersion:
        together.wait()
        return books.prices.set_price("m", a_price(amount), MORNING)

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(put, range(8)))
    (version,) = books.prices.versions("m")
    assert version in made
    assert books.query("SELECT count(*) FROM prices WHERE replaced_ms IS NOT NULL") == [(7,)]


def test_a_refused_price_harms_no_write_beside_it(books: Books) -> None:
    books.prices.set_price("m", CHEAP, 0)
    books.request(EVENING)
    books.bill()
    with ThreadPoolExecutor(16) as threads:
        refused = [threads.submit(books.prices.set_price, "m", DEAR, MORNING) for _ in range(20)]
        for number in range(50):
            threads.submit(books.request, NOON + number)
    assert {type(future.exception()) for future in refused} == {ApiError}
    assert len(books.rows()) == 51
    assert len(books.prices.versions()) == 1


def test_of_a_transaction_that_fails_half_way_nothing_is_written_and_its_neighbours_are_kept(
    books: Books,
) -> None:
    insert = "INSERT INTO marks (name, value) VALUES (?, 'x')"

    def half(connection: sqlite3.Connection) -> None:
        connection.execute(insert, ("half",))
        raise ValueError("no further")

    def whole(connection: sqlite3.Connection) -> int:
        connection.execute(insert, ("whole",))
        return 7

    with ThreadPoolExecutor(9) as threads:
        failed = [threads.submit(books.store.transact, half) for _ in range(4)]
        threads.submit(books.store.write, insert, ("beside",))
        done = threads.submit(books.store.transact, whole)
    assert {str(future.exception()) for future in failed} == {"no further"}
    assert done.result() == 7
    assert books.query("SELECT name FROM marks ORDER BY name") == [("beside",), ("whole",)]


MOMENTS = st.integers(0, 4).map(lambda place: MORNING + place * 1_000_000)
STEPS = st.one_of(
    st.tuples(st.just("request"), MOMENTS),
    st.tuples(st.just("put"), MOMENTS),
    st.tuples(st.just("bill"), st.none()),
)


@settings(max_examples=40)
@given(st.lists(STEPS, max_size=20))
def test_whatever_is_asked_put_and_billed_in_which_order_no_bill_changes(
    tmp_path: Path, steps: list[tuple[str, Any]]
) -> None:
    for file in tmp_path.iterdir():
        file.unlink()
    books = Books(tmp_path / "usage.db")
    billed: dict[bytes, Any] = {}
    amount = 0
    for step, at_ms in steps:
        latest = max(
            [int.from_bytes(number[:6], "big") for number, _ in billed.items()], default=-1
        )
        if step == "request":
            books.request(at_ms)
        elif step == "bill":
            books.bill()
        else:
            amount += 1_000_000
            refused = False
            try:
                books.prices.set_price("m", a_price(amount), at_ms)
            except ApiError:
                refused = True
            assert refused == (latest >= at_ms)
        rows = {row[0]: row for row in books.rows() if row[1] is not None}
        assert billed.items() <= rows.items()
        billed = rows
        for version in books.prices.versions():
            assert version.effective_ms % 1_000_000 == MORNING % 1_000_000
    versions = {version.id: version for version in books.prices.versions()}
    for _, price, tier, cost in billed.values():
        by = versions[price].price  # one by which something was billed is never replaced
        assert tier == tier_of(by, 1000, 1000)
        assert cost == token_cost(by.tiers[tier], 1000, 0, 1000)
    books.store.close()


# --- the config's -----------------------------------------------------------------------


def test_the_configs_price_is_the_first_of_a_model_that_has_none_for_ever(books: Books) -> None:
    books.prices.seed_from_config([("m", CHEAP), ("n", DEAR)])
    m, n = books.prices.versions()
    assert (m.model, m.effective_ms, m.price) == ("m", 0, CHEAP)
    assert (n.model, n.effective_ms, n.price) == ("n", 0, DEAR)
    books.prices.seed_from_config([("m", DEAR)])
    assert books.prices.versions("m") == [m]


def test_a_price_of_the_config_that_changes_nothing_is_told(
    books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    books.prices.seed_from_config([("m", CHEAP)])
    books.prices.seed_from_config([("m", CHEAP)])
    assert not caplog.records
    books.prices.seed_from_config([("m", DEAR), ("n", DEAR)])
    assert [record.getMessage() for record in caplog.records] == [
        "the price of m in the config is not used: it had one before, and a later one is set by"
        " PUT /api/models/m/price"
    ]


def test_the_configs_price_does_not_come_back_where_a_person_has_set_another(books: Books) -> None:
    books.prices.set_price("m", DEAR, EVENING)
    books.prices.seed_from_config([("m", CHEAP)])
    assert [version.price for version in books.prices.versions("m")] == [DEAR]


# --- adjustments ------------------------------------------------------------------------


def test_credits_and_corrections_are_on_the_bill_of_their_moment(books: Books) -> None:
    credit = books.prices.add_adjustment(HOSTILE, "kim", NOON, -5, "outage, '\"=1")
    more = books.prices.add_adjustment("", "", EVENING, 7, "设备")
    assert credit == Adjustment(credit.id, HOSTILE, "kim", NOON, -5, "outage, '\"=1", EVENING)
    assert books.prices.adjustments() == [credit, more]
    assert books.prices.adjustments(model=HOSTILE) == [credit]
    assert books.prices.adjustments(key="") == [more]
    assert books.prices.adjustments(start_ms=NOON, end_ms=EVENING) == [credit]
    assert books.prices.adjustments(start_ms=NOON + 1) == [more]
    totals = books.reports.summary(MORNING, EVENING, UTC).totals
    assert (totals.cost, totals.adjustments) == (-5, -5)

"""``/api/usage``, ``/api/prices`` and ``/api/adjustments`` over a real database."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from werkzeug.test import TestResponse

import routes
from jobs import billing, run_hours
from manager.billing import calendar
from manager.billing.price_versions import PriceBook
from manager.billing.pricing import MAX_AMOUNT, PER_UNIT, format_amount
from manager.clock import Clock
from manager.config import loader
from manager.errors import ApiError
from manager.storage import maintenance, runs
from manager.storage.rows import RequestRow, Run, uuid7
from manager.tokens import MAX_TOKENS
from manager.usage.reports import Reports
from routes import app as app_module
from routes.api import prices, usage
from routes.http.slots import Slots
from tests.support.authorization import as_admin, unlocked
from tests.support.usage_rows import add_request, new_store

ZONE = "Asia/Shanghai"
NOW = 1_795_349_000_000  # 2026-11-22 20:03:20 in Shanghai
NOON = 1_795_320_000_000  # 12:00 there
HOUR = calendar.HOUR_MS
HOSTILE = '=通义 "千问", \'; --'
CONFIG = f"""
program:
  timezone: {ZONE}
  currency: EUR
Local-Models:
  m:
    aliases: [alias]
    Default: {{command: [serve]}}
  {json.dumps(HOSTILE, ensure_ascii=False)}:
    Default: {{command: [serve]}}
"""


class Models:
    """As much of the fleet as the routes need."""

    def __init__(self, loaded: loader.Config) -> None:
        self.config = loaded

    def find(self, name: str) -> Any:
        settings = self.config.find(name)
        if settings is None:
            raise ApiError(404, "model_not_found", f"The model {name!r} does not exist")
        return SimpleNamespace(settings=settings)


class Office:
    """The application, and what fills its database."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms = NOW
        self.path = folder / "usage.db"
        self.store = new_store(self.path)
        (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
        loaded = loader.load(folder / "config.yaml", lambda _folder: ["Chat"])
        clock = Clock(wall=lambda: self.now_ms / 1000)
        self.slots = Slots(64)
        services: Any = SimpleNamespace(
            **unlocked(),
            limits=SimpleNamespace(apply_adjustment=lambda *_: None),
            fleet=Models(loaded),
            clock=clock,
            slots=self.slots,
            reports=Reports(self.path),
            prices=PriceBook(self.store, self.path, clock),
        )
        monkeypatch.setattr(app_module, "_BLUEPRINTS", (usage.blueprint, prices.blueprint))
        self.client = as_admin(routes.create_app(services, b"secret").test_client())

    def get(self, path: str, **query: object) -> TestResponse:
        return self.client.get(path, query_string=query)

    def json(self, path: str, **query: object) -> Any:
        answer = self.get(path, **query)
        assert answer.status_code == 200, answer.text
        return answer.get_json()

    def table(self, path: str, **query: object) -> list[list[str]]:
        answer = self.get(path, format="csv", **query)
        assert answer.status_code == 200
        assert answer.mimetype == "text/csv"
        assert answer.data.startswith(b"\xef\xbb\xbf")
        text = answer.data.decode("utf-8-sig")
        assert text.count("\r\n") == text.count("\n")
        return list(csv.reader(io.StringIO(text, newline="")))

    def send(self, method: str, path: str, body: Any) -> TestResponse:
        text = body if isinstance(body, str | bytes) else json.dumps(body)
        return self.client.open(path, method=method, data=text, content_type="application/json")

    def refused(self, answer: TestResponse, status: int, code: str, param: str | None) -> str:
        assert answer.status_code == status, answer.text
        error = answer.get_json()["error"]
        assert (error["code"], error["param"]) == (code, param)
        return str(error["message"])

    def request(self, at_ms: int, **changes: Any) -> RequestRow:
        fields = {
            "id": uuid7(at_ms),
            "model": "m",
            "asked_for": "alias",
            "mode": "Chat",
            "scheme": "gpu",
            "key": "",
            "endpoint": "/v1/chat/completions",
            "streamed": True,
            "status": 200,
            "started_ms": at_ms,
            "leased_ms": at_ms + 1,
            "first_byte_ms": at_ms + 20,
            "ended_ms": at_ms + 1020,
            "prompt_tokens": 1000,
            "cached_tokens": 250,
            "completion_tokens": 500,
            "estimated": False,
            "error": None,
        }
        row = RequestRow(**(fields | changes))
        add_request(self.store, row)
        return row

    def bill(self) -> None:
        with closing(maintenance.connect(self.path)) as connection:
            while billing.price_new(connection):
                pass
            run_hours.bill_runs(connection, self.now_ms)


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    office = Office(tmp_path, monkeypatch)
    yield office
    office.store.close()


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """For all that changes nothing."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        office = Office(tmp_path_factory.mktemp("idle"), monkeypatch)
    yield office
    office.store.close()


PRICE = {
    "effective_from": 0,
    "per_hour": "0.5",
    "tiers": [{"input": 0.1, "output": "0.3", "support_cache": True, "cache_read": 1e-9}],
}


# --- sums -------------------------------------------------------------------------------


def test_the_summary_is_of_this_month_where_nothing_else_is_said(office: Office) -> None:
    office.send("PUT", "/api/models/m/price", PRICE)
    runs.begin(office.store, Run("r", "m", "gpu", "f", 1, None, None, NOON, None, "Chat"))
    runs.ready(office.store, "r", NOON, 1, 1.0)
    runs.end(office.store, "r", NOON + HOUR // 2, "idle")
    office.request(NOON)
    office.request(NOON, status=502, completion_tokens=0, streamed=False)
    office.request(NOON - 31 * 24 * HOUR)
    office.bill()
    office.request(NOON + 5)
    office.send("POST", "/api/adjustments", {"model": "m", "amount": "-0.1", "note": "outage"})
    assert office.json("/api/usage/summary") == {
        "start": "2026-10-31T16:00:00.000+00:00",
        "end": "2026-11-22T13:00:00.000+00:00",
        "timezone": ZONE,
        "currency": "EUR",
        "requests": 3,
        "errors": 1,
        "prompt_tokens": 3000,
        "cached_tokens": 750,
        "completion_tokens": 1000,
        "cost": "0.1503",
        "cost_tokens": "0.0003",
        "cost_hours": "0.25",
        "adjustments": "-0.1",
        "pending": 1,
        "unpriced": 0,
        "estimated": 0,
        "run_seconds": 1800.0,
        "cache_hit_rate": 0.25,
        "tokens_per_second": 500.0,
        "first_byte_ms": {"p50": 20, "p95": 20, "p99": 20},
        "whole_ms": {"p50": 1023, "p95": 1023, "p99": 1023},
    }


def test_the_summary_can_be_had_by_group_and_the_groups_add_up(office: Office) -> None:
    office.request(NOON)
    office.request(NOON, model=HOSTILE)
    office.bill()
    office.request(NOON, model=HOSTILE)
    found = office.json("/api/usage/summary", group="model")
    assert [(group["model"], group["requests"]) for group in found["groups"]] == [
        (HOSTILE, 2),
        ("m", 1),
    ]
    assert found["requests"] == 3


def test_a_filter_by_an_alias_is_one_by_its_model(office: Office) -> None:
    office.request(NOON)
    office.request(NOON, model=HOSTILE, key="k")
    for query, requests in (
        ({"model": "alias"}, 1),
        ({"model": HOSTILE}, 1),
        ({"model": "gone"}, 0),
        ({"key": "k"}, 1),
        ({"key": ""}, 1),
        ({"mode": "Chat", "scheme": "gpu"}, 2),
        ({"mode": "Base"}, 0),
    ):
        assert office.json("/api/usage/summary", **query)["requests"] == requests


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("2026-11-22", "2026-11-23"),
        ("2026-11-22T00:00", "2026-11-22T23:30:00.000"),
        ("2026-11-21T16:00:00Z", "2026-11-22T16:00:00.000z"),
        ("2026-11-21T17:00:00+01:00", "2026-11-22T16:00:00+00:00"),
        ("2026-11-21T17:00:00 01:00", "2026-11-22 23:59:59.999"),
        ("1795276800", "1795363199.5"),
    ],
)
def test_a_range_is_told_in_seconds_or_in_iso_8601_with_or_without_a_zone(
    idle: Office, start: str, end: str
) -> None:
    found = idle.json("/api/usage/summary", start=start, end=end)
    assert found["start"] == "2026-11-21T16:00:00.000+00:00"
    assert found["end"] == "2026-11-22T16:00:00.000+00:00"


@pytest.mark.parametrize(
    ("unit", "start", "end"),
    [
        ("10s", "2026-11-22T03:55:00.000+00:00", "2026-11-22T04:00:10.000+00:00"),
        ("minute", "2026-11-22T03:55:00.000+00:00", "2026-11-22T04:01:00.000+00:00"),
        ("hour", "2026-11-22T03:00:00.000+00:00", "2026-11-22T05:00:00.000+00:00"),
    ],
)
def test_a_range_can_be_rounded_to_less_than_an_hour_and_then_has_requests_only(
    office: Office, unit: str, start: str, end: str
) -> None:
    office.send("PUT", "/api/models/m/price", PRICE)
    runs.begin(office.store, Run("r", "m", "gpu", "f", 1, None, None, NOON, None, "Chat"))
    runs.ready(office.store, "r", NOON, 1, 1.0)
    runs.end(office.store, "r", NOON + HOUR // 2, "idle")
    office.send(
        "POST", "/api/adjustments", {"at": NOON // 1000, "amount": 3, "note": "of an hour's bill"}
    )
    office.request(NOON)
    office.request(NOON + 9_999, model=HOSTILE, key="k")
    office.bill()
    query = {"start": (NOON - 300_000) / 1000, "end": (NOON + 10_000) / 1000}
    found = office.json("/api/usage/summary", **query, round=unit)
    assert (found["start"], found["end"], found["requests"]) == (start, end, 2)
    assert found["cost_tokens"] == "0.000225"
    money = [found[name] for name in ("run_seconds", "cost_hours", "adjustments", "cost")]
    assert money == (
        [1800, "0.25", "3", "3.250225"] if unit == "hour" else [0, "0", "0", "0.000225"]
    )
    if unit == "hour":
        assert found == office.json("/api/usage/summary", **query)
    assert office.json("/api/usage/summary", **query, round=unit, key="k")["requests"] == 1
    header, *rows = office.table(
        "/api/usage/summary", **query, round=unit, group="model", mode="Chat"
    )
    assert [row[header.index("requests")] for row in rows if row[header.index("model")]] == [
        "1",
        "1",
    ]


def test_a_series_can_have_buckets_of_a_minute_and_of_ten_seconds(office: Office) -> None:
    office.request(NOON)
    office.request(NOON + 25_000, model=HOSTILE)
    query = {"start": (NOON - 10_000) / 1000, "end": (NOON + 25_001) / 1000}
    series = office.json("/api/usage/series", **query, bucket="10s")
    assert series["bucket"] == "10s"
    assert [bucket["requests"] for bucket in series["buckets"]] == [0, 1, 0, 1]
    assert [bucket["start"][11:19] for bucket in series["buckets"]] == [
        *("03:59:50", "04:00:00", "04:00:10", "04:00:20"),
    ]
    assert series["buckets"][3]["end"] == series["end"] == "2026-11-22T04:00:30.000+00:00"
    header, *rows = office.table("/api/usage/series", **query, bucket="minute", group="model")
    assert [(row[0][11:16], row[header.index("model")]) for row in rows] == [
        ("04:00", f"'{HOSTILE}"),
        ("04:00", "m"),
    ]
    assert office.json("/api/usage/series", **query)["bucket"] == "hour"


def test_a_series_has_buckets_with_the_same_fields_as_the_summary(office: Office) -> None:
    office.request(NOON)
    series = office.json("/api/usage/series", start="2026-11-20", end="2026-11-23", bucket="day")
    assert {name: series[name] for name in ("bucket", "group", "currency", "timezone")} == {
        "bucket": "day",
        "group": None,
        "currency": "EUR",
        "timezone": ZONE,
    }
    assert [bucket["requests"] for bucket in series["buckets"]] == [0, 0, 1]
    assert [bucket["start"][:19] for bucket in series["buckets"]] == [
        "2026-11-19T16:00:00",
        "2026-11-20T16:00:00",
        "2026-11-21T16:00:00",
    ]
    summary = office.json("/api/usage/summary")
    assert set(summary) - {"timezone", "currency"} == set(series["buckets"][0])
    chosen = office.json("/api/usage/series", start="2026-11-20", end="2026-11-23")
    assert (chosen["bucket"], len(chosen["buckets"])) == ("hour", 72)


def test_a_series_by_group_has_the_buckets_in_which_something_is(office: Office) -> None:
    office.request(NOON)
    office.request(NOON - 24 * HOUR, model=HOSTILE)
    series = office.json("/api/usage/series", start="2026-11-01", bucket="day", group="model")
    assert [(bucket["start"][:10], bucket["model"]) for bucket in series["buckets"]] == [
        ("2026-11-20", HOSTILE),
        ("2026-11-21", "m"),
    ]


@pytest.mark.parametrize(
    ("path", "query", "param"),
    [
        ("summary", {"start": "yesterday"}, "start"),
        ("summary", {"start": ""}, "start"),
        ("summary", {"start": "1795276800000"}, "start"),
        ("summary", {"start": "-1"}, "start"),
        ("summary", {"end": "9999-12-31T23:59:59-12:00"}, "end"),
        ("summary", {"start": "2026-11-02", "end": "2026-11-02"}, "start"),
        ("summary", {"modle": "m"}, "modle"),
        ("summary", {"group": "status"}, "group"),
        ("summary", {"format": "xml"}, "format"),
        ("series", {"bucket": "week"}, "bucket"),
        ("series", {"bucket": "hour", "start": "0"}, "bucket"),
        ("series", {"bucket": "10s"}, "bucket"),  # of the month until now
        ("series", {"round": "minute"}, "round"),
        ("summary", {"round": "minute"}, "round"),
        ("summary", {"round": "day"}, "round"),
        ("requests", {"limit": "0"}, "limit"),
        ("requests", {"limit": "1001"}, "limit"),
        ("requests", {"limit": "ten"}, "limit"),
        ("requests", {"cursor": "x"}, "cursor"),
        ("requests", {"cursor": "ü" * 22}, "cursor"),
        ("requests", {"status": "4xx"}, "status"),
        ("requests", {"text": ""}, "text"),
        ("requests", {"format": "csv", "limit": "5"}, "limit"),
    ],
)
def test_a_bad_parameter_is_named(
    idle: Office, path: str, query: dict[str, str], param: str
) -> None:
    answer = idle.get(f"/api/usage/{path}", **query)
    assert idle.refused(answer, 400, "bad_parameter", param)


def test_a_parameter_that_is_there_twice_is_refused(idle: Office) -> None:
    answer = idle.client.get("/api/usage/summary?model=a&model=b")
    assert "twice" in idle.refused(answer, 400, "bad_parameter", "model")


# --- single requests --------------------------------------------------------------------


def test_requests_are_shown_newest_first_page_by_page_and_one_by_one(office: Office) -> None:
    office.send("PUT", "/api/models/m/price", PRICE)
    office.request(NOON, error="中文", status=502, first_byte_ms=None, leased_ms=None)
    newest = office.request(NOON + 1, model=HOSTILE)
    first = office.json("/api/usage/requests", limit=1)
    assert [row["model"] for row in first["requests"]] == [HOSTILE]
    second = office.json("/api/usage/requests", limit=1, cursor=first["next"])
    assert second["next"] is None
    office.bill()
    (row,) = second["requests"]
    shown = office.json(f"/api/usage/requests/{row['id']}")
    assert row["cost"] is None
    assert shown == row | {"cost": "0.000225", "price": 1, "tier": 0}
    assert {name: shown[name] for name in shown if name not in ("id", "cost")} == {
        "model": "m",
        "asked_for": "alias",
        "mode": "Chat",
        "scheme": "gpu",
        "key": "",
        "endpoint": "/v1/chat/completions",
        "streamed": True,
        "status": 502,
        "started_at": "2026-11-22T04:00:00.000+00:00",
        "leased_at": None,
        "first_byte_at": None,
        "ended_at": "2026-11-22T04:00:01.020+00:00",
        "prompt_tokens": 1000,
        "cached_tokens": 250,
        "completion_tokens": 500,
        "estimated": False,
        "price": 1,
        "tier": 0,
        "error": "中文",
    }
    assert newest.id.hex() == first["requests"][0]["id"].replace("-", "")


def test_requests_are_filtered_by_status_and_text(office: Office) -> None:
    office.request(NOON, status=404, error="No such thing")
    office.request(NOON + 1, status=502, error="broken")
    office.request(NOON + 2, asked_for="gpt-4")
    for query, statuses in (
        ({"status": "error"}, [502, 404]),
        ({"status": "ok"}, [200]),
        ({"status": "404"}, [404]),
        ({"text": "such THING"}, [404]),
        ({"text": "GPT"}, [200]),
        ({"start": NOON / 1000 + 0.001, "end": NOON / 1000 + 0.002}, [502]),
    ):
        found = office.json("/api/usage/requests", **query)["requests"]
        assert [row["status"] for row in found] == statuses


@pytest.mark.parametrize("number", ["x", "00000000-0000-7000-8000-000000000000"])
def test_a_request_that_is_not_there_is_not_found(idle: Office, number: str) -> None:
    idle.refused(idle.get(f"/api/usage/requests/{number}"), 404, "request_not_found", None)


# --- CSV --------------------------------------------------------------------------------


def test_csv_has_the_same_columns_and_cells_as_the_json(office: Office) -> None:
    office.request(NOON, model=HOSTILE)
    office.request(NOON + 1, error='"quoted",\r\nlines', asked_for="@cmd", key="-1", streamed=False)
    office.bill()
    header, *rows = office.table("/api/usage/requests")
    shown = office.json("/api/usage/requests")["requests"]
    assert header == list(shown[0])
    second, first = (dict(zip(header, row, strict=True)) for row in rows)
    assert first["model"] == f"'{HOSTILE}"
    assert (second["asked_for"], second["key"]) == ("'@cmd", "'-1")
    assert second["error"] == '"quoted",\r\nlines'
    assert (second["streamed"], second["tier"], second["cost"]) == ("false", "", "0")
    assert second["id"] == shown[0]["id"]


def test_a_csv_of_requests_is_whole_however_many_there_are(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_CSV_ROWS", 7)
    monkeypatch.setattr("manager.usage.reports._PAGE", 5)
    for number in range(40):
        office.request(NOON + number)
    header, *rows = office.table("/api/usage/requests", end=(NOON + 33) / 1000)
    at = header.index("started_at")
    assert [row[at][20:23] for row in rows] == [f"{ms:03}" for ms in range(32, -1, -1)]


def test_a_csv_of_requests_gives_its_thread_back_also_where_it_is_left_half_way(
    office: Office,
) -> None:
    for number in range(3):
        office.request(NOON + number)
    capacity = office.slots.capacity // 4
    for _ in range(capacity + 1):
        answer = office.client.get("/api/usage/requests?format=csv", buffered=False)
        assert answer.status_code == 200
        answer.close()


def test_sums_can_be_had_as_csv_too_and_a_credit_stays_a_number(office: Office) -> None:
    office.request(NOON)
    office.send("POST", "/api/adjustments", {"amount": "-1.5", "note": "x"})
    header, row = office.table("/api/usage/summary")
    found = dict(zip(header, row, strict=True))
    assert (found["requests"], found["cost"], found["adjustments"]) == ("1", "-1.5", "-1.5")
    assert (found["first_byte_ms_p95"], found["currency"]) == ("20", "EUR")
    header, *rows = office.table("/api/usage/series", start="2026-11-20", bucket="day")
    assert [row[header.index("requests")] for row in rows] == ["0", "0", "1"]
    office.request(NOON, model=HOSTILE)
    header, *rows = office.table("/api/usage/summary", group="model")
    assert [row[header.index("model")] for row in rows] == ["", f"'{HOSTILE}", "m"]
    header, *rows = office.table("/api/usage/series", bucket="month", group="model")
    assert [row[header.index("model")] for row in rows] == ["", f"'{HOSTILE}", "m"]


# --- prices -----------------------------------------------------------------------------


def test_a_price_is_read_exactly_and_shown_as_it_was_put(office: Office) -> None:
    body = '{"per_hour": 0.1, "tiers": [{"input": 0.000000001, "output": "999999.999999999"}]}'
    answer = office.send("PUT", "/api/models/alias/price", body)
    assert answer.status_code == 200, answer.text
    tier = {
        "min_input": 0,
        "max_input": -1,
        "min_output": 0,
        "max_output": -1,
        "input": "0.000000001",
        "output": "999999.999999999",
        "cache_read": "0",
        "cache_write": "0",
        "support_cache": False,
    }
    shown = {
        "id": 1,
        "model": "m",
        "effective_from": "2026-11-22T12:03:20.000+00:00",
        "per_hour": "0.1",
        "tiers": [tier],
        "created_at": "2026-11-22T12:03:20.000+00:00",
    }
    assert answer.get_json() == {**shown, "currency": "EUR", "warnings": []}
    for query in ({}, {"model": "m"}, {"model": "alias"}):
        assert office.json("/api/prices", **query) == {"currency": "EUR", "prices": [shown]}
    assert office.json("/api/prices", model=HOSTILE)["prices"] == []


def test_a_price_with_gaps_and_overlaps_is_taken_with_warnings(office: Office) -> None:
    tiers = [
        {"max_input": 100, "input": 1, "output": 1},
        {"min_input": 50, "max_input": 200, "input": 1, "output": 1},
    ]
    answer = office.send("PUT", "/api/models/m/price", {"tiers": tiers})
    warnings = answer.get_json()["warnings"]
    assert len(warnings) == 2
    assert "overlap" in warnings[0]
    assert "no tier fits" in warnings[1]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "tiers"),
        ({"per_hour": True}, "per_hour"),
        ({"per_hour": -1}, "per_hour"),
        ({"per_hour": "1e-10"}, "per_hour"),
        ({"per_hour": "1000001"}, "per_hour"),
        ({"per_hour": 1, "efective_from": 0}, "efective_from"),
        ({"per_hour": 1, "effective_from": "soon"}, "effective_from"),
        ({"per_hour": 1, "effective_from": []}, "effective_from"),
        ({"tiers": {}}, "tiers"),
        ({"tiers": [1]}, "tiers[0]"),
        ({"tiers": [{"input": 1, "output": 1}, {"input": 1}]}, "tiers[1].output"),
        ({"tiers": [{"input": None, "output": 1}]}, "tiers[0].input"),
        ({"tiers": [{"input": 1, "output": 1, "cache": 1}]}, "tiers[0].cache"),
        ({"tiers": [{"input": 1, "output": 1, "min_input": -1}]}, "tiers[0].min_input"),
        ({"tiers": [{"input": 1, "output": 1, "max_input": 1.5}]}, "tiers[0].max_input"),
        ({"tiers": [{"input": 1, "output": 1, "max_output": "7"}]}, "tiers[0].max_output"),
        ({"tiers": [{"input": 1, "output": 1, "support_cache": 1}]}, "tiers[0].support_cache"),
        ({"tiers": [{"input": 1, "output": 1, "min_input": 9, "max_input": 8}]}, "tiers"),
        ({"tiers": [{"input": 1, "output": 1}] * 101}, "tiers"),
    ],
)
def test_a_price_that_cannot_be_read_is_refused_with_the_fields_name(
    idle: Office, body: Any, param: str
) -> None:
    answer = idle.send("PUT", "/api/models/m/price", body)
    message = idle.refused(answer, 400, "bad_parameter", param)
    assert message
    if param not in ("effective_from", "efective_from"):
        answer = idle.send("POST", "/api/prices/quote", body)
        assert idle.refused(answer, 400, "bad_parameter", param) == message
    assert idle.json("/api/prices")["prices"] == []


@pytest.mark.parametrize(
    "body",
    [
        *("", "[1]", "{", '{"per_hour": NaN}', '{"per_hour": 1, "per_hour": 2}', "[" * 100_000),
        *('{"per\\ud800hour": 1}', '{"tiers": [{"in\\ud800put": 1}]}', b'{"per\xed\xa0\x80": 1}'),
    ],
)
def test_what_is_no_json_object_is_refused(idle: Office, body: str | bytes) -> None:
    idle.refused(idle.send("PUT", "/api/models/m/price", body), 400, "invalid_json", None)


def test_a_price_of_a_model_that_does_not_exist_is_refused(idle: Office) -> None:
    answer = idle.send("PUT", "/api/models/gone/price", PRICE)
    assert answer.status_code == 404


def test_a_price_over_what_was_billed_is_refused_with_when_it_can_hold(office: Office) -> None:
    assert office.send("PUT", "/api/models/m/price", PRICE).status_code == 200
    office.request(NOON)
    office.bill()
    body = {**PRICE, "effective_from": "2026-11-22T12:00"}
    message = office.refused(
        office.send("PUT", "/api/models/m/price", body), 409, "already_billed", "effective_from"
    )
    assert "2026-11-22T04:00:00.001+00:00" in message
    body["effective_from"] = "2026-11-22T04:00:00.001+00:00"
    assert office.send("PUT", "/api/models/m/price", body).status_code == 200


TIERED = {
    "tiers": [
        {"max_input": 1000, "input": "2.4", "output": "9.6"},
        {
            "min_input": 1000,
            "max_output": 500,
            "input": "4.8",
            "output": "14.4",
            "support_cache": True,
            "cache_read": "0.48",
            "cache_write": "1.2",
        },
    ]
}


def test_a_quote_says_what_a_request_would_cost_under_a_price_that_is_not_stored(
    idle: Office,
) -> None:
    def quote(**fields: Any) -> Any:
        answer = idle.send("POST", "/api/prices/quote", {**TIERED, "per_hour": "0.5", **fields})
        assert answer.status_code == 200, answer.text
        return answer.get_json()

    found = quote(prompt_tokens=2000, cached_tokens=500, completion_tokens=100, seconds=5400.5)
    assert found == {
        "currency": "EUR",
        "cost": "0.760749444",
        "cost_tokens": "0.01068",  # 500 x 0.48, 1500 x (4.8 + 1.2) and 100 x 14.4, a million
        "cost_hours": "0.750069444",
        "tier": 1,
        "warnings": [
            "no tier fits input over 1000 with output over 500: such requests cost nothing"
        ],
    }
    nothing = quote()
    assert (nothing["cost"], nothing["tier"]) == ("0", 0)
    unpriced = quote(prompt_tokens=2000, completion_tokens=501)
    assert (unpriced["cost"], unpriced["tier"]) == ("0", None)
    by_hour = quote(tiers=[], prompt_tokens=5, seconds=3600)
    assert (by_hour["cost"], by_hour["tier"], by_hour["warnings"]) == ("0.5", None, [])
    assert idle.json("/api/prices")["prices"] == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"prompt_tokens": 1.5}, "prompt_tokens"),
        ({"completion_tokens": "5"}, "completion_tokens"),
        ({"completion_tokens": 2**31}, "completion_tokens"),
        ({"prompt_tokens": 5, "cached_tokens": 6}, "cached_tokens"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": "60"}, "seconds"),
        ({"seconds": 0.0001}, "seconds"),
        ({"seconds": None}, "seconds"),
        ({"effective_from": 0}, "effective_from"),
        ({"tokens": 5}, "tokens"),
    ],
)
def test_a_quote_that_cannot_be_read_is_refused_with_the_fields_name(
    idle: Office, body: Any, param: str
) -> None:
    answer = idle.send("POST", "/api/prices/quote", {"per_hour": 1, **body})
    idle.refused(answer, 400, "bad_parameter", param)


AMOUNT_FIELDS = ("input", "output", "cache_read", "cache_write")
AMOUNTS = st.integers(0, MAX_AMOUNT * PER_UNIT) | st.integers(0, 10**10)
BOUNDS = st.sampled_from([(0, -1), (0, 0), (0, 1000), (1000, -1), (1000, 30_000), (30_000, -1)])
COUNTS = st.sampled_from([0, 1, 1000, 1001, 12_345, 30_000, 30_001, MAX_TOKENS])


@settings(max_examples=60)
@example(  # a bound belongs to the tier below it
    per_hour=None,
    tiers=[((0, 1000), (0, -1), 7, 8, 9, 10, True), ((1000, -1), (0, -1), 1, 2, 3, 4, False)],
    prompt=1001,
    share=0.3,
    completion=1,
    ran_ms=0,
)
@given(
    per_hour=st.none() | AMOUNTS,
    tiers=st.lists(st.tuples(BOUNDS, BOUNDS, *[AMOUNTS] * 4, st.booleans()), max_size=3),
    prompt=COUNTS,
    share=st.sampled_from([0, 0.3, 1]),
    completion=COUNTS,
    ran_ms=st.integers(0, 5 * HOUR),
)
def test_a_quote_is_what_the_bill_says(
    office: Office,
    per_hour: int | None,
    tiers: list[Any],
    prompt: int,
    share: float,
    completion: int,
    ran_ms: int,
) -> None:
    price = {
        "per_hour": None if per_hour is None else format_amount(per_hour),
        "tiers": [
            {
                **dict(zip(("min_input", "max_input"), inputs, strict=True)),
                **dict(zip(("min_output", "max_output"), outputs, strict=True)),
                **dict(zip(AMOUNT_FIELDS, map(format_amount, amounts), strict=True)),
                "support_cache": support_cache,
            }
            for inputs, outputs, *amounts, support_cache in tiers
        ],
    }
    tokens = {
        "prompt_tokens": prompt,
        "cached_tokens": int(prompt * share),
        "completion_tokens": completion,
    }
    answer = office.send("POST", "/api/prices/quote", {**price, **tokens, "seconds": ran_ms / 1000})
    quoted = answer.get_json()

    office.now_ms += 10 * HOUR  # after what was billed in the examples before
    start_ms = calendar.hour_start_ms(office.now_ms, calendar.zone(ZONE))
    put = office.send("PUT", "/api/models/m/price", {**price, "effective_from": start_ms // 1000})
    assert (answer.status_code, put.status_code) == (200, 200), (answer.text, put.text)
    assert quoted["warnings"] == put.get_json()["warnings"]
    row = office.request(start_ms, **tokens)
    runs.begin(office.store, Run(str(start_ms), "m", "gpu", "f", 1, None, None, start_ms, None))
    runs.ready(office.store, str(start_ms), start_ms, 1, 1.0)
    runs.end(office.store, str(start_ms), start_ms + ran_ms, "idle")
    office.bill()
    billed = office.json(f"/api/usage/requests/{uuid.UUID(bytes=row.id)}")
    assert (billed["cost"], billed["tier"]) == (quoted["cost_tokens"], quoted["tier"])
    span = {"start": start_ms // 1000, "end": (start_ms + 6 * HOUR) // 1000}
    found = office.json("/api/usage/summary", **span)
    names = ("currency", "cost", "cost_tokens", "cost_hours")
    assert {name: found[name] for name in names} == {name: quoted[name] for name in names}


# --- adjustments ------------------------------------------------------------------------


def test_an_adjustment_is_made_and_listed(office: Office) -> None:
    office.request(NOON, model="orphan")
    made = []
    for body in (
        {"amount": "-12.5", "note": "赔偿", "model": "alias", "key": "k", "at": "2026-11-01"},
        {"amount": 3, "note": "set-up"},
        {"amount": 0.000000001, "note": "=1", "model": "orphan"},
    ):
        answer = office.send("POST", "/api/adjustments", body)
        assert answer.status_code == 201, answer.text
        made.append(answer.get_json())
    assert made[0] == {
        "id": 1,
        "model": "m",
        "key": "k",
        "at": "2026-10-31T16:00:00.000+00:00",
        "amount": "-12.5",
        "note": "赔偿",
        "created_at": "2026-11-22T12:03:20.000+00:00",
    }
    assert [one["amount"] for one in made] == ["-12.5", "3", "0.000000001"]
    assert office.json("/api/adjustments") == {"currency": "EUR", "adjustments": made}
    assert office.json("/api/adjustments", model="alias")["adjustments"] == made[:1]
    assert office.json("/api/adjustments", key="", start="2026-11-02")["adjustments"] == made[1:]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"note": "x"}, "amount"),
        ({"amount": "0", "note": "x"}, "amount"),
        ({"amount": "--1", "note": "x"}, "amount"),
        ({"amount": "1"}, "note"),
        ({"amount": "1", "note": " "}, "note"),
        ({"amount": "1", "note": 5}, "note"),
        ({"amount": "1", "note": "two\nlines"}, "note"),
        ({"amount": "1", "note": "\ud800"}, "note"),
        ({"amount": "1", "note": "x", "at": "then"}, "at"),
        ({"amount": "1", "note": "x", "modell": "m"}, "modell"),
    ],
)
def test_an_adjustment_that_cannot_be_read_is_refused_with_the_fields_name(
    idle: Office, body: Any, param: str
) -> None:
    answer = idle.send("POST", "/api/adjustments", body)
    idle.refused(answer, 400, "bad_parameter", param)


def test_an_adjustment_for_a_model_that_never_was_is_refused(idle: Office) -> None:
    answer = idle.send("POST", "/api/adjustments", {"model": "n", "amount": 1, "note": "x"})
    idle.refused(answer, 404, "model_not_found", None)


def test_a_database_that_cannot_be_read_is_told_without_a_traceback(office: Office) -> None:
    with closing(sqlite3.connect(office.path)) as connection:
        connection.execute("DROP TABLE rollups")
        connection.commit()
    message = office.refused(office.get("/api/usage/summary"), 503, "database_unavailable", None)
    assert "usage.db" in message


def test_a_long_answer_is_compressed_for_who_takes_that(office: Office) -> None:
    path = "/api/usage/series?start=2026-11-01&end=2026-11-05"
    plain = office.client.get(path)
    small = office.client.get(path, headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in plain.headers
    assert small.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(small.data) == plain.data
    assert len(small.data) < len(plain.data) / 5
    assert small.content_length == len(small.data)
    table = office.client.get(f"{path}&format=csv", headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in table.headers

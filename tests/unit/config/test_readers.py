"""Numbers, times and prices in config.yaml."""

from __future__ import annotations

import zoneinfo
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manager.billing.pricing import MAX_AMOUNT, Price, Tier, parse_amount
from manager.config import loader as config
from tests.support.config_files import (
    load,
    model,
    model_text,
    only_problem,
    program,
)

# Numbers.


@given(st.integers())
@example(0)
@example(65535)
@example(65536)
@example(10**5000)
def test_a_port_is_a_whole_number_from_1_to_65535(home: Path, port: int) -> None:
    text = f"port: {Decimal(port):f}"
    if 1 <= port <= 65535:
        assert program(home, text).port == port
    else:
        assert "from 1 to 65535" in only_problem(home, f"program:\n  {text}\n")[1]


@pytest.mark.parametrize(
    "written", ["true", "1.0", "'1'", "1e3", "0x10", "010", "1:30", "[1]", "{a: 1}", "x", "!!int x"]
)
def test_a_port_that_is_no_plain_whole_number_is_refused(home: Path, written: str) -> None:
    line, message = only_problem(home, f"program:\n  port: {written}\n")
    assert line == 2
    assert message.startswith("port: expected a whole number")


@given(st.floats(min_value=0, max_value=4_000_000, exclude_min=True))
def test_a_timeout_may_be_any_positive_number(home: Path, seconds: float) -> None:
    assert program(home, f"stop_timeout: {Decimal(seconds):f}").stop_timeout == seconds


@pytest.mark.parametrize("key", ["start_timeout", "stop_timeout", "queue_timeout"])
@pytest.mark.parametrize(
    "written", ["0", "-0.0", "-1", ".inf", ".nan", "true", "1.0e+400", "1:30", "!!float ._"]
)
def test_a_timeout_that_is_no_positive_number_is_refused(
    home: Path, key: str, written: str
) -> None:
    assert "above 0" in only_problem(home, f"program:\n  {key}: {written}\n")[1]


def test_an_idle_time_of_zero_means_never_and_is_allowed(home: Path) -> None:
    assert program(home, "alive_time: 0").alive_time == 0


# Time.


def test_a_system_without_time_zones_says_how_to_get_them(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(key: str) -> None:
        raise zoneinfo.ZoneInfoNotFoundError(key)

    monkeypatch.setattr(zoneinfo, "ZoneInfo", none)
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    assert "pip install tzdata" in only_problem(home, "program: {timezone: Asia/Shanghai}")[1]


@pytest.mark.parametrize(
    "name", ["America", "../etc/passwd", "/etc/passwd", "Mars/Olympus", "x" * 300]
)
def test_an_unknown_time_zone_is_refused(home: Path, name: str) -> None:
    assert "unknown time zone" in only_problem(home, f"program: {{timezone: {name}}}")[1]


@pytest.mark.parametrize(
    "schedule",
    ["* * * * *", "0 3 1 * *", "*/15 0-6,22,23 1-31/2 jan-mar MON-fri", "5/10 0 * 12 0"],
)
def test_a_cron_expression_is_taken(home: Path, schedule: str) -> None:
    export = program(home, f"export: {{schedule: '{schedule}'}}").export
    assert export == config.Export(schedule, "day", None)


@pytest.mark.parametrize(
    ("schedule", "part"),
    [
        ("* * * *", "five fields (minute, hour, day, month, weekday), found 4"),
        ("0 0 * * * *", "found 6"),
        ("@daily", "found 1"),
        ("60 * * * *", "Bad minute: write five fields such as '0 3 1 * *'"),
        ("* 24 * * *", "Bad hour"),
        ("* * 0 * *", "Bad day-of-month"),
        ("* * * 13 *", "Bad month"),
        ("* * * * 8", "Bad day-of-week"),
        ("* * * * sun-mon", "Bad day-of-week"),
        ("5-1 * * * *", "Bad minute"),
        ("*/0 * * * *", "Bad minute"),
        ("1,,2 * * * *", "Bad minute"),
        ("*-5 * * * *", "Bad minute"),
        ("a * * * *", "Bad minute"),
        ("* * 31 13 *", "Bad month"),
    ],
)
def test_a_cron_expression_that_is_none_is_refused(home: Path, schedule: str, part: str) -> None:
    text = f"program:\n  export: {{schedule: '{schedule}'}}\n"
    line, message = only_problem(home, text)
    assert line == 2
    assert part in message


@pytest.mark.parametrize("export", ["{}", "{period: day}", "{schedule: }"])
def test_an_export_needs_a_schedule(home: Path, export: str) -> None:
    assert "schedule is missing" in only_problem(home, f"program: {{export: {export}}}")[1]


# Prices.


def test_a_price_is_read_exactly(home: Path) -> None:
    text = """\
price:
      per_hour: 0.1
      tiers:
        - {max_input: 32000, input: 0.000000001, output: "12.50"}
        - min_input: 32000
          min_output: 0
          max_output: 8000
          input: 1e-3
          output: 1_000
          support_cache: true
          cache_read: 0.3
          cache_write: 123456.123456789
"""
    assert model(home, text).price == Price(
        per_hour=100_000_000,
        tiers=(
            Tier(0, 32000, 0, -1, 1, 12_500_000_000, 0, 0, False),
            Tier(
                *(32000, -1, 0, 8000),
                *(1_000_000, 1_000_000_000_000, 300_000_000, 123_456_123_456_789),
                True,
            ),
        ),
    )


@given(st.integers(0, MAX_AMOUNT * 10**9))
def test_an_amount_of_nine_decimals_is_exact(amount: int) -> None:
    text = f"{amount // 10**9}.{amount % 10**9:09d}"
    assert parse_amount(text) == amount
    assert parse_amount(text + "000") == amount


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "-1", "-0.000000001", "nan", "inf", "1:30", "0x1", "1/3", "1,5"),
        *("0.0000000001", "1.0000000000001", "1e-10", "1e-999999999", "1e999999999", "1e10"),
        "1000000000.000000001",
    ],
)
def test_an_amount_that_cannot_be_kept_exactly_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_amount(text)


@given(st.integers(0, 20), st.integers(-1, 20))
def test_a_tier_whose_range_has_no_tokens_is_refused(home: Path, low: int, high: int) -> None:
    body = f"min_output: {low}, max_output: {high}, input: 0, output: 0"
    text = model_text(f"price: {{tiers: [{{{body}}}]}}")
    holds = [tokens for tokens in range(22) if low < tokens or tokens == low == 0]
    if high == -1 or any(tokens <= high for tokens in holds):
        load(home, text)
    else:
        assert f"max_output {high} is not above min_output {low}" in only_problem(home, text)[1]


@pytest.mark.parametrize("price", ["{effective_from: 1, per_hour: 1}", "{tiers: {}}", "5"])
def test_a_price_of_another_shape_is_refused(home: Path, price: str) -> None:
    assert only_problem(home, model_text(f"price: {price}"))[0] == 3

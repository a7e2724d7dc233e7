"""When the times of a cron expression are."""

from __future__ import annotations

import zoneinfo
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.config import schedule

UTC = timezone.utc
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


def times(expression: str, number: int) -> list[str]:
    now, found = datetime(2026, 11, 1, tzinfo=UTC), []  # a Sunday
    for _ in range(number):
        time = schedule.next_time(expression, now)
        assert time is not None
        found.append(f"{time:%a %d %H:%M}")
        now = time + timedelta(seconds=1)
    return found


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 3 * * 0", ["Sun 01 03:00", "Sun 08 03:00"]),
        ("0 3 * * 7", ["Sun 01 03:00", "Sun 08 03:00"]),
        ("0 3 * * 1-2", ["Mon 02 03:00", "Tue 03 03:00"]),
        ("0 3 * * 5-6", ["Fri 06 03:00", "Sat 07 03:00"]),
        ("0 3 * * mon", ["Mon 02 03:00", "Mon 09 03:00"]),
        ("0 3 * * SUN", ["Sun 01 03:00", "Sun 08 03:00"]),
        ("0 3 * * sat-sun", ["Sun 01 03:00", "Sat 07 03:00"]),
        ("0 3 * * sun-sun", ["Sun 01 03:00", "Sun 08 03:00"]),
        ("0 3 * * */3", ["Sun 01 03:00", "Wed 04 03:00"]),
        ("0 3 * * 3/2", ["Wed 04 03:00", "Fri 06 03:00", "Wed 11 03:00"]),
        ("0 3 * * 1-5/4", ["Mon 02 03:00", "Fri 06 03:00", "Mon 09 03:00"]),
        ("0 3 1 * *", ["Sun 01 03:00", "Tue 01 03:00"]),
        ("0 3 1-31/10 * *", ["Sun 01 03:00", "Wed 11 03:00", "Sat 21 03:00"]),
        ("*/30 0 * * *", ["Sun 01 00:00", "Sun 01 00:30"]),
        ("50/5 0 * * *", ["Sun 01 00:50", "Sun 01 00:55", "Mon 02 00:50"]),
        ("0 3 3 * 1", ["Mon 02 03:00", "Tue 03 03:00"]),  # the one or the other
        ("0 3 */2 * 1", ["Mon 09 03:00", "Mon 23 03:00"]),  # both, where one is open
        ("0 0 1 jan-mar *", ["Fri 01 00:00", "Mon 01 00:00", "Mon 01 00:00", "Sat 01 00:00"]),
    ],
)
def test_an_expression_means_what_it_means_to_cron(expression: str, expected: list[str]) -> None:
    assert times(expression, len(expected)) == expected


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=3))
def test_every_day_of_the_week_is_counted_from_sunday(ranges: list[tuple[int, int]]) -> None:
    pairs = [(min(pair), max(pair)) for pair in ranges]
    field = ",".join(f"{low}-{high}" if low < high else f"{low}" for low, high in pairs)
    names = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")
    expected = {names[day] for low, high in pairs for day in range(low, high + 1)}
    assert {time[:3] for time in times(f"0 3 * * {field}", 7)} == expected


def test_the_moment_itself_may_be_the_time() -> None:
    moment = datetime(2026, 11, 1, 3, tzinfo=UTC)
    assert schedule.next_time("0 3 * * *", moment) == moment
    later = moment + timedelta(microseconds=1)
    assert schedule.next_time("0 3 * * *", later) == moment + timedelta(days=1)


@pytest.mark.parametrize("expression", ["0 3 31 2 *", "0 3 30 feb *"])
def test_a_day_that_never_comes_is_no_mistake_and_has_no_time(expression: str) -> None:
    schedule.check(expression)
    assert schedule.next_time(expression, datetime(2026, 11, 1, tzinfo=UTC)) is None


def test_a_time_that_daylight_saving_skips_is_the_first_after_it() -> None:
    # On 2027-03-28 the clock goes from 2:00 to 3:00.
    time = schedule.next_time("30 2 * * *", datetime(2027, 3, 28, tzinfo=BERLIN))
    assert time is not None
    assert time.isoformat() == "2027-03-28T03:00:00+02:00"


@pytest.mark.parametrize("expression", ["0 0 1 * *", "*/30 0 1 * *", "0 */12 1 * *"])
@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/Havana", "Australia/Lord_Howe"])
def test_no_month_is_lost_to_daylight_saving(zone: str, expression: str) -> None:
    moment, months = datetime(2026, 3, 2, tzinfo=UTC), set()
    while moment.year < 2028:
        time = schedule.next_time(expression, moment.astimezone(zoneinfo.ZoneInfo(zone)))
        assert time is not None
        months.add(f"{time:%Y-%m}")
        moment = time.astimezone(UTC) + timedelta(seconds=1)
    every = [f"{year}-{month:02}" for year in (2026, 2027) for month in range(1, 13)]
    assert sorted(months)[: len(every) - 3] == every[3:]


def test_the_first_of_april_is_the_next_first_after_march() -> None:
    time = schedule.next_time("0 0 1 * *", datetime(2026, 3, 1, 0, 0, 1, tzinfo=BERLIN))
    assert time is not None
    assert time.isoformat() == "2026-04-01T00:00:00+02:00"


# Midnights that do not exist, half an hour, a day that was skipped, and the usual.
ZONES = ("America/Havana", "Australia/Lord_Howe", "Pacific/Apia", "Europe/Berlin")


@given(
    st.sampled_from(ZONES),
    st.datetimes(datetime(2011, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(["0 0 * * *", "30 0 * * *", "*/20 0 * * *", "15 */6 * * *"]),
)
def test_each_day_has_its_time_whatever_the_zone_does(
    zone: str, moment: datetime, expression: str
) -> None:
    local = moment.astimezone(zoneinfo.ZoneInfo(zone))
    time = schedule.next_time(expression, local)
    assert time is not None
    assert timedelta(0) <= time.astimezone(UTC) - moment <= timedelta(hours=25.5)


def test_no_time_lies_before_the_moment_in_the_hour_that_is_there_twice() -> None:
    # On 2026-10-25 the clock goes from 3:00 back to 2:00; 2:10 is asked for the second time.
    moment = datetime(2026, 10, 25, 2, 10, tzinfo=BERLIN, fold=1)
    time = schedule.next_time("30 2 * * *", moment)
    assert time is not None
    assert time.astimezone(UTC) >= moment.astimezone(UTC)
    assert time.isoformat() == "2026-10-26T02:30:00+01:00"

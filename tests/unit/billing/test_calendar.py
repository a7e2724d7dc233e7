"""Hours, days and months of a time zone."""

from __future__ import annotations

import itertools
import zoneinfo
from datetime import datetime, timedelta, timezone

import pytest
import tzlocal
from hypothesis import example, given
from hypothesis import strategies as st

from manager.billing import calendar

HOUR = calendar.HOUR_MS
DAY = 24 * HOUR

# Half and quarter hours, summer time of half an hour (Lord Howe), midnights that do not exist
# (Cairo, Sao Paulo, Asuncion), a clock that is set back over midnight (St. John's), a day that was
# left out (Apia), summer time backwards (Dublin, Casablanca).
ZONES = [
    *("UTC", "Asia/Shanghai", "Europe/Berlin", "America/New_York", "Asia/Kolkata"),
    *("Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Chatham", "Africa/Cairo", "Pacific/Apia"),
    *("America/Sao_Paulo", "America/Asuncion", "America/St_Johns", "Europe/Dublin"),
    *("Africa/Casablanca", "Asia/Gaza", "America/Havana", "Atlantic/Azores"),
]
zones = st.sampled_from(ZONES).map(zoneinfo.ZoneInfo)
moments = st.integers(0, 2_208_988_800_000)  # 1970 to 2039

SPANS = {
    "hour": (calendar.hour_start_ms, calendar.next_hour_ms, calendar.hours, HOUR),
    "day": (calendar.day_start_ms, calendar.next_day_ms, calendar.days, 25 * HOUR),
    "month": (calendar.month_start_ms, calendar.next_month_ms, calendar.months, 31 * DAY + HOUR),
}


def ms(text: str) -> int:
    """The moment that is written with its offset."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def zone(name: str) -> zoneinfo.ZoneInfo:
    return zoneinfo.ZoneInfo(name)


@pytest.mark.parametrize("span", SPANS)
@given(moment=moments, zone=zones)
@example(moment=ms("2026-10-25T02:30:00+01:00"), zone=zone("Europe/Berlin"))
@example(moment=ms("2010-11-06T23:30:00-03:30"), zone=zone("America/St_Johns"))
@example(moment=ms("2026-04-05T01:45:00+10:30"), zone=zone("Australia/Lord_Howe"))
@example(moment=ms("2011-12-31T05:00:00+14:00"), zone=zone("Pacific/Apia"))
def test_each_moment_lies_in_one_span_and_they_touch(
    span: str, moment: int, zone: zoneinfo.ZoneInfo
) -> None:
    start_of, next_of, _, longest = SPANS[span]
    start, end = start_of(moment, zone), next_of(moment, zone)
    assert start <= moment < end
    assert end - start <= longest
    assert start_of(start, zone) == start_of(end - 1, zone) == start
    assert start_of(end, zone) == end
    assert next_of(start, zone) == next_of(end - 1, zone) == end
    assert start_of(start - 1, zone) < start


@given(moment=moments, zone=zones)
def test_an_hour_is_within_a_day_and_a_day_within_a_month(
    moment: int, zone: zoneinfo.ZoneInfo
) -> None:
    hour, day, month = (start_of(moment, zone) for start_of, *_ in SPANS.values())
    assert month <= day <= hour
    assert calendar.next_hour_ms(hour, zone) <= calendar.next_day_ms(day, zone)
    assert calendar.next_day_ms(day, zone) <= calendar.next_month_ms(month, zone)


@given(moment=moments, zone=zones)
def test_the_clock_shows_what_the_span_says(moment: int, zone: zoneinfo.ZoneInfo) -> None:
    shown = calendar.local(moment, zone)
    assert shown - datetime(1970, 1, 1, tzinfo=timezone.utc) == timedelta(milliseconds=moment)
    begin = calendar.local(calendar.hour_start_ms(moment, zone), zone)
    assert (begin.date(), begin.hour) == (shown.date(), shown.hour)
    # Behind a clock that was set back over midnight the new day has begun already.
    assert calendar.date_of(moment, zone) - shown.date() in (timedelta(0), timedelta(days=1))
    assert shown.date() <= calendar.local(calendar.next_day_ms(moment, zone), zone).date()


@given(start=moments, length=st.integers(0, 40 * DAY), zone=zones)
def test_spans_between_two_moments_are_those_that_have_a_part_in_it(
    start: int, length: int, zone: zoneinfo.ZoneInfo
) -> None:
    end = start + length
    for start_of, next_of, between, _ in SPANS.values():
        found = list(between(start, end, zone))
        assert bool(found) == bool(length)
        if found:
            assert found[0] == start_of(start, zone)
            assert found[-1] == start_of(end - 1, zone)
            assert all(next_of(one, zone) == two for one, two in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("name", "day", "hours"),
    [
        ("Europe/Berlin", "2026-03-29T00:00:00+01:00", 23),
        ("Europe/Berlin", "2026-10-25T00:00:00+02:00", 25),
        ("America/New_York", "2026-03-08T00:00:00-05:00", 23),
        ("Asia/Shanghai", "2026-03-29T00:00:00+08:00", 24),
        ("Australia/Lord_Howe", "2026-04-05T00:00:00+11:00", 24.5),
        ("Australia/Lord_Howe", "2026-10-04T00:00:00+10:30", 23.5),
        ("Africa/Cairo", "2026-04-24T01:00:00+03:00", 23),  # its midnight does not exist
        ("Africa/Cairo", "2026-10-29T00:00:00+03:00", 25),
        ("Asia/Kolkata", "2026-06-01T00:00:00+05:30", 24),
        # St. John's: at 0:01 back to 23:01, so that its last evening hour is the new day's.
        ("America/St_Johns", "2010-11-07T00:00:00-02:30", 25),
        ("Pacific/Apia", "2011-12-31T00:00:00+14:00", 24),
    ],
)
def test_a_day_has_the_hours_that_it_has(name: str, day: str, hours: float) -> None:
    there, start = zone(name), ms(day)
    assert calendar.day_start_ms(start + HOUR, there) == start
    assert calendar.next_day_ms(start, there) - start == hours * HOUR


def test_a_repeated_hour_is_two_hours_and_a_skipped_one_is_none() -> None:
    berlin = zone("Europe/Berlin")

    def shown(start: str, end: str) -> list[str]:
        hours = calendar.hours(ms(start), ms(end), berlin)
        return [calendar.local(hour, berlin).strftime("%H:%M%z") for hour in hours]

    assert shown("2026-10-25T01:10:00+02:00", "2026-10-25T03:10:00+01:00") == [
        *("01:00+0200", "02:00+0200", "02:00+0100", "03:00+0100"),
    ]
    assert shown("2026-03-29T01:10:00+01:00", "2026-03-29T04:00:00+02:00") == [
        *("01:00+0100", "03:00+0200"),
    ]


def test_where_the_clock_moves_by_half_an_hour_there_is_half_an_hour() -> None:
    howe = zone("Australia/Lord_Howe")
    start, end = ms("2026-04-05T00:00:00+11:00"), ms("2026-04-05T03:00:00+10:30")
    lengths = [
        calendar.next_hour_ms(hour, howe) - hour for hour in calendar.hours(start, end, howe)
    ]
    assert lengths == [HOUR, HOUR, HOUR // 2, HOUR]


def test_hours_of_a_zone_with_a_quarter_offset_begin_on_its_own_clock() -> None:
    hour = calendar.hour_start_ms(ms("2026-06-01T10:20:00+05:45"), zone("Asia/Kathmandu"))
    assert hour == ms("2026-06-01T10:00:00+05:45")


def test_a_date_that_was_left_out_is_no_day() -> None:
    apia = zone("Pacific/Apia")
    between = calendar.days(ms("2011-12-29T12:00:00-10:00"), ms("2012-01-01T00:00:00+14:00"), apia)
    assert [calendar.date_of(day, apia).day for day in between] == [29, 31]


def test_without_a_name_it_is_the_zone_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tzlocal, "get_localzone", lambda: zone("Asia/Kathmandu"))
    assert calendar.zone(None) == zone("Asia/Kathmandu")
    assert calendar.zone("Asia/Shanghai") == zone("Asia/Shanghai")
    assert str(calendar.zone("Asia/Shanghai")) == "Asia/Shanghai"


@pytest.mark.parametrize("name", ["Asia/Shanghia", "America", "../etc/passwd"])
def test_a_zone_that_is_not_there_is_told(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read.*set program\.timezone"):
        calendar.zone(name)


def test_a_system_without_a_zone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise zoneinfo.ZoneInfoNotFoundError("no zone here")

    monkeypatch.setattr(tzlocal, "get_localzone", none)
    with pytest.raises(ValueError, match=r"the system's time zone.*no zone here"):
        calendar.zone(None)

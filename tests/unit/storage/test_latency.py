"""Buckets of times, and percentiles of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.storage.latency import (
    add,
    bucket,
    histogram,
    pack,
    percentiles,
    taken,
    unpack,
    upper_ms,
)

times = st.integers(0, 40) | st.integers(0, 60_000) | st.integers(0, 30 * 86_400_000)


@given(ms=times)
def test_a_bucket_holds_the_times_up_to_its_end(ms: int) -> None:
    number = bucket(ms)
    assert upper_ms(number - 1) < ms <= upper_ms(number)
    assert bucket(upper_ms(number)) == number
    assert bucket(upper_ms(number) + 1) == number + 1


@given(ms=times)
def test_a_bucket_is_about_a_twentieth_wide(ms: int) -> None:
    assert (upper_ms(bucket(ms)) - ms) <= ms / 16


def test_short_times_are_exact() -> None:
    assert [upper_ms(bucket(ms)) for ms in range(32)] == list(range(32))


def test_a_clock_that_was_set_back_counts_as_no_time() -> None:
    assert bucket(-5) == bucket(0) == 0


def test_a_month_needs_few_buckets() -> None:
    assert bucket(30 * 86_400_000) < 500


@given(found=st.lists(times, min_size=1), share=st.sampled_from([0, 0.01, 0.5, 0.95, 0.99, 1]))
def test_a_percentile_is_that_of_the_times_but_for_the_bucket(
    found: list[int], share: float
) -> None:
    rank = max(math.ceil(share * len(found)), 1)
    exact = sorted(found)[rank - 1]
    assert percentiles(sum(map(histogram, found)), [share]) == [upper_ms(bucket(exact))]


@pytest.mark.parametrize(("share", "ms"), [(0.07, 7), (0.5, 10), (0.29, 10), (1, 10)])
def test_a_share_that_falls_on_a_request_is_that_request(share: float, ms: int) -> None:
    assert percentiles(7 * histogram(7) + 93 * histogram(10), [share]) == [ms]


def test_of_nothing_there_is_no_percentile() -> None:
    assert percentiles(0, [0.5, 0.99]) == [None, None]


histograms = st.lists(st.tuples(times, st.integers(1, 10**6)), max_size=8).map(
    lambda found: sum(histogram(ms) * requests for ms, requests in found)
)


@given(counts=histograms)
def test_counts_come_back_from_the_database_as_they_were(counts: int) -> None:
    assert unpack(pack(counts)) == counts


@given(many=st.lists(histograms, max_size=5))
def test_packed_counts_add_up(many: list[int]) -> None:
    both = b""
    for one in map(pack, many):
        assert taken(add(both, one), one) == both
        both = add(both, one)
    assert unpack(both) == sum(many)


def test_what_is_not_there_cannot_be_taken() -> None:
    with pytest.raises(OverflowError):
        taken(pack(histogram(3)), pack(2 * histogram(3)))


def test_few_requests_need_few_bytes() -> None:
    assert len(pack(histogram(1500) + 3 * histogram(2000))) < 50
    assert pack(0) == b""

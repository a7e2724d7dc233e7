"""Which rollups make up a range: each quarter of it once, whatever the zone's borders."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from manager.storage.rollups import DAY_MS, HOUR_MS, QUARTER_MS, SPANS, pieces, spread

quarters = st.integers(0, 100 * 24 * 4).map(lambda number: number * QUARTER_MS)


@given(st.lists(quarters, min_size=2, max_size=6, unique=True).map(sorted))
def test_the_pieces_of_ranges_are_their_quarters_and_no_others(borders: list[int]) -> None:
    found: Counter[tuple[int, int]] = Counter()
    for piece in pieces(borders):
        length = SPANS[piece.span]
        assert piece.start_ms % length == piece.end_ms % length == 0
        assert piece.start_ms < piece.end_ms
        for place, sign in piece.places:
            for at_ms in range(piece.start_ms, piece.end_ms, QUARTER_MS):
                found[place, at_ms] += sign
    assert {cell for cell, times in found.items() if times} == {
        (place, at_ms)
        for place in range(len(borders) - 1)
        for at_ms in range(borders[place], borders[place + 1], QUARTER_MS)
    }
    assert set(found.values()) <= {0, 1}


def test_the_days_of_a_zone_need_few_rollups() -> None:
    for offset_ms, hours, rest in (
        (0, 0, 0),
        (16 * HOUR_MS, 8, 0),
        (18 * HOUR_MS + 1800_000, 5, 2),
    ):
        borders = [offset_ms + number * DAY_MS for number in range(31)]
        counts: Counter[str] = Counter()
        for piece in pieces(borders):
            counts[piece.span] += (piece.end_ms - piece.start_ms) // SPANS[piece.span]
        assert counts == Counter(day=30, hour=31 * hours, quarter=31 * rest)


@given(st.integers(0, 10**10), st.integers(0, 5 * HOUR_MS), st.integers(0, 10**15))
def test_the_quarters_of_a_run_share_its_time_and_its_cost(
    start_ms: int, ms: int, cost: int
) -> None:
    parts = list(spread(start_ms, ms, cost))
    assert sum(part_ms for _, part_ms, _ in parts) == ms
    assert sum(part for *_, part in parts) == (cost if ms else 0)
    assert all(0 < part_ms <= QUARTER_MS and part >= 0 for _, part_ms, part in parts)
    assert [start for start, *_ in parts] == [
        start_ms // QUARTER_MS * QUARTER_MS + number * QUARTER_MS for number in range(len(parts))
    ]

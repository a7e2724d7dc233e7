"""Bodies that are sent out of a file."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.relay import Spooled


@given(
    st.binary(max_size=200),
    st.lists(st.binary(max_size=20) | st.tuples(st.integers(0, 200), st.integers(0, 200))),
)
def test_ranges_and_bytes_are_sent_in_order_as_often_as_asked(
    content: bytes, parts: list[bytes | tuple[int, int]]
) -> None:
    within = [
        part if isinstance(part, bytes) else tuple(sorted(min(at, len(content)) for at in part))
        for part in parts
    ]
    expected = b"".join(
        part if isinstance(part, bytes) else content[part[0] : part[1]] for part in within
    )
    spooled = Spooled(io.BytesIO(content), within)
    assert len(spooled) == len(expected)
    for _ in range(2):  # the second time for a retry
        assert b"".join(spooled) == expected


def test_a_file_that_was_cut_is_not_sent_as_if_it_were_whole() -> None:
    spooled = Spooled(io.BytesIO(b"abc"), [(0, 4)])
    with pytest.raises(OSError, match="was cut"):
        list(spooled)


def test_no_more_than_a_piece_of_the_file_is_in_memory() -> None:
    pieces = list(Spooled(io.BytesIO(bytes(1_000_000)), [(0, 1_000_000)]))
    assert max(map(len, pieces)) <= 1 << 18

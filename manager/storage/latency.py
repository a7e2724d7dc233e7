"""Pure counting of how long requests took: histograms that can be added up, percentiles of them.

A histogram is one integer: the number of a bucket is a place in it, and what is there is how many
requests took so long. Python adds such integers faster than it adds counts one by one.

The buckets are those of HdrHistogram with sixteen to a power of two: below 32 ms each millisecond
has its own, above that a bucket is 3 to 6 % wide. A percentile is off by no more than that.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

SUB_BITS = 4
"""A power of two has ``2 ** SUB_BITS`` buckets."""

COUNT_BYTES = 4
"""Of one bucket's count, the least first; so many requests do not share a bucket."""

OFFSET_BYTES = 2
"""Before the counts: the first bucket that they are of, the least byte first."""

_SUBS = 1 << SUB_BITS
_COUNT_BITS = 8 * COUNT_BYTES


def bucket(ms: int) -> int:
    """The number of the bucket for `ms`; a longer time never has a smaller one. A clock that was
    set back makes negative times; they count as 0."""
    if ms < _SUBS:
        return max(ms, 0)
    shift = ms.bit_length() - SUB_BITS - 1
    return (shift << SUB_BITS) + (ms >> shift)


def upper_ms(bucket: int) -> int:
    """The longest time in the bucket, ms."""
    shift = max((bucket >> SUB_BITS) - 1, 0)
    return ((bucket - (shift << SUB_BITS) + 1) << shift) - 1


def histogram(ms: int) -> int:
    """That of one request."""
    return 1 << bucket(ms) * _COUNT_BITS


def percentiles(histogram: int, shares: Sequence[float]) -> list[int | None]:
    """The times, ms, that `shares` (0 to 1) of the requests took at most: the nearest rank, rounded
    up to its bucket's end. None where there are no requests."""
    first, counts = _parts(histogram)
    up_to = list(accumulate(counts))
    if not up_to:
        return [None] * len(shares)
    # 0.07 * 100 is a little more than 7: rounded, so that it does not become the eighth.
    ranks = (max(math.ceil(round(share * up_to[-1], 6)), 1) for share in shares)
    return [upper_ms(first + bisect_left(up_to, rank)) for rank in ranks]


def pack(histogram: int) -> bytes:
    """It as usage.db holds it; nothing at all where there are no requests."""
    first, counts = _parts(histogram)
    if not counts:
        return b""
    return first.to_bytes(OFFSET_BYTES, "little") + struct.pack(f"<{len(counts)}I", *counts)


def unpack(packed: bytes) -> int:
    """What `pack` packed."""
    first = int.from_bytes(packed[:OFFSET_BYTES], "little")
    return int.from_bytes(packed[OFFSET_BYTES:], "little") << first * _COUNT_BITS


def add(packed: bytes, more: bytes) -> bytes:
    """The sum of both."""
    return pack(unpack(packed) + unpack(more))


def taken(packed: bytes, less: bytes) -> bytes:
    """What is left without `less`, which has to be in it. Raises OverflowError if it is not."""
    return pack(unpack(packed) - unpack(less))


def _parts(histogram: int) -> tuple[int, tuple[int, ...]]:
    """The first bucket that is not empty, and the counts from there on. Raises OverflowError for
    what is below zero."""
    if histogram == 0:
        return 0, ()
    first = ((histogram & -histogram).bit_length() - 1) // _COUNT_BITS
    histogram >>= first * _COUNT_BITS
    length = -(-histogram.bit_length() // _COUNT_BITS)
    return first, struct.unpack(f"<{length}I", histogram.to_bytes(length * COUNT_BYTES, "little"))

"""Pure counting of how long requests took: buckets that can be added up, percentiles of them.

The buckets are those of HdrHistogram with sixteen to a power of two: below 32 ms each millisecond
has its own, above that a bucket is 3 to 6 % wide. A percentile is off by no more than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

SUB_BITS = 4
"""A power of two has ``2 ** SUB_BITS`` buckets."""

COUNT_BYTES = 4
"""Of one bucket's count when packed, the least first; so many requests do not share a bucket."""

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


def percentile(counts: Mapping[int, int], share: float) -> int | None:
    """The time, ms, that `share` (0 to 1) of the requests took at most: the nearest rank, rounded
    up to its bucket's end. None where there are no requests; `counts` is requests by bucket."""
    # 0.07 * 100 is a little more than 7: rounded, so that it does not become the eighth.
    rank = max(math.ceil(round(share * sum(counts.values()), 6)), 1)
    for number in sorted(counts):
        rank -= counts[number]
        if rank <= 0:
            return upper_ms(number)
    return None


def pack(counts: Mapping[int, int]) -> bytes:
    """Requests by bucket as usage.db holds them; nothing at all where there are none."""
    return _packed(sum(count << _COUNT_BITS * number for number, count in counts.items()))


def unpack(packed: bytes) -> dict[int, int]:
    """What `pack` packed, without the buckets that are empty."""
    first = int.from_bytes(packed[:OFFSET_BYTES], "little")
    counts = (
        int.from_bytes(packed[at : at + COUNT_BYTES], "little")
        for at in range(OFFSET_BYTES, len(packed), COUNT_BYTES)
    )
    return {first + number: count for number, count in enumerate(counts) if count}


def total(packed: Iterable[bytes]) -> dict[int, int]:
    """The sum of many: a microsecond for each."""
    return unpack(_packed(sum(map(_number, packed))))


def added(packed: bytes, more: bytes) -> bytes:
    """The sum of both."""
    return _packed(_number(packed) + _number(more))


def taken(packed: bytes, less: bytes) -> bytes:
    """What is left without `less`, which has to be in it. Raises OverflowError if it is not."""
    return _packed(_number(packed) - _number(less))


def _number(packed: bytes) -> int:
    """All counts as the digits of one integer: Python adds those faster than one by one."""
    first = int.from_bytes(packed[:OFFSET_BYTES], "little")
    return int.from_bytes(packed[OFFSET_BYTES:], "little") << first * _COUNT_BITS


def _packed(number: int) -> bytes:
    if number == 0:
        return b""
    first = ((number & -number).bit_length() - 1) // _COUNT_BITS
    number >>= first * _COUNT_BITS
    length = -(-number.bit_length() // _COUNT_BITS) * COUNT_BYTES
    return first.to_bytes(OFFSET_BYTES, "little") + number.to_bytes(length, "little")

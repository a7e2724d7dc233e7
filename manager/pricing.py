"""What a model costs, in integers: billionths of the currency."""

from __future__ import annotations

import decimal
from dataclasses import dataclass

PER_UNIT = 1_000_000_000
"""Billionths in one of the currency."""

LARGEST = 1_000_000_000
"""The largest amount of the currency in a price: with it, billionths fit SQLite's 64 bits."""

# Nothing is ever rounded: a digit too many is an error.
_EXACT = decimal.Context(prec=40, traps=[decimal.Inexact, decimal.InvalidOperation])


@dataclass(frozen=True)
class Tier:
    """A price per million tokens for requests whose token counts lie in its ranges.

    `min < tokens <= max` on input and on output; a min of 0 includes 0, a max of -1 is open.
    Amounts are billionths of the currency per million tokens.
    """

    min_input: int
    max_input: int
    min_output: int
    max_output: int
    input: int
    output: int
    cache_read: int
    cache_write: int
    support_cache: bool


@dataclass(frozen=True)
class Price:
    """What a model costs: per hour (billionths of the currency), per token, or both.

    The first tier that a request fits is its price.
    """

    per_hour: int | None
    tiers: tuple[Tier, ...]


def billionths(text: str) -> int:
    """The exact amount in `text`, such as `0.5` or `1e-9`, in billionths.

    Raises ValueError, which says what to write instead, unless it is a number from 0 to LARGEST
    with at most nine decimals.
    """
    try:
        amount = decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise ValueError(f"expected an amount such as 0.5, found {text[:60]!r}") from None
    if not amount.is_finite() or amount < 0 or amount > LARGEST:
        raise ValueError(f"expected an amount from 0 to {LARGEST}, found {text[:60]}")
    try:
        whole = amount.quantize(decimal.Decimal(1).scaleb(-9), context=_EXACT)
    except decimal.Inexact:
        raise ValueError(f"expected at most nine decimals, found {text[:60]}") from None
    return int(whole.scaleb(9, context=_EXACT))

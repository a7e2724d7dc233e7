"""What a model costs, in integers: billionths of the currency."""

from __future__ import annotations

import decimal
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

PER_UNIT = 1_000_000_000
"""Billionths in one of the currency."""

PER_TOKENS = 1_000_000
"""Amounts of tiers are for so many tokens."""

MAX_AMOUNT = 1_000_000
"""The largest amount of the currency in a price. With it the cost of the largest request, 2**31
prompt tokens that are written to a cache and as many completion tokens, is 3 * 2**31 * 10**9
billionths, and fits SQLite's 64 bits. So does a bill of up to 9 * 10**9 of the currency."""

UNBOUNDED = -1
"""A `max` without a limit."""

_HOUR_MS = 3_600_000

# Nothing is ever rounded: a digit too many is an error.
# Decimal itself takes the digits of every script. YAML has 1_000 for a thousand.
_AMOUNT = re.compile(r"[+-]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_EXACT = decimal.Context(prec=40, traps=[decimal.Inexact, decimal.InvalidOperation])


def _declared(unit: str, default: int | None) -> Any:
    return field(metadata={"unit": unit, "default": default})


@dataclass(frozen=True)
class Tier:
    """A price per million tokens for requests whose token counts lie in its ranges.

    `min < tokens <= max` on input and on output; a min of 0 includes 0, a max of -1 is open.
    Amounts are billionths of the currency per million tokens. Of each field the metadata has the
    unit (`tokens`, `amount` or `flag`) and the default (None: it has to be given); the default of
    token counts is the least that they may be.
    """

    min_input: int = _declared("tokens", 0)
    max_input: int = _declared("tokens", UNBOUNDED)
    min_output: int = _declared("tokens", 0)
    max_output: int = _declared("tokens", UNBOUNDED)
    input: int = _declared("amount", None)
    output: int = _declared("amount", None)
    cache_read: int = _declared("amount", 0)
    cache_write: int = _declared("amount", 0)
    support_cache: bool = _declared("flag", False)


@dataclass(frozen=True)
class Price:
    """What a model costs: per hour (billionths of the currency), per token, or both.

    The first tier that a request fits is its price.
    """

    per_hour: int | None
    tiers: tuple[Tier, ...]


@dataclass(frozen=True)
class PriceVersion:
    """A price that holds from ``effective_ms`` until the model's next one does. Times are epoch
    ms."""

    id: int
    model: str
    effective_ms: int
    price: Price
    created_ms: int


class Charge(NamedTuple):
    """What the tokens of a request cost, in billionths, by which version and tier; None where no
    version or no tier fits, which costs nothing."""

    version: int | None
    tier: int | None
    cost: int


def charge(
    versions: Sequence[PriceVersion], at_ms: int, prompt: int, cached: int, completion: int
) -> Charge:
    """The price of a request that was begun at ``at_ms``; ``versions`` are its model's, oldest
    first."""
    version = version_at(versions, at_ms)
    if version is None:
        return Charge(None, None, 0)
    place = tier_of(version.price, prompt, completion)
    if place is None:
        return Charge(version.id, None, 0)
    tier = version.price.tiers[place]
    return Charge(version.id, place, token_cost(tier, prompt, cached, completion))


def version_at(versions: Sequence[PriceVersion], at_ms: int) -> PriceVersion | None:
    """The one in force at that moment; ``versions`` are oldest first."""
    return next((one for one in reversed(versions) if one.effective_ms <= at_ms), None)


def tier_of(price: Price, prompt: int, completion: int) -> int | None:
    """The place in `price.tiers` of the first that these token counts fit; None: none does."""
    for place, tier in enumerate(price.tiers):
        if _inside(prompt, tier.min_input, tier.max_input) and _inside(
            completion, tier.min_output, tier.max_output
        ):
            return place
    return None


def token_cost(tier: Tier, prompt: int, cached: int, completion: int) -> int:
    """What the tokens cost, in billionths; half a billionth is rounded up, once.

    `prompt` includes `cached`. A tier without cache prices takes them for prompt tokens like the
    others; one with them charges for reading what was cached, and for writing what was not.
    """
    if tier.support_cache:
        fresh = (prompt - cached) * (tier.input + tier.cache_write)
        amount = cached * tier.cache_read + fresh + completion * tier.output
    else:
        amount = prompt * tier.input + completion * tier.output
    return (2 * amount + PER_TOKENS) // (2 * PER_TOKENS)


def hour_cost(per_hour: int | None, ms: int) -> int:
    """What so much of a run's time costs, in billionths; half a billionth is rounded up, once."""
    return (2 * ms * (per_hour or 0) + _HOUR_MS) // (2 * _HOUR_MS)


def tiers_to_json(tiers: Iterable[Tier]) -> str:
    """The tiers as a column of usage.db holds them: amounts are billionths, as integers."""
    return json.dumps([asdict(tier) for tier in tiers], separators=(",", ":"))


def tiers_from_json(text: str) -> tuple[Tier, ...]:
    """What `tiers_to_json` wrote. Raises ValueError where it is something else."""
    decoded = json.loads(text)
    try:
        return tuple(
            Tier(**{field.name: tier[field.name] for field in _FIELDS}) for tier in decoded
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"tiers of a price expected, found {text[:60]!r}") from error


def find_errors(price: Price) -> list[str]:
    """Why the price cannot hold: ranges that no number lies in. Tiers are counted from 1."""
    found = []
    for number, tier in enumerate(price.tiers, 1):
        for what, low, high in (
            ("input", tier.min_input, tier.max_input),
            ("output", tier.min_output, tier.max_output),
        ):
            if high != UNBOUNDED and high <= low and (low, high) != (0, 0):
                found.append(
                    f"tier {number}: max_{what} {high} is not above min_{what} {low};"
                    f" expected more than {low}, or {UNBOUNDED} for no limit"
                )
    return found


def warnings(price: Price) -> list[str]:
    """What may be meant otherwise, though it can hold: requests that two tiers fit (the first is
    used), and requests that none fits (they cost nothing). Asks for a price without `faults`."""
    return [*_overlaps(price.tiers), *_gaps(price.tiers)]


def parse_amount(text: str) -> int:
    """The exact amount in `text`, such as `0.5` or `1e-9`, in billionths.

    Raises ValueError, which says what to write instead, unless it is a number from 0 to LARGEST
    with at most nine decimals.
    """
    try:
        if not _AMOUNT.fullmatch(text):
            raise decimal.InvalidOperation
        amount = decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise ValueError(f"expected an amount such as 0.5, found {text[:60]!r}") from None
    if not amount.is_finite() or amount < 0 or amount > MAX_AMOUNT:
        raise ValueError(f"expected an amount from 0 to {MAX_AMOUNT}, found {text[:60]}")
    try:
        whole = amount.quantize(decimal.Decimal(1).scaleb(-9), context=_EXACT)
    except decimal.Inexact:
        raise ValueError(f"expected at most nine decimals, found {text[:60]}") from None
    return int(whole.scaleb(9, context=_EXACT))


def format_amount(billionths: int) -> str:
    """The amount as a decimal number, exact and without zeros at its end, such as `0.0123`."""
    whole, rest = divmod(abs(billionths), PER_UNIT)
    sign = "-" if billionths < 0 else ""
    return f"{sign}{whole}.{rest:09}".rstrip("0").rstrip(".")


_FIELDS = fields(Tier)

# A range as two bounds, the lower excluded: (-1, _ENDLESS) is every count.
_Range = tuple[int, int]
_ENDLESS = 1 << 62


def _inside(tokens: int, low: int, high: int) -> bool:
    return (tokens > low or low == 0) and (high == UNBOUNDED or tokens <= high)


def _range(low: int, high: int) -> _Range:
    return (low if low > 0 else -1, _ENDLESS if high == UNBOUNDED else high)


def _ranges(tier: Tier) -> tuple[_Range, _Range]:
    return _range(tier.min_input, tier.max_input), _range(tier.min_output, tier.max_output)


def _spelled(span: _Range) -> str:
    low, high = span
    if high == _ENDLESS:
        return "of any length" if low < 0 else f"over {low}"
    return f"{low + 1} to {high}"


def _overlaps(tiers: tuple[Tier, ...]) -> list[str]:
    found = []
    for number, tier in enumerate(tiers, 1):
        for earlier, other in enumerate(tiers[: number - 1], 1):
            both = [
                (max(one[0], two[0]), min(one[1], two[1]))
                for one, two in zip(_ranges(other), _ranges(tier), strict=True)
            ]
            if all(low < high for low, high in both):
                found.append(
                    f"tiers {earlier} and {number} overlap: input {_spelled(both[0])} with output"
                    f" {_spelled(both[1])} is priced by tier {earlier}"
                )
    return found


def _gaps(tiers: tuple[Tier, ...]) -> list[str]:
    """Between two neighbours of all the input bounds, the same tiers fit whatever the input."""
    if not tiers:
        return []
    ranges = [_ranges(tier) for tier in tiers]
    bounds = sorted({-1, _ENDLESS} | {bound for inputs, _ in ranges for bound in inputs})
    found: list[tuple[_Range, list[_Range]]] = []
    for low, high in itertools.pairwise(bounds):
        missing = _missing(out for inputs, out in ranges if inputs[0] <= low and high <= inputs[1])
        if found and found[-1][1] == missing:
            found[-1] = ((found[-1][0][0], high), missing)
        else:
            found.append(((low, high), missing))
    return [
        f"no tier fits input {_spelled(inputs)} with output {_spelled(outputs)}:"
        " such requests cost nothing"
        for inputs, missing in found
        for outputs in missing
    ]


def _missing(covered: Iterable[_Range]) -> list[_Range]:
    """What of all counts lies in none of these ranges."""
    missing = []
    reached = -1
    for low, high in sorted(covered):
        if low > reached:
            missing.append((reached, low))
        reached = max(reached, high)
    if reached < _ENDLESS:
        missing.append((reached, _ENDLESS))
    return missing

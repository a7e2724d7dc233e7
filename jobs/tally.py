"""Sums over many requests at once, in pandas and exact integers. No clock, no database."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import tzinfo

import numpy as np
import pandas as pd

from manager.billing import calendar
from manager.billing.pricing import OPEN, PER_TOKENS, PER_UNIT, Price
from manager.storage.schema import ALL, SUMS
from manager.usage import latency

Who = tuple[str, str, str, str]
"""Model, key, mode, scheme."""

Cell = tuple[str, int, str, str, str, str]
"""Span, start, and whose."""

Packed = tuple[bytes, bytes]
"""Requests by how long they took, to the first byte and in all."""

NUMBERS = tuple(
    part
    for name in SUMS
    for part in (("units", "billionths") if name == "cost_tokens" else (name,))
)
"""The same as `rollups` makes them."""

SPANS = {
    "hour": (calendar.hour_start_ms, calendar.next_hour_ms),
    "day": (calendar.day_start_ms, calendar.next_day_ms),
}
"""Of rollups and latencies: where one begins, and where the next one does."""

_NONE = -1  # instead of NULL in columns of integers
_LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Version:
    """A version of a model's price, in force from `effective_ms` until the model's next one."""

    id: int
    model: str
    effective_ms: int
    price: Price


class Book:
    """All versions of prices, as arrays: tiers lie one behind the other, version by version."""

    def __init__(self, versions: Iterable[Version]) -> None:
        self.versions = sorted(versions, key=lambda version: version.effective_ms)
        self._of_model: dict[str, list[int]] = {}
        for number, version in enumerate(self.versions):
            self._of_model.setdefault(version.model, []).append(number)
        tiers = [tier for version in self.versions for tier in version.price.tiers]
        count = [len(version.price.tiers) for version in self.versions]
        # What none is in force for looks up the last of each: id 0, no tiers.
        self._ids = _integers([*(version.id for version in self.versions), 0])
        self._count = _integers([*count, 0])
        self._first = _integers([*np.cumsum([0, *count])[:-1], 0])
        self._inputs = _bounds((tier.min_input, tier.max_input) for tier in tiers)
        self._outputs = _bounds((tier.min_output, tier.max_output) for tier in tiers)
        # Without cache prices, cached tokens cost what others do: one formula for all.
        self._cached = _integers(
            [tier.cache_read if tier.support_cache else tier.input for tier in tiers]
        )
        self._fresh = _integers(
            [tier.input + (tier.cache_write if tier.support_cache else 0) for tier in tiers]
        )
        self._completion = _integers([tier.output for tier in tiers])

    def of_model(self, model: str) -> list[Version]:
        """In the order in which they come into force."""
        return [self.versions[number] for number in self._of_model.get(model, ())]

    def price(self, models: Sequence[str], frame: pd.DataFrame) -> pd.DataFrame:
        """What each request costs: columns `price` (a version's id, or 0), `tier` (its place, or
        -1) and `cost`. `models` has the name that each row's `who` stands for."""
        version = self._in_force(models, frame)
        tier = np.full(len(frame), _NONE)
        prompt, completion = (
            frame["prompt_tokens"].to_numpy(),
            frame["completion_tokens"].to_numpy(),
        )
        count, first = self._count[version], self._first[version]
        for place in range(int(count.max(initial=0))):
            open_ = np.flatnonzero((tier == _NONE) & (count > place))
            at = first[open_] + place
            fits = _inside(prompt[open_], self._inputs, at)
            fits &= _inside(completion[open_], self._outputs, at)
            tier[open_[fits]] = place
        cost = np.zeros(len(frame), np.int64)
        priced = np.flatnonzero(tier != _NONE)
        cost[priced] = self._cost(frame.iloc[priced], (first + tier)[priced])
        return pd.DataFrame(
            {"price": self._ids[version], "tier": tier, "cost": cost}, index=frame.index
        )

    def unpriced(self, frame: pd.DataFrame) -> pd.Series:
        """1 for each request that has tokens and costs nothing because no tier fits it, else 0; a
        version without tiers wants nothing for tokens."""
        tiered = [version.id for version in self.versions if version.price.tiers]
        tokens = frame["prompt_tokens"] + frame["completion_tokens"] > 0
        free = (frame["tier"] == _NONE) & (frame["cost"] == 0)
        return (tokens & free & frame["price"].isin([0, *tiered])).astype(np.int64)

    def _in_force(self, models: Sequence[str], frame: pd.DataFrame) -> np.ndarray:
        """The place of each request's version; -1, the last, where there is none."""
        version = np.full(len(frame), _NONE)
        started = frame["started_ms"].to_numpy()
        codes, names = pd.factorize(np.array(models, object)[frame["who"].to_numpy()])
        for code, model in enumerate(names):
            if numbers := self._of_model.get(model):
                mine = np.flatnonzero(codes == code)
                begins = [self.versions[number].effective_ms for number in numbers]
                place = np.searchsorted(begins, started[mine], side="right")
                version[mine] = np.array([_NONE, *numbers])[place]
        return version

    def _cost(self, frame: pd.DataFrame, tier: np.ndarray) -> np.ndarray:
        """`pricing.token_cost` for all of them.

        Tokens times an amount can be more than 64 bits hold, so the amount goes in as millions
        and the rest: 2**31 tokens times 2 * 10**9 millions fit, and so does the sum of all three.
        """
        cached = frame["cached_tokens"].to_numpy()
        parts = (
            (cached, self._cached[tier]),
            (frame["prompt_tokens"].to_numpy() - cached, self._fresh[tier]),
            (frame["completion_tokens"].to_numpy(), self._completion[tier]),
        )
        millions = sum(tokens * (amount // PER_TOKENS) for tokens, amount in parts)
        rest = sum(tokens * (amount % PER_TOKENS) for tokens, amount in parts)
        return np.asarray(millions + (2 * rest + PER_TOKENS) // (2 * PER_TOKENS))


def merged(who: Who) -> tuple[Who, Who]:
    """Whom it is added up with: the model with all keys, and the key with all models."""
    model, key, mode, scheme = who
    return (model, ALL, mode, scheme), (ALL, key, ALL, ALL)


def everyone(names: Sequence[Who]) -> list[Who]:
    """The names, and after them those that they are merged into."""
    return [*names, *_merged(names)[0]]


def rollups(frame: pd.DataFrame, names: Sequence[Who], zone: tzinfo) -> pd.DataFrame:
    """Sums of priced requests by `span`, `start` and `who`, a place in `everyone(names)`, in
    columns of SUMS; that of the cost in two, `units` and `billionths`: it may be more than 64
    bits hold."""
    generated = (frame["streamed"] > 0) & (frame["first_byte_ms"] != _NONE)
    took = (frame["ended_ms"] - frame["first_byte_ms"]).clip(lower=0)
    numbers = {
        "requests": np.ones(len(frame), np.int64),
        "errors": frame["status"] >= 400,
        **{name: frame[name] for name in SUMS[2:7]},
        "units": frame["cost"] // PER_UNIT,
        "billionths": frame["cost"] % PER_UNIT,
        "generated_tokens": frame["completion_tokens"].where(generated, 0),
        "generated_ms": took.where(generated, 0),
    }
    sums = np.column_stack([numbers[name] for name in NUMBERS]).astype(np.int64)
    who = frame["who"].to_numpy()
    start, who, sums = _summed(starts(frame["started_ms"].to_numpy(), "hour", zone), who, sums)
    _, places = _merged(names)
    hours = _summed(
        np.tile(start, 3),
        np.concatenate([who, *(len(names) + places[who].T)]),
        np.tile(sums, (3, 1)),
    )
    days = _summed(starts(hours[0], "day", zone), *hours[1:])
    return pd.concat(
        [
            pd.DataFrame(cells, columns=list(NUMBERS)).assign(span=span, start=start, who=whose)
            for span, (start, whose, cells) in (("hour", hours), ("day", days))
        ]
    )


def latencies(frame: pd.DataFrame, names: Sequence[Who], zone: tzinfo) -> dict[Cell, Packed]:
    """How long requests took to their first byte and in all, as `latency.pack` packs it: of each
    model with all keys, and of each key with all models."""
    whose, places = _merged(names)
    # Two rows of each request: one for each that it is merged into.
    cell = places[frame["who"].to_numpy()].ravel()
    started = frame["started_ms"].to_numpy()
    hours = starts(started, "hour", zone)
    taken = [
        (
            column,
            np.where(
                frame[column] == _NONE, _NONE, buckets(frame[column].to_numpy() - started)
            ).repeat(2),
        )
        for column in ("first_byte_ms", "ended_ms")
    ]
    found: dict[Cell, Packed] = {}
    for span, begins in (("hour", hours), ("day", starts(hours, "day", zone))):
        moments, moment = np.unique(begins.repeat(2), return_inverse=True)
        groups, group = np.unique(moment * len(whose) + cell, return_inverse=True)
        first, whole = (_packed(group, bucket, len(groups)) for _, bucket in taken)
        for number, place in enumerate(groups.tolist()):
            start, who = divmod(place, len(whose))
            found[(span, int(moments[start]), *whose[who])] = (first[number], whole[number])
    return found


def difference(before: pd.DataFrame, after: pd.DataFrame, sums: Sequence[str]) -> pd.DataFrame:
    """What has to be added to sums that hold `before`, for them to hold `after`; what needs no
    change is left out."""
    both = pd.concat([before.assign(**{name: -before[name] for name in sums}), after])
    by = [name for name in both.columns if name not in sums]
    added = both.groupby(by, sort=False)[list(sums)].sum().reset_index()
    return added[(added[list(sums)] != 0).any(axis=1)]


def starts(ms: np.ndarray, span: str, zone: tzinfo) -> np.ndarray:
    """The start of the span that each moment lies in."""
    start_of, next_of = SPANS[span]
    order = np.argsort(ms, kind="stable")
    ordered = ms[order]
    found = np.empty_like(ordered)
    at = 0
    while at < len(ordered):
        start = start_of(int(ordered[at]), zone)
        end = int(np.searchsorted(ordered, next_of(start, zone)))
        found[at:end] = start
        at = end
    result = np.empty_like(found)
    result[order] = found
    return result


def buckets(ms: np.ndarray) -> np.ndarray:
    """`latency.bucket` for all of them."""
    ms = ms.clip(min=0)
    # The exponent is the bit length: exact below 2**53.
    shift = (np.frexp(ms)[1] - latency.SUB_BITS - 1).clip(min=0)
    return (shift << latency.SUB_BITS) + (ms >> shift)


def _summed(
    start: np.ndarray, who: np.ndarray, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows of `numbers` added up, one for each start and who."""
    order = np.lexsort((who, start))
    start, who = start[order], who[order]
    first = np.flatnonzero(np.diff(start, prepend=-1) | np.diff(who, prepend=-1))
    return start[first], who[first], np.add.reduceat(numbers[order], first)


def _merged(names: Sequence[Who]) -> tuple[list[Who], np.ndarray]:
    """All that the names are merged into, and the two places in that of each name."""
    places: dict[Who, int] = {}
    of = [[places.setdefault(whole, len(places)) for whole in merged(who)] for who in names]
    return list(places), np.array(of)


def _packed(group: np.ndarray, bucket: np.ndarray, groups: int) -> list[bytes]:
    """`latency.pack` for each group; no bucket is _NONE."""
    there = bucket != _NONE
    width = int(bucket.max(initial=0)) + 1
    counts = np.bincount(group[there] * width + bucket[there], minlength=groups * width)
    counts = counts.reshape(groups, width)
    low = (counts > 0).argmax(axis=1)
    high = width - (counts[:, ::-1] > 0).argmax(axis=1)
    data = counts.astype(f"<u{latency.COUNT_BYTES}").tobytes()
    return [
        first.to_bytes(latency.OFFSET_BYTES, "little")
        + data[
            (row * width + first) * latency.COUNT_BYTES : (row * width + end) * latency.COUNT_BYTES
        ]
        if any_
        else b""
        for row, (first, end, any_) in enumerate(
            zip(low.tolist(), high.tolist(), counts.any(axis=1).tolist(), strict=True)
        )
    ]


def _integers(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.int64)


def _bounds(ranges: Iterable[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """The least and the most tokens."""
    pairs = [(low + 1 if low else 0, _LARGEST if high == OPEN else high) for low, high in ranges]
    return _integers([low for low, _ in pairs]), _integers([high for _, high in pairs])


def _inside(
    tokens: np.ndarray, bounds: tuple[np.ndarray, np.ndarray], at: np.ndarray
) -> np.ndarray:
    return (bounds[0][at] <= tokens) & (tokens <= bounds[1][at])

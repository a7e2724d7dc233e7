"""Which models to stop so that there is enough free memory. Pure: no clock, no I/O, no locks."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

from manager.placement.types import Allocation

MAX_SEARCH_STEPS = 20_000  # some ten milliseconds

Shortage = Mapping[str, int]  # MB that are missing, by device id
# Whom to stop so that every device has enough; None where that cannot be reached.
VictimChooser = Callable[[Shortage, Sequence[Allocation]], "tuple[Allocation, ...] | None"]


def choose_victims(
    shortage: Shortage,
    candidates: Sequence[Allocation],
    cost: Callable[[Allocation], float] = lambda allocation: allocation.cost,
) -> tuple[Allocation, ...] | None:
    """The candidates that cost least and together hold at least what each device is short of; no
    one of them could be left out. None where all of them are not enough.

    A search with a bound, exact up to some fifteen candidates; with more it may end early, with
    the best that it has found.
    """
    wanted = tuple(shortage.values())
    useful = []
    for allocation in candidates:
        held = tuple(map(allocation.held_mb, shortage))
        if any(held):
            useful.append((cost(allocation), held, allocation))
    # What frees most for its cost first: the first set found is then a good bound.
    useful.sort(key=lambda each: each[0] / sum(map(min, each[1], wanted)))
    remaining = [(0,) * len(wanted)]  # held by those from here to the end
    for _, held, _ in reversed(useful):
        remaining.append(tuple(map(operator.add, remaining[-1], held)))
    remaining.reverse()
    if any(map(operator.lt, remaining[0], wanted)):
        return None
    best: list[Allocation] = [allocation for _, _, allocation in useful]
    best_cost = float("inf")
    steps = 0

    def search(at: int, missing: tuple[int, ...], spent: float, chosen: list[Allocation]) -> None:
        nonlocal best, best_cost, steps
        steps += 1
        if spent >= best_cost or steps > MAX_SEARCH_STEPS:
            return
        if max(missing) <= 0:
            best, best_cost = list(chosen), spent
            return
        if any(map(operator.lt, remaining[at], missing)):
            return
        price, held, allocation = useful[at]
        chosen.append(allocation)
        search(at + 1, tuple(map(operator.sub, missing, held)), spent + price, chosen)
        chosen.pop()
        search(at + 1, missing, spent, chosen)

    search(0, wanted, 0.0, [])
    return _without_needless(shortage, best, cost)


def _without_needless(
    shortage: Shortage, chosen: Sequence[Allocation], cost: Callable[[Allocation], float]
) -> tuple[Allocation, ...]:
    """Leaves out whom the others make needless, the most expensive first."""
    kept = sorted(chosen, key=cost)
    for allocation in kept[::-1] if len(kept) > 1 else ():
        rest = [other for other in kept if other is not allocation]
        if all(sum(other.held_mb(on) for other in rest) >= mb for on, mb in shortage.items()):
            kept = rest
    return tuple(kept)

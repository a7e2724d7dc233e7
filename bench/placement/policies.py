"""Whom to stop to make room: ours, and what it is compared with.

A policy is the cost that each idle model has and the choice made by these costs; all else, that
is schemes, room, waiting and yielding, is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from manager.placement.planner import stop_cost
from manager.placement.types import Allocation
from manager.placement.victims import VictimChooser, choose_victims


@dataclass(frozen=True)
class Use:
    """What is known of a model that holds memory; times in seconds."""

    idle: float  # since the end of its last request
    usual_gap: float | None
    start: float
    mb: int  # on all cards


@dataclass(frozen=True)
class Policy:
    cost: Callable[[Use], float]
    victims: VictimChooser


def in_order(
    lacking: Mapping[str, int], candidates: Sequence[Allocation]
) -> tuple[Allocation, ...] | None:
    """Stops one after the other by its cost alone, until there is enough; only such as hold memory
    on a card that still lacks some, and none where all together are not enough."""
    missing = dict(lacking)
    chosen = []
    for holding in sorted(candidates, key=lambda holding: holding.cost):
        if not missing:
            break
        if any(holding.held_mb(card) for card in missing):
            chosen.append(holding)
            missing = {
                card: mb - holding.held_mb(card)
                for card, mb in missing.items()
                if mb > holding.held_mb(card)
            }
    return None if missing else tuple(chosen)


def _ours(use: Use) -> float:
    return stop_cost(use.idle, use.usual_gap, use.start)


def _lru(use: Use) -> float:
    return 1.0 / max(use.idle, 1e-6)


def _score(use: Use) -> float:
    # The highest "idle seconds / GB" goes first, counted as LLM-Manager 2.2 does: GB on all
    # cards together, half a GB at least.
    return max(use.mb / 1024, 0.5) / max(use.idle, 1e-6)


POLICIES = {
    "ours": Policy(_ours, choose_victims),
    "lru": Policy(_lru, in_order),
    "score": Policy(_score, in_order),
}

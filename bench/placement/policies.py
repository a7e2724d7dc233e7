"""Which models to stop to free memory: the program's policy, and what it is compared with.

A policy is the cost that each idle model has and the choice made by these costs; all else, that
is schemes, free memory, waiting and yielding, is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from manager.placement.types import Allocation
from manager.placement.victims import VictimChooser, choose_victims


@dataclass(frozen=True)
class Use:
    """What is known of a model that holds memory; times in seconds."""

    idle: float  # since the end of its last request
    mb: int  # on all devices


@dataclass(frozen=True)
class Policy:
    """``cost`` is None where the program's own is kept."""

    cost: Callable[[Use], float] | None
    victims: VictimChooser


def in_order(
    lacking: Mapping[str, int], candidates: Sequence[Allocation]
) -> tuple[Allocation, ...] | None:
    """Stops one after the other by its cost alone, until there is enough; only such as hold memory
    on a device that still lacks some, and none where all together are not enough."""
    missing = dict(lacking)
    chosen = []
    for allocation in sorted(candidates, key=lambda allocation: allocation.cost):
        if not missing:
            break
        if any(allocation.held_mb(device) for device in missing):
            chosen.append(allocation)
            missing = {
                device: mb - allocation.held_mb(device)
                for device, mb in missing.items()
                if mb > allocation.held_mb(device)
            }
    return None if missing else tuple(chosen)


def _lru(use: Use) -> float:
    return 1.0 / max(use.idle, 1e-6)


def _score(use: Use) -> float:
    # The highest "idle seconds / GB" goes first, counted as LLM-Manager 2.2 does: GB on all
    # cards together, half a GB at least.
    return max(use.mb / 1024, 0.5) / max(use.idle, 1e-6)


POLICIES = {
    "ours": Policy(None, choose_victims),
    "lru": Policy(_lru, in_order),
    "score": Policy(_score, in_order),
}

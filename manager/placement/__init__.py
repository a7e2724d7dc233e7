"""Which model runs on which devices: pure decisions, and the lock that applies them."""

from manager.placement import memory, planner
from manager.placement.device_state import MAX_ASSUMED_FRACTION
from manager.placement.matching import matches
from manager.placement.placement import Placement
from manager.placement.planner import update_mean_gap
from manager.placement.reservation import Evictable, EvictionStatus, Reservation
from manager.placement.types import (
    Action,
    Allocation,
    Basis,
    Decision,
    DeviceBudget,
    Evictability,
    SchemeOption,
)
from manager.placement.waiter import DeviceAssignment, PlacementError, QueuePosition

__all__ = [
    "MAX_ASSUMED_FRACTION",
    "Action",
    "Allocation",
    "Basis",
    "Decision",
    "DeviceAssignment",
    "DeviceBudget",
    "Evictability",
    "Evictable",
    "EvictionStatus",
    "Placement",
    "PlacementError",
    "QueuePosition",
    "Reservation",
    "SchemeOption",
    "matches",
    "memory",
    "planner",
    "update_mean_gap",
]

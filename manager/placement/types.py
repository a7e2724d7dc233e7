"""What placement decides on and what it decides: plain values, no behaviour."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

Megabytes = Mapping[str, int]  # by device id, or by name where that is said


class Evictability(enum.Enum):
    """What may be done with a model that holds memory."""

    IDLE = "idle"  # may be stopped
    BUSY = "busy"  # has requests, or is starting
    PINNED = "pinned"  # never stopped for another
    STOPPING = "stopping"  # its memory is about to be free


class Basis(enum.Enum):
    """Where it comes from how much memory a scheme takes, the one that counts first."""

    DECLARED = "declared"  # in the config
    MEASURED = "measured"  # of earlier runs of the same command
    ESTIMATED = "estimated"  # from the model's file
    WHOLE = "whole"  # nobody knows it: the scheme has each of its devices alone


@dataclass(frozen=True)
class DeviceBudget:
    """A device that is online. ``total_mb`` is None where nobody knows it: then one model at a
    time has the device. ``used_mb`` is 0 where nothing measures it."""

    id: str
    name: str
    total_mb: int | None
    used_mb: int = 0


@dataclass(frozen=True)
class Allocation:
    """What one model holds. ``settled``: the devices' readings show all of it. ``cost``: of
    stopping it, see ``planner.stop_cost``. ``yielding``: it takes no new requests, so that it can
    be stopped."""

    model: str
    declared_mb: Megabytes
    evictability: Evictability
    measured_mb: Megabytes = field(default_factory=dict)
    settled: bool = True
    cost: float = 1.0
    yielding: bool = False

    def held_mb(self, device_id: str) -> int:
        """The larger of what it declared and what was measured."""
        declared = self.declared_mb.get(device_id, 0)
        return max(declared, self.measured_mb.get(device_id, 0)) if self.measured_mb else declared

    def devices(self) -> Collection[str]:
        """The ids of the devices that it holds memory on."""
        if not self.measured_mb:
            return self.declared_mb.keys()
        return self.declared_mb.keys() | self.measured_mb.keys()


@dataclass(frozen=True)
class SchemeOption:
    """A scheme as it is placed. ``memory_mb`` is what it takes of each device, by ``basis``; see
    ``Memory.need``. ``unusable_reason`` is set where it cannot be run whatever the devices are.
    ``on`` is set for a server that sleeps: what it needs of its devices, by id, beyond what it
    holds."""

    scheme: str
    required_devices: tuple[str, ...] = ()
    memory_mb: Megabytes = field(default_factory=dict)  # by name, as in required_devices
    unusable_reason: str | None = None
    basis: Basis = Basis.DECLARED
    on: Megabytes | None = None


@dataclass(frozen=True)
class StartRequest:
    """A model that is to be started. ``may_evict`` is False where nobody waits for it: then it
    takes only what is free. ``planned`` is a decision for which models were stopped: the memory
    that they held is waited for, lest others are stopped as well when these become idle."""

    model: str
    options: tuple[SchemeOption, ...]
    may_evict: bool = True
    planned: Decision | None = None


class Action(enum.IntEnum):
    """What happens with a model that is to be started, the best first."""

    START = 0  # there is enough free memory
    EVICT = 1  # there will be, once the named idle models are stopped
    AWAIT_MEMORY = 2  # there will be, once memory is returned or a start has ended
    QUEUE = 3  # the named models are busy, or came first
    REJECT = 4


@dataclass(frozen=True)
class Decision:
    """What happens with one model. ``memory_mb`` is by device id; ``models`` are those that it
    stops (EVICT) or waits for (AWAIT_MEMORY, QUEUE); ``passed_over`` scheme → why not; ``code``
    is set for REJECT."""

    model: str
    action: Action
    scheme: str | None = None
    memory_mb: Megabytes = field(default_factory=dict)
    models: tuple[str, ...] = ()
    reason: str = ""
    passed_over: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    behind_queue: bool = False  # it waits for those before it in the queue, not for memory

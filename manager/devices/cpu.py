"""The processor and the machine's memory, as one device, through psutil."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil

from manager.devices import cgroup
from manager.devices.base import DevicePlugin, Reading

log = logging.getLogger(__name__)

_MB = 2**20

# What Linux' drivers call the sensors of a processor.
_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal")


class Cpu(DevicePlugin):
    """``CPU + RAM``: ``cpu`` and ``ram`` both name it. What a process holds is its resident
    set, so that memory which processes share counts for each of them.

    The models' files that are mapped into memory count as used: the system could drop them at
    any moment, but then the model would wait for the disk at every token.

    In a container or a systemd unit with a memory limit there is no more than that limit:
    whatever is used within it counts, and what the machine has beyond it does not exist. ``root``
    is where the limits are found: see ``cgroup.memory_limits``.
    """

    name = "cpu"

    def __init__(self, root: Path = cgroup.ROOT) -> None:
        self._root = root
        self._has_read_load = False
        self._logged_limit: int | None = None

    def read(self, pids: Collection[int]) -> Sequence[Reading]:
        memory = psutil.virtual_memory()
        held, mapped = _held(pids)
        limits = cgroup.memory_limits(memory.total, self._root)
        self._log(limits)
        total = min([memory.total, *(each.limit for each in limits)])
        available = min([memory.available - mapped, *(each.available(mapped) for each in limits)])
        reading = Reading(
            name="CPU + RAM",
            kind="cpu",
            index=0,
            total_mb=total // _MB,
            used_mb=min(total, max(0, total - available)) // _MB,
            load=self._load(),
            temperature_c=_temperature(),
            held_mb=held,
        )
        return (reading,)

    def _log(self, limits: Sequence[cgroup.MemoryLimit]) -> None:
        """Says where RAM ends, once for each limit."""
        smallest = min(limits, key=lambda each: each.limit, default=None)
        if smallest is not None and smallest.limit != self._logged_limit:
            self._logged_limit = smallest.limit
            log.info("RAM is limited to %d MB by %s", smallest.limit // _MB, smallest.source)

    def _load(self) -> float | None:
        """The share of the time since the last call that was not idle; None at the first."""
        load: float = psutil.cpu_percent(interval=None) / 100
        is_first, self._has_read_load = not self._has_read_load, True
        return None if is_first else load


def _temperature() -> float | None:
    """The hottest part of the processor, in °C; None where no sensor of it is known."""
    if not hasattr(psutil, "sensors_temperatures"):  # psutil has it for Linux and FreeBSD
        return None
    sensors = psutil.sensors_temperatures()
    found = [entry.current for name in _SENSORS for entry in sensors.get(name, ())]
    return max(found, default=None)


def _held(pids: Collection[int]) -> tuple[dict[int, int], int]:
    """MB by process, and the bytes of files that are mapped by them all together."""
    held, mapped = {}, 0
    for pid in pids:
        try:
            memory = psutil.Process(pid).memory_info()
        except psutil.Error:
            continue  # it has ended, or is another user's: it is not in the answer
        held[pid] = memory.rss // _MB
        mapped += getattr(memory, "shared", 0)  # Linux reports it
    return held, mapped

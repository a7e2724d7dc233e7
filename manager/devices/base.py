"""What a device is. A plugin is a subclass of DevicePlugin in a file of ``device_plugin_dir``."""

from __future__ import annotations

import math
import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


class DeviceError(Exception):
    """The devices cannot be read now; says why. Their last reading stays, marked stale."""


@dataclass(frozen=True)
class Reading:
    """One device as its driver reports it.

    ``kind`` is ``nvidia``, ``amd``, ``cpu`` or a plugin's own word; ``index`` the driver's number
    of it, which distinguishes equal cards: of the first two kinds what CUDA and HIP count. Memory
    is in MB (2**20 bytes), None where nothing measures it; ``load`` is 0 to 1. ``held_mb`` is what
    each process holds there, by pid, where that is known. ``hidden_by`` names what the user has
    hidden the device with, so that it is not used.
    """

    name: str
    kind: str
    index: int
    total_mb: int | None = None
    used_mb: int | None = None
    load: float | None = None
    temperature_c: float | None = None
    held_mb: Mapping[int, int] | None = None
    hidden_by: str | None = None

    def fault(self) -> str | None:
        """What of it is invalid; None if all is well."""
        for key in ("name", "kind"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key):
                return f"a Reading's {key} must be a text, not {getattr(self, key)!r}"
        if type(self.index) is not int:
            return f"{self.name}: index must be a whole number, not {self.index!r}"
        for key in ("total_mb", "used_mb"):
            mb = getattr(self, key)
            if mb is not None and (type(mb) is not int or mb < 0):
                return f"{self.id}: {key} must be whole MB from 0 on or None, not {mb!r}"
        for key in ("load", "temperature_c"):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, (int, float)) and math.isfinite(value)):
                return f"{self.id}: {key} must be a number or None, not {value!r}"
        held = self.held_mb
        if held is not None and not (
            isinstance(held, Mapping)
            and all(type(pid) is int and type(mb) is int and mb >= 0 for pid, mb in held.items())
        ):
            return f"{self.id}: held_mb must be whole MB by pid or None, not {held!r}"
        if not isinstance(self.hidden_by, (str, types.NoneType)):
            return f"{self.id}: hidden_by must be a text or None, not {self.hidden_by!r}"
        return None

    @property
    def id(self) -> str:
        """Unique among all devices, and readable for a person."""
        return f"{self.name} #{self.index}"


class DevicePlugin:
    """One way to read devices. ``name`` is unique: a plugin with the name of a shipped one
    replaces it."""

    name: ClassVar[str]

    def read(self, pids: Collection[int]) -> Sequence[Reading]:
        """Every device that is online now, in the driver's order.

        ``pids`` are the processes of the running models, for a plugin that has to read each.
        May take long and may hang: it has a thread of its own. Raises DeviceError.
        """
        raise NotImplementedError(f"{type(self).__name__} reads nothing")

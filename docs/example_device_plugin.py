"""A device plugin: Intel's cards, from the files that Linux' ``xe`` driver keeps for each.

Copy this file into the folder that ``device_plugin_dir`` names and restart the program. What each
part is for stands in ``device-plugin.md`` beside this file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from manager.devices import DeviceError, DevicePlugin, Reading

MB = 2**20


class Intel(DevicePlugin):
    """``Intel GPU e20b #0`` and so on; the four digits are the model's PCI id, as ``lspci -nn``
    shows it. This driver has no file that says how much of the memory is used."""

    name = "intel"
    folder = Path("/sys/class/drm")

    def read(self, pids: Collection[int]) -> Sequence[Reading]:  # noqa: ARG002 - not by process
        """Every card of this driver; other cards have no such files."""
        cards = [path for path in self.folder.glob("card*") if re.fullmatch(r"card\d+", path.name)]
        cards.sort(key=lambda path: int(path.name.removeprefix("card")))
        devices = [path / "device" for path in cards]
        own = [device for device in devices if any(sizes(device))]
        return [self._reading(device, index) for index, device in enumerate(own)]

    def _reading(self, device: Path, index: int) -> Reading:
        tiles = [number(file) for file in sizes(device)]
        if None in tiles:
            raise DeviceError(f"the driver does not report the memory of {device}")
        sensors = device.glob("hwmon/hwmon*/temp2_input")
        heat = next((value for value in map(number, sensors) if value is not None), None)
        model = text(device / "device").removeprefix("0x")
        return Reading(
            name=f"Intel GPU {model}".strip(),
            kind="intel",
            index=index,
            total_mb=sum(tile or 0 for tile in tiles) // MB,
            temperature_c=None if heat is None else heat / 1000,
        )


def sizes(device: Path) -> list[Path]:
    """The files with the bytes of memory of each part of a card."""
    return sorted(device.glob("tile*/physical_vram_size_bytes"))


def text(file: Path) -> str:
    """What stands in a file; nothing where it is missing, or the card sleeps."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(file: Path) -> int | None:
    found = text(file)
    return int(found) if found.isdecimal() else None

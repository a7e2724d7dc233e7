"""A device plugin: AMD cards, from the files that Linux' ``amdgpu`` driver keeps for each.

Copy this file into the folder that ``device_plugin_dir`` names and restart the program. What each
part is for stands in ``device-plugin.md`` beside this file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from manager.devices import DeviceError, DevicePlugin, Reading

MB = 2**20


class Amd(DevicePlugin):
    """``AMD GPU 744c #0`` and so on; the four digits are the model's PCI id, as ``lspci -nn``
    shows it. A card that knows its product's name has that in their place."""

    name = "amd"
    folder = Path("/sys/class/drm")

    def read(self, pids: Collection[int]) -> Sequence[Reading]:  # noqa: ARG002 - not by process
        """Every card of this driver; other cards have no such files."""
        cards = [path for path in self.folder.glob("card*") if re.fullmatch(r"card\d+", path.name)]
        cards.sort(key=lambda path: int(path.name.removeprefix("card")))
        devices = [path / "device" for path in cards]
        own = [device for device in devices if (device / "mem_info_vram_total").exists()]
        return [self._reading(device, index) for index, device in enumerate(own)]

    def _reading(self, device: Path, index: int) -> Reading:
        total, used = number(device / "mem_info_vram_total"), number(device / "mem_info_vram_used")
        if total is None or used is None:
            raise DeviceError(f"the driver does not report the memory of {device}")
        busy = number(device / "gpu_busy_percent")
        sensors = device.glob("hwmon/hwmon*/temp1_input")
        heat = next((value for value in map(number, sensors) if value is not None), None)
        model = text(device / "device").removeprefix("0x")
        return Reading(
            name=text(device / "product_name") or f"AMD GPU {model}".strip(),
            kind="amd",
            index=index,
            total_mb=total // MB,
            used_mb=used // MB,
            load=None if busy is None else busy / 100,
            temperature_c=None if heat is None else heat / 1000,
        )


def text(file: Path) -> str:
    """What stands in a file; nothing where it is missing, or the card sleeps."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def number(file: Path) -> int | None:
    found = text(file)
    return int(found) if found.isdecimal() else None

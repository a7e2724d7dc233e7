"""The plugin that docs/device-plugin.md shows works as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manager.config import plugins
from manager.devices import DeviceError, DevicePlugin, Reading

DOCS = Path(__file__).resolve().parents[3] / "docs"
GB = 2**30


@pytest.fixture
def intel(tmp_path: Path) -> DevicePlugin:
    plugin: Any = plugins.devices(DOCS)[-1]
    plugin.folder = tmp_path
    return plugin  # type: ignore[no-any-return]


def add(folder: Path, card: str, **files: object) -> Path:
    """A card as the driver shows it, two underscores in a name for the slash of a path."""
    device = folder / card / "device"
    device.mkdir(parents=True)
    for name, content in files.items():
        file = device / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")
    return device


def memory(*tiles: int) -> dict[str, object]:
    return {f"tile{at}__physical_vram_size_bytes": size * GB for at, size in enumerate(tiles)}


def test_the_example_adds_a_plugin_to_the_shipped_ones() -> None:
    names = [plugin.name for plugin in plugins.devices(DOCS)]
    assert names == ["nvidia", "amd", "cpu", "intel"]


def test_a_machine_without_such_cards_has_none(intel: DevicePlugin, tmp_path: Path) -> None:
    assert intel.read(()) == []
    add(tmp_path, "card0", device="0x2882")  # another maker's
    assert intel.read(()) == []


def test_each_card_is_told_with_all_that_its_driver_knows(
    intel: DevicePlugin, tmp_path: Path
) -> None:
    add(tmp_path, "card10", **memory(12), device="0xe20b")
    add(tmp_path, "card2", **memory(12), hwmon__hwmon3__temp2_input=54000, device="0xe20b")
    add(tmp_path, "card1", **memory(64, 64), device="0x0bd5")
    add(tmp_path, "card1-DP-1", **memory(64))  # a connector, not a card
    assert intel.read(()) == [
        Reading("Intel GPU 0bd5", "intel", 0, 131072),
        Reading("Intel GPU e20b", "intel", 1, 12288, temperature_c=54.0),
        Reading("Intel GPU e20b", "intel", 2, 12288),
    ]


def test_a_card_whose_memory_cannot_be_read_is_a_fault_and_not_offline(
    intel: DevicePlugin, tmp_path: Path
) -> None:
    device = add(tmp_path, "card0", **memory(24))
    (device / "tile0/physical_vram_size_bytes").write_text("")
    with pytest.raises(DeviceError, match="card0"):
        intel.read(())

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
def amd(tmp_path: Path) -> DevicePlugin:
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


def memory(total: int, used: int) -> dict[str, object]:
    return {"mem_info_vram_total": total * GB, "mem_info_vram_used": used * GB}


def test_the_example_adds_a_plugin_to_the_shipped_ones() -> None:
    assert [plugin.name for plugin in plugins.devices(DOCS)] == ["nvidia", "cpu", "amd"]


def test_a_machine_without_such_cards_has_none(amd: DevicePlugin, tmp_path: Path) -> None:
    assert amd.read(()) == []
    add(tmp_path, "card0", device="0x2882")  # another maker's
    assert amd.read(()) == []


def test_each_card_is_told_with_all_that_its_driver_knows(
    amd: DevicePlugin, tmp_path: Path
) -> None:
    more = {"gpu_busy_percent": 37, "hwmon__hwmon3__temp1_input": 54000, "device": "0x744c"}
    add(tmp_path, "card10", **memory(24, 0), device="0x744c")
    add(tmp_path, "card2", **memory(24, 6), **more, product_name="")
    add(tmp_path, "card1", **memory(64, 1), product_name="AMD Instinct MI210")
    add(tmp_path, "card1-DP-1", **memory(64, 1))  # a connector, not a card
    assert amd.read(()) == [
        Reading("AMD Instinct MI210", "amd", 0, 65536, 1024),
        Reading("AMD GPU 744c", "amd", 1, 24576, 6144, 0.37, 54.0),
        Reading("AMD GPU 744c", "amd", 2, 24576, 0),
    ]


def test_a_card_whose_memory_cannot_be_read_is_a_fault_and_not_offline(
    amd: DevicePlugin, tmp_path: Path
) -> None:
    device = add(tmp_path, "card0", **memory(24, 6))
    (device / "mem_info_vram_used").unlink()
    with pytest.raises(DeviceError, match="card0"):
        amd.read(())

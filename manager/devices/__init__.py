"""The devices that models run on: how their drivers are read, and their last readings."""

from manager.devices.amd import Amd
from manager.devices.base import DeviceError, DevicePlugin, Reading
from manager.devices.cpu import Cpu
from manager.devices.monitor import Device, Monitor, Snapshot
from manager.devices.nvidia import Nvidia

BUILT_IN: tuple[type[DevicePlugin], ...] = (Nvidia, Amd, Cpu)

__all__ = [
    "BUILT_IN",
    "Amd",
    "Cpu",
    "Device",
    "DeviceError",
    "DevicePlugin",
    "Monitor",
    "Nvidia",
    "Reading",
    "Snapshot",
]

"""AMD cards, from the files that Linux' ``amdgpu`` driver has for each."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manager.devices import visibility
from manager.devices.base import DeviceError, DevicePlugin, Reading

log = logging.getLogger(__name__)

ROOT = Path("/")

_MB = 2**20
_MEMORY = ("vram", "gtt")  # kinds
_CARD = re.compile(r"card[0-9]+")  # card1-DP-1 is a connector
_RENDER_NODE = re.compile(r"renderD([0-9]{1,9})")
_MAX_DIGITS = 20  # of 2**64
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# Where the packages libdrm-common and amdgpu-core have the names of cards.
_NAMES = ("usr/share/libdrm/amdgpu.ids", "opt/amdgpu/share/libdrm/amdgpu.ids")


@dataclass(frozen=True)
class _Card:
    """One card: its folder of files, and where it is on the PCI bus, ``0000:03:00.0``."""

    folder: Path
    slot: str
    render_minor: int | None

    @property
    def uuid(self) -> str:
        """As ROCm calls it; "" for one that has none."""
        unique_id = _text(self.folder / "unique_id").lower()
        return f"GPU-{unique_id.zfill(16)}" if unique_id.strip("0") else ""

    def sensor(self, name: str) -> Path | None:
        return next(iter(self.folder.glob(f"hwmon/hwmon*/{name}")), None)


class Amd(DevicePlugin):
    """Every card of the driver ``amdgpu``, with the number that HIP has for it.

    HIP numbers the cards in the order in which ROCr finds them, and that is the order of the
    driver's compute nodes, ``/sys/class/kfd/kfd/topology/nodes``, without the processors and
    without those that a container may not read (``BuildDeviceUuidList`` in ROCr's
    amd_filter_device.cpp, ``topology_sysfs_check_node_supported`` in its topology.c). Cards that
    have no node, since ROCm does not know them, come behind these, by their place on the PCI bus.

    A card that is part of a processor may use the machine's memory (GTT) beside what is set apart
    for it (VRAM). Where the first is more, newer kernels give models that (``apu_prefer_gtt``), and
    it is the card's memory here; what other programs have of RAM is used there, too. Only such
    cards have a sensor of the northbridge's voltage, ``in1_input``
    (docs.kernel.org/gpu/amdgpu/thermal.html).

    What processes hold is in ``/proc/PID/fdinfo``, for those of the same user
    (docs.kernel.org/gpu/drm-usage-stats.html). ``root`` is where ``sys``, ``proc`` and ``usr`` are.
    """

    name = "amd"

    def __init__(self, root: Path = ROOT) -> None:
        self._root = root
        self._names: Mapping[tuple[str, str], str] | None = None
        self._readable: set[str] = set()  # places on the PCI bus
        self._left_out: set[str] = set()
        self._log = visibility.HiddenCardsLog((visibility.ROCR, visibility.HIP), "as HIP counts")

    def read(self, pids: Collection[int]) -> Sequence[Reading]:
        cards = self._numbered(list(self._cards()))
        if not cards:
            return ()
        uuids = dict.fromkeys(range(max(cards) + 1), "")
        uuids |= {index: card.uuid for index, card in cards.items()}
        hidden_by = _hidden_by(uuids)
        clients = _clients(self._root / "proc", pids)
        readings = []
        faults: dict[str, DeviceError] = {}
        for index, card in cards.items():
            if index in hidden_by:
                name = self._name(card)
                readings.append(Reading(name, "amd", index, hidden_by=hidden_by[index]))
                continue
            try:
                readings.append(self._reading(card, index, clients.get(card.slot)))
                self._readable.add(card.slot)
            except DeviceError as error:
                faults[card.slot] = error
        self._leave_out(faults, has_others=bool(readings))
        self._log.update(readings)
        return readings

    def _leave_out(self, faults: Mapping[str, DeviceError], *, has_others: bool) -> None:
        """Logs each card that could never be read, once: the others are used without it. Raises
        the fault of one that was read before, so that the last readings stay."""
        for slot, fault in faults.items():
            if slot in self._readable or not has_others:
                raise fault
            if slot not in self._left_out:
                self._left_out.add(slot)
                log.warning("%s: it is left out", fault)

    def _cards(self) -> Iterator[_Card]:
        for path in (self._root / "sys/class/drm").glob("card*"):
            folder = path / "device"
            if not _CARD.fullmatch(path.name) or not (folder / "mem_info_vram_total").exists():
                continue
            match = re.search(r"^PCI_SLOT_NAME=(\S+)$", _text(folder / "uevent"), re.MULTILINE)
            nodes = (_RENDER_NODE.fullmatch(node.name) for node in folder.glob("drm/renderD*"))
            minor = next((int(node[1]) for node in nodes if node), None)
            yield _Card(folder, match[1] if match else path.name, minor)

    def _numbered(self, cards: list[_Card]) -> dict[int, _Card]:
        """The cards by HIP's number, in its order."""
        nodes = list(self._compute_nodes())
        known = {card.render_minor: card for card in cards if card.render_minor in nodes}
        numbered = {at: known[minor] for at, minor in enumerate(nodes) if minor in known}
        others = [card for card in cards if card.render_minor not in nodes]
        others.sort(key=lambda card: card.slot)
        return numbered | dict(enumerate(others, len(nodes)))

    def _compute_nodes(self) -> Iterator[int]:
        """The render node of each card that ROCr finds, in its order."""
        folder = self._root / "sys/class/kfd/kfd/topology/nodes"
        found = [path for path in folder.glob("*") if path.name.isdecimal()]
        for path in sorted(found, key=lambda path: int(path.name)):
            lines = map(str.split, _text(path / "properties").splitlines())
            properties = {line[0]: line[1] for line in lines if len(line) == 2}
            minor = _as_number(properties.get("drm_render_minor", ""))
            if _as_number(properties.get("simd_count", "")) and minor is not None:
                yield minor

    def _reading(
        self, card: _Card, index: int, clients: Mapping[int, Mapping[str, int]] | None
    ) -> Reading:
        vram, gtt = (_number(card.folder / f"mem_info_{kind}_total") for kind in _MEMORY)
        is_shared = (gtt or 0) > (vram or 0) and card.sensor("in1_input") is not None
        kind, total = ("gtt", gtt) if is_shared else ("vram", vram)
        used = _number(card.folder / f"mem_info_{kind}_used")
        if total is None or used is None:
            raise DeviceError(f"the driver does not report the memory of {card.folder}")
        if is_shared:
            used = max(used, total - self._available_ram())
        # To ask one that sleeps for its load or its heat would wake it, once a second.
        sleeps = _text(card.folder / "power/runtime_status") == "suspended"
        busy = None if sleeps else _number(card.folder / "gpu_busy_percent")
        sensor = None if sleeps else card.sensor("temp1_input")
        heat = _number(sensor) if sensor else None
        held = {pid: sizes[kind] for pid, sizes in (clients or {}).items()}
        return Reading(
            name=self._name(card),
            kind="amd",
            index=index,
            total_mb=total // _MB,
            used_mb=min(used, total) // _MB,
            load=None if busy is None else min(busy, 100) / 100,
            temperature_c=None if heat is None else heat / 1000,
            held_mb={pid: -(-size // _MB) for pid, size in held.items()} if held else None,
        )

    def _available_ram(self) -> int:
        """Bytes that programs could still have."""
        text = _text(self._root / "proc/meminfo")
        match = re.search(r"^MemAvailable: +([0-9]{1,15}) kB$", text, re.MULTILINE)
        if match is None:
            raise DeviceError("the system does not report how much memory is available")
        return int(match[1]) * 2**10

    def _name(self, card: _Card) -> str:
        """What the card itself or libdrm's list calls it; else ``AMD GPU`` and its PCI id, as
        ``lspci -nn`` has that. Its id alone would not do: an RX 7900 XT and XTX have the same."""
        device, revision = (
            _text(card.folder / name).removeprefix("0x").lower() for name in ("device", "revision")
        )
        if self._names is None:
            self._names = _read_names(self._root)
        own = " ".join(_text(card.folder / "product_name").split())
        if not own.isprintable():  # the card's firmware has it, and it may be damaged
            own = ""
        return own or self._names.get((device, revision)) or f"AMD GPU {device}".strip()


def _hidden_by(uuids: Mapping[int, str]) -> dict[int, str]:
    """The variable that hides a card, by HIP's number of the card.

    ROCr leaves those that its variable names, in that order, and HIP's variable counts these
    (rocm.docs.amd.com, "GPU isolation techniques"). ``CUDA_VISIBLE_DEVICES``, which HIP reads where
    its own is not set, is taken to mean NVIDIA cards.
    """
    within = visibility.visible_cards(visibility.ROCR, uuids)
    counted = {at: uuids[index] for at, index in enumerate(within)}
    visible = {within[at] for at in visibility.visible_cards(visibility.HIP, counted)}
    return {
        index: visibility.HIP if index in within else visibility.ROCR
        for index in uuids
        if index not in visible
    }


def _clients(proc: Path, pids: Collection[int]) -> dict[str, dict[int, Counter[str]]]:
    """What each process holds of each card, by its place on the PCI bus: bytes of VRAM and of GTT.

    A connection to the driver that a process shares with its parent is one client, and counts once.
    Processes of which nothing is known are left out.
    """
    found: dict[str, dict[int, Counter[str]]] = defaultdict(dict)
    seen = set()
    for pid in sorted(pids):
        for fields in _connections(proc / str(pid)):
            slot, client = fields.get("drm-pdev", ""), fields.get("drm-client-id", "")
            sizes = {kind: _held(fields, kind) for kind in _MEMORY}
            if sizes["vram"] is None or (slot, client) in seen:
                continue
            seen.add((slot, client))
            known = {kind: size or 0 for kind, size in sizes.items()}
            found[slot].setdefault(pid, Counter()).update(known)
    return found


def _connections(process: Path) -> Iterator[dict[str, str]]:
    """What is known of each connection of a process to a graphics driver."""
    try:
        descriptors = os.listdir(process / "fd")
    except OSError:
        return  # it has ended, or is another user's
    for descriptor in descriptors:
        try:
            target = os.readlink(process / "fd" / descriptor)
        except OSError:
            continue  # it was closed meanwhile
        if target.startswith("/dev/dri/"):
            text = _text(process / "fdinfo" / descriptor)
            lines = (line.partition(":") for line in text.splitlines())
            yield {key: value.strip() for key, _, value in lines}


def _held(fields: Mapping[str, str], kind: str) -> int | None:
    """Bytes; None where the driver does not say. Older ones have the second name only."""
    value = fields.get(f"drm-resident-{kind}", fields.get(f"drm-memory-{kind}", ""))
    digits, _, unit = value.partition(" ")
    number, factor = _as_number(digits), _UNITS.get(unit.strip())
    return None if number is None or factor is None else number * factor


def _read_names(root: Path) -> dict[tuple[str, str], str]:
    """The names in libdrm's list, by PCI id and revision in lower case."""
    for path in _NAMES:
        lines = (line.split(",", 2) for line in _text(root / path).splitlines())
        names = {
            (line[0].strip().lower(), line[1].strip().lower()): line[2].strip()
            for line in lines
            if len(line) == 3
        }
        if names:
            return names
    return {}


def _number(file: Path) -> int | None:
    return _as_number(_text(file))


def _as_number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else None


def _text(file: Path) -> str:
    """What stands in a file; nothing where it is missing or cannot be read now."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""

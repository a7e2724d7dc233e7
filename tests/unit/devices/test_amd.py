"""AMD cards, as the files of the driver show them. The trees are shaped as those of real machines;
no card was there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from manager.devices import Amd, DeviceError, Reading
from manager.placement.matching import matches

GB, MB = 2**30, 2**20
IDS = """\
# List of AMDGPU IDs
#
# Syntax:
# device_id,\trevision_id,\tproduct_name        <-- single tab after comma

1.0.0
744C,\tC8,\tAMD Radeon RX 7900 XTX
744C,\tCC,\tAMD Radeon RX 7900 XT
740F,\t02,\tAMD Instinct MI210
15BF,\tC4,\tAMD Radeon 780M Graphics
"""
# Of the compute node of an MI100, with what is not read left in.
NODE = """\
cpu_cores_count {cores}
simd_count {simd}
mem_banks_count 1
caches_count 217
io_links_count 1
max_waves_per_simd 10
gfx_target_version 90008
vendor_id 4098
location_id 8960
domain 0
drm_render_minor {minor}
hive_id 0
num_cp_queues 24
"""
FDINFO = """\
pos:\t0
flags:\t02100002
mnt_id:\t26
ino:\t1060
drm-driver:\tamdgpu
drm-client-id:\t{client}
drm-pdev:\t{slot}
pasid:\t32772
"""


class Machine:
    """A tree of files, as far as the plugin reads it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.plugin = Amd(root)
        self.write("usr/share/libdrm/amdgpu.ids", IDS)

    def write(self, path: str, content: object) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{content}\n")

    def card(
        self,
        number: int,
        slot: str,
        minor: int,
        total: int = 24 * GB,
        used: int = 0,
        **files: object,
    ) -> None:
        """``/sys/class/drm/cardN``; two underscores in the name of a file are a slash."""
        files = {
            "vendor": "0x1002",
            "device": "0x744c",
            "revision": "0xc8",
            "product_name": "",
            "mem_info_vram_total": total,
            "mem_info_vram_used": used,
            "mem_info_gtt_total": 16 * GB,
            "mem_info_gtt_used": 20 * MB,
            "power__runtime_status": "active",
            "uevent": f"DRIVER=amdgpu\nPCI_CLASS=30000\nPCI_ID=1002:744C\nPCI_SLOT_NAME={slot}",
            f"drm__renderD{minor}__dev": f"226:{minor}",
            **files,
        }
        for name, content in files.items():
            self.write(f"sys/class/drm/card{number}/device/{name.replace('__', '/')}", content)

    def nodes(self, *minors: int) -> None:
        """The driver's compute nodes: a processor, then these cards."""
        for number, minor in enumerate((0, *minors)):
            folder = f"sys/class/kfd/kfd/topology/nodes/{number}"
            simd, cores = (480, 0) if minor else (0, 16)
            self.write(f"{folder}/properties", NODE.format(simd=simd, cores=cores, minor=minor))

    def connection(self, pid: int, descriptor: int, slot: str, client: int, *lines: str) -> None:
        """A descriptor of a process that is open on a card."""
        fd = self.root / f"proc/{pid}/fd"
        fd.mkdir(parents=True, exist_ok=True)
        (fd / str(descriptor)).symlink_to("/dev/dri/renderD128")
        text = FDINFO.format(client=client, slot=slot) + "\n".join(lines)
        self.write(f"proc/{pid}/fdinfo/{descriptor}", text)

    def ids(self, *pids: int) -> list[str]:
        return [reading.id for reading in self.plugin.read(pids)]

    def hidden(self) -> dict[int, str | None]:
        return {reading.index: reading.hidden_by for reading in self.plugin.read(())}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# --- what there is --------------------------------------------------------------------------


def test_a_machine_without_such_cards_has_none_and_the_log_is_silent(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    assert machine.plugin.read((1, 2)) == ()
    machine.write("sys/class/drm/card0/device/vendor", "0x10de")  # another maker's
    machine.write("sys/class/drm/version", "drm 1.1.0 20060810")
    assert machine.plugin.read((1, 2)) == ()
    assert caplog.messages == []


def test_a_card_is_read_with_all_that_its_driver_knows(machine: Machine) -> None:
    heat = {"hwmon__hwmon3__temp1_input": 54000, "hwmon__hwmon3__temp2_input": 61000}
    machine.card(1, "0000:03:00.0", 128, 24 * GB, 6 * GB, gpu_busy_percent=37, **heat)
    machine.write("sys/class/drm/card1-DP-1/device/mem_info_vram_total", 1)  # a connector
    assert machine.plugin.read(()) == [
        Reading("AMD Radeon RX 7900 XTX", "amd", 0, 24576, 6144, 0.37, 54.0)
    ]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"revision": "0xcc"}, "AMD Radeon RX 7900 XT"),
        ({"device": "0x740f", "revision": "0x02"}, "AMD Instinct MI210"),
        ({"product_name": " AMD Instinct  MI250X "}, "AMD Instinct MI250X"),
        ({"product_name": "AMD \x1b[31m"}, "AMD Radeon RX 7900 XTX"),
        ({"revision": "0xff"}, "AMD GPU 744c"),
        ({"device": "", "revision": ""}, "AMD GPU"),
    ],
)
def test_a_card_has_its_own_name_or_that_of_libdrms_list_or_its_pci_id(
    machine: Machine, files: dict[str, object], name: str
) -> None:
    machine.card(0, "0000:03:00.0", 128, **files)
    assert [reading.name for reading in machine.plugin.read(())] == [name]


def test_the_config_tells_an_xt_from_an_xtx(machine: Machine) -> None:
    machine.card(0, "0000:03:00.0", 128)
    machine.card(1, "0000:43:00.0", 129, revision="0xcc")
    xtx, xt = (reading.name for reading in machine.plugin.read(()))
    assert (matches("rx 7900 xtx", xtx), matches("rx 7900 xtx", xt)) == (True, False)
    assert (matches("rx 7900 xt", xtx), matches("rx 7900 xt", xt)) == (False, True)


def test_without_a_list_of_names_that_of_amds_own_driver_does(machine: Machine) -> None:
    (machine.root / "usr/share/libdrm/amdgpu.ids").unlink()
    machine.write("opt/amdgpu/share/libdrm/amdgpu.ids", IDS)
    machine.card(0, "0000:03:00.0", 128)
    assert machine.ids() == ["AMD Radeon RX 7900 XTX #0"]


def test_a_card_that_sleeps_is_not_woken_for_its_load_and_heat(machine: Machine) -> None:
    files = {"gpu_busy_percent": 1, "hwmon__hwmon3__temp1_input": 54000}
    machine.card(0, "0000:03:00.0", 128, **files, power__runtime_status="suspended")
    assert machine.plugin.read(()) == [Reading("AMD Radeon RX 7900 XTX", "amd", 0, 24576, 0)]


@pytest.mark.parametrize("content", ["", "-1", "x", "²", "9" * 21])
def test_a_card_whose_memory_cannot_be_read_is_a_fault_and_not_offline(
    machine: Machine, content: str
) -> None:
    machine.card(0, "0000:03:00.0", 128, mem_info_vram_used=content)
    with pytest.raises(DeviceError, match="card0"):
        machine.plugin.read(())


def test_a_card_that_was_never_readable_does_not_take_the_others_with_it(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.card(0, "0000:03:00.0", 128, mem_info_vram_used="")
    machine.card(1, "0000:43:00.0", 129, revision="0xcc")
    for _ in range(2):
        assert machine.ids() == ["AMD Radeon RX 7900 XT #1"]
    assert [record.message.endswith("it is left out") for record in caplog.records] == [True]
    machine.card(1, "0000:43:00.0", 129, mem_info_vram_used="")
    with pytest.raises(DeviceError, match="card0"):
        machine.plugin.read(())


def test_the_last_reading_of_a_card_stays_while_it_cannot_be_read(machine: Machine) -> None:
    machine.card(0, "0000:03:00.0", 128)
    machine.card(1, "0000:43:00.0", 129)
    assert len(machine.ids()) == 2
    machine.card(0, "0000:03:00.0", 128, mem_info_vram_used="")
    with pytest.raises(DeviceError, match="card0"):
        machine.plugin.read(())


def test_no_more_is_used_than_there_is(machine: Machine) -> None:
    machine.card(0, "0000:03:00.0", 128, used=25 * GB, gpu_busy_percent=250)
    (reading,) = machine.plugin.read(())
    assert (reading.total_mb, reading.used_mb, reading.load) == (24576, 24576, 1)


@pytest.mark.parametrize("content", ["", "-1", "x", "9" * 21])
def test_what_a_card_does_not_know_else_is_left_open(machine: Machine, content: str) -> None:
    files = {"gpu_busy_percent": content, "hwmon__hwmon3__temp1_input": content}
    machine.card(0, "0000:03:00.0", 128, **files, uevent=content, mem_info_gtt_total=content)
    (reading,) = machine.plugin.read(())
    assert (reading.total_mb, reading.load, reading.temperature_c) == (24576, None, None)


# --- cards that are part of a processor -----------------------------------------------------


def apu(machine: Machine, total: int, gtt: int, available: int = 40 * GB) -> Reading:
    files = {"device": "0x15bf", "revision": "0xc4", "hwmon__hwmon4__in1_input": 1024}
    more = {"mem_info_gtt_total": gtt, "mem_info_gtt_used": 3 * GB}
    machine.card(0, "0000:c4:00.0", 128, total, 400 * MB, **files, **more)
    machine.write(
        "proc/meminfo",
        f"MemTotal:       65536000 kB\nMemFree:  1 kB\nMemAvailable:   {available // 1024} kB",
    )
    (reading,) = machine.plugin.read((70,))
    return reading


def test_a_card_in_a_processor_that_mostly_uses_ram_has_that(machine: Machine) -> None:
    assert apu(machine, 512 * MB, 30 * GB) == Reading(
        "AMD Radeon 780M Graphics", "amd", 0, 30 * 1024, 3 * 1024
    )


def test_ram_that_other_programs_have_is_not_free_there(machine: Machine) -> None:
    assert apu(machine, 512 * MB, 30 * GB, available=10 * GB).used_mb == 20 * 1024
    assert apu(machine, 512 * MB, 30 * GB, available=27 * GB).used_mb == 3 * 1024


def test_a_system_that_does_not_say_what_is_available_is_a_fault(machine: Machine) -> None:
    apu(machine, 512 * MB, 30 * GB)
    machine.write("proc/meminfo", "MemTotal:       65536000 kB")
    with pytest.raises(DeviceError, match="available"):
        machine.plugin.read(())


def test_a_card_in_a_processor_with_most_of_the_memory_set_apart_has_that(
    machine: Machine,
) -> None:
    reading = apu(machine, 96 * GB, 16 * GB)
    assert (reading.total_mb, reading.used_mb) == (96 * 1024, 400)


def test_a_card_of_its_own_never_counts_ram(machine: Machine) -> None:
    machine.card(0, "0000:03:00.0", 128, 8 * GB, GB, mem_info_gtt_total=64 * GB)
    (reading,) = machine.plugin.read(())
    assert (reading.total_mb, reading.used_mb) == (8192, 1024)


# --- how they are numbered ------------------------------------------------------------------


def test_cards_are_numbered_as_rocm_finds_them(machine: Machine) -> None:
    machine.card(0, "0000:03:00.0", 128)
    machine.card(1, "0000:23:00.0", 129, revision="0xcc")
    machine.card(2, "0000:43:00.0", 130, device="0x740f", revision="0x02")
    machine.nodes(130, 128, 129)
    assert machine.ids() == [
        "AMD Instinct MI210 #0",
        "AMD Radeon RX 7900 XTX #1",
        "AMD Radeon RX 7900 XT #2",
    ]


def test_the_tenth_node_comes_behind_the_ninth(machine: Machine) -> None:
    minors = range(128, 140)
    for number, minor in enumerate(minors):
        machine.card(number, f"0000:{number:02x}:00.0", minor, product_name=f"Card {number}")
    machine.nodes(*minors)
    assert machine.ids() == [f"Card {number} #{number}" for number in range(12)]


def test_cards_that_rocm_does_not_know_come_behind_the_others(machine: Machine) -> None:
    machine.card(0, "0000:03:00.0", 128, device="0x67df", revision="0xe7")
    machine.card(1, "0000:23:00.0", 129)
    machine.nodes(129, 150)  # of the last one there are no files: a part of a card
    assert machine.ids() == ["AMD Radeon RX 7900 XTX #0", "AMD GPU 67df #2"]


def test_without_compute_nodes_they_are_numbered_by_their_place_on_the_bus(
    machine: Machine,
) -> None:
    machine.card(1, "0000:03:00.0", 129)
    machine.card(0, "0000:c3:00.0", 128, revision="0xcc")
    assert machine.ids() == ["AMD Radeon RX 7900 XTX #0", "AMD Radeon RX 7900 XT #1"]


def test_nodes_that_a_container_may_not_read_are_not_counted(machine: Machine) -> None:
    machine.card(0, "0000:03:00.0", 128, revision="0xcc")
    machine.card(1, "0000:23:00.0", 129)
    machine.nodes(128, 129)
    properties = machine.root / "sys/class/kfd/kfd/topology/nodes/1/properties"
    properties.unlink()
    properties.mkdir()  # to read it is an error, for root as well
    assert machine.ids() == ["AMD Radeon RX 7900 XTX #0", "AMD Radeon RX 7900 XT #1"]


# --- those that variables hide --------------------------------------------------------------


@pytest.fixture
def three(machine: Machine) -> Machine:
    """Three equal cards with UUIDs."""
    for number in range(3):
        unique_id = f"4fd3d0e445b9207{number}"
        machine.card(number, f"0000:{number}3:00.0", 128 + number, unique_id=unique_id)
    machine.nodes(128, 129, 130)
    return machine


@pytest.mark.parametrize(
    ("rocr", "hip", "visible"),
    [
        (None, None, {0, 1, 2}),
        (None, "1", {1}),
        (None, "2,0", {0, 2}),
        (None, "GPU-4fd3d0e445b92071", {1}),
        (None, "", set()),
        (None, "-1", set()),
        (None, "0,7,1", {0}),
        ("1", None, {1}),
        ("GPU-4FD3D0E445B92072,0", None, {0, 2}),
        ("", None, set()),
        ("GPU-4fd3", None, set()),  # which of them?
        ("2,1", "0", {2}),  # HIP counts what ROCr leaves
        ("2,1", "1", {1}),
        ("1", "1", set()),
        ("2,1", "GPU-4fd3d0e445b92072", {2}),
        ("2,1", "GPU-4fd3d0e445b92070", set()),
    ],
)
def test_variables_leave_the_cards_that_they_leave_to_hip(
    three: Machine,
    monkeypatch: pytest.MonkeyPatch,
    rocr: str | None,
    hip: str | None,
    visible: set[int],
) -> None:
    for name, value in (("ROCR_VISIBLE_DEVICES", rocr), ("HIP_VISIBLE_DEVICES", hip)):
        if value is not None:
            monkeypatch.setenv(name, value)
    hidden = three.hidden()
    assert {index for index, by in hidden.items() if by is None} == visible
    assert len(hidden) == 3


def test_the_variable_of_nvidias_cards_hides_none(
    three: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert set(three.hidden().values()) == {None}


def test_a_hidden_card_is_named_with_what_hides_it_once_in_the_log(
    three: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "2,1")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    rocr, hip = "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"
    assert three.hidden() == three.hidden() == {0: rocr, 1: None, 2: hip}
    assert caplog.messages == [
        "ROCR_VISIBLE_DEVICES=2,1 (as HIP counts) hides AMD Radeon RX 7900 XTX #0",
        "HIP_VISIBLE_DEVICES=1 (as HIP counts) hides AMD Radeon RX 7900 XTX #2",
    ]


# --- what processes hold --------------------------------------------------------------------


@pytest.fixture
def two(machine: Machine) -> Machine:
    """Two equal cards."""
    machine.card(0, "0000:03:00.0", 128)
    machine.card(1, "0000:43:00.0", 129)
    return machine


def test_what_a_process_holds_is_known_by_card(two: Machine) -> None:
    size = "drm-memory-vram:\t3072000 KiB", "drm-memory-gtt:\t16 KiB"
    two.connection(70, 5, "0000:03:00.0", 8, *size)
    two.connection(70, 6, "0000:43:00.0", 9, "drm-memory-vram: 10 KiB", "drm-resident-vram: 7 MiB")
    two.connection(71, 5, "0000:43:00.0", 10, "drm-resident-vram:\t1048577")
    two.connection(72, 5, "0000:43:00.0", 11, "drm-resident-vram:\t1 GiB")  # nobody asked for
    first, second = two.plugin.read((70, 71))
    assert first.held_mb == {70: 3000}
    assert second.held_mb == {70: 7, 71: 2}


def test_connections_of_one_process_count_together_and_shared_ones_once(two: Machine) -> None:
    size = "drm-resident-vram:\t100 MiB"
    two.connection(70, 5, "0000:03:00.0", 8, size)
    two.connection(70, 6, "0000:03:00.0", 8, size)  # dup()
    two.connection(70, 7, "0000:03:00.0", 9, size)
    two.connection(71, 5, "0000:03:00.0", 8, size)  # a child has it, too
    first, second = two.plugin.read((71, 70))
    assert (first.held_mb, second.held_mb) == ({70: 200}, None)


@pytest.mark.parametrize("line", ["", "drm-memory-vram:\tmuch", "drm-resident-vram: 5 parsecs"])
def test_a_driver_that_does_not_say_is_not_taken_for_nothing(two: Machine, line: str) -> None:
    two.connection(70, 5, "0000:03:00.0", 8, line)
    (two.root / "proc/70/fd/6").symlink_to("socket:[4711]")
    (two.root / "proc/70/fd/7").symlink_to("/dev/dri/renderD129")  # closed meanwhile
    assert [reading.held_mb for reading in two.plugin.read((70, 71))] == [None, None]


def test_of_a_card_in_a_processor_what_is_held_of_ram_counts(machine: Machine) -> None:
    sizes = "drm-resident-vram:\t100 MiB", "drm-resident-gtt:\t4000 MiB"
    machine.connection(70, 5, "0000:c4:00.0", 8, *sizes)
    machine.connection(70, 6, "0000:c4:00.0", 9, *sizes)
    assert apu(machine, 512 * MB, 30 * GB).held_mb == {70: 8000}
    assert apu(machine, 96 * GB, 16 * GB).held_mb == {70: 200}

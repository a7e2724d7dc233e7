"""What the shipped plugins read of NVIDIA cards and of the processor, and how they fail."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from manager.devices import Cpu, DeviceError, Nvidia, Reading, nvidia
from manager.devices.nvidia import Smi
from manager.devices.nvml import Nvml
from tests.support.cards import Cards, card

ROOT = Path(__file__).resolve().parents[3]
MB = 2**20
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    " Make sure that the latest NVIDIA driver is installed and running."
)
LOST = (
    "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost."
    "  Reboot the system to recover this GPU"
)

Eventually = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    cards = Cards(
        tmp_path / "machine",
        [
            card("NVIDIA GeForce RTX 4060", 8188, 300, util=25, temp=51),
            card("Tesla V100-SXM2-16GB", 16384, 0),
        ],
    )
    for name, value in cards.env.items():
        monkeypatch.setenv(name, value)
    return cards


@pytest.fixture
def smi() -> Iterator[Smi]:
    yield Smi()
    nvidia._call.overdue = None


def names(readings: Any) -> list[str]:
    return [reading.name for reading in readings]


# --- NVIDIA through GPUtil --------------------------------------------------------------


def test_each_card_is_listed_in_the_drivers_order(cards: Cards, smi: Smi) -> None:
    assert smi.read(()) == [
        Reading("NVIDIA GeForce RTX 4060", "nvidia", 0, 8188, 300, 0.25, 51.0),
        Reading("Tesla V100-SXM2-16GB", "nvidia", 1, 16384, 0, 0.0, 40.0),
    ]
    assert cards.calls == 1


def test_equal_cards_are_distinguished_by_the_drivers_number(cards: Cards, smi: Smi) -> None:
    cards.set(card("Tesla V100", 16384, index=2), card("Tesla V100", 16384, index=5))
    assert [reading.id for reading in smi.read(())] == ["Tesla V100 #2", "Tesla V100 #5"]


def test_a_card_that_is_added_or_removed_is_noticed(cards: Cards, smi: Smi) -> None:
    cards.set(card("Tesla V100", 16384))
    assert names(smi.read(())) == ["Tesla V100"]
    cards.set()
    assert smi.read(()) == []
    cards.set(card("Tesla V100", 16384), card("Tesla P40", 24576))
    assert names(smi.read(())) == ["Tesla V100", "Tesla P40"]


def test_what_the_driver_keeps_for_itself_is_used_memory(cards: Cards, smi: Smi) -> None:
    cards.set(card("Tesla V100", 16384, 1000, reserved=400))
    assert smi.read(())[0].used_mb == 1400


@pytest.mark.parametrize(
    ("missing", "known"),
    [
        ({"util": None}, (8188, 300, None, 51.0)),
        ({"util": "[Not Supported]"}, (8188, 300, None, 51.0)),
        ({"temp": None}, (8188, 300, 0.25, None)),
        ({"used": None}, (8188, None, 0.25, 51.0)),
        ({"total": None}, (None, 300, 0.25, 51.0)),
        ({"total": None, "used": None, "util": None, "temp": None}, (None, None, None, None)),
    ],
)
def test_what_a_card_does_not_report_is_unknown_and_the_rest_is_read(
    cards: Cards, smi: Smi, missing: dict[str, Any], known: tuple[Any, ...]
) -> None:
    cards.set({"name": "RTX 4060", "total": 8188, "used": 300, "util": 25, "temp": 51} | missing)
    [reading] = smi.read(())
    read = (reading.total_mb, reading.used_mb, reading.load, reading.temperature_c)
    assert read == known


def test_a_machine_without_nvidia_smi_has_no_cards_and_no_fault(
    smi: Smi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list(smi.read(())) == []


def test_a_machine_without_cards_has_no_fault(cards: Cards, smi: Smi) -> None:
    cards.set()
    assert smi.read(()) == []
    cards.fail("No devices were found", 0)
    assert smi.read(()) == []


@pytest.mark.parametrize(
    ("text", "code"), [(NO_DRIVER, 9), (NO_DRIVER, 0), (LOST, 15), (LOST, 0), ("", 12)]
)
def test_the_drivers_error_is_reported_in_its_own_words(
    cards: Cards, smi: Smi, text: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    cards.fail(text, code)
    with pytest.raises(DeviceError) as fault:
        smi.read(())
    assert text in str(fault.value)
    assert not code or f"exit code {code}" in str(fault.value)
    assert capfd.readouterr() == ("", "")
    cards.answer()
    assert len(smi.read(())) == 2


def test_cards_with_an_error_beside_them_are_not_taken_for_all_cards(
    cards: Cards, smi: Smi
) -> None:
    cards.play(warning=LOST, code=15)
    with pytest.raises(DeviceError, match="GPU is lost"):
        smi.read(())


def test_a_warning_behind_the_cards_hides_none(cards: Cards, smi: Smi) -> None:
    cards.play(warning="WARNING: infoROM is corrupted at gpu 0000:01:00.0", code=14)
    assert len(smi.read(())) == 2


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("#!/bin/sh\necho It is broken >&2; exit 3\n", "exit code 3: It is broken"),
        ("#!/bin/sh\nkill -SEGV $$\n", "signal 11"),
        ("#!/bin/sh\nprintf 'no \\377 text'\n", "no \ufffd text"),
        ("#!/bin/sh\necho 0, GPU-1\n", "says: 0, GPU-1"),
        ("#!/not/there\n", "cannot be run: No such file"),
        ("0, GPU-1, 0, 0, 0, 0, 1, Card, 0, 0, 0, 0", "cannot be run: Exec format error"),
        ("#!/bin/sh\necho 0, GPU-1, 0, 0, 0, 0, 1, Card, 0, 0, 0, 0\n", "GPUtil cannot read"),
    ],
)
def test_a_broken_nvidia_smi_is_a_fault_that_says_how_and_prints_nothing_on_our_output(
    cards: Cards, smi: Smi, program: str, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (cards.bin / "nvidia-smi").write_text(program)
    with pytest.raises(DeviceError) as raised:
        smi.read(())
    assert fault in str(raised.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("how", ["for ever", "with a child"])
def test_an_nvidia_smi_that_hangs_is_ended_with_all_it_started(
    cards: Cards, smi: Smi, how: str, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    # It hangs for ever: whatever the time-out, it is over when it has been called.
    monkeypatch.setattr(nvidia, "TIMEOUT_SECONDS", 0.5)
    cards.hang(how)
    with pytest.raises(DeviceError, match="did not answer within"):
        smi.read(())
    assert eventually(lambda: not running(cards))
    cards.answer()
    assert len(smi.read(())) == 2


def running(cards: Cards) -> list[psutil.Process]:
    """The processes of the stand-in on this machine's PATH."""
    program = str(cards.bin / "nvidia-smi")
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if program in (process.info["cmdline"] or ())
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def test_one_that_cannot_be_ended_is_left_and_no_further_one_is_started_beside_it(
    cards: Cards, smi: Smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(nvidia, "_KILL_WAIT_SECONDS", 0.1)
    # A process inside of a hanging driver outlives SIGKILL, which a test cannot make.
    monkeypatch.setattr(nvidia.os, "killpg", lambda *_: None)
    cards.hang()
    with pytest.raises(DeviceError, match="did not answer within"):
        smi.read(())
    [stuck] = running(cards)
    calls = cards.calls
    for _ in range(3):
        with pytest.raises(DeviceError, match=rf"pid {stuck.pid}\) hangs inside of the driver"):
            smi.read(())
    assert cards.calls == calls

    cards.answer()
    stuck.kill()
    nvidia._call.overdue.wait()
    assert len(smi.read(())) == 2


def test_memory_of_a_model_is_used_until_it_ends_and_a_little_longer(
    cards: Cards, smi: Smi
) -> None:
    def used() -> list[int | None]:
        return [reading.used_mb for reading in smi.read(())]

    model = subprocess.Popen(["sleep", "60"])
    try:
        cards.hold(model.pid, 1, 5000)
        assert used() == [300, 5000]
        cards.play(linger=3600)
    finally:
        model.kill()
        model.wait()
    assert used() == [300, 5000]
    cards.play(linger=0)
    assert used() == [300, 0]


# Takes away what a Python of 3.12 does not have, and sees that it is so again afterwards.
WITHOUT_DISTUTILS = """
import sys
assert not [name for name in sys.modules if name.startswith(("distutils", "setuptools"))]


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("distutils", "setuptools"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
from manager.devices.nvidia import Smi

assert "GPUtil" not in sys.modules
print(*[reading.name for reading in Smi().read(())], sep=";")
assert "GPUtil" in sys.modules
assert not [name for name in sys.modules if name.startswith("distutils")]
try:
    import distutils
except ModuleNotFoundError:
    print("no distutils")
"""


def test_cards_are_read_where_python_has_no_distutils_and_others_find_none_either(
    cards: Cards,
) -> None:
    environment = {**os.environ, **cards.env, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_DISTUTILS], env=environment, capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.split("\n")[:2] == [
        "NVIDIA GeForce RTX 4060;Tesla V100-SXM2-16GB",
        "no distutils",
    ]


def test_a_missing_gputil_is_named_with_the_fix(
    cards: Cards, smi: Smi, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cards.calls == 0
    for name in [name for name in sys.modules if name.partition(".")[0] == "GPUtil"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(DeviceError, match=r"pip install -r requirements\.txt"):
        smi.read(())


# --- NVIDIA through NVML ----------------------------------------------------------------


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        self.value = value

    def __str__(self) -> str:
        return f"error {self.value}"


Memory = namedtuple("Memory", "total used")
Process = namedtuple("Process", "pid usedGpuMemory")


class FakeNvml(types.ModuleType):
    """As much of pynvml as the plugin uses. A value that is a number below 0 is raised as the
    error of that number."""

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU = 0
    NVML_ERROR_UNINITIALIZED = 1
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NO_PERMISSION = 4
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_INSUFFICIENT_SIZE = 7
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_FUNCTION_NOT_FOUND = 13
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_NO_DATA = 21
    NVML_ERROR_NOT_READY = 27
    NVML_ERROR_UNKNOWN = 999

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.init_error = 0
        self.begun = 0  # times that it was begun and not ended
        self.generation = 0  # of the driver; a handle is of one
        self.asked: list[str] = []
        self.cards: list[dict[str, Any]] = []

    def reload(self) -> None:
        """The driver is unloaded and loaded again."""
        self.generation += 1
        self.begun = 0

    def _value(self, handle: tuple[int, int], name: str) -> Any:
        self.asked.append(name)
        if not self.begun:
            raise NVMLError(self.NVML_ERROR_UNINITIALIZED)
        generation, index = handle
        assert generation == self.generation, "the handle is of a driver that is unloaded"
        value = self.cards[index][name]
        if isinstance(value, int) and value < 0:
            raise NVMLError(-value)
        return value

    def nvmlInit(self) -> None:
        self.asked.append("init")
        if self.init_error:
            raise NVMLError(self.init_error)
        self.begun += 1

    def nvmlShutdown(self) -> None:
        if not self.begun:
            raise NVMLError(self.NVML_ERROR_UNINITIALIZED)
        self.begun -= 1

    def nvmlDeviceGetCount(self) -> int:
        if not self.begun:
            raise NVMLError(self.NVML_ERROR_UNINITIALIZED)
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[int, int]:
        handle = (self.generation, index)
        self._value(handle, "handle")
        return handle

    def nvmlDeviceGetName(self, handle: Any) -> Any:
        return self._value(handle, "name")

    def nvmlDeviceGetUUID(self, handle: Any) -> Any:
        return self._value(handle, "uuid")

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return self._value(handle, "memory")

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        return types.SimpleNamespace(gpu=self._value(handle, "util"))

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> Any:
        assert sensor == self.NVML_TEMPERATURE_GPU
        return self._value(handle, "temp")

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Any:
        return self._value(handle, "compute")

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: Any) -> Any:
        return self._value(handle, "graphics")


def nvml_card(name: str | bytes, **more: Any) -> dict[str, Any]:
    memory = Memory(8188 * MB, 300 * MB)
    known = {"handle": 0, "name": name, "memory": memory, "util": 25, "temp": 51, "uuid": ""}
    return {**known, "compute": [], "graphics": [], **more}


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    fake.cards = [nvml_card("NVIDIA GeForce RTX 4060"), nvml_card("Tesla V100")]
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.mark.usefixtures("nvml")
def test_nvml_reports_what_nvidia_smi_reports() -> None:
    assert Nvml().read(()) == [
        Reading("NVIDIA GeForce RTX 4060", "nvidia", 0, 8188, 300, 0.25, 51.0, {}),
        Reading("Tesla V100", "nvidia", 1, 8188, 300, 0.25, 51.0, {}),
    ]


def test_nvml_reports_memory_by_process_once_however_often_it_is_listed(nvml: FakeNvml) -> None:
    nvml.cards = [
        nvml_card(
            "Tesla V100",
            compute=[Process(10, 1000 * MB), Process(11, 5 * MB + 1), Process(12, None)],
            graphics=[Process(10, 1000 * MB), Process(13, 50 * MB)],
        ),
        nvml_card("A100", compute=[Process(10, 3 * MB), Process(10, 4 * MB)], graphics=-3),
    ]
    held = [reading.held_mb for reading in Nvml().read(())]
    assert held == [{10: 1000, 11: 6, 13: 50}, {10: 7}]


def test_nvml_is_asked_for_what_processes_hold_before_what_is_used(nvml: FakeNvml) -> None:
    plugin = Nvml()
    plugin.read(())
    nvml.asked.clear()
    plugin.read(())
    asked = [name for name in nvml.asked if name in ("compute", "graphics", "memory")]
    assert asked == ["compute", "graphics", "memory"] * len(nvml.cards)


@pytest.mark.parametrize(
    "lists",
    [{"compute": -3, "graphics": -3}, {"compute": [Process(10, None)], "graphics": -4}],
)
def test_memory_by_process_that_the_driver_does_not_report_is_unknown(
    nvml: FakeNvml, lists: dict[str, Any]
) -> None:
    nvml.cards = [nvml_card("RTX 4060", **lists)]
    assert Nvml().read(())[0].held_mb is None


@pytest.mark.parametrize("error", [3, 4, 6, 7, 13, 21, 27])
def test_a_single_value_that_nvml_does_not_know_is_unknown_and_the_rest_is_read(
    nvml: FakeNvml, error: int
) -> None:
    nvml.cards = [
        nvml_card("A", temp=-error),
        nvml_card("B", util=-error),
        nvml_card("C", memory=-error),
    ]
    assert Nvml().read(()) == [
        Reading("A", "nvidia", 0, 8188, 300, 0.25, None, {}),
        Reading("B", "nvidia", 1, 8188, 300, None, 51.0, {}),
        Reading("C", "nvidia", 2, None, None, 0.25, 51.0, {}),
    ]


def test_names_of_an_older_wheel_are_text_as_well(nvml: FakeNvml) -> None:
    nvml.cards = [nvml_card(b"Tesla V100")]
    assert Nvml().read(())[0].id == "Tesla V100 #0"


def test_the_library_is_initialised_and_the_cards_are_listed_once(nvml: FakeNvml) -> None:
    plugin = Nvml()
    for _ in range(5):
        plugin.read(())
    assert nvml.asked.count("init") == 1
    assert nvml.asked.count("handle") == 2


def test_after_a_reload_of_the_driver_the_cards_are_read_as_before(nvml: FakeNvml) -> None:
    plugin = Nvml()
    before = plugin.read(())
    nvml.reload()
    assert plugin.read(()) == before
    nvml.cards.append(nvml_card("Tesla P40"))
    nvml.reload()
    assert names(plugin.read(()))[2:] == ["Tesla P40"]
    assert nvml.begun == 1


def test_while_the_driver_is_unloaded_nvml_says_so_and_reads_again_when_it_is_back(
    nvml: FakeNvml,
) -> None:
    plugin = Nvml()
    before = plugin.read(())
    nvml.reload()
    nvml.init_error = nvml.NVML_ERROR_DRIVER_NOT_LOADED
    for _ in range(3):
        with pytest.raises(DeviceError, match="reports: error 9"):
            plugin.read(())
    nvml.init_error = 0
    assert plugin.read(()) == before
    assert nvml.begun == 1


def test_an_error_of_one_reading_is_reported_and_the_next_reading_is_good(nvml: FakeNvml) -> None:
    plugin = Nvml()
    before = plugin.read(())
    nvml.cards[0]["memory"] = -nvml.NVML_ERROR_UNKNOWN
    with pytest.raises(DeviceError, match="error 999"):
        plugin.read(())
    nvml.cards[0]["memory"] = Memory(8188 * MB, 300 * MB)
    assert plugin.read(()) == before
    assert nvml.begun == 1


@pytest.mark.parametrize("where", ["handle", "memory"])
def test_a_lost_card_is_offline_and_the_others_are_read(nvml: FakeNvml, where: str) -> None:
    plugin = Nvml()
    plugin.read(())
    nvml.cards[0][where] = -nvml.NVML_ERROR_GPU_IS_LOST
    nvml.cards[0]["util"] = -nvml.NVML_ERROR_GPU_IS_LOST
    for _ in range(2):
        assert [reading.id for reading in plugin.read(())] == ["Tesla V100 #1"]


def test_nvml_asks_a_card_that_is_hidden_for_nothing_but_its_name(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.cards = [nvml_card("RTX 4060", uuid=b"GPU-aa"), nvml_card("Tesla V100", uuid="GPU-bb")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    plugin = Nvml()
    plugin.read(())
    nvml.cards[0]["memory"] = -nvml.NVML_ERROR_UNKNOWN
    hidden, visible = plugin.read(())
    assert hidden == Reading("RTX 4060", "nvidia", 0, hidden_by="CUDA_VISIBLE_DEVICES")
    assert (visible.id, visible.hidden_by, visible.total_mb) == ("Tesla V100 #1", None, 8188)


def test_a_lost_card_does_not_end_the_list_of_visible_ones(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml.cards[0]["handle"] = -nvml.NVML_ERROR_GPU_IS_LOST
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert [(each.id, each.hidden_by) for each in Nvml().read(())] == [("Tesla V100 #1", None)]


def test_without_the_variable_nvml_is_not_asked_for_uuids(nvml: FakeNvml) -> None:
    Nvml().read(())
    assert "uuid" not in nvml.asked


def test_nvml_is_used_instead_of_gputil_where_it_works(nvml: FakeNvml, cards: Cards) -> None:
    plugin = Nvidia()
    assert nvml.asked == [], "to begin with NVML may take long: not before it is asked"
    assert len(plugin.read(())) == len(plugin.read(())) == 2
    assert cards.calls == 0


def test_without_a_library_that_works_gputil_reads_the_cards(nvml: FakeNvml, cards: Cards) -> None:
    nvml.init_error = 12
    assert len(Nvidia().read(())) == 2
    assert cards.calls == 1


def test_without_the_wheel_gputil_reads_the_cards(
    cards: Cards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert len(Nvidia().read(())) == 2
    assert cards.calls == 1


def test_all_that_is_used_of_nvml_is_in_the_real_wheel() -> None:
    real = pytest.importorskip("pynvml", reason="needs: pip install -r requirements-dev.txt")
    for name in [name for name in vars(FakeNvml) if name.startswith("nvml")]:
        assert callable(getattr(real, name)), name
    for name in [name for name in vars(FakeNvml) if name.startswith("NVML_")]:
        assert getattr(real, name) == getattr(FakeNvml, name), name
    error = real.NVMLError(real.NVML_ERROR_GPU_IS_LOST)
    assert error.value == real.NVML_ERROR_GPU_IS_LOST
    assert str(error) == "GPU is lost"
    assert {field[0] for field in real.c_nvmlMemory_t._fields_} == {"total", "used", "free"}
    assert "gpu" in {field[0] for field in real.c_nvmlUtilization_t._fields_}
    assert {"pid", "usedGpuMemory"} <= {field[0] for field in real.c_nvmlProcessInfo_v3_t._fields_}


# --- processor and memory ---------------------------------------------------------------


def test_processor_and_memory_are_one_device_under_both_names(tmp_path: Path) -> None:
    [reading] = Cpu(tmp_path).read(())
    assert (reading.name, reading.kind, reading.index) == ("CPU + RAM", "cpu", 0)
    total = psutil.virtual_memory().total // MB
    assert reading.total_mb == total
    assert reading.used_mb is not None
    assert 0 < reading.used_mb < total


def test_used_memory_is_what_no_program_could_get(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    memory = types.SimpleNamespace(total=16000 * MB, available=9000 * MB, used=3000 * MB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert Cpu(tmp_path).read(())[0].used_mb == 7000


def test_the_first_load_is_unknown_and_then_it_is_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: 37.5)  # noqa: ARG005
    plugin = Cpu()
    assert [plugin.read(())[0].load for _ in range(3)] == [None, 0.375, 0.375]


def test_the_temperature_is_that_of_the_processors_hottest_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def of(*degrees: float) -> list[Any]:
        return [types.SimpleNamespace(current=value) for value in degrees]

    sensors = {"nvme": of(70.0), "coretemp": of(48.0, 55.0, 51.0)}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    assert Cpu().read(())[0].temperature_c == 55.0
    del sensors["coretemp"]
    assert Cpu().read(())[0].temperature_c is None
    monkeypatch.delattr(psutil, "sensors_temperatures")
    assert Cpu().read(())[0].temperature_c is None


def test_memory_is_reported_for_each_process_that_is_there() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    [reading] = Cpu().read([os.getpid(), ended.pid])
    assert reading.held_mb is not None
    assert list(reading.held_mb) == [os.getpid()]
    assert reading.held_mb[os.getpid()] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports what is mapped")
def test_a_models_mapped_file_counts_as_used_memory(tmp_path: Path) -> None:
    weights = tmp_path / "weights.gguf"
    weights.write_bytes(b"w" * (200 << 20))
    code = (
        "import mmap, sys; file = open(sys.argv[1], 'rb');"
        "weights = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ);"
        "[weights[at] for at in range(0, len(weights), 4096)];"
        "print('mapped', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(weights)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        shared = psutil.Process(server.pid).memory_info().shared
        assert shared >= 200 << 20
        [without], [reading] = Cpu().read([]), Cpu().read([server.pid])
        assert without.used_mb is not None
        assert reading.used_mb is not None
        # Half: other programs come and go meanwhile.
        assert reading.used_mb - without.used_mb > 100
        assert server.stdin is not None
        server.stdin.close()

"""What is known of a scheme's memory: a real usage.db, played cards and model files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manager.clock import Clock
from manager.config.settings import Model, Scheme
from manager.devices import Device, Reading, Snapshot
from manager.gguf import GgufError
from manager.models import SchemeMemory
from manager.models import scheme_memory as module
from manager.placement import Basis
from manager.storage import Store

SMALL, LARGE = "NVIDIA GeForce RTX 4060", "Tesla V100"
ON_LARGE = f"{LARGE} #0"

Build = Callable[[], SchemeMemory]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "usage.db")
    yield store
    store.close()


class Machine:
    """The devices of a machine; they are read once somebody waits for that."""

    enabled = True

    def __init__(self) -> None:
        self.snapshot = Snapshot()

    def wait_for_reading(self, _since: float, _timeout: float) -> Snapshot:
        readings = [
            Reading(SMALL, "nvidia", 0, 8000),
            Reading(LARGE, "nvidia", 0, 24000),
            Reading("CPU + RAM", "cpu", 0, 64000),
        ]
        devices = tuple(Device(reading, 0.0, stale=False) for reading in readings)
        self.snapshot = Snapshot(devices, taken_at=0.0)
        return self.snapshot


@pytest.fixture
def memory(store: Store) -> Build:
    """That of a program which has just started, on a machine with two cards."""

    def memory() -> SchemeMemory:
        machine: Any = Machine()
        return SchemeMemory(store, Clock(), machine)

    return memory


class Estimate:
    """6,000 MB on cards and 500 on the host."""

    def on(self, shares: Sequence[float]) -> Any:
        return type(
            "Split", (), {"device_mb": tuple(int(6000 * one) for one in shares), "host_mb": 500}
        )


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The model files: what is estimated by the second word of a command, or why it is not."""
    found: dict[str, Any] = {}

    def estimate(command: Sequence[str], _cwd: Path, _env: Any) -> Any:
        known = found.get(command[1])
        if isinstance(known, Exception):
            raise known
        return known

    monkeypatch.setattr(module, "estimate", estimate)
    monkeypatch.setattr(module, "Estimate", Estimate)
    return found


def model(*devices: str, command: Sequence[str] = ("serve", "a.gguf"), **memory_mb: int) -> Model:
    scheme = Scheme("Default", devices, None, tuple(command), memory_mb, {}, Path("/"))
    return Model("M", schemes=(scheme,))


def basis(memory: SchemeMemory, settings: Model) -> tuple[Basis, dict[str, int]]:
    [option] = memory.options(settings)
    return option.basis, dict(option.memory_mb)


def test_what_counts_is_declared_then_measured_then_estimated_then_the_whole(
    memory: Build, files: dict[str, Any]
) -> None:
    known = memory()
    settings = model("v100")
    assert basis(known, settings) == (Basis.WHOLE, {})
    files["a.gguf"] = Estimate()
    assert basis(known, settings) == (Basis.ESTIMATED, {"v100": 6000})
    known.record(settings, "Default", "run", {ON_LARGE: 5200})
    assert basis(known, settings) == (Basis.MEASURED, {"v100": 5200})
    assert basis(known, model("v100", v100=7000)) == (Basis.DECLARED, {"v100": 7000})


@pytest.mark.usefixtures("files")
def test_what_was_measured_is_known_after_a_restart_and_only_of_the_same_command(
    memory: Build,
) -> None:
    settings = model("v100")
    first = memory()
    first.record(settings, "Default", "one", {ON_LARGE: 5200})
    first.record(settings, "Default", "two", {ON_LARGE: 4000})  # it had less to do
    again = memory()
    assert basis(again, settings) == (Basis.MEASURED, {"v100": 5200})
    assert basis(again, model("v100", command=("serve", "a.gguf", "-c", "65536")))[0] is Basis.WHOLE
    assert basis(again, replace(settings, name="Other"))[0] is Basis.WHOLE


@pytest.mark.usefixtures("files")
def test_what_a_run_of_long_ago_took_is_forgotten(memory: Build) -> None:
    settings = model("v100")
    known = memory()
    known.record(settings, "Default", "beside a game", {ON_LARGE: 11000})
    for number in range(5):
        assert basis(known, settings) == (Basis.MEASURED, {"v100": 11000})
        known.record(settings, "Default", str(number), {ON_LARGE: 5200 + number})
    assert basis(known, settings) == (Basis.MEASURED, {"v100": 5204})
    assert basis(memory(), settings) == (Basis.MEASURED, {"v100": 5204})


@pytest.mark.usefixtures("files")
def test_a_scheme_is_not_known_as_long_as_one_of_its_devices_was_not_measured(
    memory: Build,
) -> None:
    known = memory()
    settings = model("v100", "rtx 4060")
    known.record(settings, "Default", "run", {ON_LARGE: 5200})
    assert basis(known, settings)[0] is Basis.WHOLE
    known.record(settings, "Default", "run", {ON_LARGE: 5200, f"{SMALL} #0": 900})
    assert basis(known, settings) == (Basis.MEASURED, {"v100": 5200, "rtx 4060": 900})


@pytest.mark.usefixtures("files")
def test_of_two_equal_cards_the_one_that_takes_more_counts(memory: Build) -> None:
    known = memory()
    settings = model("v100", "v100")
    known.record(settings, "Default", "run", {ON_LARGE: 5200, f"{LARGE} #1": 5900})
    assert basis(known, settings) == (Basis.MEASURED, {"v100": 5900})


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", ["MEMORY_FRACTION", "MEMORY_MB"])
def test_of_a_server_that_takes_what_it_is_given_nothing_is_learned(
    memory: Build, name: str
) -> None:
    known = memory()
    settings = model("v100", command=("vllm", "serve", f"--share=${{{name}}}"))
    known.record(settings, "Default", "run", {ON_LARGE: 21600})
    assert basis(known, settings) == (Basis.WHOLE, {})


def test_a_model_is_divided_by_the_memory_of_its_cards_and_the_rest_is_the_machine_s_own(
    memory: Build, files: dict[str, Any]
) -> None:
    files["a.gguf"] = Estimate()
    assert basis(memory(), model("rtx 4060", "v100", "cpu"))[1] == {
        "rtx 4060": 1500,
        "v100": 4500,
        "cpu": 500,
    }
    # A card that is not there has not been read.
    assert basis(memory(), model("h100"))[1] == {"h100": 6000}


def test_a_file_that_cannot_be_read_is_named_and_counts_for_nothing(
    memory: Build, files: dict[str, Any]
) -> None:
    files["a.gguf"] = GgufError("a.gguf is cut off")
    known = memory()
    settings = model("v100")
    assert basis(known, settings)[0] is Basis.WHOLE
    assert known.to_json(settings) == [
        {
            "scheme": "Default",
            "basis": "whole",
            "devices": [
                {
                    "name": "v100",
                    "declared_mb": None,
                    "measured_mb": None,
                    "estimated_mb": None,
                    "used_mb": None,
                }
            ],
            "problem": "a.gguf is cut off",
        }
    ]


def test_a_fault_of_the_estimate_stops_no_start_and_no_list(
    memory: Build, files: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    files["a.gguf"] = IndexError("tuple index out of range")
    known = memory()
    assert basis(known, model("v100")) == (Basis.WHOLE, {})
    [shown] = known.to_json(model("v100"))
    assert "see the log" in shown["problem"]
    assert caplog.records[0].exc_info is not None


def test_each_figure_is_shown_and_which_is_used(memory: Build, files: dict[str, Any]) -> None:
    files["a.gguf"] = Estimate()
    known = memory()
    settings = model("v100")
    known.record(settings, "Default", "run", {ON_LARGE: 5200})
    known.read_files(settings)
    [shown] = known.to_json(settings)
    assert (shown["basis"], shown["devices"]) == (
        "measured",
        [
            {
                "name": "v100",
                "declared_mb": None,
                "measured_mb": 5200,
                "estimated_mb": 6000,
                "used_mb": 5200,
            }
        ],
    )
    [shown] = known.to_json(model())
    assert (shown["basis"], shown["devices"]) == (None, [])


@pytest.mark.usefixtures("files")
def test_what_takes_far_more_than_it_declares_is_warned_of_once_with_the_number(
    memory: Build, caplog: pytest.LogCaptureFixture
) -> None:
    known = memory()
    settings = model("v100", v100=4000)
    known.record(settings, "Default", "run", {ON_LARGE: 4400})
    assert caplog.messages == []
    for mb in (6000, 6100):
        known.record(settings, "Default", "run", {ON_LARGE: mb})
    [message] = caplog.messages
    assert "takes 6000 MB of v100, and its memory_mb declares 4000: write 6000" in message


@pytest.mark.usefixtures("files")
def test_an_adopted_server_holds_what_is_known_by_now(memory: Build) -> None:
    known = memory()
    settings = model("v100")
    assert known.reserved(settings, "Default", {ON_LARGE: 24000}) == (
        {ON_LARGE: 24000},
        Basis.WHOLE,
    )
    known.record(settings, "Default", "run", {ON_LARGE: 5200})
    assert known.reserved(settings, "Default", {ON_LARGE: 24000}) == (
        {ON_LARGE: 5200},
        Basis.MEASURED,
    )
    assert known.reserved(model("v100", v100=7000), "Default", {ON_LARGE: 7000}) == (
        {ON_LARGE: 7000},
        Basis.DECLARED,
    )
    assert known.reserved(settings, "Removed", {ON_LARGE: 7000})[1] is Basis.DECLARED

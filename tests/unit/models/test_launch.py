"""What a model's server is given when it is launched, and how its end is worded."""

from __future__ import annotations

from pathlib import Path

import pytest

from manager.config.settings import Model, Scheme
from manager.models import launch, process_tree
from manager.placement import DeviceAssignment

VARIABLE = "PYTHONUNBUFFERED"


def planned(**env: str) -> launch.LaunchPlan:
    scheme = Scheme(
        name="CPU",
        required_devices=(),
        script_path=None,
        command=("serve",),
        memory_mb={},
        env=env,
        cwd=Path("/srv"),
    )
    model = Model("m", schemes=(scheme,))
    return launch.plan(model, DeviceAssignment("CPU", {}, {}, {}), 21000, 0)


def test_a_python_server_prints_at_once_unless_it_is_asked_not_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert planned().env[VARIABLE] == "1"
    assert planned(**{VARIABLE: ""}).env[VARIABLE] == ""
    monkeypatch.setenv(VARIABLE, "")
    assert planned().env[VARIABLE] == ""
    assert planned(**{VARIABLE: "2"}).env[VARIABLE] == "2"


def test_printing_at_once_does_not_make_another_server_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    before = planned().run.fingerprint
    monkeypatch.setattr(launch, "_DEFAULTS", {})
    assert planned().run.fingerprint == before


@pytest.mark.parametrize(
    ("environment", "devices"),
    [
        ({}, ""),
        ({"CUDA_VISIBLE_DEVICES": "1,2"}, "1,2"),
        ({"HIP_VISIBLE_DEVICES": "0,2"}, "0,2"),
        ({"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, "1"),
    ],
)
def test_a_command_can_name_the_cards_that_were_chosen(
    environment: dict[str, str], devices: str
) -> None:
    scheme = Scheme("GPU", command=("serve", "${DEVICES}", "${HIP_VISIBLE_DEVICES}"), cwd=Path())
    model = Model("m", schemes=(scheme,))
    planned = launch.plan(model, DeviceAssignment("GPU", {}, environment, {}), 21000, 0)
    hip = environment.get("HIP_VISIBLE_DEVICES", "${HIP_VISIBLE_DEVICES}")
    assert planned.arguments[1:] == [devices, hip]


def test_what_hides_cards_from_rocm_does_not_change_the_numbers_of_those_that_were_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "1")
    assert planned().env["ROCR_VISIBLE_DEVICES"] == "1"
    scheme = Scheme("GPU", command=("serve",), cwd=Path())
    assigned = DeviceAssignment("GPU", {}, {"HIP_VISIBLE_DEVICES": "1"}, {})
    plan = launch.plan(Model("m", schemes=(scheme,)), assigned, 21000, 0)
    assert "ROCR_VISIBLE_DEVICES" not in plan.env
    own = Scheme("GPU", command=("serve",), cwd=Path(), env={"ROCR_VISIBLE_DEVICES": "0"})
    plan = launch.plan(Model("m", schemes=(own,)), assigned, 21000, 0)
    assert plan.env["ROCR_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, ""),
        (3, " with exit code 3"),
        (-15, ", killed by signal 15"),
        (-9, ", killed by signal 9 (often the system's, for want of memory)"),
        (137, " with exit code 137 (often the system's, for want of memory)"),
    ],
)
def test_what_the_system_kills_for_memory_is_said_to_be_that(code: int | None, words: str) -> None:
    assert process_tree.describe_code(code) == words

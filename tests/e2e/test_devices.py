"""What the program says of the devices, when it polls them, and what a hung driver holds up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import Cards, card
from tests.support.fixtures import Launch
from tests.support.program import Program, background, env_of, eventually, fake, on, scheme

RTX_4060 = "NVIDIA GeForce RTX 4060"
V100 = "Tesla V100-SXM2-16GB"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    " Make sure that the latest NVIDIA driver is installed and running."
)


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Cards:
    return Cards(
        tmp_path_factory.mktemp("cards") / "machine",
        [card(RTX_4060, 8188, 300, util=25, temp=51), card(V100, 16384)],
    )


@pytest.fixture(scope="module")
def program(launch_once: Launch, cards: Cards) -> Program:
    in_ram = {"required_devices": ["ram"], "memory_mb": {"ram": 50}}
    both = {"Default": scheme({"rtx 4060": 5000, "v100": 9000}, takes=[6100, 8200])}
    models = {
        "Both": both,
        "InRam": {"Default": {**fake()["Default"], **in_ram}},
        "OnV100": on("v100", 9000),
    }
    return launch_once(models, env=env_of(cards))


def device(program: Program, name: str) -> dict[str, Any]:
    return next(each for each in program.devices().values() if each["name"] == name)


def fault(program: Program) -> str | None:
    fault: str | None = program.get("/api/devices").json()["faults"].get("nvidia")
    return fault


# --- readings ---------------------------------------------------------------------------


def test_each_device_is_shown_with_the_models_on_it_and_the_memory_they_really_took(
    program: Program, cards: Cards
) -> None:
    before = cards.calls
    for path in ("/health", "/api/models", "/metrics"):
        program.get(path)
    assert cards.calls == before == 0  # none of these needs the devices

    shown = device(program, RTX_4060)
    assert shown["read_at"].endswith("+00:00")
    del shown["read_at"]
    assert shown == {
        "id": f"{RTX_4060} #0",
        "name": RTX_4060,
        "kind": "nvidia",
        "index": 0,
        "total_mb": 8188,
        "used_mb": 300,
        "free_mb": 7888,
        "budget_mb": 8188,
        "exclusive": False,
        "room_mb": 7888,
        "load": 0.25,
        "temperature_c": 51.0,
        "stale": False,
        "models": [],
    }
    program.command("Both", "start")
    program.command("InRam", "start")
    eventually(lambda: device(program, RTX_4060)["models"][0]["measured_mb"])
    devices = program.devices()
    assert devices[f"{RTX_4060} #0"]["models"] == [
        {"name": "Both", "declared_mb": 5000, "measured_mb": 6100}
    ]
    assert devices[f"{V100} #1"]["models"] == [
        {"name": "Both", "declared_mb": 9000, "measured_mb": 8200}
    ]
    # Memory that it takes beyond what it declared is not free, nor is what it may still take.
    assert devices[f"{RTX_4060} #0"]["room_mb"] == 8188 - 300 - 6100
    assert devices[f"{V100} #1"]["room_mb"] == 16384 - 9000

    [held] = eventually(lambda: in_ram(program))
    assert (held["name"], held["declared_mb"]) == ("InRam", 50)
    assert 1 < held["measured_mb"] < 500
    assert "CUDA_VISIBLE_DEVICES" not in program.environment("InRam")

    program.command("Both", "stop")
    assert device(program, RTX_4060)["models"] == []
    program.command("InRam", "stop")


def in_ram(program: Program) -> Any:
    models = device(program, "CPU + RAM")["models"]
    return models if models[0]["measured_mb"] else None


def test_a_page_sees_devices_change_and_every_start_and_stop(
    program: Program, cards: Cards
) -> None:
    def on_v100(shown: dict[str, Any]) -> int:
        # The first event may come before the first reading.
        return next((one["used_mb"] for one in shown["devices"] if one["name"] == V100), -1)

    page = program.page("/api/events", "devices")
    program.command("OnV100", "start")
    page.until(lambda shown: on_v100(shown) == 9000)
    program.command("OnV100", "stop")
    page.until(lambda shown: on_v100(shown) == 0)
    cards.set(card(V100, 16384, 700))
    page.until(lambda shown: len(shown["devices"]) == 2 and on_v100(shown) == 700)
    page.close()
    cards.set(card(RTX_4060, 8188, 300, util=25, temp=51), card(V100, 16384))


def test_a_driver_that_fails_is_named_where_no_scheme_matches(
    launch: Launch, tmp_path: Path
) -> None:
    cards = Cards(tmp_path / "machine", [card(RTX_4060, 8188)])
    cards.fail(NO_DRIVER, 9)
    program = launch({"Model": on("rtx 4060", 4000)}, env=env_of(cards))
    answer = program.ask("Model")
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert "rtx 4060 is not online" in message
    assert "The devices of nvidia cannot be read" in message
    assert "couldn't communicate" in message
    cards.answer()
    eventually(lambda: fault(program) is None and f"{RTX_4060} #0" in program.devices())
    assert program.ask("Model").status_code == 200


# --- a driver that hangs ----------------------------------------------------------------


def test_while_the_driver_hangs_everything_goes_on_with_the_last_reading_and_ends_well(
    launch: Launch, tmp_path: Path
) -> None:
    cards = Cards(tmp_path / "machine", [card(RTX_4060, 8188, 300), card(V100, 16384)])
    models = {"Running": on("v100", 9000), "Next": on("rtx 4060", 5000)}
    program = launch({**models, "Large": on("rtx 4060", 7900)}, env=env_of(cards))
    with program.held("Running") as answer:
        cards.hang("for ever")
        assert "has not answered for" in eventually(lambda: fault(program))
        shown = device(program, RTX_4060)
        assert (shown["stale"], shown["used_mb"]) == (True, 300)
        assert next(answer.iter_content(1))  # a stream under way goes on
        assert program.ask("Running").status_code == 200
        assert program.ask("Next").status_code == 200  # placed by the last reading
        held = "2888 of 8188 MB are free (held: Next 5000, other programs 300 MB)"
        assert held in program.ask("Large").json()["error"]["message"]
    program.end()


# --- a card whose driver does not report its memory, as on machines of unified memory -------

GB10 = "NVIDIA GB10 #0"


def unified(launch: Launch, folder: Path, **settings: Any) -> Program:
    cards = Cards(folder / "unified", [card("NVIDIA GB10", None, None, real=16000)])
    models = {"One": on("gb10", 4000), "Two": on("gb10", 4000)}
    return launch(models, env=env_of(cards), **settings)


def states(program: Program) -> list[str]:
    return [program.model(name)["state"] for name in ("One", "Two")]


def test_a_card_of_unknown_memory_has_one_model_at_a_time_and_a_warning(
    launch: Launch, tmp_path: Path
) -> None:
    program = unified(launch, tmp_path)
    assert program.ask("One").status_code == 200
    assert program.ask("Two").status_code == 200
    assert states(program) == ["stopped", "ready"]
    shown = program.devices()[GB10]
    assert [shown[key] for key in ("total_mb", "used_mb", "free_mb", "room_mb")] == [None] * 4
    assert shown["exclusive"]
    assert program.output.count("one model at a time is placed on it") == 1
    with program.held("Two"):
        waits = background(lambda: program.ask("One").status_code)
        why = eventually(lambda: program.model("One")["waits_for"])
        assert "whose memory its driver does not report" in why["reason"]
    assert waits.result() == 200


def test_with_a_budget_it_has_what_fits(launch: Launch, tmp_path: Path) -> None:
    program = unified(launch, tmp_path, device_memory_mb={"gb10": 10_000})
    assert program.ask("One").status_code == 200
    assert program.ask("Two").status_code == 200
    assert states(program) == ["ready", "ready"]
    shown = program.devices()[GB10]
    assert [shown[key] for key in ("total_mb", "used_mb", "free_mb")] == [10_000, None, 2000]
    assert [shown[key] for key in ("budget_mb", "room_mb", "exclusive")] == [10_000, 2000, False]
    assert "one model at a time" not in program.output

"""What is told of the devices, when they are looked at, and what a hung driver holds up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import Cards, card
from tests.support.fixtures import Launch
from tests.support.program import Program, env_of, eventually, fake, on, scheme

RTX_4060 = "NVIDIA GeForce RTX 4060"
V100 = "Tesla V100-SXM2-16GB"
NO_DRIVER = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    " Make sure that the latest NVIDIA driver is installed and running."
)
AWAKE = 10.0  # seconds that polling goes on after the last request
QUIET = 2.5  # seconds without a poll, after which there will be no more


@pytest.fixture
def cards(tmp_path: Path) -> Cards:
    return Cards(
        tmp_path / "machine",
        [card(RTX_4060, 8188, 300, util=25, temp=51), card(V100, 16384)],
    )


def device(program: Program, name: str) -> dict[str, Any]:
    return program.devices()[f"{name} #0"]


def fault(program: Program) -> str | None:
    told: str | None = program.get("/api/devices").json()["faults"].get("nvidia")
    return told


# --- what is told -----------------------------------------------------------------------


def test_each_device_is_told_with_the_models_on_it_and_what_they_really_took(
    launch: Launch, cards: Cards
) -> None:
    model = {"Default": scheme({"rtx 4060": 5000, "v100": 9000}, takes=[6100, 8200])}
    program = launch({"Model": model}, env=env_of(cards))
    told = device(program, RTX_4060)
    assert told["read_at"].endswith("+00:00")
    del told["read_at"]
    assert told == {
        "id": f"{RTX_4060} #0",
        "name": RTX_4060,
        "kind": "nvidia",
        "index": 0,
        "total_mb": 8188,
        "used_mb": 300,
        "free_mb": 7888,
        "budget_mb": 8188,
        "room_mb": 7888,
        "load": 0.25,
        "temperature_c": 51.0,
        "stale": False,
        "models": [],
    }
    program.command("Model", "start")
    eventually(lambda: device(program, RTX_4060)["models"][0]["measured_mb"])
    told = program.devices()
    assert told[f"{RTX_4060} #0"]["models"] == [
        {"name": "Model", "declared_mb": 5000, "measured_mb": 6100}
    ]
    assert told[f"{V100} #1"]["models"] == [
        {"name": "Model", "declared_mb": 9000, "measured_mb": 8200}
    ]
    # What it takes beyond what it declared is no room for others, nor is what it may still take.
    assert told[f"{RTX_4060} #0"]["room_mb"] == 8188 - 300 - 6100
    assert told[f"{V100} #1"]["room_mb"] == 16384 - 9000
    assert told["CPU + RAM #0"]["kind"] == "cpu"

    program.command("Model", "stop")
    assert device(program, RTX_4060)["models"] == []


def test_memory_of_the_machine_is_measured_by_process(launch: Launch, cards: Cards) -> None:
    placed = {"required_devices": ["ram"], "memory_mb": {"ram": 50}}
    program = launch({"Model": {"Default": {**fake()["Default"], **placed}}}, env=env_of(cards))
    program.command("Model", "start")

    def models() -> Any:
        models = device(program, "CPU + RAM")["models"]
        return models if models[0]["measured_mb"] else None

    [held] = eventually(models)
    assert (held["name"], held["declared_mb"]) == ("Model", 50)
    assert 1 < held["measured_mb"] < 500
    assert "CUDA_VISIBLE_DEVICES" not in program.environment("Model")


def test_a_page_is_told_of_the_devices_as_they_change(launch: Launch, cards: Cards) -> None:
    program = launch({}, env=env_of(cards))
    page = program.page("/api/events", "devices")
    page.until(lambda told: len(told["devices"]) == 3)
    cards.set(card(V100, 16384, 700))
    told = page.until(lambda told: len(told["devices"]) == 2)[-1]
    assert told["devices"][0]["used_mb"] == 700
    page.close()


def test_a_drivers_error_is_told_and_the_last_reading_stays_marked(
    launch: Launch, cards: Cards
) -> None:
    program = launch({"Model": on("rtx 4060", 4000)}, env=env_of(cards))
    assert not device(program, RTX_4060)["stale"]
    cards.fail(NO_DRIVER, 9)
    assert "couldn't communicate with the NVIDIA driver" in eventually(lambda: fault(program))
    told = device(program, RTX_4060)
    assert (told["stale"], told["used_mb"]) == (True, 300)
    assert not device(program, "CPU + RAM")["stale"]
    cards.answer()
    eventually(lambda: not device(program, RTX_4060)["stale"])
    assert fault(program) is None


def test_a_driver_that_never_worked_is_named_where_no_scheme_matches(
    launch: Launch, cards: Cards
) -> None:
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
    launch: Launch, cards: Cards
) -> None:
    models = {
        "Running": on("v100", 9000),
        "Next": on("rtx 4060", 5000),
        "Large": on("rtx 4060", 7900),
        "Turn": on("v100", 9000),
    }
    program = launch(models, env=env_of(cards))
    program.command("Running", "start")
    eventually(lambda: program.devices()[f"{V100} #1"]["models"][0]["measured_mb"])
    with program.held("Running") as answer:
        cards.hang("until changed")
        assert "has not answered for" in eventually(lambda: fault(program))
        told = device(program, RTX_4060)
        assert (told["stale"], told["used_mb"]) == (True, 300)
        assert next(answer.iter_content(1))  # a stream under way goes on
        assert program.ask("Running").status_code == 200
        assert program.ask("Next").status_code == 200  # placed by the last reading
        held = "2888 of 8188 MB are free (held: Next 5000, other programs 300 MB)"
        assert held in program.ask("Large").json()["error"]["message"]
    program.becomes("Running", in_flight=0)
    assert program.ask("Turn").status_code == 200
    assert program.model("Running")["state"] == "stopped"
    assert fault(program)

    cards.answer()
    eventually(lambda: fault(program) is None)
    told = program.devices()[f"{V100} #1"]
    assert (told["stale"], told["used_mb"], told["room_mb"]) == (False, 9000, 16384 - 9000)

    cards.hang("for ever")
    before = cards.calls
    eventually(lambda: cards.calls > before)
    program.end()


# --- when it looks ----------------------------------------------------------------------


def goes_quiet(cards: Cards) -> None:
    """Waits until the cards are not looked at any more."""
    eventually(lambda: cards.calls and time.time() - cards.call_times[-1] > QUIET)


def test_the_devices_are_looked_at_while_somebody_asks_or_watches_and_not_longer(
    launch: Launch, tmp_path: Path
) -> None:
    asked, watched = (Cards(tmp_path / name, [card(V100, 16384)]) for name in ("one", "two"))
    by_requests = launch({"Model": fake()}, env=env_of(asked))
    by_a_page = launch({"Model": fake()}, env=env_of(watched))
    page = by_a_page.page("/api/events", "devices")
    opened = time.time()
    assert asked.calls == 0
    assert by_requests.ask("Model").status_code == 200
    last_request = time.time()

    eventually(lambda: asked.calls >= 5)
    goes_quiet(asked)
    assert asked.call_times[-1] - last_request > AWAKE / 2
    # A page alone, for longer than the last request's ten seconds.
    eventually(lambda: watched.call_times[-1] - opened > AWAKE + QUIET)
    assert watched.calls >= AWAKE / 2
    page.close()
    goes_quiet(watched)

    for program, cards in ((by_requests, asked), (by_a_page, watched)):
        before = cards.calls
        for path in ("/health", "/api/models", "/metrics"):
            program.get(path)
        assert cards.calls == before  # nobody of these wants to know
        assert program.ask("Model").status_code == 200
        eventually(lambda cards=cards, before=before: cards.calls > before + 1)


def test_a_start_and_a_stop_are_followed_by_a_look(launch: Launch, cards: Cards) -> None:
    program = launch({"Model": on("v100", 9000)}, env=env_of(cards))
    program.command("Model", "start")
    page = program.page("/api/events", "devices")

    def on_it(told: dict[str, Any]) -> int:
        return next(each["used_mb"] for each in told["devices"] if each["name"] == V100)

    page.until(lambda told: on_it(told) == 9000)
    program.command("Model", "stop")
    page.until(lambda told: on_it(told) == 0)
    page.close()

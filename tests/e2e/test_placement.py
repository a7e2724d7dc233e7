"""Models are placed on the cards that are there: the program, real processes, played cards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import Cards, card
from tests.support.fixtures import Launch
from tests.support.program import (
    Program,
    background,
    env_of,
    error_of,
    eventually,
    fake,
    held_on,
    on,
    scheme,
)

RTX_4060 = "NVIDIA GeForce RTX 4060"
RTX_3090 = "NVIDIA GeForce RTX 3090"
V100 = "Tesla V100-SXM2-32GB"
EVICTIONS = "llm_manager_evictions_total"

Play = Callable[..., Cards]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Puts cards into the machine."""
    return lambda *cards: Cards(tmp_path / "machine", cards)


def start(program: Program, *names: str) -> None:
    for name in names:
        assert program.command(name, "start")["state"] == "ready", program.model(name)


def refused(program: Program, name: str, code: str) -> str:
    """The message of a request that is answered with 503."""
    answer = program.ask(name)
    assert answer.status_code == 503, answer.text
    error = error_of(answer)
    assert error["code"] == code
    message: str = error["message"]
    return message


# --- schemes ----------------------------------------------------------------------------


def test_the_start_parameters_follow_the_cards_that_are_online(launch: Launch, play: Play) -> None:
    cards = play(card(RTX_4060, 8188, 150), card(V100, 32768))
    model = {
        "Dual-GPU-Config": scheme({"rtx 4060": 8000, "v100": 16000}),
        "Single-GPU-Config": scheme({"v100": 24000}),
    }
    program = launch({"Qwen-14B-Chat": model}, env=env_of(cards))
    assert program.ask("Qwen-14B-Chat").status_code == 200
    view = program.model("Qwen-14B-Chat")
    assert (view["scheme"], view["schemes_passed_over"]) == ("Dual-GPU-Config", {})
    environment = program.environment("Qwen-14B-Chat")
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"

    program.command("Qwen-14B-Chat", "stop")
    cards.set(card(V100, 32768, index=1))
    eventually(lambda: f"{RTX_4060} #0" not in program.devices())
    assert program.ask("Qwen-14B-Chat").status_code == 200
    view = program.model("Qwen-14B-Chat")
    assert view["scheme"] == "Single-GPU-Config"
    assert view["schemes_passed_over"] == {"Dual-GPU-Config": "rtx 4060 is not online"}
    assert program.visible("Qwen-14B-Chat") == "1"


def test_models_on_equal_cards_get_different_ones_and_one_that_needs_both_gets_both(
    launch: Launch, play: Play
) -> None:
    cards = play(card(RTX_3090, 24576), card(RTX_3090, 24576))
    both = scheme({"rtx 3090": 20000}, required=["rtx 3090", "rtx 3090"])
    models = {name: on("rtx 3090", 9000) for name in ("First", "Second")}
    program = launch({**models, "Both": {"Both": both}}, env=env_of(cards))
    asked = [background(lambda name=name: program.ask(name)) for name in models]
    assert [answer.result().status_code for answer in asked] == [200, 200]
    assert {program.visible("First"), program.visible("Second")} == {"0", "1"}

    assert program.ask("Both").status_code == 200
    assert program.visible("Both") == "0,1"
    assert [program.model(name)["state"] for name in models] == ["stopped", "stopped"]


# --- one card for all -------------------------------------------------------------------

SIZES = {
    "Busy": 9000,
    "Next": 9000,
    "Small": 6000,
    "Tiny": 3000,
    "Little": 6000,
    "Big": 12000,
    "Giant": 20000,
}


@pytest.fixture(scope="module")
def one_card(tmp_path_factory: pytest.TempPathFactory) -> Cards:
    """A machine with one card of 16,000 MB."""
    machine = Cards(tmp_path_factory.mktemp("one") / "machine", [card("Tesla V100", 16000)])
    machine.play(linger=0.3)  # a server that finds no memory ends, and its request with it
    return machine


@pytest.fixture(scope="module")
def shared(launch_once: Launch, one_card: Cards) -> Program:
    models: dict[str, Any] = {name: on("v100", mb) for name, mb in SIZES.items()}
    models |= {name: on("v100", 9000, "--boot", 0.3) for name in ("One", "Two")}
    models["Pinned"] = on("v100", 6000, pinned=True)
    models["Elsewhere"] = on("h100", 1)
    return launch_once(models, env=env_of(one_card))


@pytest.fixture
def program(shared: Program) -> Iterator[Program]:
    """The program, on which no model runs yet."""
    yield shared
    assert shared.post("/api/models/stop?wait=1").status_code == 200


def waits(program: Program, name: str) -> dict[str, Any]:
    """What the model waits for, once it waits for memory."""
    waits_for: dict[str, Any] = eventually(lambda: program.model(name)["waits_for"])
    assert program.model(name)["state"] == "queued"
    return waits_for


def test_of_two_starts_at_once_that_fit_one_at_a_time_both_are_served(
    program: Program, one_card: Cards
) -> None:
    asked = [background(lambda name=name: program.ask(name)) for name in ("One", "Two")]
    assert [answer.result().status_code for answer in asked] == [200, 200]
    assert sum(program.counted(EVICTIONS, model=name) for name in ("One", "Two")) == 1
    assert held_on(one_card) == {0: 9000}


def test_a_start_waits_for_a_busy_model_and_goes_on_once_that_is_idle(program: Program) -> None:
    with program.held("Busy"):
        asked = background(lambda: program.ask("Next"))
        waits_for = waits(program, "Next")
        assert (waits_for["action"], waits_for["waits_for"]) == ("wait", ["Busy"])
        assert waits_for["place_in_line"] == 1
        assert "7000 of 16000 MB are free" in waits_for["reason"]
        behind = background(lambda: program.ask("Big"))
        assert waits(program, "Big")["place_in_line"] == 2
        assert program.command("Big", "stop")["state"] == "stopped"
        assert behind.result().status_code == 503
        assert program.ask("Busy").status_code == 200
        assert program.model("Next")["state"] == "queued"
    assert asked.result().status_code == 200
    assert program.model("Busy")["state"] == "stopped"
    assert program.model("Next")["waits_for"] is None
    assert program.counted("llm_manager_room_wait_seconds_count", model="Next") == 1


def test_the_models_whose_memory_is_needed_are_stopped_and_no_others(
    program: Program, one_card: Cards
) -> None:
    start(program, "Small", "Tiny", "Little")
    tiny = program.model("Tiny")["pid"]
    page = program.page("/api/events", "eviction")
    answer = program.ask("Big")
    assert answer.status_code == 200, answer.text
    reason = "evicted to free memory for Big"
    evicted = {(event["model"], event["reason"]) for event in (page.next(), page.next())}
    assert evicted == {("Small", reason), ("Little", reason)}
    page.close()
    assert program.model("Tiny")["pid"] == tiny
    assert held_on(one_card) == {0: 15000}


def test_nothing_is_stopped_where_that_would_not_be_enough_and_the_error_has_the_numbers(
    program: Program,
) -> None:
    start(program, "Pinned", "Small")
    before = program.model("Small")["pid"], program.model("Pinned")["pid"]
    message = refused(program, "Big", "insufficient_memory")
    assert "it needs 12000 MB on Tesla V100 #0, where 4000 of 16000 MB are free" in message
    assert "Pinned 6000" in message
    assert "is not enough" in message
    message = refused(program, "Giant", "insufficient_memory")
    assert "it needs 20000 MB on Tesla V100 #0, which has 16000 MB in all" in message
    assert (program.model("Small")["pid"], program.model("Pinned")["pid"]) == before
    assert program.ask("Small").status_code == 200


def test_a_dry_run_says_what_a_start_would_do_and_does_nothing(program: Program) -> None:
    def dry_run(name: str) -> dict[str, Any]:
        answer = program.post(f"/api/models/{name}/start?dry_run=1")
        assert answer.status_code == 200
        preview: dict[str, Any] = answer.json()
        return preview

    stopped = len(program.logs("Big"))
    preview = dry_run("Big")
    assert (preview["action"], preview["scheme"]) == ("start", "Default")
    assert preview["memory_mb"] == {"Tesla V100 #0": 12000}
    assert program.model("Big")["state"] == "stopped"
    start(program, "Busy")
    assert dry_run("Busy")["action"] == "none"
    preview = dry_run("Big")
    assert (preview["action"], preview["stops"]) == ("evict", ["Busy"])
    with program.held("Busy"):
        preview = dry_run("Big")
        assert (preview["action"], preview["waits_for"]) == ("wait", ["Busy"])
    assert dry_run("Giant")["action"] == "refuse"
    preview = dry_run("Elsewhere")
    assert (preview["action"], preview["scheme"]) == ("refuse", None)
    assert preview["schemes_passed_over"] == {"Default": "h100 is not online"}
    assert len(program.logs("Big")) == stopped
    assert program.model("Busy")["state"] == "ready"


# --- a card that is lost ----------------------------------------------------------------


def test_a_card_that_is_lost_during_a_start_leads_to_the_next_scheme(
    launch: Launch, play: Play, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    cards = play(card(RTX_4060, 8188), card(V100, 32768))
    fails = ["sh", "-c", 'until [ -e "$0" ]; do sleep 0.02; done; exit 9', gate]
    model = {
        "Dual": scheme({"rtx 4060": 8000, "v100": 16000}, prefix=fails),
        "Single": scheme({"v100": 24000}),
    }
    program = launch({"Model": model}, env=env_of(cards))
    asked = background(lambda: program.ask("Model"))
    program.becomes("Model", state="starting", scheme="Dual")
    cards.set(card(V100, 32768, index=1))
    gate.touch()
    assert asked.result().status_code == 200
    view = program.model("Model")
    assert (view["scheme"], view["last_error"]) == ("Single", None)
    assert view["schemes_passed_over"] == {"Dual": "rtx 4060 is not online"}
    assert f"{RTX_4060} #0 was lost while it started" in program.output


# --- a program that is started again ----------------------------------------------------


def test_a_model_that_was_taken_over_keeps_its_card(launch: Launch, play: Play) -> None:
    cards = play(card(RTX_3090, 24000), card(RTX_3090, 24000))
    models = {name: on("rtx 3090", 16000) for name in ("First", "Kept", "Next")}
    program = launch(models, env=env_of(cards))
    start(program, "First", "Kept")
    card_of_kept = program.visible("Kept")
    program.command("First", "stop")
    kept = program.model("Kept")["pid"]
    program.kill()

    program.start()
    program.becomes("Kept", state="ready", pid=kept)
    held = program.devices()[f"{RTX_3090} #{card_of_kept}"]["models"]
    assert [(each["name"], each["declared_mb"]) for each in held] == [("Kept", 16000)]
    assert program.ask("Next").status_code == 200
    assert program.visible("Next") != card_of_kept
    assert program.model("Kept")["pid"] == kept


# --- budgets, monitoring off, and an edited config --------------------------------------


def test_budgets_work_with_no_plugin_and_no_driver(
    launch: Launch, play: Play, tmp_path: Path
) -> None:
    def model() -> dict[str, Any]:
        placed = {"required_devices": ["rtx 4060"], "memory_mb": {"rtx 4060": 6000}}
        return {"Default": {**fake()["Default"], **placed}}

    (tmp_path / "empty").mkdir()
    program = launch(
        {"One": model(), "Two": model()},
        env={"PATH": str(tmp_path / "empty"), "PYTHONPATH": env_of(play())["PYTHONPATH"]},
        device_memory_mb={"rtx 4060": 8000},
    )
    for name, other in (("One", "Two"), ("Two", "One")):
        assert program.ask(name).status_code == 200
        assert program.model(other)["state"] == "stopped"
        assert program.visible(name) is None
    device = program.devices()["rtx 4060 #0"]
    assert (device["kind"], device["total_mb"], device["used_mb"]) == ("declared", 8000, None)
    assert device["room_mb"] == 2000
    assert device["models"] == [{"name": "Two", "declared_mb": 6000, "measured_mb": None}]


def test_an_edited_config_holds_at_the_next_decision_and_with_monitoring_off_nothing_is_read(
    launch: Launch, play: Play
) -> None:
    def models(pinned: bool) -> dict[str, Any]:
        placed = {"required_devices": ["rtx 4060", "h100"], "memory_mb": {"h100": 999_999}}
        unchecked = {"First": {**fake()["Default"], **placed}, "Second": fake()["Default"]}
        sizes = {"Model": on("v100", 9000, pinned=pinned), "Big": on("v100", 9000)}
        return {**sizes, "Unchecked": unchecked}

    def edit(models: dict[str, Any], **settings: Any) -> None:
        program.configure(models, **settings)
        assert program.post("/api/config/reload").status_code == 200

    cards = play(card("Tesla V100", 16000))
    program = launch(models(pinned=True), env=env_of(cards))
    start(program, "Model")
    refused(program, "Big", "insufficient_memory")
    edit(models(pinned=False))
    assert program.ask("Big").status_code == 200
    assert program.model("Model")["state"] == "stopped"
    edit(models(pinned=False), device_memory_mb={"v100": 8000})
    program.command("Big", "stop")
    assert "which has 8000 MB in all" in refused(program, "Model", "insufficient_memory")

    edit(models(pinned=False), Disable_GPU_monitoring=True)
    before = cards.calls
    assert program.ask("Unchecked").status_code == 200
    assert program.model("Unchecked")["scheme"] == "First"
    assert "CUDA_VISIBLE_DEVICES" not in program.environment("Unchecked")
    assert program.get("/api/devices").json() == {"devices": [], "faults": {}}
    assert program.command("Unchecked", "stop")["state"] == "stopped"
    assert cards.calls <= before + 1  # one poll may have been under way when it was switched off


# --- memory that nobody has declared ------------------------------------------------------


def undeclared(device: str, takes: int, *flags: object) -> dict[str, Any]:
    """A model of which the config does not say what it takes."""
    found = scheme({device: 0}, *flags, takes=[takes])
    del found["memory_mb"]
    return {"Default": found}


def figures(program: Program, name: str) -> tuple[str, int | None]:
    """Whence it is known what the model takes, and how much."""
    [shown] = program.model(name)["memory"]
    return shown["basis"], shown["devices"][0]["used_mb"]


def test_models_of_unknown_need_run_one_at_a_time_and_together_once_they_are_known_to_fit(
    launch: Launch, play: Play
) -> None:
    cards = play(card("Tesla V100", 16000, 400))
    models = {"First": undeclared("v100", 5000), "Second": undeclared("v100", 6000)}
    program = launch(models, env=env_of(cards))
    assert figures(program, "First") == ("whole", None)
    assert program.ask("First").status_code == 200
    assert program.model("Second")["state"] == "stopped"
    assert program.ask("Second").status_code == 200
    assert program.model("First")["state"] == "stopped"  # it was in the way
    assert figures(program, "First") == ("measured", 5000)

    # Second has served, and is measured: what it does not take is free for a known one.
    eventually(lambda: program.devices()["Tesla V100 #0"]["models"][0]["declared_mb"] == 6000)
    assert program.ask("First").status_code == 200
    assert {program.model(name)["state"] for name in models} == {"ready"}
    assert held_on(cards) == {0: 11000}

    program.end()
    program.start()
    assert figures(program, "First") == ("measured", 5000)
    assert figures(program, "Second") == ("measured", 6000)
    for name in models:
        assert program.ask(name).status_code == 200
    assert {program.model(name)["state"] for name in models} == {"ready"}

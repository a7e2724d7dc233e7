"""Models take turns on the cards that are there: the program, real processes, played cards."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from manager.placement.planner import YIELD_AFTER_SECONDS as BUSY_PATIENCE
from tests.support.cards import Cards, card
from tests.support.fixtures import Launch
from tests.support.program import (
    Page,
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


@pytest.fixture
def one(play: Play) -> Cards:
    """A machine with one card of 16,000 MB."""
    return play(card("Tesla V100", 16000))


def start(program: Program, *names: str) -> None:
    for name in names:
        assert program.command(name, "start")["state"] == "ready", program.model(name)


def measured(program: Program, name: str) -> None:
    """Waits until the devices were read and show what the model holds."""

    def shown() -> bool:
        held = [each for device in program.devices().values() for each in device["models"]]
        return any(each["name"] == name and each["measured_mb"] for each in held)

    eventually(shown)


def refused(program: Program, name: str, code: str) -> str:
    """The message of a request that is answered with 503."""
    answer = program.ask(name)
    assert answer.status_code == 503, answer.text
    error = error_of(answer)
    assert error["code"] == code
    message: str = error["message"]
    return message


def waits(program: Program, name: str, *, action: str = "wait") -> dict[str, Any]:
    """Waits until the model waits for room; for what."""

    def view() -> dict[str, Any] | None:
        waits_for = program.model(name)["waits_for"]
        return waits_for if waits_for and waits_for["action"] == action else None

    view_now = eventually(view)
    assert program.model(name)["state"] == "queued"
    return view_now


def evictions(page: Page, count: int) -> list[tuple[str, str]]:
    """The next evictions that a page is told of: who, and why."""
    return [(event["model"], event["reason"]) for event in (page.next() for _ in range(count))]


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


def test_a_card_is_not_taken_for_its_larger_sister(launch: Launch, play: Play) -> None:
    cards = play(card("NVIDIA GeForce RTX 4060 Ti", 16380))
    program = launch({"Model": on("rtx 4060", 4000)}, env=env_of(cards))
    message = refused(program, "Model", "no_matching_scheme")
    assert "rtx 4060 is not online" in message
    assert "Online: NVIDIA GeForce RTX 4060 Ti #0" in message


# --- turns ------------------------------------------------------------------------------


def test_of_two_starts_that_fit_one_at_a_time_one_goes_and_the_other_takes_its_turn(
    launch: Launch, one: Cards
) -> None:
    one.play(linger=0.3)  # a server that finds no memory ends, and its request with it
    models = {name: on("v100", 9000, "--boot", 0.3) for name in ("One", "Two")}
    program = launch(models, env=env_of(one))
    for _ in range(2):
        asked = [background(lambda name=name: program.ask(name)) for name in models]
        assert [answer.result().status_code for answer in asked] == [200, 200]
    assert sum(program.counted(EVICTIONS, model=name) for name in models) >= 2
    assert held_on(one) == {0: 9000}


def test_a_start_waits_for_a_busy_model_and_goes_on_once_that_is_idle(
    launch: Launch, one: Cards
) -> None:
    models = {name: on("v100", 9000) for name in ("Busy", "Next")}
    program = launch(models, env=env_of(one))
    with program.held("Busy"):
        asked = background(lambda: program.ask("Next"))
        waits_for = waits(program, "Next")
        assert waits_for["waits_for"] == ["Busy"]
        assert waits_for["place_in_line"] == 1
        assert "7000 of 16000 MB are free" in waits_for["reason"]
        assert program.ask("Busy").status_code == 200
        assert program.model("Next")["state"] == "queued"
    assert asked.result().status_code == 200
    assert program.model("Busy")["state"] == "stopped"
    assert program.model("Next")["waits_for"] is None
    assert program.counted("llm_manager_room_wait_seconds_count", model="Next") == 1


def test_those_are_stopped_that_make_room_and_no_others(launch: Launch, one: Cards) -> None:
    sizes = {"Small": 6000, "Tiny": 3000, "Little": 6000, "Big": 12000}
    models = {name: on("v100", mb) for name, mb in sizes.items()}
    program = launch(models, env=env_of(one))
    start(program, "Small", "Tiny", "Little")
    tiny = program.model("Tiny")["pid"]
    page = program.page("/api/events", "eviction")
    assert program.ask("Big").status_code == 200
    reason = "evicted to make room for Big"
    assert set(evictions(page, 2)) == {("Small", reason), ("Little", reason)}
    page.close()
    assert program.model("Tiny")["pid"] == tiny
    assert held_on(one) == {0: 15000}


def test_nothing_is_stopped_where_that_would_not_be_enough_and_the_numbers_are_told(
    launch: Launch, one: Cards
) -> None:
    models = {
        "Pinned": on("v100", 6000, pinned=True),
        "Idle": on("v100", 6000),
        "Big": on("v100", 12000),
        "Giant": on("v100", 20000),
    }
    program = launch(models, env=env_of(one))
    start(program, "Pinned", "Idle")
    before = program.model("Idle")["pid"], program.model("Pinned")["pid"]
    message = refused(program, "Big", "insufficient_memory")
    assert "it needs 12000 MB on Tesla V100 #0, where 4000 of 16000 MB are free" in message
    assert "Pinned 6000" in message
    assert "is not enough" in message
    message = refused(program, "Giant", "insufficient_memory")
    assert "it needs 20000 MB on Tesla V100 #0, which has 16000 MB in all" in message
    assert (program.model("Idle")["pid"], program.model("Pinned")["pid"]) == before
    # Others are no worse off for it.
    assert program.ask("Idle").status_code == 200


@contextlib.contextmanager
def traffic(program: Program, *names: str) -> Iterator[list[Future[requests.Response]]]:
    """Several requests to each model at any moment, new ones all the time."""
    answers: list[Future[requests.Response]] = []
    stop = threading.Event()
    with ThreadPoolExecutor(64) as pool:

        def send() -> None:
            while not stop.wait(0.15):
                for name in names:
                    answers.append(pool.submit(program.ask, name, {"delay": 0.6}))

        sending = background(send)
        try:
            yield answers
        finally:
            stop.set()
            sending.result()


def test_a_model_that_two_busy_ones_keep_out_is_served_after_ten_seconds(
    launch: Launch, play: Play
) -> None:
    cards = play(card(RTX_3090, 24000), card(V100, 32000))
    models = {
        "Left": on("rtx 3090", 16000),
        "Right": on("v100", 20000),
        "Third": {"Both": scheme({"rtx 3090": 16000, "v100": 20000})},
    }
    program = launch(models, env=env_of(cards), threads=256)
    start(program, "Left", "Right")
    with traffic(program, "Left", "Right") as answers:
        program.becomes("Left", in_flight=4)
        program.becomes("Right", in_flight=4)
        began = time.monotonic()
        assert program.ask("Third").status_code == 200
        assert time.monotonic() - began >= BUSY_PATIENCE
        served = len(answers)
        eventually(lambda: len(answers) > served + 20)
    assert {answer.result().status_code for answer in answers} == {200}
    assert program.counted(EVICTIONS, model="Left") == 1
    assert program.counted(EVICTIONS, model="Right") == 1


# --- the line ---------------------------------------------------------------------------


def test_those_who_wait_are_served_in_the_order_in_which_they_came(
    launch: Launch, one: Cards
) -> None:
    names = ["First", "Second", "Third"]
    models = {name: on("v100", 9000) for name in ["Busy", *names]}
    program = launch(models, env=env_of(one))
    page = program.page("/api/events", "eviction")
    with program.held("Busy"):
        asked = []
        for place, name in enumerate(names, 1):
            asked.append(background(lambda name=name: program.ask(name)))
            assert waits(program, name)["place_in_line"] == place
        assert program.model("Third")["waits_for"]["waits_for"] == ["First"]
        assert "before it in the line: First" in program.model("Third")["waits_for"]["reason"]
    assert [answer.result().status_code for answer in asked] == [200] * 3
    told = evictions(page, 3)
    page.close()
    reasons = [f"evicted to make room for {name}" for name in names]
    assert told == list(zip(["Busy", "First", "Second"], reasons, strict=True))


def test_who_waits_longer_than_queue_timeout_for_room_is_told_who_is_in_the_way(
    launch: Launch, one: Cards
) -> None:
    models = {name: on("v100", 9000) for name in ("Busy", "Late")}
    program = launch(models, env=env_of(one), queue_timeout=0.5)
    with program.held("Busy"):
        answer = program.ask("Late")
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "queue_timeout"
        assert "in the way: Busy" in error_of(answer)["message"]
        assert int(answer.headers["Retry-After"]) > 0
        assert program.model("Late")["state"] == "failed"
        labels = {"model": "Late", "outcome": "failed"}
        assert program.counted("llm_manager_room_wait_seconds_count", **labels) == 1
    assert program.ask("Late").status_code == 200


def test_a_model_that_waits_for_room_can_be_stopped(launch: Launch, one: Cards) -> None:
    models = {name: on("v100", 9000) for name in ("Busy", "Waiting", "Next")}
    program = launch(models, env=env_of(one))
    with program.held("Busy"):
        asked = background(lambda: program.ask("Waiting"))
        waits(program, "Waiting")
        behind = background(lambda: program.ask("Next"))
        assert waits(program, "Next")["place_in_line"] == 2
        assert program.command("Waiting", "stop")["state"] == "stopped"
        assert "was stopped while you waited" in error_of(asked.result())["message"]
        eventually(lambda: program.model("Next")["waits_for"]["place_in_line"] == 1)
    assert behind.result().status_code == 200
    assert not program.logs("Waiting")


def test_nothing_is_stopped_for_a_client_who_has_left(launch: Launch, one: Cards) -> None:
    models = {name: on("v100", 9000) for name in ("Busy", "Waiting")}
    program = launch(models, env=env_of(one))
    with program.held("Busy"):
        connection = program.raw_chat("Waiting", {})
        waits(program, "Waiting")
        connection.close()
        view = program.becomes("Waiting", state="stopped", waits_for=None)
    assert (view["waiting"], view["pid"], view["last_error"]) == (0, None, None)
    program.becomes("Busy", state="ready", in_flight=0)
    assert program.counted(EVICTIONS, model="Busy") == 0
    assert program.ask("Waiting").status_code == 200


def test_the_program_ends_while_models_wait_for_room(launch: Launch, one: Cards) -> None:
    models = {name: on("v100", 9000, stop_timeout=0.5) for name in ("Busy", "Waiting")}
    program = launch(models, env=env_of(one))
    with program.held("Busy"):
        asked = background(lambda: program.ask("Waiting"))
        waits(program, "Waiting")
        program.end()
    assert error_of(asked.result())["code"] == "shutting_down"
    assert held_on(one) == {}


@pytest.mark.parametrize("change", ["another card", "other programs leave"])
def test_a_start_that_waits_goes_on_when_the_machine_has_room(
    launch: Launch, play: Play, change: str
) -> None:
    cards = play(card("Tesla V100", 16000, 4000))
    program = launch({"Busy": on("v100", 8000), "Next": on("v100", 7000)}, env=env_of(cards))
    with program.held("Busy"):
        asked = background(lambda: program.ask("Next"))
        assert waits(program, "Next")["waits_for"] == ["Busy"]
        if change == "another card":
            cards.set(card("Tesla V100", 16000, 4000), card("Tesla V100", 16000))
        else:
            cards.set(card("Tesla V100", 16000))
        assert asked.result().status_code == 200
        assert program.model("Busy")["in_flight"] == 1


# --- memory that is not back yet --------------------------------------------------------


def test_a_start_waits_for_memory_that_a_stopped_model_has_not_given_back_yet(
    launch: Launch, one: Cards
) -> None:
    one.play(linger=1.0)
    sizes = {"Going": 9000, "Idle": 6000, "Next": 9000}
    program = launch({name: on("v100", mb) for name, mb in sizes.items()}, env=env_of(one))
    for name in ("Going", "Idle"):
        start(program, name)
        measured(program, name)
    idle = program.model("Idle")["pid"]
    assert program.post("/api/models/Going/stop").status_code == 202
    asked = background(lambda: program.ask("Next"))
    assert waits(program, "Next", action="soon")["waits_for"] == ["Going"]
    assert asked.result().status_code == 200
    assert program.model("Idle")["pid"] == idle


def test_a_stop_has_ended_when_the_memory_is_back(launch: Launch, one: Cards) -> None:
    one.play(linger=0.7)
    program = launch({"Model": on("v100", 9000)}, env=env_of(one))
    start(program, "Model")
    assert program.command("Model", "stop")["state"] == "stopped"
    assert held_on(one, linger=0.7) == {}


def test_memory_that_never_comes_back_is_not_waited_for_for_ever(
    launch: Launch, one: Cards
) -> None:
    one.play(linger=3600)
    program = launch({name: on("v100", 9000) for name in ("Gone", "Next")}, env=env_of(one))
    start(program, "Gone")
    assert program.command("Gone", "stop")["state"] == "stopped"
    assert "its memory was not given back within" in program.output
    message = refused(program, "Next", "insufficient_memory")
    assert "7000 of 16000 MB are free (held: other programs 9000 MB)" in message


# --- cards that go away -----------------------------------------------------------------


def test_a_card_that_goes_away_during_a_start_leads_to_the_next_scheme(
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
    assert f"{RTX_4060} #0 went away while it started" in program.output


def test_a_card_that_goes_away_during_a_start_is_replaced_by_its_equal(
    launch: Launch, play: Play, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    cards = play(card(RTX_3090, 24000), card(RTX_3090, 24000))
    script = '[ "$CUDA_VISIBLE_DEVICES" = 1 ] || until [ -e "$0" ]; do sleep 0.02; done;'
    fails = ["sh", "-c", f'{script} [ "$CUDA_VISIBLE_DEVICES" = 1 ] && exec "$@"; exit 9', gate]
    models = {"Model": on("rtx 3090", 9000, prefix=fails)}
    program = launch({**models, "Busy": on("rtx 3090", 20000)}, env=env_of(cards))
    asked = background(lambda: program.ask("Model"))
    program.becomes("Model", state="starting")
    assert program.visible("Model") == "0"
    with program.held("Busy"):
        cards.set(card(RTX_3090, 24000, index=1))
        gate.touch()
        assert waits(program, "Model")["waits_for"] == ["Busy"]
        view = program.model("Model")
        assert (view["pid"], view["port"], view["scheme"]) == (None, None, None)
    assert asked.result().status_code == 200
    assert program.visible("Model") == "1"


def test_with_all_cards_gone_a_start_says_which_devices_are_online(
    launch: Launch, play: Play, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    cards = play(card(RTX_4060, 8188))
    fails = ["sh", "-c", 'until [ -e "$0" ]; do sleep 0.02; done; exit 9', gate]
    model = {
        "Large": scheme({"rtx 4060": 8000}, prefix=fails),
        "Small": scheme({"rtx 4060": 4000}),
    }
    program = launch({"Model": model}, env=env_of(cards))
    asked = background(lambda: program.ask("Model"))
    program.becomes("Model", state="starting")
    cards.set()
    gate.touch()
    answer = asked.result()
    assert answer.status_code == 503
    assert error_of(answer)["code"] == "no_matching_scheme"
    message = error_of(answer)["message"]
    assert "Large: rtx 4060 is not online; Small: rtx 4060 is not online" in message
    assert "Online: CPU + RAM #0" in message


# --- started with the program -----------------------------------------------------------


def test_models_with_auto_start_stop_no_others_and_start_when_they_are_asked(
    launch: Launch, one: Cards
) -> None:
    models = {name: on("v100", 9000, auto_start=True) for name in ("One", "Two")}
    program = launch(models, env=env_of(one))

    def settled() -> tuple[str, str] | None:
        states = {name: program.model(name)["state"] for name in models}
        by_state = {state: name for name, state in states.items()}
        if set(by_state) == {"ready", "failed"}:
            return by_state["ready"], by_state["failed"]
        return None

    ready, left_out = eventually(settled)
    error = program.model(left_out)["last_error"]
    assert "nothing is stopped for a model that nobody has asked for" in error
    assert f"{left_out} did not start" in program.output
    before = program.model(ready)["pid"]
    assert program.ask(left_out).status_code == 200
    assert program.model(ready)["state"] == "stopped"

    # What runs already is not stopped either for one that starts with the program.
    program.kill()
    program.start()
    program.becomes(left_out, state="ready")
    program.becomes(ready, state="failed")
    assert program.counted(EVICTIONS, model=left_out) == 0
    assert before not in [process.pid for process in program.processes()]


def test_a_model_that_was_taken_over_keeps_its_card_and_makes_room_when_it_is_idle(
    launch: Launch, play: Play
) -> None:
    cards = play(card(RTX_3090, 24000), card(RTX_3090, 24000))
    models = {name: on("rtx 3090", 16000) for name in ("First", "Kept", "Next", "Last")}
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
    with program.held("Kept"):
        assert program.ask("Next").status_code == 200
        assert program.visible("Next") != card_of_kept
        assert program.model("Kept")["pid"] == kept
        with program.held("Next"):
            asked = background(lambda: program.ask("Last"))
            waits(program, "Last")
        # It would fit on either, and takes that of the model that is idle first.
        assert asked.result().status_code == 200
    assert program.model("Kept")["pid"] == kept
    assert program.ask("Next").status_code == 200
    assert {program.model("Kept")["state"], program.model("Last")["state"]} == {"ready", "stopped"}


# --- budgets, and no looking at all -----------------------------------------------------


def test_budgets_work_with_no_plugin_and_no_driver(launch: Launch, tmp_path: Path) -> None:
    def model() -> dict[str, Any]:
        placed = {"required_devices": ["rtx 4060"], "memory_mb": {"rtx 4060": 6000}}
        return {"Default": {**fake()["Default"], **placed}}

    (tmp_path / "empty").mkdir()
    program = launch(
        {"One": model(), "Two": model()},
        env={"PATH": str(tmp_path / "empty"), "PYTHONPATH": _blind(tmp_path)},
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


def _blind(folder: Path) -> str:
    return env_of(Cards(folder / "unused"))["PYTHONPATH"]


def test_a_budget_below_a_cards_size_is_all_that_is_used_of_it(launch: Launch, play: Play) -> None:
    cards = play(card("Tesla V100", 16000, 1000))
    sizes = {"One": 5000, "Two": 5000, "Large": 9000}
    program = launch(
        {name: on("v100", mb) for name, mb in sizes.items()},
        env=env_of(cards),
        device_memory_mb={"v100": 8000},
    )
    assert program.ask("One").status_code == 200
    assert program.ask("Two").status_code == 200
    assert program.model("One")["state"] == "stopped"
    assert "which has 8000 MB in all" in refused(program, "Large", "insufficient_memory")
    device = program.devices()["Tesla V100 #0"]
    assert (device["total_mb"], device["budget_mb"], device["room_mb"]) == (16000, 8000, 3000)


def test_a_card_with_a_budget_that_goes_away_is_not_there_any_more(
    launch: Launch, play: Play
) -> None:
    cards = play(card(RTX_4060, 8188), card(V100, 32768))
    model = {"Dual": scheme({"rtx 4060": 4000, "v100": 4000}), "Single": scheme({"v100": 8000})}
    program = launch({"Model": model}, env=env_of(cards), device_memory_mb={"rtx 4060": 6000})
    assert program.devices()[f"{RTX_4060} #0"]["budget_mb"] == 6000
    cards.set(card(V100, 32768, index=1))
    eventually(lambda: list(program.devices()) == [f"{V100} #1", "CPU + RAM #0"])
    assert program.ask("Model").status_code == 200
    assert program.model("Model")["scheme"] == "Single"


def test_with_monitoring_off_the_first_scheme_is_used_and_nobody_looks_at_the_cards(
    launch: Launch, one: Cards
) -> None:
    placed = {"required_devices": ["rtx 4060", "h100"], "memory_mb": {"h100": 999_999}}
    model = {"First": {**fake()["Default"], **placed}, "Second": fake()["Default"]}
    program = launch({"Model": model}, env=env_of(one), Disable_GPU_monitoring=True)
    page = program.page("/api/events", "model")
    assert program.ask("Model").status_code == 200
    assert program.model("Model")["scheme"] == "First"
    assert "CUDA_VISIBLE_DEVICES" not in program.environment("Model")
    assert program.get("/api/devices").json() == {"devices": [], "faults": {}}
    preview = program.post("/api/models/Model/start?dry_run=1").json()
    assert preview["action"] == "none"
    program.command("Model", "stop")
    page.until(lambda view: view["state"] == "stopped")
    page.close()
    assert one.calls == 0


# --- what would happen ------------------------------------------------------------------


def test_a_dry_run_tells_what_a_start_would_do_and_does_nothing(launch: Launch, one: Cards) -> None:
    sizes = {"Holder": 9000, "Small": 5000, "Big": 12000, "Giant": 20000}
    models = {name: on("v100", mb) for name, mb in sizes.items()}
    models["Elsewhere"] = on("h100", 1)
    program = launch(models, env=env_of(one))

    def dry_run(name: str) -> dict[str, Any]:
        answer = program.post(f"/api/models/{name}/start?dry_run=1")
        assert answer.status_code == 200
        told: dict[str, Any] = answer.json()
        return told

    told = dry_run("Big")
    assert (told["action"], told["scheme"]) == ("start", "Default")
    assert told["memory_mb"] == {"Tesla V100 #0": 12000}
    assert program.model("Big")["state"] == "stopped"

    start(program, "Holder")
    assert dry_run("Holder")["action"] == "none"
    assert dry_run("Small")["action"] == "start"
    told = dry_run("Big")
    assert (told["action"], told["stops"]) == ("evict", ["Holder"])
    with program.held("Holder"):
        told = dry_run("Big")
        assert (told["action"], told["waits_for"]) == ("wait", ["Holder"])
        assert "7000 of 16000 MB are free" in told["reason"]
    told = dry_run("Giant")
    assert told["action"] == "refuse"
    assert "16000 MB in all" in told["reason"]
    told = dry_run("Elsewhere")
    assert (told["action"], told["scheme"]) == ("refuse", None)
    assert told["schemes_passed_over"] == {"Default": "h100 is not online"}

    one.play(linger=1.0)
    program.post("/api/models/Holder/stop")
    told = dry_run("Big")
    assert (told["action"], told["waits_for"]) == ("soon", ["Holder"])
    program.becomes("Holder", state="stopped")
    assert [program.logs(name) for name in ("Small", "Big", "Giant", "Elsewhere")] == [[]] * 4
    assert program.counted(EVICTIONS, model="Holder") == 0


# --- the config is edited ---------------------------------------------------------------


def test_an_edited_config_holds_at_the_next_decision(launch: Launch, one: Cards) -> None:
    def models(pinned: bool, big: int) -> dict[str, Any]:
        return {"Model": on("v100", 9000, pinned=pinned), "Big": on("v100", big)}

    def edit(models: dict[str, Any], **settings: Any) -> None:
        program.configure(models, **settings)
        assert program.post("/api/config/reload").status_code == 200

    program = launch(models(pinned=True, big=12000), env=env_of(one))
    start(program, "Model")
    refused(program, "Big", "insufficient_memory")
    edit(models(pinned=True, big=6000))
    assert program.ask("Big").status_code == 200
    program.command("Big", "stop")
    edit(models(pinned=True, big=6000), device_memory_mb={"v100": 12000})
    refused(program, "Big", "insufficient_memory")
    edit(models(pinned=False, big=6000), device_memory_mb={"v100": 12000})
    assert program.ask("Big").status_code == 200
    assert program.model("Model")["state"] == "stopped"

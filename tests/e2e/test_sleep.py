"""A server with a sleep mode frees its card without being stopped: real processes, played cards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import Cards, card
from tests.support.fixtures import Launch
from tests.support.program import Program, background, env_of, eventually, fake, held_on, scheme

V100 = "Tesla V100"


def sleeper(mb: int, *flags: object, **settings: Any) -> dict[str, Any]:
    """A model that can sleep, and keeps a tenth of what it takes."""
    return {"sleep": True, **settings, "GPU": scheme({"v100": mb}, "--sleeps", 0.1, *flags)}


def plain(mb: int, **settings: Any) -> dict[str, Any]:
    return {**settings, "GPU": scheme({"v100": mb})}


def one_card(folder: Path) -> Cards:
    """A machine with one card of 16,000 MB."""
    return Cards(folder / "machine", [card(V100, 16000)])


@pytest.fixture
def cards(tmp_path: Path) -> Cards:
    return one_card(tmp_path)


@pytest.fixture(scope="module")
def shared_card(tmp_path_factory: pytest.TempPathFactory) -> Cards:
    return one_card(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def shared(launch_once: Launch, shared_card: Cards) -> Program:
    models = {
        "Sleeper": sleeper(10000),
        "Insomniac": sleeper(10000, "--insomnia"),
        "One": sleeper(15000),
        "Two": sleeper(15000),
        "Awake": plain(10000, sleep=True),
        "Small": plain(2000),
        "Other": plain(9000),
        "Large": plain(15500),
    }
    return launch_once(models, env=env_of(shared_card))


@pytest.fixture
def program(shared: Program) -> Iterator[Program]:
    """The program, on which no model runs yet."""
    yield shared
    assert shared.post("/api/models/stop?wait=1").status_code == 200


def asked(program: Program, *names: str) -> None:
    for name in names:
        answer = program.ask(name)
        assert answer.status_code == 200, answer.text


def evicts(program: Program, name: str) -> Any:
    """What a start of it would do, once that is to stop others."""
    would = program.post(f"/api/models/{name}/start?dry_run=1").json()
    return would if would["action"] == "evict" else None


def reserved(program: Program, name: str) -> int:
    """MB on the card."""
    held = program.devices()[f"{V100} #0"]["models"]
    found: int = next(each["declared_mb"] for each in held if each["name"] == name)
    return found


def test_a_model_is_put_to_sleep_for_another_and_woken_by_the_next_request(
    program: Program, shared_card: Cards
) -> None:
    asked(program, "Sleeper")
    starts = program.counted("llm_manager_starts_total", model="Sleeper", outcome="ready")
    server = program.model("Sleeper")["pid"]
    asked(program, "Other")
    assert program.becomes("Sleeper", state="sleeping", pid=server)["last_error"] is None
    assert reserved(program, "Sleeper") == 1000
    assert held_on(shared_card) == {0: 10000}
    # Once a reading shows all of Other.
    would = eventually(lambda: evicts(program, "Sleeper"))
    assert (would["stops"], would["scheme"]) == (["Other"], "GPU")

    asked(program, "Sleeper")
    assert program.model("Sleeper")["pid"] == server  # no cold start
    assert program.model("Other")["state"] == "stopped"
    assert reserved(program, "Sleeper") == 10000
    assert program.counted("llm_manager_starts_total", model="Sleeper", outcome="ready") == starts
    program.command("Sleeper", "stop")
    assert held_on(shared_card) == {}


def test_one_that_sleeps_is_stopped_where_what_it_still_holds_is_needed(
    program: Program, shared_card: Cards
) -> None:
    asked(program, "Sleeper", "Large")
    assert program.model("Sleeper")["state"] == "stopped"
    assert held_on(shared_card) == {0: 15500}


def test_two_that_both_want_to_wake_do_not_block_each_other(program: Program) -> None:
    asked(program, "One", "Small")
    assert program.model("One")["state"] == "sleeping"
    asked(program, "Two")
    answers = [background(lambda name=name: program.ask(name)) for name in ("One", "Two", "One")]
    assert [answer.result().status_code for answer in answers] == [200, 200, 200]


def test_one_that_cannot_be_woken_is_started_again(program: Program) -> None:
    asked(program, "Insomniac", "Other")
    server = program.becomes("Insomniac", state="sleeping")["pid"]
    asked(program, "Insomniac")
    assert program.model("Insomniac")["pid"] != server


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_one_that_sleeps_is_stopped_and_restarted_as_any_other(program: Program, verb: str) -> None:
    asked(program, "Sleeper", "Other")
    server = program.becomes("Sleeper", state="sleeping")["pid"]
    shown = program.command("Sleeper", verb)
    assert shown["state"] == ("stopped" if verb == "stop" else "ready")
    assert shown["pid"] != server


def test_one_that_ends_in_its_sleep_is_started_by_the_next_request(program: Program) -> None:
    asked(program, "Sleeper", "Other")
    program.becomes("Sleeper", state="sleeping")
    for process in program.processes("Sleeper"):
        process.kill()
    program.becomes("Sleeper", state="failed")
    asked(program, "Sleeper")


def test_one_without_a_sleep_mode_is_stopped(program: Program) -> None:
    asked(program, "Awake", "Other")
    assert program.model("Awake")["state"] == "stopped"
    said = "Awake is not put to sleep: /sleep?level=1 answered 400"
    eventually(lambda: said in program.output)


def test_a_manager_that_was_killed_finds_it_asleep(launch: Launch, cards: Cards) -> None:
    program = launch({"Sleeper": sleeper(10000), "Other": plain(9000)}, env=env_of(cards))
    asked(program, "Sleeper", "Other")
    server = program.becomes("Sleeper", state="sleeping")["pid"]
    program.kill()
    program.start()
    program.becomes("Sleeper", state="sleeping", pid=server)
    program.becomes("Other", state="ready")
    asked(program, "Sleeper")
    assert program.model("Sleeper")["pid"] == server


def test_an_idle_model_sleeps_and_is_stopped_at_last(launch: Launch, cards: Cards) -> None:
    program = launch({"Sleeper": sleeper(10000, alive_time=0.005)}, env=env_of(cards))
    asked(program, "Sleeper")
    program.becomes("Sleeper", state="sleeping")
    program.becomes("Sleeper", state="stopped")
    eventually(lambda: not program.processes("Sleeper"))


def test_a_model_that_nothing_has_to_be_placed_for_needs_no_card_to_sleep(launch: Launch) -> None:
    command = {**fake("--sleeps", 0.1)["Default"], "required_devices": []}
    program = launch({"Sleeper": {"sleep": True, "alive_time": 0.005, "CPU": command}})
    asked(program, "Sleeper")
    program.becomes("Sleeper", state="sleeping")
    asked(program, "Sleeper")

"""A server with a sleep mode frees its card without being stopped: real processes, played cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.cards import Cards, card
from tests.support.fixtures import Launch
from tests.support.program import Program, background, env_of, eventually, fake, held_on, scheme

V100 = "Tesla V100"


@pytest.fixture
def cards(tmp_path: Path) -> Cards:
    """A machine with one card of 16,000 MB."""
    return Cards(tmp_path / "machine", [card(V100, 16000)])


def sleeper(mb: int, *flags: object, **settings: Any) -> dict[str, Any]:
    """A model that can sleep, and keeps a tenth of what it takes."""
    return {"sleep": True, **settings, "GPU": scheme({"v100": mb}, "--sleeps", 0.1, *flags)}


def plain(mb: int) -> dict[str, Any]:
    return {"GPU": scheme({"v100": mb})}


def asked(program: Program, *names: str) -> None:
    for name in names:
        answer = program.ask(name)
        assert answer.status_code == 200, answer.text


def reserved(program: Program, name: str) -> int:
    """MB on the card."""
    held = program.devices()[f"{V100} #0"]["models"]
    found: int = next(each["declared_mb"] for each in held if each["name"] == name)
    return found


def test_a_model_is_put_to_sleep_for_another_and_woken_by_the_next_request(
    launch: Launch, cards: Cards
) -> None:
    program = launch({"Sleeper": sleeper(10000), "Other": plain(9000)}, env=env_of(cards))
    asked(program, "Sleeper")
    server = program.model("Sleeper")["pid"]
    asked(program, "Other")
    assert program.becomes("Sleeper", state="sleeping", pid=server)["last_error"] is None
    assert reserved(program, "Sleeper") == 1000
    assert held_on(cards) == {0: 10000}
    would = program.post("/api/models/Sleeper/start?dry_run=1").json()
    assert (would["action"], would["stops"], would["scheme"]) == ("evict", ["Other"], "GPU")

    asked(program, "Sleeper")
    assert program.model("Sleeper")["pid"] == server  # no cold start
    assert program.model("Other")["state"] == "stopped"
    assert reserved(program, "Sleeper") == 10000
    assert program.counted("llm_manager_starts_total", model="Sleeper", outcome="ready") == 1
    program.command("Sleeper", "stop")
    assert held_on(cards) == {}


def test_one_that_sleeps_is_stopped_where_what_it_still_holds_is_needed(
    launch: Launch, cards: Cards
) -> None:
    program = launch({"Sleeper": sleeper(10000), "Large": plain(15500)}, env=env_of(cards))
    asked(program, "Sleeper", "Large")
    assert program.model("Sleeper")["state"] == "stopped"
    assert held_on(cards) == {0: 15500}


def test_two_that_both_want_to_wake_do_not_block_each_other(launch: Launch, cards: Cards) -> None:
    models = {name: sleeper(15000) for name in ("One", "Two")}
    program = launch({**models, "Small": plain(2000)}, env=env_of(cards))
    asked(program, "One", "Small")
    assert program.model("One")["state"] == "sleeping"
    asked(program, "Two")
    answers = [background(lambda name=name: program.ask(name)) for name in ("One", "Two", "One")]
    assert [answer.result().status_code for answer in answers] == [200, 200, 200]


def test_one_that_cannot_be_woken_is_started_again(launch: Launch, cards: Cards) -> None:
    models = {"Sleeper": sleeper(10000, "--insomnia"), "Other": plain(9000)}
    program = launch(models, env=env_of(cards))
    asked(program, "Sleeper")
    server = program.model("Sleeper")["pid"]
    asked(program, "Other")
    program.becomes("Sleeper", state="sleeping")
    asked(program, "Sleeper")
    assert program.model("Sleeper")["pid"] != server


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_one_that_sleeps_is_stopped_and_restarted_as_any_other(
    launch: Launch, cards: Cards, verb: str
) -> None:
    program = launch({"Sleeper": sleeper(10000), "Other": plain(9000)}, env=env_of(cards))
    asked(program, "Sleeper", "Other")
    server = program.becomes("Sleeper", state="sleeping")["pid"]
    shown = program.command("Sleeper", verb)
    assert shown["state"] == ("stopped" if verb == "stop" else "ready")
    assert shown["pid"] != server


def test_one_that_ends_in_its_sleep_is_started_by_the_next_request(
    launch: Launch, cards: Cards
) -> None:
    program = launch({"Sleeper": sleeper(10000), "Other": plain(9000)}, env=env_of(cards))
    asked(program, "Sleeper", "Other")
    program.becomes("Sleeper", state="sleeping")
    for process in program.processes("Sleeper"):
        process.kill()
    program.becomes("Sleeper", state="failed")
    asked(program, "Sleeper")


def test_one_without_a_sleep_mode_is_stopped(launch: Launch, cards: Cards) -> None:
    models = {"Awake": {"sleep": True, **plain(10000)}, "Other": plain(9000)}
    program = launch(models, env=env_of(cards))
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

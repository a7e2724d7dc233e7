"""What hangs beside the requests, or behind some of them, holds up no other."""

from __future__ import annotations

import collections
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.cards import Cards, card
from tests.support.fixtures import Launch
from tests.support.process_usage import growth, settled
from tests.support.program import Program, env_of, error_of, eventually, fake, frozen, on

CLIENTS = 16
REQUESTS = 400
HUNG = 40


def refused(program: Program, model: str) -> tuple[int, str]:
    """Status and code of an error. (An answer that is kept would keep its connection.)"""
    answer = program.ask(model)
    return answer.status_code, error_of(answer)["code"]


def ask_many(program: Program, model: str) -> collections.Counter[int]:
    """The statuses of many requests."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(program.ask, model) for _ in range(REQUESTS)]
        return collections.Counter(answer.result().status_code for answer in asked)


def test_requests_notice_nothing_of_a_driver_that_hangs(launch: Launch, tmp_path: Path) -> None:
    cards = Cards(tmp_path / "machine", [card("NVIDIA GeForce RTX 3090", 24576, 300)])
    program = launch({"Model": on("rtx 3090", 9000)}, env=env_of(cards))
    assert program.ask("Model").status_code == 200
    before = settled(program)
    assert program.ask("Model").status_code == 200
    cards.hang("until changed")
    eventually(lambda: any(device["stale"] for device in program.devices().values()))
    assert ask_many(program, "Model") == {200: REQUESTS}
    # It hangs still: the requests did not wait for it.
    assert any(device["stale"] for device in program.devices().values())
    cards.answer()
    eventually(lambda: not any(device["stale"] for device in program.devices().values()))
    assert growth(before, settled(program)) == {}


def test_a_server_that_hangs_holds_up_its_own_clients_alone(launch: Launch) -> None:
    models = {"Hung": fake(), "Other": fake()}
    program = launch(models, threads=256, upstream_timeout=5)
    for name in models:
        assert program.ask(name).status_code == 200
    before = settled(program)
    for name in models:
        assert program.ask(name).status_code == 200
    with ThreadPoolExecutor(HUNG) as pool, frozen(program.model("Hung")["pid"]):
        waiting = [pool.submit(refused, program, "Hung") for _ in range(HUNG)]
        program.becomes("Hung", in_flight=HUNG)
        assert ask_many(program, "Other") == {200: REQUESTS}
        for answer in waiting:
            assert answer.result() == (504, "upstream_timeout")
    eventually(lambda: program.ask("Hung").status_code == 200)
    assert growth(before, settled(program)) == {}

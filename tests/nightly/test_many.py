"""More requests than threads: those that would wait are rejected at once, the rest goes on."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.fixtures import Launch
from tests.support.program import (
    FEW_THREADS,
    PLACES,
    Program,
    background,
    error_of,
    fake,
    gated,
)

CROWD = 50


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates") / "open"


@pytest.fixture(scope="module")
def program(launch_once: Launch, gate: Path) -> Program:
    models = {"Model": fake(), "Cold": fake(prefix=gated(gate))}
    return launch_once(models, threads=FEW_THREADS)


def all_others_go_on(program: Program) -> None:
    # What is not a request to a model has its threads kept for it.
    for path in ("/health", "/v1/models", "/api/models", "/api/models/Model", "/metrics"):
        assert program.get(path).status_code == 200
    assert program.post("/api/models/Model/start").status_code == 202
    # Nor does a request to a model that is ready need a place.
    crowd = [background(lambda: program.ask("Model")) for _ in range(CROWD)]
    assert [answer.result().status_code for answer in crowd] == [200] * CROWD


def test_streams_hold_no_places(program: Program) -> None:
    with ExitStack() as held:
        for _ in range(PLACES + 2):
            held.enter_context(program.held("Model"))
        all_others_go_on(program)
    program.becomes("Model", in_flight=0)


def test_those_who_wait_for_a_start_hold_their_places_and_are_all_answered(
    program: Program, gate: Path
) -> None:
    assert program.ask("Model").status_code == 200
    waiting = []
    for number in range(PLACES):
        waiting.append(background(lambda: program.ask("Cold")))
        program.becomes("Cold", waiting=number + 1)
    crowd = [background(lambda: program.ask("Cold")) for _ in range(CROWD)]
    for refused in crowd:
        answer = refused.result()
        assert answer.status_code == 503
        assert error_of(answer)["code"] == "busy"
        assert int(answer.headers["Retry-After"]) > 0
    all_others_go_on(program)
    gate.touch()
    assert [answer.result().status_code for answer in waiting] == [200] * PLACES

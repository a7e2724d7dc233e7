"""Hundreds of requests at once for a cold model: one start, all answered, nobody else held up."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.fixtures import Launch
from tests.support.program import background, eventually, fake, gated

HERD = 300


def test_a_herd_on_a_cold_model_is_answered_by_one_start_and_holds_up_nobody(
    launch: Launch, tmp_path: Path
) -> None:
    gate = tmp_path / "open"
    models = {"Cold": fake(prefix=gated(gate)), "Other": fake()}
    program = launch(models, threads=512)
    assert program.ask("Other").status_code == 200
    over = threading.Event()

    def poll(ask: Callable[[], int]) -> collections.Counter[int]:
        statuses: collections.Counter[int] = collections.Counter()
        while not over.is_set():
            statuses[ask()] += 1
        return statuses

    health = background(lambda: poll(lambda: program.get("/health").status_code))
    other = background(lambda: poll(lambda: program.ask("Other").status_code))
    with ThreadPoolExecutor(HERD) as pool:
        herd = [pool.submit(program.ask, "Cold") for _ in range(HERD)]
        program.becomes("Cold", waiting=HERD)
        polled_before = program.counted("llm_manager_requests_total", model="Other")
        # The herd waits, and the others are served.
        eventually(
            lambda: (
                program.counted("llm_manager_requests_total", model="Other") > polled_before + 10
            )
        )
        gate.touch()
        statuses = collections.Counter(answer.result().status_code for answer in herd)
    over.set()

    assert statuses == {200: HERD}
    assert program.counted("llm_manager_starts_total", model="Cold", outcome="ready") == 1
    assert len(program.logs("Cold")) == 1
    assert set(health.result()) == {200}
    assert set(other.result()) == {200}

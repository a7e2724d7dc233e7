"""However often server, worker and relay process are killed, the bill is complete to the digit."""

from __future__ import annotations

import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
import requests

from tests.support.fixtures import Launch
from tests.support.program import Program, events_of, eventually, fake
from tests.support.usage_rows import one, query

CLIENTS = 24
KILLS = 20
BETWEEN_KILLS = (0.05, 0.8)  # seconds
INPUT, OUTPUT = 1_234_567, 7_654_321  # billionths of the currency for a thousand tokens
PRICE = {"tiers": [{"input": str(INPUT / 10**6), "output": str(OUTPUT / 10**6)}]}
PROMPT_TOKENS = 17  # of each request to the fake upstream


def cost(prompt: int, completion: int) -> int:
    """Billionths of the currency, rounded half up."""
    return (prompt * INPUT + completion * OUTPUT + 500) // 1000


class Clients:
    """They ask until they are stopped. ``seen``: id → completion tokens of each whole answer."""

    def __init__(self, program: Program, seed: int) -> None:
        self.seen: dict[str, int] = {}
        self._program = program
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients = [self._pool.submit(self._run, seed + n) for n in range(CLIENTS)]

    def stop(self) -> None:
        self._stopped.set()
        self._pool.shutdown()
        for client in self._clients:
            client.result()

    def _run(self, seed: int) -> None:
        dice = random.Random(seed)
        while not self._stopped.wait(dice.uniform(0, 0.2)):
            # As clients do whose server is away: they come again a moment later.
            self._ask(dice)

    def _ask(self, dice: random.Random) -> None:
        chunks, stream = dice.randrange(1, 40), dice.random() < 0.5
        fields: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
        shape = {"chunks": chunks, "interval": dice.choice([0, 0.002])}
        try:
            model = dice.choice(["First", "Second"])
            with self._program.ask(model, shape, stream=stream, **fields) as answer:
                if answer.status_code != 200:
                    return
                if stream:
                    events = events_of(answer)
                    if events[-1] != "[DONE]":
                        return
                    usage = events[-2]["usage"]
                else:
                    usage = answer.json()["usage"]
        except requests.RequestException:
            return
        assert usage["prompt_tokens"] == PROMPT_TOKENS
        request = answer.headers["X-LLM-Manager-Request"]
        with self._lock:
            assert request not in self.seen
            self.seen[request] = usage["completion_tokens"]


def kill_something(program: Program, dice: random.Random) -> None:
    victims = dice.choice(["server", "worker", "both", "relay"])
    others = {"worker": program.workers, "both": program.workers, "relay": program.relays}
    for process in others[victims]() if victims in others else ():
        process.kill()
    if victims in ("server", "both"):
        port = program.port
        program.kill()
        program.start(port)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_answer_seen_whole_is_on_the_bill_once_at_its_price(
    launch: Launch, seed: int
) -> None:
    program = launch({"First": fake(price=PRICE), "Second": fake(price=PRICE, max_concurrency=8)})
    dice = random.Random(seed)
    clients = Clients(program, seed * 1000)
    try:
        for _ in range(KILLS):
            time.sleep(dice.uniform(*BETWEEN_KILLS))
            kill_something(program, dice)
    finally:
        clients.stop()

    path = program.usage_db
    count = "SELECT count(*) FROM requests"
    eventually(lambda: one(path, count) >= len(clients.seen))
    eventually(lambda: one(path, f"{count} WHERE cost IS NULL") == 0)
    rows = {
        str(uuid.UUID(bytes=number)): (prompt, completion, billed)
        for number, prompt, completion, billed in query(
            path, "SELECT id, prompt_tokens, completion_tokens, cost FROM requests"
        )
    }
    assert len(rows) == one(path, count)
    assert len(clients.seen) > CLIENTS
    for number, completion in clients.seen.items():
        assert rows[number][:2] == (PROMPT_TOKENS, completion)
    # Others are on it as well: answers that the server had, and no client saw whole.
    for prompt, completion, billed in rows.values():
        assert billed == cost(prompt, completion)
    total = Decimal(sum(billed for _, _, billed in rows.values())) / 10**9
    summary = {"start": 0, "end": time.time() + 86400}
    eventually(
        lambda: Decimal(program.get("/api/usage/summary", params=summary).json()["cost"]) == total
    )

"""Mixed traffic while model servers are killed: nothing grows, and no stream ends unexplained."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

from tests.support.fixtures import Launch
from tests.support.process_usage import growth, settled
from tests.support.program import Program, fake

CLIENTS = 24
REQUESTS = 80  # of each client
BETWEEN_KILLS = (0.5, 3.0)  # seconds
ALIVE_MINUTES = 0.05
ANSWERED = {"whole", "streamed", "left", "broken, with an error event"}


class Traffic:
    """Clients that ask at random, each so many times, while running servers are killed."""

    def __init__(self, program: Program) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.kills = 0
        self._program = program
        self._lock = threading.Lock()

    def run(self, requests: int, seed: int) -> None:
        dice = random.Random(seed)
        with ThreadPoolExecutor(CLIENTS) as pool:
            clients = [pool.submit(self._client, requests, seed + n) for n in range(CLIENTS)]
            while wait(clients, timeout=dice.uniform(*BETWEEN_KILLS)).not_done:
                self._kill_one(dice)
            for client in clients:
                client.result()

    def _client(self, requests: int, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(requests):
            outcome = self._ask(dice)
            with self._lock:
                self.outcomes[outcome] += 1
            if dice.random() < 0.02:
                time.sleep(dice.uniform(1, 6))  # a pause in which models become idle

    def _ask(self, dice: random.Random) -> str:
        stream = dice.random() < 0.6
        leaves = stream and dice.random() < 0.2
        shape = {
            "chunks": dice.choice([1, 20, 100]),
            "interval": dice.choice([0, 0.001, 0.01]),
        }
        model = dice.choice(["Fast", "Slow", "Narrow"])
        text = "x" * dice.choice([10, 1000, 20000])
        with self._program.ask(model, shape, stream=stream, user=text) as answer:
            if answer.status_code != 200:
                return f"{answer.status_code} {answer.json()['error']['code']}"
            if not stream:
                return "whole" if answer.json()["usage"] else "no usage"
            last = ""
            for line in answer.iter_lines():
                if leaves and dice.random() < 0.2:
                    return "left"
                last = line.decode() or last
            if last == "data: [DONE]":
                return "streamed"
            event = json.loads(last[6:]) if last.startswith("data: ") else {}
            if "error" in event:
                return "broken, with an error event"
            # Killed between the end of its answer and [DONE]: all of that is there.
            is_whole = any(choice["finish_reason"] for choice in event.get("choices", ()))
            return "streamed" if is_whole else "cut, unexplained"

    def _kill_one(self, dice: random.Random) -> None:
        views = self._program.get("/api/models").json()["models"]
        running = [view["pid"] for view in views if view["pid"]]
        if running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(running), signal.SIGKILL)
                self.kills += 1


def test_nothing_grows_and_no_stream_ends_unexplained(launch: Launch) -> None:
    models = {
        "Fast": fake(alive_time=ALIVE_MINUTES),
        "Slow": fake("--boot", 0.7, alive_time=ALIVE_MINUTES),
        "Narrow": fake(alive_time=ALIVE_MINUTES, max_concurrency=2),
    }
    program = launch(models, threads=128)
    Traffic(program).run(REQUESTS // 4, seed=1)  # warm: pools, caches
    before = settled(program)
    traffic = Traffic(program)
    traffic.run(REQUESTS, seed=1000)
    after = settled(program)

    print(before, after, traffic.kills, dict(traffic.outcomes), sep="\n")
    assert traffic.kills > 5
    assert traffic.outcomes.total() == CLIENTS * REQUESTS
    unexpected = traffic.outcomes.keys() - ANSWERED
    assert all(outcome.startswith(("502 ", "503 ")) for outcome in unexpected), unexpected
    assert growth(before, after) == {}

"""`python -m bench.soak --minutes 20`: mixed traffic while the models' servers are killed.

Clients ask several models at once, streamed and not; some leave in the middle. Every few
seconds one model's server is killed with SIGKILL, and the idle ones are stopped by their short
`alive_time`. A line a minute says what the serving process holds: threads, sockets, other
descriptors, child processes, memory. At the end all traffic stops, and what is left is compared
with the beginning.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from bench import servers
from bench.servers import BenchError, Program

CLIENTS = 24
KILL_EVERY = (2.0, 8.0)  # seconds
ALIVE_MINUTES = 0.05
SETTLE_SECONDS = 20.0
# Left over when all is quiet: idle threads of pools and a few kept connections.
ALLOWED_THREADS = 4
ALLOWED_SOCKETS = 64
ALLOWED_MEMORY_MB = 15.0


@dataclass(frozen=True)
class Holdings:
    """What the serving process holds at one moment."""

    threads: int
    sockets: int
    files: int
    children: int
    memory_mb: float


def models() -> dict[str, Any]:
    """Three models: a fast one, one that boots slowly, one with a line before it."""

    def model(boot: float, **more: object) -> dict[str, object]:
        scheme = {"required_devices": [], "command": servers.upstream_command(boot)}
        return {"mode": "Chat", "alive_time": ALIVE_MINUTES, "upstream": scheme, **more}

    return {"fast": model(0.0), "slow": model(0.7), "narrow": model(0.1, max_concurrency=2)}


def holdings(program: Program) -> Holdings:
    process = psutil.Process(program.pid)
    sockets = len(process.net_connections(kind="all"))
    return Holdings(
        process.num_threads(),
        sockets,
        process.num_fds() - sockets,
        len(process.children(recursive=True)),
        process.memory_info().rss / 2**20,
    )


class Traffic:
    """Clients that ask at random until told to stop, and what became of their requests."""

    def __init__(self, program: Program, seed: int) -> None:
        self._base = f"http://127.0.0.1:{program.port}"
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.kills = 0
        self._threads = [
            threading.Thread(
                target=self._client, args=(random.Random(seed + n),), name=f"client-{n}"
            )
            for n in range(CLIENTS)
        ]
        self._threads.append(
            threading.Thread(target=self._killer, args=(random.Random(seed),), name="killer")
        )

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def _client(self, dice: random.Random) -> None:
        with requests.Session() as session:
            while not self._stopped.is_set():
                try:
                    self._count(self._ask(session, dice))
                except requests.RequestException as error:
                    self._count(type(error).__name__)
                if dice.random() < 0.02:
                    self._stopped.wait(dice.uniform(1, 6))  # a pause in which models go idle

    def _ask(self, session: requests.Session, dice: random.Random) -> str:
        body = {
            "model": dice.choice(["fast", "slow", "narrow"]),
            "messages": [{"role": "user", "content": "x" * dice.choice([10, 1000, 20000])}],
            "stream": dice.random() < 0.6,
            "max_tokens": dice.choice([1, 20, 200]),
            "interval_us": dice.choice([0, 1000, 10000]),
        }
        leaves = body["stream"] and dice.random() < 0.2
        url = f"{self._base}/v1/chat/completions"
        with session.post(url, json=body, stream=True, timeout=60) as answer:
            if answer.status_code != 200:
                error = answer.json()["error"]
                return f"{answer.status_code} {error['code']}"
            if not body["stream"]:
                return "whole" if answer.json()["usage"] else "no usage"
            last = ""
            for line in answer.iter_lines():
                if leaves and dice.random() < 0.2:
                    return "left"
                last = line.decode() or last
            if last == "data: [DONE]":
                return "streamed"
            return "told of a break" if json.loads(last[6:]).get("error") else "SILENT CUT"

    def _killer(self, dice: random.Random) -> None:
        while not self._stopped.wait(dice.uniform(*KILL_EVERY)):
            states = requests.get(f"{self._base}/api/models", timeout=30).json()["models"]
            running = [state["pid"] for state in states if state["pid"]]
            if running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(running), signal.SIGKILL)
                    self.kills += 1


def settled(program: Program) -> Holdings:
    """What is held once no model runs and nothing has changed for a while."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(1)
        if holdings(program).children == 0:
            break
    time.sleep(3)
    return holdings(program)


def soak(program: Program, minutes: float, seed: int) -> int:
    """Runs it and prints what was seen; the exit code, 0 where nothing grew."""
    first = Traffic(program, seed)  # a warm-up: pools, caches, the first of each thread
    first.start()
    time.sleep(min(30.0, minutes * 60 / 4))
    first.stop()
    before = settled(program)
    print("minute", *asdict(before), "requests", "kills", sep="\t")
    print("start", *asdict(before).values(), 0, 0, sep="\t", flush=True)
    traffic = Traffic(program, seed + 1000)
    traffic.start()
    try:
        end = time.monotonic() + minutes * 60
        minute = 0
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(60.0, left))
            minute += 1
            row = [*asdict(holdings(program)).values(), traffic.outcomes.total(), traffic.kills]
            print(minute, *row, sep="\t", flush=True)
    finally:
        traffic.stop()
    after = settled(program)
    print("end", *asdict(after).values(), traffic.outcomes.total(), traffic.kills, sep="\t")
    print(json.dumps(dict(traffic.outcomes.most_common())))
    grown = [
        after.threads > before.threads + ALLOWED_THREADS,
        after.sockets > before.sockets + ALLOWED_SOCKETS,
        after.files > before.files + ALLOWED_THREADS,
        after.children > 0,
        after.memory_mb > before.memory_mb + ALLOWED_MEMORY_MB,
        traffic.outcomes["SILENT CUT"] > 0,
    ]
    print("something grew" if any(grown) else "nothing grew")
    return int(any(grown))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llm-manager-soak-") as name:
        folder = Path(name)
        try:
            with servers.program(Path("wsgi.py").resolve(), folder, models()) as program:
                return soak(program, arguments.minutes, arguments.seed)
        except BenchError as error:
            print(error, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())

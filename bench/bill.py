"""`python -m bench.bill --runs 10`: is the bill complete while everything is killed?

50 clients make 2,000 requests, streamed and not, and note what each whole answer said it took.
Meanwhile server and worker are killed with SIGKILL at random moments and the server is started
again. At the end: every answer that a client saw whole is in usage.db once, with its tokens, and
is priced once; and what the program says that it costs equals a sum made here of what the clients
saw, plus what the table has of answers that no client saw whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import requests

from bench import servers
from bench.servers import BenchError

CLIENTS = 50
KILL_EVERY = (0.02, 0.6)  # seconds
PAUSE = (0.0, 0.3)  # seconds between a client's requests
BILLED_WITHIN = 60.0  # seconds after the last request
ID_HEADER = "X-LLM-Manager-Request"
# Per million tokens. Tokens per answer are few, so that each digit of the nine counts.
INPUT, OUTPUT = Decimal("1.234567"), Decimal("7.654321")


@dataclass(frozen=True)
class Seen:
    """What a client saw of one whole answer."""

    model: str
    prompt_tokens: int
    completion_tokens: int


def models() -> dict[str, Any]:
    def model(**more: object) -> dict[str, Any]:
        price = {"tiers": [{"input": str(INPUT), "output": str(OUTPUT)}]}
        scheme = {"required_devices": [], "command": servers.upstream_command()}
        return {"mode": "Chat", "upstream": scheme, "price": price, **more}

    return {"first": model(), "second": model(max_concurrency=8)}


class Serving:
    """The program on one data folder, which is killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = servers.free_port()
        self.data = folder / "data"
        config = folder / "config.yaml"
        config.write_text(json.dumps(servers.program_config(self.port, models())))
        self._arguments = [sys.executable, str(Path("wsgi.py").resolve())]
        self._arguments += ["--config", str(config), "--data-dir", str(self.data)]
        self.kills = {"server": 0, "worker": 0}

    def start(self) -> None:
        log = (self.folder / "program.log").open("ab")
        with log:
            start = log.tell()
            self.process = subprocess.Popen(
                self._arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + servers.START_TIMEOUT
        while b"Listening on" not in (self.folder / "program.log").read_bytes()[start:]:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"it does not start:\n{self.last_lines()}")
            time.sleep(0.02)

    def last_lines(self) -> str:
        text = (self.folder / "program.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-15:])

    def workers(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if "jobs.worker" in " ".join(child.cmdline())]
        return []

    def kill_something(self, dice: random.Random) -> None:
        worker = self.workers()
        victims = dice.choice(["server", "worker", "both"])
        if victims != "server":
            for process in worker:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    self.kills["worker"] += 1
        if victims != "worker":
            self.process.kill()
            self.process.wait()
            self.kills["server"] += 1
            self.start()

    def get(self, path: str) -> Any:
        answer = requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=30)
        answer.raise_for_status()
        return answer.json()


class Clients:
    """They share a count of requests to make; what each saw is in ``seen``, by the row's id."""

    def __init__(self, port: int, count: int, seed: int) -> None:
        self._url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self._left = iter(range(count))
        self._lock = threading.Lock()
        self.seen: dict[str, Seen] = {}
        self.broken = 0
        self.threads = [
            threading.Thread(target=self._run, args=(random.Random(seed + n),), name=f"client-{n}")
            for n in range(CLIENTS)
        ]

    def _run(self, dice: random.Random) -> None:
        while True:
            with self._lock:
                if next(self._left, None) is None:
                    return
            time.sleep(dice.uniform(*PAUSE))
            try:
                seen = self._ask(dice)
            except (requests.RequestException, OSError, ValueError, KeyError):
                seen = None
                time.sleep(dice.uniform(0.5, 1.5))  # as clients do whose server is away
            with self._lock:
                if seen is None:
                    self.broken += 1
                elif seen[0] in self.seen:
                    raise BenchError(f"two answers have the id {seen[0]}")
                else:
                    self.seen[seen[0]] = seen[1]

    def _ask(self, dice: random.Random) -> tuple[str, Seen] | None:
        model = dice.choice(["first", "second"])
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "x"}],
            "stream": dice.random() < 0.5,
            "max_tokens": dice.randrange(1, 60),
            "interval_us": dice.choice([0, 2000]),
            "stream_options": {"include_usage": True},
        }
        with requests.post(self._url, json=body, stream=True, timeout=60) as answer:
            if answer.status_code != 200:
                return None
            request = answer.headers[ID_HEADER]
            if not body["stream"]:
                usage = answer.json()["usage"]
            else:
                lines = [line for line in answer.iter_lines() if line.startswith(b"data: ")]
                if lines[-1] != b"data: [DONE]":
                    return None
                usages = [json.loads(line[6:]).get("usage") for line in lines[:-1]]
                usage = next(usage for usage in reversed(usages) if usage)
        return request, Seen(model, usage["prompt_tokens"], usage["completion_tokens"])


def cost(prompt: int, completion: int) -> Decimal:
    """In the currency, rounded half up to its billionth."""
    return ((prompt * INPUT + completion * OUTPUT) / 1_000_000).quantize(
        Decimal("1e-9"), rounding="ROUND_HALF_UP"
    )


def rows(data: Path) -> Iterator[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(data / "usage.db")) as connection:
        yield from connection.execute(
            "SELECT id, model, prompt_tokens, completion_tokens, cost FROM requests"
        )


def faults(serving: Serving, clients: Clients) -> list[str]:
    """What is wrong with the bill; nothing if it is complete."""
    deadline = time.monotonic() + BILLED_WITHIN
    while True:
        table = list(rows(serving.data))
        there = {str(uuid.UUID(bytes=row[0])) for row in table if row[4] is not None}
        if len(there) == len(table) and clients.seen.keys() <= there:
            break
        if time.monotonic() > deadline:
            break  # what is missing is told below
        time.sleep(0.2)
    found = ["not all is priced"] if any(row[4] is None for row in table) else []
    by_id = {str(uuid.UUID(bytes=row[0])): row for row in table}
    if len(by_id) != len(table):
        found.append("a request is there twice")
    total = Decimal(0)
    for request, seen in clients.seen.items():
        row = by_id.pop(request, None)
        if row is None:
            found.append(f"{request} is missing")
            continue
        if row[1:4] != (seen.model, seen.prompt_tokens, seen.completion_tokens):
            found.append(f"{request} is {row[1:4]}, and its client saw {seen}")
        total += cost(seen.prompt_tokens, seen.completion_tokens)
    total += sum((cost(row[2], row[3]) for row in by_id.values()), Decimal(0))
    while True:  # the rollups are made together with the prices
        billed = Decimal(serving.get("/api/usage/summary?start=0")["cost_tokens"])
        if billed == total or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    if billed != total:
        found.append(f"the bill says {billed}, the sum is {total}")
    return found


def run(seed: int, count: int) -> list[str]:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="llm-manager-bill-") as name:
        serving = Serving(Path(name))
        try:
            serving.start()
            clients = Clients(serving.port, count, seed * 1000)
            for thread in clients.threads:
                thread.start()
            while any(thread.is_alive() for thread in clients.threads):
                time.sleep(dice.uniform(*KILL_EVERY))
                serving.kill_something(dice)
            for thread in clients.threads:
                thread.join()
            found = faults(serving, clients)
        finally:
            serving.process.terminate()
            serving.process.wait(servers.STOP_TIMEOUT)
            servers.end_left_in(serving.folder)
    print(
        f"run {seed}: {len(clients.seen)} answers seen whole, {clients.broken} not;"
        f" killed: {serving.kills['server']} times the server, {serving.kills['worker']} the"
        f" worker; {'; '.join(found[:5]) or 'the bill is complete'}",
        flush=True,
    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.bill", description=__doc__)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--requests", type=int, default=2000)
    arguments = parser.parse_args()
    try:
        found = [fault for seed in range(arguments.runs) for fault in run(seed, arguments.requests)]
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

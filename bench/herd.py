"""`python -m bench.herd`: 300 requests at once on a cold model, and what all others see.

The model takes two seconds to open its port. Meanwhile, and while the 300 are let go at once,
processes of their own ask `/health` and another model again and again.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

from bench import servers
from bench.load import percentile
from bench.servers import BenchError, Program

BOOT = 2.0  # seconds
HERD, OTHER = "herd", "other"
CHAT = "/v1/chat/completions"


def body(model: str) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}]}).encode()


def sampler(port: int, method: str, path: str, payload: bytes, pipe: Connection) -> None:
    """Asks until the pipe says stop; sends back each answer's moment, milliseconds, status."""
    samples = []
    headers = {"Content-Type": "application/json"}
    while not pipe.poll():
        # A connection each, as a load balancer's health check makes.
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        started = time.time()
        connection.request(method, path, payload or None, headers)
        answer = connection.getresponse()
        answer.read()
        samples.append((started, (time.time() - started) * 1e3, answer.status))
        connection.close()
        time.sleep(0.005)
    pipe.send(samples)


class Sampler:
    """A process that asks one thing all the time."""

    def __init__(self, port: int, method: str, path: str, payload: bytes = b"") -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.Process(
            target=sampler, args=(port, method, path, payload, theirs), daemon=True
        )
        self._process.start()

    def stop(self) -> list[tuple[float, float, int]]:
        self._pipe.send("stop")
        samples: list[tuple[float, float, int]] = self._pipe.recv()
        self._process.join()
        return samples


def ask(port: int, ends: list[tuple[float, str]]) -> None:
    try:
        servers.post_chat(port, HERD)
        ends.append((time.time(), "answered"))
    except BenchError as error:
        ends.append((time.time(), str(error)))


def starts(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    wanted = f'llm_manager_starts_total{{model="{HERD}",outcome="ready"}} '
    return next(line.removeprefix(wanted) for line in lines if line.startswith(wanted))


def tell(name: str, samples: list[tuple[float, float, int]]) -> None:
    times = [ms for _, ms, _ in samples]
    bad = sum(status != 200 for _, _, status in samples)
    print(
        f"{name}: {len(times)} answers, {bad} not 200; ms p50 {percentile(times, 0.5):.1f},"
        f" p99 {percentile(times, 0.99):.1f}, longest {max(times, default=0):.1f}"
    )


def herd(program: Program, count: int) -> int:
    port = program.port
    servers.post_chat(port, OTHER)
    health = Sampler(port, "GET", "/health")
    other = Sampler(port, "POST", CHAT, body(OTHER))
    time.sleep(0.5)
    ends: list[tuple[float, str]] = []
    began = time.time()
    threads = [threading.Thread(target=ask, args=(port, ends)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    let_go = min(end for end, _ in ends) - 0.1
    over = max(end for end, _ in ends)
    health_samples, other_samples = health.stop(), other.stop()
    answered = sum(text == "answered" for _, text in ends)
    print(f"{answered} of {count} answered; model starts: {starts(port)}")
    first, last = let_go + 0.1 - began, over - began
    print(f"first answer {first:.2f} s after the first request, last {last:.2f}")
    for name, samples in ((" /health", health_samples), (" other model", other_samples)):
        waiting = [sample for sample in samples if began <= sample[0] < let_go - sample[1] / 1e3]
        released = [sample for sample in samples if let_go - sample[1] / 1e3 <= sample[0] <= over]
        tell(f"{name} while they wait", waiting)
        tell(f"{name} while they are let go", released)
    return int(answered != count)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.herd", description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    arguments = parser.parse_args()

    def model(boot: float) -> dict[str, object]:
        return {"mode": "Chat", "upstream": {"command": servers.upstream_command(boot)}}

    models: dict[str, object] = {HERD: model(BOOT), OTHER: model(0.0)}
    with tempfile.TemporaryDirectory(prefix="llm-manager-herd-") as name:
        try:
            with servers.program(Path("wsgi.py").resolve(), Path(name), models) as program:
                return herd(program, arguments.requests)
        except BenchError as error:
            print(error, file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())

"""The same loads on two programs, or on one in two states, in turns: so that what else the machine
does meanwhile meets both."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence

from bench import servers
from bench.servers import MODEL, BenchError

ONE, MANY = ["-c", "1", "-n", "2000"], ["-c", "32", "-n", "5000"]
HELD = ["-c", "50", "-n", "50", "--stream", "--tokens", "100", "--interval-ms", "20"]
FLAT = ["-c", "64", "-n", "64", "--stream", "--tokens", "500"]


def load(port: int, options: list[str]) -> dict[str, float]:
    """One run of the load tool; its report. Raises BenchError if a request failed."""
    command = [sys.executable, str(servers.HERE / "load.py"), "--url", f"http://127.0.0.1:{port}"]
    done = subprocess.run([*command, "--model", MODEL, *options], capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"the load tool failed: {done.stderr[-500:]}")
    report: dict[str, float] = json.loads(done.stdout)
    if report["failed"]:
        raise BenchError(f"requests failed: {report}")
    return report


def turn(port: int, also: Sequence[str] = ()) -> dict[str, float]:
    """The runs of one turn; ``also`` are further options of the load tool."""
    runs = (ONE, MANY, HELD, FLAT)
    one, many, held, flat = (load(port, [*options, *also]) for options in runs)
    return {
        "one at a time, p50 ms": one["whole_ms_p50"],
        "one at a time, p99 ms": one["whole_ms_p99"],
        "32 at a time, answers a second": many["answers_per_s"],
        "50 streams of 50 a second, lag p50 ms": held["lag_ms_p50"],
        "50 streams of 50 a second, lag p99 ms": held["lag_ms_p99"],
        "64 streams flat out, chunks a second": flat["chunks_per_s"],
    }


def compare(
    names: tuple[str, str],
    prepare: Callable[[int], int],
    turns: int,
    also: Sequence[Sequence[str]] = ((), ()),
) -> None:
    """Prints medians over the turns: of each, and of the ratios of the second to the first in the
    same turn, which what the machine does meanwhile disturbs less. ``prepare`` brings
    about the first (0) or the second (1), and says on which port it is; ``also`` are further
    options of the load tool for each."""
    figures: tuple[list[dict[str, float]], ...] = ([], [])
    for number in range(turns):
        for which in (0, 1) if number % 2 else (1, 0):
            figures[which].append(turn(prepare(which), also[which]))
    print(f"| run | {names[0]} | {names[1]} | ratio | difference |")
    print("|---|---|---|---|---|")
    for name in figures[0][0]:
        first, second = (statistics.median(run[name] for run in runs) for runs in figures)
        pairs = zip(*figures, strict=True)
        ratio = statistics.median(after[name] / before[name] for before, after in pairs)
        both = f"{ratio:.2f} | {second - first:+.2f}"
        print(f"| {name} | {first:.2f} | {second:.2f} | {both} |")

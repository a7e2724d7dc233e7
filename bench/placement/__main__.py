"""`python -m bench.placement trace.csv`: what each policy makes of a trace."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench.placement.policies import POLICIES
from bench.placement.simulation import Outcome, Simulation
from bench.placement.trace import TraceError, read

HEADER = (
    "| policy | cold starts | evictions | wait p50, s | wait p99, s | longest wait, s "
    "| memory used | run, s |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def line(policy: str, outcome: Outcome, seconds: float) -> str:
    waits = " | ".join(f"{outcome.wait(share):.1f}" for share in (0.5, 0.99, 1.0))
    return (
        f"| {policy} | {outcome.cold_starts:,} | {outcome.evictions:,} | {waits} "
        f"| {outcome.memory_used:.0%} | {seconds:.1f} |"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.placement",
        description="Replay a trace of requests over cards and models on a simulated clock.",
    )
    parser.add_argument("trace", type=Path, help="a CSV file; see bench/placement/trace.py")
    parser.add_argument("--policy", choices=[*POLICIES, "all"], default="all")
    parser.add_argument(
        "--requests", type=int, metavar="N", help="repeat the trace until there were that many"
    )
    return parser.parse_args()


def main() -> int:
    """0: all went well; 1: the trace cannot be read."""
    options = parse_arguments()
    try:
        trace = read(options.trace)
    except (OSError, TraceError) as error:
        print(error, file=sys.stderr)
        return 1
    print(HEADER)
    refused = 0
    for policy in POLICIES if options.policy == "all" else [options.policy]:
        started = time.perf_counter()
        outcome = Simulation(trace, POLICIES[policy]).run(options.requests)
        refused = max(refused, outcome.refused)
        print(line(policy, outcome, time.perf_counter() - started), flush=True)
    if refused:
        print(f"\n{refused:,} requests were refused: their models can have no room.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

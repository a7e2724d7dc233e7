"""`python -m bench.placement [TRACE ...]`: what each policy makes of a trace.

With ``--varied 200`` the program's policy is set beside the others on that many traces of any
shape. Those on which the least recently used policy stops fewer than ten models say nothing and
are left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys

from bench.placement.policies import POLICIES
from bench.placement.simulation import Outcome, Simulation
from bench.placement.traces import TRACES, varied

HEADER = (
    "| trace | policy | cold starts | evictions | wait p50, s | wait p99, s | longest wait, s "
    "| memory used |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)
FIGURES = {
    "cold starts": lambda outcome: float(outcome.cold_starts),
    "mean wait": lambda outcome: statistics.fmean(outcome.waits),
    "wait p99": lambda outcome: outcome.wait(0.99),
    "longest wait": lambda outcome: outcome.wait(1.0),
}


def line(trace: str, policy: str, outcome: Outcome) -> str:
    waits = " | ".join(f"{outcome.wait(share):.1f}" for share in (0.5, 0.99, 1.0))
    return (
        f"| {trace} | {policy} | {outcome.cold_starts:,} | {outcome.evictions:,} | {waits} "
        f"| {outcome.memory_used:.0%} |"
    )


def play(seed: int) -> dict[str, dict[str, float]] | None:
    """Policy → figures; None where the trace says nothing."""
    trace = varied(seed)
    outcomes = {name: Simulation(trace, policy).run() for name, policy in POLICIES.items()}
    if outcomes["lru"].evictions < 10:
        return None
    return {
        name: {title: figure(outcome) for title, figure in FIGURES.items()}
        for name, outcome in outcomes.items()
    }


def compare(played: list[dict[str, dict[str, float]]], other: str) -> list[str]:
    """Lines of the table: ours beside one other policy."""
    lines = []
    for title in FIGURES:
        pairs = [(trace["ours"][title], trace[other][title]) for trace in played]
        ratio = statistics.geometric_mean((ours + 1e-3) / (its + 1e-3) for ours, its in pairs)
        less = sum(ours < its - 1e-6 for ours, its in pairs)
        more = sum(ours > its + 1e-6 for ours, its in pairs)
        same = len(pairs) - less - more
        lines.append(f"| {title} | {other} | {ratio:.3f} | {less} | {same} | {more} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.placement",
        description="Replay requests over devices and models on a simulated clock.",
    )
    parser.add_argument(
        "traces", nargs="*", metavar="TRACE", help=f"of {', '.join(TRACES)} (default: all)"
    )
    parser.add_argument("--requests", type=int, metavar="N", help="repeat until there were so many")
    parser.add_argument("--varied", type=int, metavar="N", help="N traces of any shape instead")
    options = parser.parse_args()
    if unknown := set(options.traces) - set(TRACES):
        parser.error(f"no such trace: {', '.join(sorted(unknown))}")
    if options.varied:
        with multiprocessing.Pool() as pool:
            played = [
                trace for trace in pool.map(play, range(options.varied), chunksize=1) if trace
            ]
        print(f"{len(played)} of {options.varied} traces; ratios are geometric means.\n")
        print("| ours, beside | | ratio | less | same | more |")
        print("| --- | --- | ---: | ---: | ---: | ---: |")
        for other in ("lru", "score"):
            print("\n".join(compare(played, other)))
        return
    print(HEADER)
    for name in options.traces or TRACES:
        trace = TRACES[name]()
        for policy in POLICIES:
            outcome = Simulation(trace, POLICIES[policy]).run(options.requests)
            print(line(name, policy, outcome), flush=True)
        learned = Simulation(trace, POLICIES["ours"], learns=True).run(options.requests)
        print(line(name, "ours, nothing declared", learned), flush=True)


if __name__ == "__main__":
    sys.exit(main())

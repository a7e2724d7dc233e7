"""`python -m bench.placement.varied`: the policies on 200 traces of any shape.

What the three traces show could be their own; here is what is left of it in general. Traces on
which the least recently used policy stops fewer than ten models say nothing and are left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics

from bench.placement.policies import POLICIES
from bench.placement.shapes import varied
from bench.placement.simulation import Outcome, Simulation

FIGURES = {
    "cold starts": lambda outcome: float(outcome.cold_starts),
    "mean wait": lambda outcome: statistics.fmean(outcome.waits),
    "wait p99": lambda outcome: outcome.wait(0.99),
    "longest wait": lambda outcome: outcome.wait(1.0),
}

Figures = dict[str, float]


def play(seed: int) -> dict[str, Figures] | None:
    """Policy → figures; None where the trace says nothing."""
    trace = varied(seed)
    outcomes: dict[str, Outcome] = {
        name: Simulation(trace, policy).run() for name, policy in POLICIES.items()
    }
    if outcomes["lru"].evictions < 10:
        return None
    return {
        name: {title: figure(outcome) for title, figure in FIGURES.items()}
        for name, outcome in outcomes.items()
    }


def compare(traces: list[dict[str, Figures]], other: str) -> list[str]:
    """Lines of the table: ours beside one other policy."""
    lines = []
    for title in FIGURES:
        pairs = [(trace["ours"][title], trace[other][title]) for trace in traces]
        ratio = statistics.geometric_mean((ours + 1e-3) / (its + 1e-3) for ours, its in pairs)
        less = sum(ours < its - 1e-6 for ours, its in pairs)
        more = sum(ours > its + 1e-6 for ours, its in pairs)
        same = len(pairs) - less - more
        lines.append(f"| {title} | {other} | {ratio:.3f} | {less} | {same} | {more} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.placement.varied",
        description="Compare the policies on traces of any shape.",
    )
    parser.add_argument("--traces", type=int, default=200, metavar="N", help="how many (200)")
    options = parser.parse_args()
    with multiprocessing.Pool() as pool:
        played = pool.map(play, range(options.traces), chunksize=1)
    traces = [trace for trace in played if trace is not None]
    print(f"{len(traces)} of {options.traces} traces; ratios are geometric means.\n")
    print("| ours, beside | | ratio | less | same | more |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for other in ("lru", "score"):
        print("\n".join(compare(traces, other)))


if __name__ == "__main__":
    main()

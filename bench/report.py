"""From what the runs measured to a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

# What one run of load measured, by load's own names: {"answers_per_s": 29800.0, ...}
Figures = dict[str, float]


@dataclass(frozen=True)
class Row:
    """A line of the table: `figure` of the run `run`, with `digits` behind the point."""

    title: str
    run: str
    figure: str
    digits: int


ROWS = (
    Row("one at a time, p50 ms", "one", "whole_ms_p50", 2),
    Row("answers a second", "answers", "answers_per_s", 0),
    Row("stream flat out, chunks a second", "flat", "chunks_per_s", 0),
    Row("streams held, lag p50 ms", "held", "lag_ms_p50", 2),
    Row("streams held, lag p99 ms", "held", "lag_ms_p99", 2),
    Row("streams held, chunks lost", "held", "chunks_lost", 0),
)
# Measured of the program alone, by the names that `Report.program` uses.
PROGRAM_ROWS = {
    "cold_start_over_ms": "cold start over the model's own boot, ms",
    "memory_mb": "memory after these runs, MB",
    "start_s": "program start to `Listening`, s",
}


@dataclass
class Report:
    """All that was measured.

    `servers` are the columns, the one that the others are set beside first and the program
    last; `runs` is by run, then by server; `failures` are lines on requests that went wrong.
    """

    machine: str
    servers: list[str]
    repeat: int
    runs: dict[str, dict[str, Figures]] = field(default_factory=dict)
    program: Figures = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def medians(repeats: Sequence[Figures]) -> Figures:
    """The median of each figure over the repeats of a run."""
    return {name: statistics.median(one[name] for one in repeats) for name in repeats[0]}


def ratio(value: float, straight: float) -> str:
    """`value` over `straight` to two places that count; empty where that says nothing."""
    if not straight:
        return ""
    share = value / straight
    return f"{share:.2g}" if share < 99.5 else f"{share:.0f}"


def table(report: Report) -> str:
    """A Markdown table with a line a figure and a column a server."""
    straight, *others = report.servers
    header = ["", straight]
    for server in others:
        header += [server, "ratio"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for row in ROWS:
        if row.run not in report.runs:
            continue
        figures = report.runs[row.run]
        base = figures[straight][row.figure]
        cells = [row.title, f"{base:,.{row.digits}f}"]
        for server in others:
            value = figures[server][row.figure]
            cells += [f"{value:,.{row.digits}f}", ratio(value, base)]
        lines.append(cells)
    for name, title in PROGRAM_ROWS.items():
        if name in report.program:
            value = report.program[name]
            shown = f"{value:,.2f}" if value < 10 else f"{value:,.0f}"
            lines.append([title, *[""] * (len(header) - 3), shown, ""])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def render(report: Report) -> str:
    """The table, where it comes from, and what went wrong, as Markdown."""
    source = f"{report.machine}. Medians of {report.repeat}; ratios are to straight."
    parts = [table(report), source, *report.notes]
    parts += [f"- {failure}" for failure in report.failures]
    return "\n\n".join(parts)

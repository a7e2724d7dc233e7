"""What a serving process holds, and whether it has grown."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import psutil

from tests.support.program import PATIENCE, Program


@dataclass(frozen=True)
class Usage:
    """Threads, sockets, other open files, child processes and memory of one process."""

    threads: int
    sockets: int
    files: int
    children: int
    memory_mb: float


# Left over when all is quiet: idle threads of pools, a few kept connections.
ALLOWED = Usage(threads=4, sockets=16, files=4, children=0, memory_mb=20.0)


def usage_of(program: Program) -> Usage:
    process = psutil.Process(program.pid)
    sockets = len(process.net_connections(kind="all"))
    return Usage(
        process.num_threads(),
        sockets,
        process.num_fds() - sockets,
        len(process.children(recursive=True)) - len(program.workers()),
        process.memory_info().rss / 2**20,
    )


def settled(program: Program) -> Usage:
    """Once the models are stopped and nothing has changed for a second."""
    assert program.post("/api/models/stop?wait=1").status_code == 200
    deadline = time.monotonic() + PATIENCE
    last = usage_of(program)
    while True:
        time.sleep(1.0)
        usage = usage_of(program)
        now, before = (
            (each.threads, each.sockets, each.files, each.children) for each in (usage, last)
        )
        if now == before or time.monotonic() > deadline:
            return usage
        last = usage


def growth(before: Usage, after: Usage) -> dict[str, tuple[float, float]]:
    """What has grown by more than is allowed: before and after."""
    allowed, first, last = asdict(ALLOWED), asdict(before), asdict(after)
    return {
        name: (first[name], last[name])
        for name in allowed
        if last[name] > first[name] + allowed[name]
    }

"""`python -m bench`: what LLM-Manager costs, beside the upstream alone and nginx.

It starts an upstream that does no inference, nginx where there is one, and the program, all
on loopback; drives each with the same runs; and prints a Markdown table. The upstream and the
load share the processors with what they measure, so quote ratios from one run on one machine,
never a bare time.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench import servers
from bench.report import Figures, Report, medians, render
from bench.servers import BenchError, Program

STRAIGHT, NGINX, PROGRAM = "straight", "nginx", "LLM-Manager"
COLD_ROUNDS = 5
START_ROUNDS = 3
RUN_TIMEOUT = 60  # seconds


@dataclass(frozen=True)
class Run:
    """One way to load a server; with `tokens`, the answers are streams of that many chunks."""

    concurrency: int
    requests: int
    tokens: int = 0
    interval_ms: float = 0.0

    def arguments(self) -> list[str]:
        stream = ["--stream", "--tokens", str(self.tokens)] if self.tokens else []
        pause = ["--interval-ms", str(self.interval_ms)]
        return ["-c", str(self.concurrency), "-n", str(self.requests), *stream, *pause]

    def chunks(self) -> int:
        """Chunks that arrive if none is lost; each stream has one more, its finish reason."""
        return self.requests * (self.tokens + 1) if self.tokens else 0


RUNS = {
    "one": Run(1, 1000),
    "answers": Run(32, 3000),
    "flat": Run(64, 64, tokens=500),
    "held": Run(200, 200, tokens=150, interval_ms=20),
}
WARM_UP = Run(32, 200)


def say(text: str) -> None:
    """Report how far the bench is; standard output is kept for the table."""
    print(text, file=sys.stderr, flush=True)


def load(run: Run, port: int) -> tuple[Figures, dict[str, int]]:
    """Drive the server on `port` from a process of its own: its figures, its errors by count."""
    command = [sys.executable, str(servers.HERE / "load.py")]
    command += ["--url", f"http://127.0.0.1:{port}", "--model", servers.MODEL]
    command += ["--timeout", str(RUN_TIMEOUT), *run.arguments()]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=True,
            timeout=2 * RUN_TIMEOUT,
            start_new_session=True,
        )
    except subprocess.CalledProcessError as error:
        raise BenchError(f"load failed:\n{error.stderr.decode(errors='replace')}") from error
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"load has not ended within {error.timeout:.0f} s") from error
    figures = json.loads(done.stdout)
    errors: dict[str, int] = figures.pop("errors")
    return figures | {"chunks_lost": run.chunks() - figures["chunks"]}, errors


def warm_up(ports: dict[str, int]) -> None:
    for server, port in ports.items():
        say(f"warm-up: {server}")
        _, errors = load(WARM_UP, port)
        if errors:
            raise BenchError(f"{server} does not answer: {next(iter(errors))}")


def measure(name: str, ports: dict[str, int], report: Report) -> None:
    """Put one run, done against each server in turn, into the report."""
    repeats: dict[str, list[Figures]] = {server: [] for server in ports}
    for _ in range(report.repeat):
        for server, port in ports.items():
            say(f"{name}: {server}")
            figures, errors = load(RUNS[name], port)
            repeats[server].append(figures)
            report.failures += [
                f"{name}, {server}: {count} times {error}" for error, count in errors.items()
            ]
    report.runs[name] = {server: medians(figures) for server, figures in repeats.items()}


def cold_start_over_ms(program: Program, folder: Path) -> float:
    """What a request's start of a model takes over the model's own boot; of medians, in ms."""
    own, through = [], []
    for number in range(COLD_ROUNDS):
        say(f"cold: {number + 1} of {COLD_ROUNDS}")
        started = time.monotonic()
        with servers.upstream(folder / "cold.log", boot=servers.COLD_BOOT):
            own.append(time.monotonic() - started)
        started = time.monotonic()
        servers.post_chat(program.port, servers.COLD_MODEL)
        through.append(time.monotonic() - started)
        stop = f"/api/models/{servers.COLD_MODEL}/stop?wait=1"
        servers.post(program.port, stop, {}, program.token)
    return (statistics.median(through) - statistics.median(own)) * 1e3


def start_seconds(wsgi: Path, folder: Path) -> float:
    """From the program's start to its `Listening`; the median of several."""
    seconds = []
    for number in range(START_ROUNDS):
        say(f"start: {number + 1} of {START_ROUNDS}")
        with servers.program(wsgi, folder) as program:
            seconds.append(program.start_seconds)
    return statistics.median(seconds)


def machine() -> str:
    """One line that says where and when something was measured."""
    model = platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    python = f"Python {platform.python_version()}"
    today = datetime.datetime.now().astimezone().date().isoformat()
    return ", ".join([f"{os.cpu_count()} cores ({model})", platform.system(), python, today])


def straight_note(report: Report) -> str:
    """Say how fast the measuring side is: nothing measured with it can look faster."""
    reached = []
    for name, figure, unit in [
        ("answers", "answers_per_s", "answers"),
        ("flat", "chunks_per_s", "chunks"),
    ]:
        if name in report.runs:
            reached.append(f"{report.runs[name][STRAIGHT][figure]:,.0f} {unit}")
    return f"Straight, the bench's own upstream and load reach {' and '.join(reached)} a second."


def bench(wsgi: Path, names: list[str], repeat: int) -> Report:
    """Start the servers, measure, and end them again. Raises BenchError."""
    report = Report(machine(), [STRAIGHT, PROGRAM], repeat)
    with contextlib.ExitStack() as stack:
        temporary = tempfile.TemporaryDirectory(prefix="bench-")
        folder = Path(stack.enter_context(temporary)).resolve()
        if "start" in names:
            report.program["start_s"] = start_seconds(wsgi, folder)
        straight = stack.enter_context(servers.upstream(folder / "upstream.log"))
        ports = {STRAIGHT: straight}
        if executable := servers.find_nginx():
            ports[NGINX] = stack.enter_context(servers.nginx(executable, folder, straight))
            report.servers.insert(1, NGINX)
        else:
            report.notes.append("nginx is not installed and was left out.")
        program = stack.enter_context(servers.program(wsgi, folder))
        ports[PROGRAM] = program.port
        warm_up(ports)
        for name in RUNS:
            if name in names:
                measure(name, ports, report)
        if "cold" in names:
            report.program["cold_start_over_ms"] = cold_start_over_ms(program, folder)
        report.program["memory_mb"] = program.memory_mb()
    if "answers" in names or "flat" in names:
        report.notes.append(straight_note(report))
    return report


def parse_arguments() -> argparse.Namespace:
    every_run = [*RUNS, "cold", "start"]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--runs",
        nargs="+",
        choices=every_run,
        default=every_run,
        metavar="RUN",
        help=f"which of {', '.join(every_run)} to do (default: all)",
    )
    parser.add_argument("--repeat", type=int, default=3, help="times that each is done (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument(
        "--program",
        type=Path,
        default=servers.HERE.parent / "wsgi.py",
        metavar="FILE",
        help="the program's wsgi.py (default: the one beside bench/)",
    )
    options = parser.parse_args()
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    if not options.program.is_file():
        parser.error(f"no program at {options.program}")
    return options


def main() -> int:
    """0: all went well; 1: requests failed, or the bench did; 130, 143: asked to end."""
    options = parse_arguments()
    # As Ctrl-C does, so that what was started is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        report = bench(options.program.resolve(), options.runs, options.repeat)
    except BenchError as error:
        say(f"bench: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    print(render(report))
    if options.json:
        options.json.write_text(json.dumps(dataclasses.asdict(report), indent=2) + "\n")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())

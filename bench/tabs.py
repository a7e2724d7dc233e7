"""`python -m bench.tabs`: what open pages cost the program, and the requests that go through it.

A tab is the stream of events that a page holds. 1, 10 and 100 of them are held open by a process
of their own while requests come at a steady rate, with and without models that start and stop all
the time; what the serving process uses more than with none is theirs. Then the same loads run in
turns with no tab and with 100. At the end all tabs close, and open again at once.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import selectors
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from bench import hung, servers, turns
from bench.load import percentile
from bench.servers import COLD_MODEL, MODEL, BenchError, Program

TAB = b"GET /api/events?only=model,devices,throughput HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
COUNTS = (1, 10, 100)
MOST = max(COUNTS)
LIMIT = 2.0  # ms of the server a tab a second
SLOWER = 1.25  # times the p50 of requests with no tab
RATE = 50  # requests a second
SECONDS = 10.0  # of one measurement
PATIENCE = 20.0  # seconds


# --- tabs ------------------------------------------------------------------------------------


def hold(port: int, count: int, pipe: Connection) -> None:
    """Opens so many tabs and reads what comes until the pipe says stop; tells how many were
    refused at first, and when all were let in. One that is refused tries again, as pages do."""
    selector = selectors.DefaultSelector()
    tabs = [open_tab(port) for _ in range(count)]
    let_in = [tab for tab in tabs if is_let_in(tab)]
    pipe.send(count - len(let_in))
    deadline = time.monotonic() + PATIENCE
    while len(let_in) < count and time.monotonic() < deadline:
        time.sleep(0.05)
        tabs = [open_tab(port) for _ in range(count - len(let_in))]
        let_in += [tab for tab in tabs if is_let_in(tab)]
    pipe.send(count - len(let_in))
    for tab in let_in:
        selector.register(tab, selectors.EVENT_READ)
    selector.register(pipe, selectors.EVENT_READ)
    while not pipe.poll():
        for key, _ in selector.select():
            if isinstance(key.fileobj, socket.socket) and not key.fileobj.recv(65536):
                selector.unregister(key.fileobj)
    for tab in let_in:
        tab.close()
    pipe.send(0)


def open_tab(port: int) -> socket.socket:
    tab = socket.create_connection(("127.0.0.1", port), PATIENCE)
    tab.sendall(TAB)
    return tab


def is_let_in(tab: socket.socket) -> bool:
    if tab.recv(65536).startswith(b"HTTP/1.1 200"):
        return True
    tab.close()
    return False


@contextlib.contextmanager
def tabs(port: int, count: int) -> Iterator[int]:
    """So many tabs, open while the block runs; how many of them were refused at first. Raises
    BenchError where they are not let in for long."""
    pipe, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=hold, args=(port, count, theirs), daemon=True)
    process.start()
    theirs.close()  # so that its end is noticed
    try:
        refused = told_by(pipe, process)
        if left := told_by(pipe, process):
            raise BenchError(f"{left} of {count} tabs are refused for {PATIENCE:g} s")
        yield refused
        pipe.send("stop")
        told_by(pipe, process)
    finally:
        process.terminate()
        process.join()


def told_by(pipe: Connection, process: multiprocessing.Process) -> int:
    """What the process tells next. Raises BenchError where it does not."""
    if not pipe.poll(2 * PATIENCE):
        raise BenchError("the process that holds the tabs hangs")
    try:
        told: int = pipe.recv()
    except EOFError as error:
        raise BenchError(f"the process that holds the tabs ended: {process.exitcode}") from error
    return told


# --- what they cost --------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What the serving process used, in ms of its processor time a second, and how long the
    requests took meanwhile, in ms."""

    cpu: float
    p50: float
    p99: float


def ask_steadily(port: int) -> list[float]:
    """Makes RATE requests a second over SECONDS; how many ms each took."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}]})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    took = []
    begin = time.perf_counter()
    for number in range(round(RATE * SECONDS)):
        time.sleep(max(0.0, begin + number / RATE - time.perf_counter()))
        started = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", body)
        answer = connection.getresponse()
        answer.read()
        took.append((time.perf_counter() - started) * 1e3)
        if answer.status != 200:
            raise BenchError(f"a request was answered {answer.status}")
    connection.close()
    return took


def measure(program: Program) -> Cost:
    process = psutil.Process(program.pid)
    before, began = process.cpu_times(), time.perf_counter()
    took = ask_steadily(program.port)
    after, seconds = process.cpu_times(), time.perf_counter() - began
    used = after.user + after.system - before.user - before.system
    return Cost(used * 1e3 / seconds, percentile(took, 0.5), percentile(took, 0.99))


@contextlib.contextmanager
def changing(program: Program) -> Iterator[None]:
    """A model starts and stops all the time, which every tab is told, while the block runs."""
    is_over = threading.Event()

    def change() -> None:
        while not is_over.wait(0.25):
            servers.post(program.port, f"/api/models/{COLD_MODEL}/start", {}, program.token)
            if not is_over.wait(0.25):
                stop = f"/api/models/{COLD_MODEL}/stop?wait=1"
                servers.post(program.port, stop, {}, program.token)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def costs(program: Program, rounds: int) -> dict[int, Cost]:
    """By the number of tabs, medians of the rounds."""
    seen: dict[int, list[Cost]] = {count: [] for count in (0, *COUNTS)}
    for number in range(rounds):
        for count in seen if number % 2 else reversed(seen):
            with tabs(program.port, count):
                time.sleep(0.5)  # what each is told in the beginning is not what it costs later
                seen[count].append(measure(program))
    return {
        count: Cost(
            *(
                statistics.median(getattr(cost, name) for cost in found)
                for name in ("cpu", "p50", "p99")
            )
        )
        for count, found in seen.items()
    }


def tell(what: str, found: dict[int, Cost]) -> list[str]:
    """Prints the table; what is over its limit. Only the most tabs cost so much that it stands out
    from the noise of the requests."""
    none, most = found[0], found[MOST]
    print(f"\n{what}:\n")
    print("| tabs | server, ms a second | ms a tab a second | request p50, ms | p99, ms |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for count, cost in found.items():
        shown = f"{(cost.cpu - none.cpu) / count:.2f}" if count else ""
        print(f"| {count} | {cost.cpu:.0f} | {shown} | {cost.p50:.2f} | {cost.p99:.2f} |")
    missed = []
    each = (most.cpu - none.cpu) / MOST
    if each > LIMIT:
        missed.append(f"{what}: {each:.2f} ms for each of {MOST} tabs, not {LIMIT:g}")
    if most.p50 > SLOWER * none.p50:
        missed.append(f"{what}: requests are {most.p50 / none.p50:.2f} times as slow")
    return missed


# --- what is given back ----------------------------------------------------------------------


def tell_given_back(program: Program) -> list[str]:
    """Prints what is left of tabs that were closed; what should not be."""
    process = psutil.Process(program.pid)
    before = process.num_threads()
    with tabs(program.port, MOST):
        during = process.num_threads()
    began = time.perf_counter()
    with tabs(program.port, MOST) as refused:
        seconds = time.perf_counter() - began
    after = process.num_threads()
    print(f"\nthreads before {MOST} tabs, with them, and after them: {before}, {during}, {after}")
    print(f"closed and opened again at once: {refused} refused, all let in after {seconds:.1f} s")
    return [f"{after - before} threads are left"] if after > before else []


# --- all of it -------------------------------------------------------------------------------


def bench(program: Program, rounds: int) -> list[str]:
    """Prints the figures; what is over its limit."""
    port = program.port
    servers.post_chat(port, MODEL)
    turns.turn(port)  # warm
    missed = tell("requests at a steady rate", costs(program, rounds))
    with changing(port):
        missed += tell("and a model that starts and stops", costs(program, rounds))
    print("\nno tab and 100 in turns:\n")
    with contextlib.ExitStack() as opened:

        def prepare(are_open: int) -> int:
            opened.close()
            if are_open:
                opened.enter_context(tabs(port, MOST))
            return port

        turns.compare(("no tab", f"{MOST} tabs"), prepare, rounds)
    return missed + tell_given_back(program)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tabs", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llm-manager-tabs-") as name:
        folder = Path(name)
        try:
            with servers.program(
                Path("wsgi.py").resolve(), folder, env=hung.with_a_card(folder / "bin")
            ) as program:
                missed = bench(program, arguments.rounds)
        except BenchError as error:
            print(error, file=sys.stderr)
            return 1
    print("\n" + ("\n".join(missed) if missed else "all within their limits"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

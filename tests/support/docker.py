#!/usr/bin/env python3
"""A stand-in for `docker`: `run`, `run -d`, `stop`, as far as tests need them.

    DOCKER_HOST=/some/folder python tests/support/docker.py run --rm --name NAME IMAGE COMMAND...

A container is COMMAND, outside of the client's process tree and session and without its
environment, but for what `-e` hands in; it has the host's network. As a container's first process
it takes no SIGTERM from the client, unless it runs under `--init`. DOCKER_HOST is the folder that
the containers are recorded in, a file each; one that has ended stays there without `--rm`.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil

PAUSE = 0.01


class Containers:
    """Those of one daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        return sorted(file.stem for file in self.folder.glob("*.json"))

    def read(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return found

    def write(self, name: str, container: dict[str, Any]) -> None:
        part = self.folder / f"{name}.part"
        part.write_text(json.dumps(container))
        part.rename(self.folder / f"{name}.json")

    def output(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def remove(self, name: str) -> None:
        (self.folder / f"{name}.json").unlink(missing_ok=True)

    def process(self, name: str) -> psutil.Process | None:
        """Its first process; None once that has ended."""
        try:
            container = self.read(name)
            process = psutil.Process(container["pid"])
            if process.create_time() == container["created"]:
                return None if process.status() == psutil.STATUS_ZOMBIE else process
        except (psutil.NoSuchProcess, FileNotFoundError):
            pass
        return None

    def running(self) -> list[str]:
        return [name for name in self.names() if self.process(name) is not None]

    def create(self, options: argparse.Namespace) -> str:
        """Starts a container, as the daemon's child, and returns its name."""
        name: str = options.name or secrets.token_hex(4)
        if (self.folder / f"{name}.json").exists():
            fail(f'Conflict. The container name "/{name}" is already in use', 125)
        output = self.folder / f"{name}.log"
        output.write_text("")
        ours = {
            name: os.environ[name] for name in ("PATH", "TEST_OF_LLM_MANAGER") if name in os.environ
        }
        env = {**ours, **dict(pair.split("=", 1) for pair in options.env)}
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.setsid()
            pid = os.fork()
            if pid:
                os.write(writing, str(pid).encode())
                os._exit(0)
            log = os.open(output, os.O_WRONLY | os.O_APPEND)
            null = os.open(os.devnull, os.O_RDONLY)
            for number, descriptor in enumerate((null, log, log)):
                os.dup2(descriptor, number)
            os.closerange(3, 64)
            os.chdir("/")
            os.execvpe(options.command[0], options.command, env)
        os.wait()
        pid = int(os.read(reading, 32))
        container = {"pid": pid, "init": options.init, "rm": options.rm}
        self.write(name, {**container, "created": psutil.Process(pid).create_time()})
        return name

    def attend(self, name: str, asked: list[int]) -> int:
        """Shows the container's output until it ends, and hands signals on to it."""
        with (self.folder / f"{name}.log").open() as log:
            while True:
                process = self.process(name)
                sys.stdout.write(log.read())
                sys.stdout.flush()
                if process is None:
                    self.ended(name)
                    return 0
                if asked and self.read(name)["init"]:
                    process.send_signal(asked.pop())
                time.sleep(PAUSE)

    def stop(self, name: str, grace: float) -> None:
        process = self.process(name)
        if process is not None:
            if self.read(name)["init"]:
                process.terminate()
                deadline = time.monotonic() + grace
                while self.process(name) is not None and time.monotonic() < deadline:
                    time.sleep(PAUSE)
            if self.process(name) is not None:
                process.kill()
            while self.process(name) is not None:
                time.sleep(PAUSE)
        self.ended(name)

    def ended(self, name: str) -> None:
        try:
            if self.read(name)["rm"]:
                self.remove(name)
        except FileNotFoundError:
            pass  # the client and `stop` may both have seen its end


def fail(message: str, code: int) -> None:
    print(f"docker: Error response from daemon: {message}.", file=sys.stderr)
    sys.exit(code)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="docker")
    commands = parser.add_subparsers(dest="verb", required=True)
    run = commands.add_parser("run")
    run.add_argument("-d", "--detach", action="store_true")
    run.add_argument("--rm", action="store_true")
    run.add_argument("--init", action="store_true")
    run.add_argument("--name")
    run.add_argument("--network")
    run.add_argument("-e", "--env", action="append", default=[])
    run.add_argument("image")
    run.add_argument("command", nargs=argparse.REMAINDER)
    stop = commands.add_parser("stop")
    stop.add_argument("-t", "--timeout", type=float, default=10.0)
    stop.add_argument("name")
    return parser.parse_args()


def main() -> int:
    options = parse()
    containers = Containers(Path(os.environ["DOCKER_HOST"]))
    if options.verb == "stop":
        if options.name not in containers.names():
            fail(f"No such container: {options.name}", 1)
        containers.stop(options.name, options.timeout)
        print(options.name)
        return 0
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: asked.append(received))
    name = containers.create(options)
    if options.detach:
        print(secrets.token_hex(32))
        return 0
    return containers.attend(name, asked)


if __name__ == "__main__":
    sys.exit(main())

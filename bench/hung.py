"""`python -m bench.hung`: what requests to a running model notice of a driver that hangs.

A stand-in for `nvidia-smi` answers at once or hangs, as a file tells it. The same requests run in
turns with the one and with the other; the figures are medians over the turns.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench import servers, turns
from bench.servers import MODEL, BenchError, Program

NOTICED_WITHIN = 30.0  # seconds in which /api/devices has to say how the driver is
STAND_IN = """\
#!/bin/sh
if [ -e "$(dirname "$0")/hang" ]; then exec sleep 3600; fi
echo "0, GPU-0, 12, 24576, 1024, 23552, 550.54, NVIDIA GeForce RTX 3090, 0, Disabled, Disabled, 45"
"""


def with_a_card(bin_folder: Path) -> dict[str, str]:
    """Makes the stand-in in a new folder; the environment in which a program finds it."""
    bin_folder.mkdir()
    stand_in = bin_folder / "nvidia-smi"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return {"PATH": f"{bin_folder}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}


def card(port: int) -> Mapping[str, object] | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/api/devices")
    devices = json.loads(connection.getresponse().read())["devices"]
    connection.close()
    return next((device for device in devices if device["kind"] == "nvidia"), None)


def wait_for(port: int, *, stale: bool) -> None:
    deadline = time.monotonic() + NOTICED_WITHIN
    while (seen := card(port)) is None or seen["stale"] != stale:
        if time.monotonic() > deadline:
            raise BenchError(f"/api/devices did not become stale={stale}: {seen}")
        time.sleep(0.1)


def compare(program: Program, hang: Path, number: int) -> None:
    servers.post_chat(program.port, MODEL)
    turns.turn(program.port)  # warm

    def prepare(hung: int) -> int:
        if hung:
            hang.touch()
        else:
            hang.unlink(missing_ok=True)
        wait_for(program.port, stale=bool(hung))
        return program.port

    turns.compare(("driver answers", "driver hangs"), prepare, number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.hung", description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llm-manager-hung-") as name:
        folder = Path(name)
        bin_folder = folder / "bin"
        try:
            with servers.program(
                Path("wsgi.py").resolve(), folder, env=with_a_card(bin_folder)
            ) as program:
                compare(program, bin_folder / "hang", arguments.turns)
        except BenchError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

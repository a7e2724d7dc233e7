"""`python -m bench.keys`: what requests notice of API keys.

Two programs side by side, of which one asks for a key that has every limit there is (none of them
near), and the other asks for none. The same requests go to the one and to the other in turns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import servers, turns
from bench.servers import BenchError

_LIMITS = (
    *("--requests-per-minute", "100000000", "--tokens-per-minute", "1000000000000"),
    *("--max-concurrency", "100000", "--budget", "1000000/month", "--models", servers.MODEL),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.keys", description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--without-limits", action="store_true", help="of the key")
    arguments = parser.parse_args()
    wsgi = Path("wsgi.py").resolve()
    tiers = [{"input": "0.5", "output": "2"}]
    models = {
        name: {**model, "price": {"tiers": tiers}}
        for name, model in servers.measured_models().items()
    }
    with tempfile.TemporaryDirectory(prefix="llm-manager-keys-") as name:
        folders = [Path(name) / "without", Path(name) / "with"]
        for folder in folders:
            folder.mkdir()
        limits = () if arguments.without_limits else _LIMITS
        key = _make_key(wsgi.parent, folders[1] / "data", limits)
        also = ((), ("--key", key))
        try:
            with (
                servers.program(wsgi, folders[0], models) as without,
                servers.program(wsgi, folders[1], models) as keyed,
            ):
                ports = (without.port, keyed.port)
                for port, options in zip(ports, also, strict=True):
                    turns.turn(port, options)  # warm
                names = ("no keys", "keys")
                turns.compare(names, lambda which: ports[which], arguments.turns, also)
        except BenchError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def _make_key(root: Path, data_dir: Path, limits: Sequence[str]) -> str:
    command = [sys.executable, "-m", "commands", "keys", "add", "bench", *limits]
    made = subprocess.run(
        [*command, "--data-dir", str(data_dir)], cwd=root, capture_output=True, text=True
    )
    if made.returncode:
        raise SystemExit(made.stderr)
    return made.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())

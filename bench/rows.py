"""`python -m bench.rows`: what requests notice of being metered.

Two programs side by side, of which one keeps a row a request and prices it, and the other keeps
none (`TokenTracker: []`). The same requests go to the one and to the other in turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench import servers, turns
from bench.servers import BenchError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.rows", description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    wsgi = Path("wsgi.py").resolve()
    models = servers.measured_models()
    tiers = [{"input": "0.5", "output": "2"}]
    priced = {name: {**model, "price": {"tiers": tiers}} for name, model in models.items()}
    with tempfile.TemporaryDirectory(prefix="llm-manager-rows-") as name:
        folders = [Path(name) / "without", Path(name) / "with"]
        for folder in folders:
            folder.mkdir()
        try:
            with (
                servers.program(wsgi, folders[0], models, {"TokenTracker": []}) as without,
                servers.program(wsgi, folders[1], priced) as metered,
            ):
                ports = (without.port, metered.port)
                for port in ports:
                    turns.turn(port)  # warm
                turns.compare(("no rows", "rows"), lambda which: ports[which], arguments.turns)
        except BenchError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

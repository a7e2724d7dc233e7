"""Rows of requests survive the kill of the process that writes them."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

from manager.storage.spool import Spool
from manager.storage.store import Store
from tests.support.usage_rows import query

ROOT = Path(__file__).resolve().parents[3]

WRITER = """
import sys
from pathlib import Path
from threading import Lock, Thread
sys.path.insert(0, ".")
from tests.support.usage_rows import a_request
from manager.storage.spool import Spool
from manager.storage.store import Store

folder, printing = Path(sys.argv[1]), Lock()
spool = Spool(folder, Store(folder / "usage.db").add_requests)

def client():
    while True:
        row = a_request()
        spool.add(row)
        with printing:
            print(row.id.hex(), flush=True)

for _ in range(4):
    Thread(target=client).start()
"""


def test_what_was_added_survives_kill_9_at_any_moment_and_is_there_once(tmp_path: Path) -> None:
    chance = random.Random(7)
    printed: set[str] = set()
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        for _ in range(chance.randrange(1, 800)):
            printed.add(writer.stdout.readline().strip())
        writer.kill()
        printed |= {line.strip() for line in writer.stdout if line.endswith("\n")}
        writer.wait()
        writer.stdout.close()
    store = Store(tmp_path / "usage.db")
    Spool(tmp_path, store.add_requests).close()
    store.close()
    rows = query(tmp_path / "usage.db", "SELECT id FROM requests")
    found = [number.hex() for (number,) in rows]
    assert len(found) == len(set(found))
    assert printed <= set(found)
    assert all(not path.read_bytes() for path in tmp_path.glob("requests-?.jsonl"))

"""The worker process: it is there as long as its server is, and whatever is killed when, each row
is priced once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from usage_rows import NOON, a_request, add_price, add_request, billed, one, query, sums_agree

from jobs.queue import TaskQueue
from jobs.supervisor import Supervisor
from jobs.tasks import Settings, claim
from manager.clock import Clock
from manager.orders import Orders
from manager.store import Store

ROOT = Path(__file__).resolve().parents[1]
COST = 2_000_000  # billionths: what a row of `a_request` costs, 1,000 and 500 tokens

Eventually = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "usage.db")
    add_price(store)
    yield store
    store.close()


@pytest.fixture
def supervisor(tmp_path: Path, store: Store) -> Iterator[Supervisor]:  # noqa: ARG001
    supervisor = Supervisor(settings(tmp_path), Clock())
    supervisor.start()
    yield supervisor
    supervisor.stop()


@pytest.fixture
def tasks(tmp_path: Path) -> Iterator[TaskQueue]:
    tasks = TaskQueue(tmp_path, None)
    yield tasks
    tasks.close()


def settings(folder: Path, **changes: Any) -> Settings:
    plain = Settings(folder, "INFO", "UTC", "CNY", 0, folder / "exports")
    return replace(plain, **changes)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.usefixtures("supervisor")
def test_a_row_is_priced_a_moment_after_it_was_written(
    tmp_path: Path, store: Store, tasks: TaskQueue, eventually: Eventually
) -> None:
    add_request(store, a_request())
    tasks.tick()
    eventually(lambda: billed(tmp_path) == 1)
    assert query(tmp_path / "usage.db", "SELECT price, tier, cost FROM requests") == [(1, 0, COST)]


def test_a_worker_that_dies_is_replaced(supervisor: Supervisor, eventually: Eventually) -> None:
    first = eventually(lambda: supervisor.view()["pid"])
    kill(first)
    second = eventually(lambda: supervisor.view()["pid"] not in (None, first))
    assert second
    view = supervisor.view()
    assert view["alive"]
    assert view["restarts"] == 1
    assert view["last_exit"] == -signal.SIGKILL


def test_one_that_dies_at_once_is_tried_less_and_less_often(
    tmp_path: Path, eventually: Eventually
) -> None:
    supervisor = Supervisor(settings(tmp_path), Clock(), (sys.executable, "-c", "exit(3)"))
    supervisor.start()
    eventually(lambda: supervisor.view()["restarts"] >= 4)
    before = supervisor.view()["restarts"]
    supervisor.wake()  # a pause of over a second is under way
    eventually(lambda: supervisor.view()["restarts"] > before)
    assert supervisor.view()["last_exit"] == 3
    supervisor.stop()
    assert not supervisor.view()["alive"]


@pytest.mark.usefixtures("store")
def test_it_ends_with_an_orderly_end_of_the_server(tmp_path: Path, eventually: Eventually) -> None:
    supervisor = Supervisor(settings(tmp_path), Clock())
    supervisor.start()
    pid = eventually(lambda: supervisor.view()["pid"])
    supervisor.stop()
    assert is_gone(pid)


SERVER = """
import sys, time
from pathlib import Path
from jobs.supervisor import Supervisor
from jobs.tasks import Settings
from manager.clock import Clock
folder = Path(sys.argv[1])
supervisor = Supervisor(Settings(folder, "INFO", "UTC", "CNY", 0, folder / "exports"), Clock())
supervisor.start()
while not supervisor.view()["pid"]:
    time.sleep(0.01)
print(supervisor.view()["pid"], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("wait", [0.0, 0.7])
@pytest.mark.usefixtures("store")
def test_it_ends_when_its_server_is_killed_also_while_it_is_starting(
    tmp_path: Path, eventually: Eventually, wait: float
) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    time.sleep(wait)  # at the one moment or another of its life
    server.kill()
    server.wait()
    server.stdout.close()
    eventually(lambda: is_gone(pid))


def test_two_never_work_on_one_folder(tmp_path: Path) -> None:
    with claim(tmp_path, 0) as first, claim(tmp_path, 0.05) as second:
        assert (first, second) == (True, False)
    with claim(tmp_path, 0) as third:
        assert third


@pytest.mark.usefixtures("store")
def test_a_second_one_waits_and_then_says_that_there_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = (
        "from jobs import worker; worker._CLAIM_SECONDS = 0.1; raise SystemExit(worker.main())"
    )
    with claim(tmp_path, 0):
        second = subprocess.run(
            [sys.executable, "-c", command],
            stdin=(stdin := _pipe(settings(tmp_path).line())),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        os.close(stdin)
    assert second.returncode == 1
    assert "another worker is at work" in second.stderr


_held: list[int] = []


def _pipe(text: str) -> int:
    """A pipe with this in it that stays open."""
    reading, writing = os.pipe()
    os.write(writing, text.encode())
    _held.append(writing)
    return reading


@pytest.fixture(autouse=True)
def _close_pipes() -> Iterator[None]:
    yield
    while _held:
        os.close(_held.pop())


def test_the_server_needs_no_pandas() -> None:
    command = (
        "import sys; import jobs.queue, jobs.tasks, jobs.supervisor, jobs.crontab,"
        " routes.exports, routes.data; raise SystemExit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=False).returncode == 0


def test_killed_at_any_moment_it_prices_every_row_once(
    tmp_path: Path, store: Store, supervisor: Supervisor, tasks: TaskQueue, eventually: Eventually
) -> None:
    path, chance, written = tmp_path / "usage.db", random.Random(4), 0
    for _ in range(8):
        pid = eventually(lambda: supervisor.view()["pid"])
        supervisor.wake()
        end = time.monotonic() + chance.choice([0.1, 0.6, 0.9, 1.2])
        while time.monotonic() < end:
            for _ in range(20):
                written += 1
                add_request(store, a_request(NOON + written * 60_000, key=f"k{written % 5}"))
            tasks.tick()
            time.sleep(0.02)
        kill(pid)
    eventually(lambda: tasks.tick() or billed(tmp_path) == written)
    assert query(path, "SELECT count(*), sum(cost) FROM requests") == [(written, written * COST)]
    for span in ("hour", "day"):
        sums = "SELECT sum(requests), sum(cost_tokens), sum(prompt_tokens) FROM rollups"
        assert query(path, f"{sums} WHERE span = ? AND key = '*'", span) == [
            (written, written * COST, written * 1000)
        ]
    assert sums_agree(path)
    per_key = "SELECT key, count(*) FROM requests GROUP BY key"
    rolled = (
        "SELECT key, sum(requests) FROM rollups WHERE span = 'hour' AND mode = '*' GROUP BY key"
    )
    assert query(path, per_key) == query(path, rolled)


@pytest.mark.usefixtures("supervisor")
def test_what_a_lost_queue_asked_for_is_done_all_the_same(
    tmp_path: Path, store: Store, tasks: TaskQueue
) -> None:
    lost: list[str] = []
    orders = Orders(store, tmp_path / "usage.db", Clock(), lost.append)
    add_request(store, a_request())
    order = orders.place("export", "2026-11")
    assert lost == ["export"]  # and nobody puts it into the queue
    tasks.tick()
    assert orders.wait(order, 20, lambda: False) is None
    assert (tmp_path / "exports" / "bill-2026-11.csv").exists()


@pytest.mark.usefixtures("store")
def test_a_damaged_queue_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "queue.db").write_bytes(b"no database " * 1000)
    tasks = TaskQueue(tmp_path, None)
    tasks.put("bill")
    assert "damaged" in caplog.text
    assert one(tmp_path / "queue.db", "SELECT count(*) FROM task") == 1
    tasks.close()


def test_a_worker_that_is_away_leaves_a_short_queue(tmp_path: Path, tasks: TaskQueue) -> None:
    for _ in range(200):
        tasks.put("bill")
    assert one(tmp_path / "queue.db", "SELECT count(*) FROM task") == 50


def test_a_reload_reaches_the_worker(
    tmp_path: Path, store: Store, supervisor: Supervisor, tasks: TaskQueue, eventually: Eventually
) -> None:
    """Late in the evening in Shanghai is another day than in UTC."""
    path = tmp_path / "usage.db"
    add_request(store, a_request(NOON + 5 * 3_600_000))
    tasks.tick()
    eventually(lambda: billed(tmp_path) == 1)
    days = "SELECT DISTINCT start_ms FROM rollups WHERE span = 'day'"
    assert query(path, days) == [(NOON - 12 * 3_600_000,)]
    supervisor.update(settings(tmp_path, timezone="Asia/Shanghai"))
    eventually(lambda: tasks.put("bill") or query(path, days) == [(NOON + 4 * 3_600_000,)])


@pytest.mark.usefixtures("supervisor")
def test_its_log_is_in_the_log_folder(tmp_path: Path, store: Store, tasks: TaskQueue) -> None:
    orders = Orders(store, tmp_path / "usage.db", Clock(), tasks.put)
    order = orders.place("backup")
    assert orders.wait(order, 20, lambda: False) is None
    assert "copied" in (tmp_path / "logs" / "worker.log").read_text()

"""The worker process: it is there as long as its server is, and whatever is killed when, each row
is priced once."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from jobs.queue import TaskQueue
from jobs.supervisor import Supervisor
from jobs.tasks import WorkerSettings, lock_billing
from manager.clock import Clock
from manager.config.settings import Program
from manager.storage.maintenance_tasks import MaintenanceTasks
from manager.storage.rollups import SPANS
from manager.storage.store import Store
from tests.support.usage_rows import (
    NOON,
    a_request,
    add_price,
    add_request,
    billed,
    new_store,
    one,
    query,
    sums_agree,
)

ROOT = Path(__file__).resolve().parents[3]
COST = 2_000_000  # billionths: what a row of `a_request` costs, 1,000 and 500 tokens

Eventually = Callable[[Callable[[], Any]], Any]


@dataclass
class Parts:
    """A data folder, its server's part in bills, and the worker."""

    folder: Path
    store: Store
    supervisor: Supervisor
    tasks: TaskQueue

    @property
    def usage_db(self) -> Path:
        return self.folder / "usage.db"

    def pid(self) -> int | None:
        pid: int | None = self.supervisor.view()["pid"]
        return pid


@contextlib.contextmanager
def running(folder: Path, eventually: Eventually) -> Iterator[Parts]:
    store = new_store(folder / "usage.db")
    add_price(store)
    services = Parts(folder, store, Supervisor(settings(folder), Clock()), TaskQueue(folder))
    services.supervisor.start()
    eventually(services.pid)  # later it would write to pytest's own terminal
    yield services
    services.supervisor.stop()
    services.tasks.close()
    store.close()


@pytest.fixture
def services(tmp_path: Path, eventually: Eventually) -> Iterator[Parts]:
    with running(tmp_path, eventually) as services:
        yield services


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, eventually: Eventually) -> Iterator[Parts]:
    """One for all who leave its worker alive."""
    with running(tmp_path_factory.mktemp("shared"), eventually) as services:
        yield services


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = new_store(tmp_path / "usage.db")
    yield store
    store.close()


def settings(folder: Path, **changes: Any) -> WorkerSettings:
    plain = WorkerSettings(folder, "INFO", "UTC", "CNY", 0, folder / "exports")
    return replace(plain, **changes)


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_row_is_priced_a_moment_after_it_was_written(
    shared: Parts, eventually: Eventually
) -> None:
    row = a_request()
    add_request(shared.store, row)
    shared.tasks.tick()
    priced = "SELECT price, tier, cost FROM requests WHERE id = ? AND cost IS NOT NULL"
    assert eventually(lambda: query(shared.usage_db, priced, row.id)) == [(1, 0, COST)]


def test_a_worker_that_dies_is_replaced(services: Parts, eventually: Eventually) -> None:
    first = eventually(services.pid)
    kill(first)
    second = eventually(lambda: services.pid() not in (None, first))
    assert second
    view = services.supervisor.view()
    assert view["alive"]
    assert view["restarts"] == 1
    assert view["last_exit"] == -signal.SIGKILL


def test_one_that_cannot_work_says_why_and_another_tries_again(
    tmp_path: Path, eventually: Eventually
) -> None:
    lock, log = tmp_path / "worker.lock", tmp_path / "logs" / "worker.log"
    lock.mkdir()  # where it needs a file
    supervisor = Supervisor(settings(tmp_path), Clock())
    supervisor.start()
    eventually(lambda: log.exists() and "the worker cannot work on" in log.read_text())
    lock.rmdir()
    eventually(lambda: supervisor.wake() or (tmp_path / "queue.db").exists())
    assert supervisor.view()["alive"]
    supervisor.stop()


def test_one_that_dies_at_once_is_tried_less_and_less_often(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    """Unless it is woken, which ends the pause."""
    supervisor = Supervisor(settings(tmp_path), Clock(), (sys.executable, "-c", "exit(3)"))
    supervisor.start()
    for number in range(1, 9):
        eventually(lambda number=number: supervisor.view()["restarts"] >= number)
        supervisor.wake()
    assert supervisor.view()["last_exit"] == 3
    supervisor.stop()
    assert not supervisor.view()["alive"]
    pauses = re.findall(r"another starts in (\S+) s", caplog.text)
    assert pauses[:8] == ["0.2", "0.4", "0.8", "1.6", "3.2", "6.4", "10.0", "10.0"]


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
from jobs.tasks import WorkerSettings
from manager.clock import Clock
folder = Path(sys.argv[1])
settings = WorkerSettings(folder, "INFO", "UTC", "CNY", 0, folder / "exports")
supervisor = Supervisor(settings, Clock())
supervisor.start()
while not supervisor.view()["pid"]:
    time.sleep(0.01)
print(supervisor.view()["pid"], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("is_at_work", [False, True])
@pytest.mark.usefixtures("store")
def test_it_ends_when_its_server_is_killed_also_while_it_is_starting(
    tmp_path: Path, eventually: Eventually, is_at_work: bool
) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    pid = int(server.stdout.readline())
    if is_at_work:
        eventually((tmp_path / "queue.db").exists)
    server.kill()
    server.wait()
    server.stdout.close()
    eventually(lambda: is_gone(pid))


@pytest.mark.usefixtures("store")
def test_it_ends_with_a_server_that_was_killed_while_it_handed_settings_on(tmp_path: Path) -> None:
    line = settings(tmp_path).line()
    worker = subprocess.Popen(
        [sys.executable, "-m", "jobs.worker"], cwd=ROOT, stdin=subprocess.PIPE, text=True
    )
    try:
        worker.communicate(line + line[:20], timeout=30)
        assert worker.returncode == 0
    finally:
        worker.kill()


def test_two_never_work_on_one_folder(tmp_path: Path) -> None:
    with lock_billing(tmp_path, 0) as first, lock_billing(tmp_path, 0.05) as second:
        assert (first, second) == (True, False)
    with lock_billing(tmp_path, 0) as third:
        assert third


@pytest.mark.usefixtures("store")
def test_a_second_one_waits_and_then_says_that_there_is_another(tmp_path: Path) -> None:
    command = (
        "from jobs import worker; worker._CLAIM_SECONDS = 0.1; raise SystemExit(worker.main())"
    )
    with lock_billing(tmp_path, 0):
        second = subprocess.run(
            [sys.executable, "-c", command],
            cwd=ROOT,
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
        "import sys; import jobs.queue, jobs.tasks, jobs.supervisor,"
        " routes.api.exports, routes.api.data; raise SystemExit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=False).returncode == 0


def test_killed_at_any_moment_it_prices_every_row_once(
    services: Parts, eventually: Eventually
) -> None:
    path, written = services.usage_db, 0
    priced = "SELECT count(cost) FROM requests"

    def priced_since(before: int) -> bool:
        """Meanwhile rows come in."""
        nonlocal written
        moments = range(written + 1, written + 21)
        written += 20
        services.store.add_requests(
            [a_request(NOON + at * 60_000, key=f"k{at % 5}") for at in moments]
        )
        services.tasks.tick()
        return int(one(path, priced)) > before

    # While it starts, and each time it has just written what some rows cost.
    for after in (0.05, 0.3, None, None, None):
        pid = eventually(services.pid)
        end = None if after is None else time.monotonic() + after
        before = one(path, priced)
        eventually(lambda b=before, e=end: priced_since(b) if e is None else time.monotonic() > e)
        kill(pid)
        eventually(lambda pid=pid: services.supervisor.wake() or services.pid() not in (None, pid))
    eventually(lambda: services.tasks.tick() or billed(services.folder) >= written)
    assert query(path, "SELECT count(*), sum(cost) FROM requests") == [(written, written * COST)]
    for span in SPANS:
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


def test_what_a_lost_queue_asked_for_is_done_all_the_same(shared: Parts) -> None:
    lost: list[str] = []
    orders = MaintenanceTasks(shared.store, shared.usage_db, Clock(), lost.append)
    add_request(shared.store, a_request())
    order = orders.enqueue("export", "2026-11")
    assert lost == ["export"]  # and nobody puts it into the queue
    shared.tasks.tick()
    assert orders.wait(order, 20, lambda: False) is None
    assert (shared.folder / "exports" / "bill-2026-11.csv").exists()


@pytest.mark.usefixtures("store")
def test_a_damaged_queue_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "queue.db").write_bytes(b"no database " * 1000)
    tasks = TaskQueue(tmp_path)
    tasks.enqueue("bill")
    assert "damaged" in caplog.text
    assert one(tmp_path / "queue.db", "SELECT count(*) FROM task") == 1
    tasks.close()


def test_a_worker_that_is_away_leaves_a_short_queue(tmp_path: Path) -> None:
    tasks = TaskQueue(tmp_path)
    for _ in range(200):
        tasks.enqueue("bill")
    assert one(tmp_path / "queue.db", "SELECT count(*) FROM task") == 50
    tasks.close()


def test_a_reload_reaches_the_worker(shared: Parts, eventually: Eventually) -> None:
    """Late in the evening in Shanghai is another day than in UTC."""
    orders = MaintenanceTasks(shared.store, shared.usage_db, Clock(), shared.tasks.enqueue)
    add_request(shared.store, a_request(NOON + 5 * 3_600_000, "Late"))

    def is_billed_on(date: str) -> bool:
        order = orders.enqueue("export", "2026-11")
        assert orders.wait(order, 20, lambda: False) is None
        bill = shared.folder / "exports" / "bill-2026-11.csv"
        return f"{date},Late," in bill.read_text(encoding="utf-8")

    assert is_billed_on("2026-11-05")
    shared.supervisor.update(Program(timezone="Asia/Shanghai"))
    eventually(lambda: is_billed_on("2026-11-06"))


def test_its_log_is_in_the_log_folder(shared: Parts) -> None:
    orders = MaintenanceTasks(shared.store, shared.usage_db, Clock(), shared.tasks.enqueue)
    order = orders.enqueue("backup")
    assert orders.wait(order, 20, lambda: False) is None
    assert "copied" in (shared.folder / "logs" / "worker.log").read_text()

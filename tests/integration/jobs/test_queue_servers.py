"""The task queue on a real Redis and a real PostgreSQL, each on a port of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import queue
from jobs.queue import Discreet, QueueError, TaskQueue
from jobs.supervisor import Supervisor
from jobs.tasks import WorkerSettings
from manager.clock import Clock
from manager.storage.maintenance_tasks import Orders
from manager.storage.store import Store
from tests.support.usage_rows import NOON, a_request, add_price, add_request, billed, one, query

PASSWORD = "s3cret/%&@:wörd"
QUOTED = "s3cret%2F%25%26%40%3Aw%C3%B6rd"
INSTALL = "apt-get install redis-server postgresql; pip install redis 'psycopg[binary]'"

Eventually = Callable[[Callable[[], Any]], Any]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def takes_tasks(url: str) -> bool:
    """A port that answers may be that of a server that is still starting."""
    try:
        queue.connect(Path(), url).pending_count()
    except Exception:  # noqa: BLE001 - each server's driver has its own
        return False
    return True


class Server:
    """A server that can be stopped and started again on its port."""

    def __init__(self, kind: str, command: list[str], url: str) -> None:
        self.kind = kind
        self.url = url
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, eventually: Eventually) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        eventually(lambda: takes_tasks(self.url))

    def stop(self) -> None:
        """At once, and with it all of its processes."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGINT)
            self._process.wait(20)


def redis_server(folder: Path) -> Server:
    program = shutil.which("redis-server")
    if program is None or importlib.util.find_spec("redis") is None:
        pytest.skip(f"needs redis-server and its Python package: {INSTALL}")
    port = free_port()
    config = folder / "redis.conf"
    lines = ("bind 127.0.0.1", f"port {port}", f'requirepass "{PASSWORD}"', 'save ""')
    config.write_text("\n".join((*lines, f"dir {folder}")) + "\n", encoding="utf-8")
    return Server("redis", [program, str(config)], f"redis://:{QUOTED}@127.0.0.1:{port}/0")


def postgresql_server(folder: Path) -> Server:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    program = shutil.which("postgres") or (str(found[-1]) if found else None)
    if program is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip(f"needs postgresql and its Python package: {INSTALL}")
    as_user: list[str] = []
    if os.geteuid() == 0:  # which PostgreSQL refuses
        as_user = ["runuser", "-u", "postgres", "--"]
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no runuser")
        shutil.chown(folder, "postgres")
    password, cluster, port = folder / "password", folder / "cluster", free_port()
    password.write_text(PASSWORD, encoding="utf-8")
    if as_user:
        shutil.chown(password, "postgres")
    subprocess.run(
        [
            *as_user,
            str(Path(program).with_name("initdb")),
            *("-D", str(cluster), "-U", "manager", "-A", "scram-sha-256", "-E", "UTF8"),
            *(f"--pwfile={password}", "--no-sync", "--locale=C"),
        ],
        check=True,
        capture_output=True,
    )
    fast = ("-F", "-k", "", "-h", "127.0.0.1", "-p", str(port))
    return Server(
        "postgresql",
        [*as_user, program, "-D", str(cluster), *fast],
        f"postgresql://manager:{QUOTED}@127.0.0.1:{port}/postgres",
    )


@pytest.fixture(scope="module", params=[redis_server, postgresql_server])
def server(request: pytest.FixtureRequest, eventually: Eventually) -> Iterator[Server]:
    # Not pytest's own folder, which another user may not enter.
    with tempfile.TemporaryDirectory(prefix="queue-server-") as folder:
        server: Server = request.param(Path(folder))
        server.start(eventually)
        yield server
        server.stop()


@pytest.fixture(scope="module")
def folder(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a program that has its queue on the server."""
    return tmp_path_factory.mktemp(server.kind)


@pytest.fixture(scope="module")
def store(folder: Path) -> Iterator[Store]:
    store = Store(folder / "usage.db")
    add_price(store)
    yield store
    store.close()


@pytest.fixture(scope="module")
def supervisor(
    folder: Path,
    store: Store,  # noqa: ARG001
    server: Server,
    eventually: Eventually,
) -> Iterator[Supervisor]:
    settings = WorkerSettings(folder, "INFO", "UTC", "CNY", 0, folder / "exports", server.url)
    supervisor = Supervisor(settings, Clock())
    supervisor.start()
    eventually(lambda: supervisor.view()["pid"])  # later it would write to pytest's own terminal
    yield supervisor
    supervisor.stop()


@pytest.fixture
def tasks(folder: Path, server: Server) -> Iterator[TaskQueue]:
    tasks = TaskQueue(folder, server.url)
    yield tasks
    tasks.close()


def no_secret(text: str) -> bool:
    return not any(secret in text for secret in (PASSWORD, QUOTED, "s3cret"))


@pytest.mark.usefixtures("supervisor")
def test_rows_are_priced_and_bills_made_over_the_server(
    folder: Path, store: Store, tasks: TaskQueue
) -> None:
    orders = Orders(store, folder / "usage.db", Clock(), tasks.enqueue)
    store.add_requests([a_request(NOON + number) for number in range(200)])
    order = orders.place("export", "2026-11")
    assert orders.wait(order, 20, lambda: False) is None
    assert one(folder / "usage.db", "SELECT count(*) FROM requests WHERE cost IS NULL") == 0
    assert (folder / "exports" / "bill-2026-11.csv").exists()
    assert not (folder / "queue.db").exists()


def test_a_server_that_goes_away_is_told_once_and_found_again(
    folder: Path,
    server: Server,
    store: Store,
    supervisor: Supervisor,
    tasks: TaskQueue,
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever asks for work is not told: the rows are there, and are billed afterwards."""
    monkeypatch.setattr(queue, "_TRY_AGAIN_SECONDS", 0.1)
    caplog.set_level(logging.INFO)
    before = billed(folder)
    add_request(store, a_request())
    tasks.tick()
    eventually(lambda: billed(folder) == before + 1)
    server.stop()
    add_request(store, a_request())
    eventually(lambda: tasks.tick() or "the task queue fails" in caplog.text)
    tasks.tick()
    server.start(eventually)

    def ticked() -> bool:
        supervisor.wake()
        tasks.tick()
        return billed(folder) == before + 2

    eventually(ticked)
    assert caplog.text.count("the task queue fails") == 1
    assert "the task queue works again" in caplog.text
    worker_log = (folder / "logs" / "worker.log").read_text()
    assert no_secret(caplog.text + worker_log)


def test_the_password_is_in_no_command_line_and_no_environment(
    folder: Path, server: Server, supervisor: Supervisor, eventually: Eventually
) -> None:
    pid = eventually(lambda: supervisor.view()["pid"])
    seen = [Path(f"/proc/{pid}/{name}") for name in ("cmdline", "environ")]
    assert all(no_secret(path.read_bytes().decode(errors="replace")) for path in seen)
    assert no_secret(repr(WorkerSettings(folder, "INFO", None, "CNY", 0, folder, server.url)))


def test_a_wrong_password_is_told_without_it(
    tmp_path: Path, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = TaskQueue(tmp_path, server.url.replace(QUOTED, "s3cret-and-wrong"))
    tasks.enqueue("bill")
    assert "the task queue fails" in caplog.text
    assert "s3cret" not in caplog.text
    tasks.close()


def test_programs_that_share_a_server_keep_apart(tmp_path: Path, server: Server) -> None:
    queues = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        queues.append(TaskQueue(tmp_path / name, server.url))
    queues[0].enqueue("bill")
    huey_a, huey_b = (queue.connect(tmp_path / name, server.url) for name in ("a", "b"))
    assert (huey_a.pending_count(), huey_b.pending_count()) == (1, 0)
    for each in queues:
        each.close()


def test_what_is_in_the_queue_is_never_run_as_code(tmp_path: Path) -> None:
    tasks = TaskQueue(tmp_path, None)
    tasks.enqueue("bill")
    ((task,),) = query(tmp_path / "queue.db", "SELECT data FROM task")
    assert task.endswith(b', "jobs.tasks.bill"]')
    tasks.close()


@pytest.mark.parametrize(
    ("url", "package"), [("redis://h/0", "redis"), ("postgresql://h/d", r"psycopg\[binary\]")]
)
def test_a_package_that_is_missing_is_named(
    tmp_path: Path, url: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    monkeypatch.setattr("huey.storage.psycopg", None)
    with pytest.raises(QueueError, match=f"pip install '?{package}"):
        queue.connect(tmp_path, url)


@pytest.mark.parametrize(
    "url", ["postgresql://u:s3cret%zz@127.0.0.1:1/d", "redis://:s3cret@127.0.0.1:99999/0"]
)
def test_a_url_that_cannot_be_read_is_told_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(QueueError) as told:
        queue.connect(tmp_path, url)
    assert "s3cret" not in str(told.value)


def test_no_line_of_the_workers_log_has_a_password() -> None:
    url = f"postgresql://u:{QUOTED}@h/d?sslpassword=other"
    record = logging.LogRecord("x", 40, "", 0, "%s and %s and %s", (url, PASSWORD, "other"), None)
    line = Discreet("%(message)s", url).format(record)
    assert no_secret(line)
    assert "other" not in line

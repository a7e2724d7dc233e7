"""The worker: Huey's consumer, as a child process of the server. `python -m jobs.worker`

Its standard input comes from the server: a line of settings at its start, another whenever they
change, and an end when the server ends, however that happens. Then the worker ends at once; what
it was doing is done again by the next one. Two on one data folder are never at work.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sqlite3
import sys
import threading
from typing import Any

import psutil

from jobs import queue, tasks

log = logging.getLogger("manager.worker")

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_FILE_BYTES = 5 << 20
_FILES = 3
_CLAIM_SECONDS = 10.0  # that an earlier worker may take to end
_FIRST_LOOK, _LAST_LOOK = 0.05, 0.5  # seconds between looks into an empty queue
_NICE = 10


def main() -> int:
    """Works until the server ends or says so; the exit code."""
    line = _next_line()
    if not line:
        return 0  # the server ended before we began
    settings = tasks.WorkerSettings.read(line)
    work = tasks.TaskRunner(settings)
    # Before anything that may wait.
    threading.Thread(target=_follow_server, args=(work,), name="server", daemon=True).start()
    _begin_log(settings)
    _be_nice()
    try:
        return _work(settings, work)
    except (OSError, sqlite3.Error) as error:  # such as a full disk, on which another tries again
        log.error("the worker cannot work on %s: %s", settings.data_dir, error)
        return 1


def _work(settings: tasks.WorkerSettings, work: tasks.TaskRunner) -> int:
    with tasks.lock_billing(settings.data_dir, _CLAIM_SECONDS) as is_ours:
        if not is_ours:
            log.error("another worker is at work on %s", settings.data_dir)
            return 1
        huey = queue.connect(settings.data_dir)
        tasks.declare(huey, work.run)
        consumer = huey.create_consumer(
            workers=1,
            periodic=False,
            initial_delay=_FIRST_LOOK,
            max_delay=_LAST_LOOK,
            scheduler_interval=60,  # nothing is ever put off
        )
        consumer.run()
        logging.shutdown()
        # Inside of the claim: the thread of a task may still be at work until the very end.
        os._exit(0)


def _next_line() -> str:
    """Unbuffered: a thread that waits in a buffer would keep the interpreter from ending."""
    unbuffered: Any = sys.stdin.buffer
    line: bytes = unbuffered.raw.readline()
    return line.decode()


def _follow_server(work: tasks.TaskRunner) -> None:
    try:
        while line := _next_line():
            work.settings = tasks.WorkerSettings.read(line)
    finally:  # also after half a line, of a server that was killed while it wrote
        # Not an orderly end: a long task would keep us, and needs none.
        os._exit(0)


def _begin_log(settings: tasks.WorkerSettings) -> None:
    folder = settings.data_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [
        logging.StreamHandler(),  # the server's terminal
        logging.handlers.RotatingFileHandler(
            folder / "worker.log", "a", _FILE_BYTES, _FILES, encoding="utf-8"
        ),
    ]
    for handler in handlers:
        handler.setFormatter(logging.Formatter(_FORMAT))
    logging.basicConfig(handlers=handlers, force=True)
    logging.getLogger("manager").setLevel(settings.log_level)
    logging.getLogger("huey").setLevel(logging.WARNING)
    for thread in ("Worker", "Scheduler"):
        # Not of the handlers, of which the first would take the traceback before the others look.
        logging.getLogger(f"huey.consumer.{thread}").addFilter(_Calm())


class _Calm(logging.Filter):
    """Each of Huey's threads logs a queue that fails with a traceback at every poll."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, str] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.exc_info:
            return True
        text = f"{record.getMessage()}: {record.exc_info[1]}"
        record.msg, record.args, record.exc_info, record.exc_text = text, (), None, None
        is_new = text != self._last.get(record.name)
        self._last[record.name] = text
        return is_new


def _be_nice() -> None:
    """Requests come first."""
    process = psutil.Process()
    if sys.platform == "win32":
        process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
    else:
        process.nice(_NICE)


if __name__ == "__main__":
    sys.exit(main())

"""Keeps the worker process running."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.tasks import WorkerSettings
from manager import affinity
from manager.clock import Clock
from manager.config import Program

log = logging.getLogger("manager.worker")

_ROOT = Path(__file__).resolve().parents[1]
_COMMAND = (sys.executable, "-m", "jobs.worker")
_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.2, 10.0  # seconds before one that died is replaced
_HEALTHY_SECONDS = 30.0
_STOP_SECONDS = 5.0
# pandas' libraries would start as many threads as there are cores.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Supervisor:
    """Runs the worker and, when it dies, another; a pause before that grows with each that did
    not last. The thread ``worker-supervisor`` waits for its death."""

    def __init__(
        self, settings: WorkerSettings, clock: Clock, command: Sequence[str] = _COMMAND
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._command = command
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._began: float | None = None
        self._restarts = 0
        self._last_exit: int | None = None
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="worker-supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Ends a pause: the worker is tried again now."""
        self._wake.set()

    def update(self, program: Program) -> None:
        """Sends the worker the settings of a reloaded config. Where bills go stays as
        it was at the start: the server itself uses it as it was."""
        with self._lock:
            settings = WorkerSettings.of(program, self._settings.data_dir)
            before = self._settings
            self._settings = replace(settings, exports=before.exports)
            if self._process is not None:
                _tell(self._process, self._settings)

    def stop(self) -> None:
        """Ends the worker and waits for that: asks first, then kills."""
        with self._lock:
            self._stopping = True
            process = self._process
        self._wake.set()
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("the worker (pid %d) does not end and is killed", process.pid)
                process.kill()
        self._thread.join()

    def view(self) -> dict[str, Any]:
        """Whether it lives, for the API."""
        with self._lock:
            process = self._process
            is_alive = process is not None and process.poll() is None
            return {
                "alive": is_alive,
                "pid": process.pid if process is not None and is_alive else None,
                "started_at": self._clock.iso(self._began) if is_alive else None,
                "restarts": self._restarts,
                "last_exit": self._last_exit,
            }

    def _run(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            began = self._clock.monotonic()
            try:
                process = self._start()
                if process is None:
                    return
                why = self._wait(process)
            except OSError as error:  # no memory or no descriptor left for a process
                why = str(error)
            with self._lock:
                if self._stopping:
                    return
                self._restarts += 1
            if self._clock.monotonic() - began >= _HEALTHY_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            log.error("the worker ended (%s); another starts in %.1f s", why, pause)
            self._wake.wait(pause)
            self._wake.clear()
            pause = min(pause * 2, _MAX_PAUSE_SECONDS)

    def _wait(self, process: subprocess.Popen[str]) -> str:
        code = process.wait()
        with self._lock, contextlib.suppress(OSError):  # what was not read any more
            self._last_exit = code
            assert process.stdin is not None
            process.stdin.close()
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    def _start(self) -> subprocess.Popen[str] | None:
        """None when asked to stop. Raises OSError."""
        with self._lock:
            if self._stopping:
                return None
            self._began = self._clock.monotonic()
            with affinity.PROGRAM.free():
                self._process = subprocess.Popen(
                    self._command,
                    cwd=_ROOT,
                    env={**os.environ, **_ONE_THREAD},
                    # Only we hold the other end: when we end, it ends.
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    text=True,
                    # A Ctrl-C in the terminal is for the server, which still needs the worker.
                    start_new_session=os.name == "posix",
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
            _tell(self._process, self._settings)
            return self._process


def _tell(process: subprocess.Popen[str], settings: WorkerSettings) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(settings.line())
        process.stdin.flush()
    except (OSError, ValueError):
        log.debug("the worker has ended; the next one is notified")

"""The threads that serve requests, for waitress."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from typing import Protocol

log = logging.getLogger(__name__)


class Task(Protocol):
    """What waitress hands over: a client's connection with a request on it."""

    def service(self) -> None: ...
    def cancel(self) -> None: ...


class _Worker:
    """A thread and the way to wake it: a task is put here before its lock is released."""

    def __init__(self) -> None:
        self.wake = threading.Lock()
        self.wake.acquire()
        self.task: Task | None = None


class ThreadPool:
    """A task dispatcher as waitress expects one, in place of its own.

    The thread that became idle last is used first. waitress's own goes round: with hundreds of
    threads every stack is then in memory and none in the processor's cache.
    """

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._queue: deque[Task] = deque()
        self._stopped = False
        # All at the start: to make one takes longer than to wake one, and the loop that would
        # do it in a burst of requests is the one that health checks wait for.
        self._threads = [
            threading.Thread(target=self._work, name=f"waitress-{number}", daemon=True)
            for number in range(count)
        ]
        self._start()

    def _start(self) -> None:
        """Raises RuntimeError where the system has too few threads; then none is left."""
        for started, thread in enumerate(self._threads):
            try:
                thread.start()
            except RuntimeError:
                self._threads = self._threads[:started]
                self.shutdown()
                raise

    def add_task(self, task: Task) -> None:
        """Never blocks. With no thread idle the task waits; behind a shutdown it is cancelled."""
        with self._lock:
            worker = self._idle.pop() if self._idle else None
            is_late = self._stopped
            if worker is None and not is_late:
                self._queue.append(task)
        if worker is not None:
            worker.task = task
            worker.wake.release()
        elif is_late:
            task.cancel()

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """Ends the idle threads now, the others after their task, for up to ``timeout``
        seconds; tasks that have not begun are cancelled. Returns whether all have ended."""
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
            pending = list(self._queue) if cancel_pending else []
            self._queue.clear()
        for worker in idle:
            worker.wake.release()
        for task in pending:
            task.cancel()
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = sum(thread.is_alive() for thread in self._threads)
        if left:
            log.warning("%d requests were still under way", left)
        return not left

    def _work(self) -> None:
        worker = _Worker()
        while True:
            task = self._next(worker)
            if task is None:
                return
            try:
                task.service()
            except Exception:
                # waitress has answered what it could; the thread goes on with the next.
                log.exception("serving %r failed", task)

    def _next(self, worker: _Worker) -> Task | None:
        """The next task, None at the end."""
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            if self._stopped:
                return None
            self._idle.append(worker)
        worker.wake.acquire()
        task, worker.task = worker.task, None
        return task

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


class Workers:
    """A task dispatcher as waitress expects one, in place of its own.

    Threads are made when they are first needed, up to ``limit``, and the one that became idle
    last is used first. waitress's own makes all at the start and goes round: with hundreds of
    them every stack is then in memory and none in the processor's cache.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._threads: list[threading.Thread] = []
        self._queue: deque[Task] = deque()
        self._stopped = False

    def add_task(self, task: Task) -> None:
        """Called by waitress's loop; never blocks. With no thread left the task waits."""
        with self._lock:
            if self._idle:
                worker = self._idle.pop()
                worker.task = task
                worker.wake.release()
            elif self._stopped or len(self._threads) >= self._limit:
                self._queue.append(task)
            else:
                thread = threading.Thread(
                    target=self._work,
                    args=(task,),
                    name=f"waitress-{len(self._threads)}",
                    daemon=True,
                )
                # With the lock held: a shutdown must not join one that has not begun.
                thread.start()
                self._threads.append(thread)

    def shutdown(self, cancel_pending: bool = True, timeout: float = 5) -> bool:
        """Ends the idle threads now, the others after their task, for up to ``timeout``
        seconds; what nobody has begun is cancelled. Returns whether all have ended."""
        with self._lock:
            self._stopped = True
            idle, self._idle = self._idle, []
            pending = list(self._queue) if cancel_pending else []
            self._queue.clear()
            threads = list(self._threads)
        for worker in idle:
            worker.wake.release()
        for task in pending:
            task.cancel()
        deadline = time.monotonic() + timeout
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = sum(thread.is_alive() for thread in threads)
        if left:
            log.warning("%d requests were still under way", left)
        return not left

    def _work(self, task: Task | None) -> None:
        worker = _Worker()
        while task is not None:
            try:
                task.service()
            except Exception:
                # waitress has answered what it could; the thread goes on with the next.
                log.exception("serving %r failed", task)
            with self._lock:
                if self._queue:
                    task = self._queue.popleft()
                    continue
                if self._stopped:
                    return
                self._idle.append(worker)
            worker.wake.acquire()
            task, worker.task = worker.task, None

"""The thread that starts and stops one model, and what it does without the model's lock."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from manager.errors import ApiError
from manager.models.server import (
    ModelDependencies,
    Server,
    StartFailedError,
    stop_server,
)
from manager.models.server_process import ServerProcess
from manager.models.sleep import is_sleeping
from manager.models.startup import Start
from manager.placement import Reservation
from manager.storage import Run

log = logging.getLogger(__name__)

Step = Callable[[], None]
Adoption = tuple[Run, ServerProcess, Reservation]


class Worker:
    """At most one thread at a time, named ``start-<model>``, that does one step after the other
    as long as there are any. Guarded by the lock of ``changed``, which is the model's."""

    def __init__(
        self,
        model: str,
        changed: threading.Condition,
        next_step: Callable[[], Step | None],
        announce: Callable[[], None],
    ) -> None:
        self._model = model
        self._changed = changed
        self._next_step = next_step
        self._announce = announce
        self._thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        return self._thread is not None

    def wake(self) -> None:
        """With the lock held, before the state is changed: if no thread is to be had, nothing has
        happened (ApiError 503). The thread waits for the lock that the caller holds, and then
        finds the state as it is to be."""
        if self._thread is None:
            thread = threading.Thread(target=self._run, name=f"start-{self._model}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                message = f"this system gives the program no further thread: {error}"
                raise ApiError(503, "busy", message, retry_after=5) from error
            self._thread = thread

    def join(self) -> None:
        """Without the lock: waits until there is no further step; each of them is bounded."""
        while thread := self._thread:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                step = self._next_step()
                if step is None:
                    self._thread = None
                    self._changed.notify_all()
                    return
            step()
            self._announce()


def bring_up(
    model: str, start: Start, adoption: Adoption | None, shared: ModelDependencies
) -> Server | StartFailedError:
    """The server once it is ready, be it launched or taken over; else why not, and then nothing
    of it is left but with a LeftoverError."""
    try:
        if adoption is None:
            return start.run()
        server = start.take_over(*adoption)
        if server.settings.sleep and is_sleeping(server, shared, lambda: start.cancelled):
            shared.placement.sleep.mark_asleep(adoption[2])
            server.asleep_since = shared.clock.monotonic()
        return server
    except StartFailedError as error:
        return error
    except Exception as error:
        # A fault of ours: the worker lives on, so that the queue gets an answer.
        log.exception("starting %s failed", model)
        return StartFailedError(f"an internal error: {error}")


def bring_down(
    model: str, server: Server, dependencies: ModelDependencies, grace: float, reason: str
) -> str | None:
    """Why the server has not ended; None once all of it has."""
    try:
        return stop_server(server, dependencies, grace, reason)
    except Exception as error:
        # A fault of ours, or of a system that is out of descriptors.
        log.exception("stopping %s failed", model)
        return f"an internal error: {error}"

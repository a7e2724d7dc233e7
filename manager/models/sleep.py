"""vLLM's sleep mode: a server that keeps its model in the machine's memory, and none on the cards.

What is called is of docs.vllm.ai, "Sleep Mode": ``POST /sleep?level=1``, ``POST /wake_up`` and
``GET /is_sleeping``, which a server has that is started with ``--enable-sleep-mode`` and
``VLLM_SERVER_DEV_MODE=1``. All of it is I/O and is called from the thread ``start-<model>``, never
under a lock.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from manager.models.probe import ProbeRequest, ask
from manager.models.server import ModelDependencies, Server, StartFailedError
from manager.models.startup import Start
from manager.relay import UpstreamError

log = logging.getLogger(__name__)

SLEEP_SECONDS = 60.0  # that copying a model into the machine's memory may take
ANSWER_SECONDS = 5.0  # of a question that costs nothing
MAX_SLEEP = 12  # times its alive_time; then it is stopped

_SLEEP = ProbeRequest("POST", "/sleep?level=1")
_WAKE_UP = ProbeRequest("POST", "/wake_up")
_IS_SLEEPING = ProbeRequest("GET", "/is_sleeping")


def put_to_sleep(
    server: Server, shared: ModelDependencies, is_over: Callable[[], bool]
) -> str | None:
    """Has the server free its cards, where the machine's memory is enough for its model. Returns
    None once it sleeps, else why not. Once ``is_over``, which is polled, it returns."""
    launched = server.launched
    if launched is None:
        return "others start its server"
    placement, reservation = shared.placement, launched.reservation
    if fault := placement.sleep.begin(reservation):
        return fault
    try:
        status, answer = ask(server.upstream, shared, _SLEEP, SLEEP_SECONDS, is_over)
        if status >= 300:
            return f"{_SLEEP.path} answered {status}: {answer[:200]!r}"
        if not is_sleeping(server, shared, is_over):
            return f"{_IS_SLEEPING.path} does not say that it sleeps"
    except UpstreamError as error:
        return f"{_SLEEP.path}: {error}"
    placement.sleep.mark_asleep(reservation)
    return None


def is_sleeping(server: Server, shared: ModelDependencies, is_over: Callable[[], bool]) -> bool:
    """Whether the server says that it sleeps."""
    try:
        status, answer = ask(server.upstream, shared, _IS_SLEEPING, ANSWER_SECONDS, is_over)
        said: Any = json.loads(answer) if status == 200 else None
    except (UpstreamError, ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("is_sleeping") is True


class Wake(Start):
    """One attempt to have a server that sleeps answer again: its cards' memory is waited for, as
    that of a start."""

    server: Server

    def run(self) -> Server:
        """Raises StartFailedError: a NotPlacedError where it sleeps on, else it does not serve."""
        server, launched = self.server, self.server.launched
        assert launched is not None
        _, assignment = self._reserve(launched.reservation)
        self.scheme, self.port, self.pid = server.scheme, launched.port, launched.process.pid
        self.passed_over = assignment.passed_over
        self._begin(self._settings.start_timeout)
        self._on_change()
        timeout = self._check(launched.process, "it was not asked yet")
        try:
            status, answer = self._ask(server.upstream, timeout, _WAKE_UP)
        except UpstreamError as error:
            self._check(launched.process, str(error))
            raise StartFailedError(f"{_WAKE_UP.path}: {error}{self.last_lines()}") from error
        if status >= 300:
            raise StartFailedError(f"{_WAKE_UP.path} answered {status}: {answer[:200]!r}")
        self._await_health(launched.process, server.upstream, (server.upstream.host,))
        self._shared.placement.mark_ready(launched.reservation)
        server.asleep_since = None
        return server

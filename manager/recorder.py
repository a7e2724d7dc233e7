"""What becomes known of a request on its way: its row, its place in the activity, its key's limits,
the metrics and its line in the log."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Protocol

from manager.clock import Clock
from manager.errors import CLIENT_CLOSED_REQUEST
from manager.metrics import Metrics
from manager.relay import Outcome
from manager.storage import RequestRow, Spool, plain_text, uuid7
from manager.tokens import TokenUsage, prompt_estimate
from manager.usage import ActiveRequest, Activity, ChunkCounter

log = logging.getLogger("manager.requests")

_MAX_ERROR = 500  # characters


class Permit(Protocol):
    """What a key's limits hold for a request until it has ended."""

    @property
    def has_budget(self) -> bool: ...
    def end(self, model: str, began_ms: int, usage: TokenUsage | None) -> None: ...


class Recorder:
    """Where records of requests go. ``tracked_modes`` says of which modes rows are kept, None for
    all."""

    def __init__(
        self,
        clock: Clock,
        activity: Activity,
        spool: Spool,
        metrics: Metrics,
        tracked_modes: Callable[[], Collection[str] | None],
    ) -> None:
        self.clock = clock
        self.activity = activity
        self.spool = spool
        self.metrics = metrics
        self.tracked_modes = tracked_modes

    def begin(self, endpoint: str, key: str, address: str) -> RequestRecord:
        """The record of a request that has just arrived; ``key`` is what it is metered under,
        ``address`` the client's, which only the log has."""
        return RequestRecord(self, endpoint, key, address)


class RequestRecord:
    """One request. Whoever serves it sets ``size`` (of the prompt, in bytes), ``permit`` and the
    fields of ``request`` as they become known, and calls ``close`` before the client has the last
    byte."""

    def __init__(self, recorder: Recorder, endpoint: str, key: str, address: str) -> None:
        self._recorder = recorder
        self._address = address
        self._began = recorder.clock.monotonic()
        began_ms = recorder.clock.wall_ms()
        self.request = ActiveRequest(uuid7(began_ms), endpoint, self._began, began_ms)
        self.request.key = key
        self.permit: Permit | None = None
        self.size = 0
        self._leased: float | None = None
        self._is_closed = False
        recorder.activity.begin(self.request)

    @property
    def id(self) -> str:
        """Under which the request is in usage.db."""
        return str(uuid.UUID(bytes=self.request.id))

    def leased(self, scheme: str) -> None:
        """The model is ready for it."""
        self._leased = self._recorder.clock.monotonic()
        self.request.scheme = scheme
        self.request.leased_ms = self._wall_ms(self._leased)

    def answered(self, stream: ChunkCounter | None) -> None:
        """The answer has begun; ``stream`` where it is one."""
        self.request.stream = stream
        self.request.answered = True

    def close(self, outcome: Outcome) -> None:
        """Records how it ended; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        recorder = self._recorder
        now = recorder.clock.monotonic()
        outcome = self._with_prompt(outcome)
        request, usage = self.request, outcome.usage
        if self.permit is not None:
            self.permit.end(request.model, request.began_ms, usage)
        if self._has_row():
            recorder.spool.add(self._row(outcome, now))
        recorder.activity.end(request, outcome.status, usage)
        first = outcome.first_byte_at - self._began if outcome.first_byte_at else None
        seconds = now - self._began
        recorder.metrics.request(request.model, outcome.status, usage, seconds, first)
        self._log(outcome, seconds, (self._leased or now) - self._began, first)

    def _has_row(self) -> bool:
        tracked = self._recorder.tracked_modes()
        if tracked is None or not self.request.mode or self.request.mode in tracked:
            return True
        # A budget is counted from the rows when the program starts again.
        return self.permit is not None and self.permit.has_budget

    def _log(
        self, outcome: Outcome, seconds: float, waited: float, first_byte: float | None
    ) -> None:
        request, usage = self.request, outcome.usage
        log.info(
            "%s %s as %r from %s: %d in %.3f s, waited %.3f, first byte %s, %s%s",
            request.endpoint,
            request.model or "-",
            request.asked_for or "-",
            self._address or "-",
            outcome.status,
            seconds,
            waited,
            "-" if first_byte is None else f"{first_byte:.3f}",
            "no usage"
            if usage is None
            else f"tokens {usage.prompt_tokens}+{usage.completion_tokens}"
            f" ({usage.cached_tokens} cached{', estimated' if usage.estimated else ''})",
            f", {_shown(outcome.error)}" if outcome.error else "",
        )

    def _with_prompt(self, outcome: Outcome) -> Outcome:
        """With an estimate of the prompt, where the model has read it and has not said how long it
        was: a client that disconnects before the last event would pay for no prompt."""
        usage = outcome.usage or TokenUsage(estimated=True)
        is_cut = outcome.status == CLIENT_CLOSED_REQUEST or (
            outcome.streamed and (outcome.status < 400 or usage.completion_tokens > 0)
        )
        if self._leased is None or not is_cut or usage.prompt_tokens or not usage.estimated:
            return outcome
        return replace(outcome, usage=replace(usage, prompt_tokens=prompt_estimate(self.size)))

    def _row(self, outcome: Outcome, now: float) -> RequestRow:
        request, usage = self.request, outcome.usage or TokenUsage()
        return RequestRow(
            id=request.id,
            model=request.model,
            asked_for=request.asked_for,
            mode=request.mode,
            scheme=request.scheme,
            key=request.key,
            endpoint=request.endpoint,
            streamed=outcome.streamed,
            status=outcome.status,
            started_ms=request.began_ms,
            leased_ms=request.leased_ms,
            first_byte_ms=self._wall_ms(outcome.first_byte_at),
            ended_ms=request.began_ms + round((now - self._began) * 1000),
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            # Also where a server has not said: a bill shows that something may be missing.
            estimated=usage.estimated or (outcome.usage is None and outcome.status < 300),
            error=_first_line(outcome.error)[:_MAX_ERROR] if outcome.error else None,
        )

    def _wall_ms(self, moment: float | None) -> int | None:
        """Epoch ms of a monotonic moment. All of a request's come from one reading of the wall
        clock, so that setting the clock meanwhile changes no duration."""
        if moment is None:
            return None
        return self.request.began_ms + round((moment - self._began) * 1000)


def _first_line(error: str) -> str:
    """JSON can spell a lone surrogate, which no database takes."""
    return error.splitlines()[0].encode("utf-8", "replace").decode()


def _shown(error: str) -> str:
    """Its first line. It may hold what a model's server said, escape sequences and lone surrogates
    too."""
    return plain_text(_first_line(error).encode())

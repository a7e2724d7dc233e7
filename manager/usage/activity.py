"""What is under way at this moment, and how fast tokens come."""

from __future__ import annotations

import uuid
from collections import defaultdict, deque
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from manager.billing import calendar
from manager.clock import Clock
from manager.events import Events
from manager.tokens import TokenUsage

SECONDS_KEPT = 600
"""How far back the speeds go."""

_STILL = 5  # seconds over which the speed of now is taken: answers that come whole are lumps


class ChunkCounter(Protocol):
    """A stream on its way: how many chunks of it have passed, each about a token."""

    @property
    def chunks(self) -> int: ...


class ActiveRequest:
    """A request from its arrival to its end. Its own thread writes it, others read it: each field
    is whole at any moment, and nothing here counts for a bill."""

    __slots__ = (
        "answered",
        "asked_for",
        "began",
        "began_ms",
        "counted",
        "endpoint",
        "id",
        "key",
        "leased_ms",
        "mode",
        "model",
        "scheme",
        "stream",
    )

    def __init__(self, number: bytes, endpoint: str, began: float, began_ms: int) -> None:
        """``began`` is its arrival by the monotonic clock, ``began_ms`` by the wall clock."""
        self.id = number
        self.endpoint = endpoint
        self.began = began
        self.began_ms = began_ms
        self.asked_for = ""
        self.model = ""  # empty for names that are no model's: clients must not make labels
        self.mode = ""
        self.key = ""
        self.scheme = ""
        self.leased_ms: int | None = None
        self.answered = False  # the model's server has begun to answer
        self.stream: ChunkCounter | None = None
        self.counted = 0  # chunks that are in the speeds; the clock's alone

    @property
    def state(self) -> str:
        """``waiting`` for its model, ``processing``, or ``answering``."""
        if self.leased_ms is None:
            return "waiting"
        return "answering" if self.answered else "processing"


@dataclass
class _Second:
    """What has come in one second."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0  # that ended
    errors: int = 0


class Activity:
    """The requests under way by their ids, and what the last seconds brought.

    Requests come and go without a lock: to set or take out an entry of a dict is one step of the
    interpreter, and so is to copy it.
    """

    def __init__(self, clock: Clock, events: Events) -> None:
        self._clock = clock
        self._events = events
        self._under_way: dict[bytes, ActiveRequest] = {}
        # Written by the requests' threads, read by the clock's; a deque's ends are safe for both.
        self._ended: deque[tuple[ActiveRequest, int, TokenUsage | None]] = deque()
        self._seconds: deque[_Second] = deque(maxlen=SECONDS_KEPT)
        self._of_models: deque[dict[str, int]] = deque(maxlen=_STILL)
        self._at_ms = clock.wall_ms()
        self._told: list[dict[str, Any]] = []

    def begin(self, request: ActiveRequest) -> None:
        self._under_way[request.id] = request

    def end(self, request: ActiveRequest, status: int, usage: TokenUsage | None) -> None:
        if self._under_way.pop(request.id, None) is not None:
            self._ended.append((request, status, usage))

    def tick(self) -> None:
        """Counts the second that has passed; called once a second, by one thread."""
        second, of_models = _Second(), defaultdict[str, int](int)
        for _ in range(len(self._ended)):
            request, status, usage = self._ended.popleft()
            second.requests += 1
            second.errors += status >= 400
            if usage is not None:
                second.prompt_tokens += usage.prompt_tokens
                # Those of a stream were counted as they came, some a little too often.
                rest = max(0, usage.completion_tokens - request.counted)
                second.completion_tokens += rest
                of_models[request.model] += rest
        for request in self.active_requests():
            if request.stream is not None:
                chunks = request.stream.chunks
                second.completion_tokens += chunks - request.counted
                of_models[request.model] += chunks - request.counted
                request.counted = chunks
        self._at_ms = self._clock.wall_ms()
        self._seconds.append(second)
        self._of_models.append(of_models)
        self._events.publish("throughput", self.throughput, wakes=False)
        if self._events.has_subscribers("requests"):
            now = self.requests()
            if now != self._told:
                self._events.publish("requests", lambda: now, wakes=False)
            self._told = now

    def active_requests(self) -> list[ActiveRequest]:
        """The requests of this moment, oldest first."""
        return list(self._under_way.values())

    def requests(self) -> list[dict[str, Any]]:
        """The same for the API."""
        return [self._request(one) for one in self.active_requests()]

    def throughput(self) -> dict[str, Any]:
        """How fast it goes, and who is busy, for the API. Speeds are a second's, over the last
        five."""
        models: dict[str, dict[str, Any]] = {}
        for request in self.active_requests():
            model = models.setdefault(request.model, _nobody())
            model["waiting" if request.leased_ms is None else "in_flight"] += 1
        for of_models in self._of_models.copy():
            for name, tokens in of_models.items():
                model = models.setdefault(name, _nobody())
                model["completion_tokens_per_second"] += tokens / _STILL
        models.pop("", None)
        for model in models.values():
            speed = model["completion_tokens_per_second"]
            model["completion_tokens_per_second"] = round(speed, 2)
        last = list(self._seconds)[-_STILL:]
        return {
            "at": calendar.iso(self._at_ms),
            "prompt_tokens_per_second": sum(s.prompt_tokens for s in last) / _STILL,
            "completion_tokens_per_second": sum(s.completion_tokens for s in last) / _STILL,
            "requests_per_second": sum(s.requests for s in last) / _STILL,
            "second": asdict(last[-1] if last else _Second()),
            "in_flight": sum(model["in_flight"] for model in models.values()),
            "waiting": sum(model["waiting"] for model in models.values()),
            "models": models,
        }

    def history(self) -> dict[str, Any]:
        """What each of the last seconds brought, oldest first; ``end`` is the end of the last."""
        seconds = list(self._seconds)
        return {
            "end": calendar.iso(self._at_ms),
            "prompt_tokens": [s.prompt_tokens for s in seconds],
            "completion_tokens": [s.completion_tokens for s in seconds],
            "requests": [s.requests for s in seconds],
            "errors": [s.errors for s in seconds],
        }

    def _request(self, one: ActiveRequest) -> dict[str, Any]:
        return {
            "id": str(uuid.UUID(bytes=one.id)),
            "state": one.state,
            "model": one.model,
            "asked_for": one.asked_for,
            "mode": one.mode,
            "scheme": one.scheme,
            "key": one.key,
            "endpoint": one.endpoint,
            "started_at": calendar.iso(one.began_ms),
            "leased_at": None if one.leased_ms is None else calendar.iso(one.leased_ms),
            "completion_tokens": 0 if one.stream is None else one.stream.chunks,
        }


def _nobody() -> dict[str, Any]:
    return {"in_flight": 0, "waiting": 0, "completion_tokens_per_second": 0.0}

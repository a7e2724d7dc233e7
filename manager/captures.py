"""Whole requests and answers, kept while an admin has that switched on for their model: in memory,
a bounded number of them, without the secrets of their headers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from manager.clock import Clock
from manager.config import MASK, is_secret_name, redact
from manager.relay import Headers, RelayRequest, RelayResponse, Spooled

MAX_CAPTURES = 50
MAX_BYTES = 256 << 10  # of a body that are kept
# An address below /upstream may have a pass in it.
_SECRET_HEADERS = frozenset(("content-location", "cookie", "location", "referer", "set-cookie"))


class Part:
    """A request or an answer: its headers, and its body as far as it is kept."""

    def __init__(self, headers: Headers) -> None:
        self._headers = [
            (name, MASK if name.lower() in _SECRET_HEADERS or is_secret_name(name) else value)
            for name, value in headers
        ]
        self._body = bytearray()
        self.size = 0

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self._body += piece[: MAX_BYTES - len(self._body)]

    @property
    def is_full(self) -> bool:
        return len(self._body) == MAX_BYTES

    def to_json(self) -> dict[str, Any]:
        return {
            "headers": self._headers,
            "body": self._body.decode("utf-8", "replace"),
            "size": self.size,
            "is_whole": self.size == len(self._body),
        }


class Capture:
    """One request with its answer. ``id`` is that of its row; it is filled by one thread and may be
    read by another meanwhile."""

    def __init__(self, id: str, model: str, at: str | None, request: RelayRequest) -> None:
        self.id = id
        self.model = model
        self._at = at
        self._method = request.method
        self._target = redact(request.target)
        body = request.body.with_changes({})
        self._request = Part(request.headers)
        for piece in body if isinstance(body, Spooled) else (body,):
            self._request.add(piece)
            if self._request.is_full:
                break  # the rest of a large one is not read
        self._request.size = len(body)
        self._status: int | None = None
        self._answer: Part | None = None

    def record(self, answer: RelayResponse) -> RelayResponse:
        """The same answer, which is kept as it goes out."""
        self._status = int(answer.status.partition(" ")[0])
        self._answer = part = Part(answer.headers)

        def pieces() -> Iterator[bytes]:
            for piece in answer:
                part.add(piece)
                yield piece

        recorded = RelayResponse(answer.status, answer.headers, pieces(), answer.close)
        recorded.is_stream = answer.is_stream
        return recorded

    def to_json(self, *, whole: bool = True) -> dict[str, Any]:
        """``status`` and ``answer`` are null where there was none."""
        shown: dict[str, Any] = {
            "id": self.id,
            "model": self.model,
            "started_at": self._at,
            "method": self._method,
            "target": self._target,
            "status": self._status,
        }
        if whole:
            shown["request"] = self._request.to_json()
            shown["answer"] = self._answer and self._answer.to_json()
        return shown


class Captures:
    """The last ones, of all models."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Capture] = OrderedDict()

    def begin(self, id: str, model: str, request: RelayRequest) -> Capture:
        """Keeps a request that is about to be sent. Raises OSError where its body cannot be
        read."""
        capture = Capture(id, model, self._clock.iso(self._clock.monotonic()), request)
        with self._lock:
            self._kept[id] = capture
            while len(self._kept) > MAX_CAPTURES:
                self._kept.popitem(last=False)
        return capture

    def find(self, id: str) -> Capture | None:
        return self._kept.get(id)

    def all(self) -> list[Capture]:
        """The newest first."""
        with self._lock:
            return list(reversed(self._kept.values()))

    def discard(self, model: str) -> None:
        """Those of this model."""
        with self._lock:
            for capture in list(self._kept.values()):
                if capture.model == model:
                    del self._kept[capture.id]

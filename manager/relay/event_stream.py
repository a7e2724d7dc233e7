"""Server-sent events on their way through: pure, bytes in, bytes out.

Events are passed on whole and unchanged. Only the last, incomplete event is buffered
until the rest of it has arrived, so that a stream that breaks never ends in half an event.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from manager import tokens
from manager.interfaces import AnswerError, StreamProtocol, error_of, find_error_offsets
from manager.tokens import TokenUsage

# Beyond this an event is passed on in parts: memory is worth more than its wholeness.
MAX_BUFFERED = 1 << 20

_BLANK_LINES = (b"\n\n", b"\r\n\r\n")


class EventStream:
    """One stream. Feed it what arrives; forward what it returns.

    ``strip_usage`` takes the extra usage chunk out that the manager asked for and the client did
    not. ``chunks`` counts the events so far, ``done`` says that the line has passed that ends a
    stream of this protocol, and ``error`` is one that the server has reported in it.
    """

    def __init__(self, protocol: StreamProtocol, strip_usage: bool = False) -> None:
        self.chunks = 0
        self.done = False
        self.error: AnswerError | None = None
        self._protocol = protocol
        self._strip_usage = strip_usage
        self._buffer = b""
        self._first: bytes | None = None  # events with usage
        self._last: bytes | None = None
        # The last that may have ended the answer, as events and an offset: few are ever read.
        self._finish: tuple[bytes, int] | None = None

    def feed(self, piece: bytes) -> bytes:
        """Takes the next bytes, as they came; returns those to send on now."""
        data = self._buffer + piece if self._buffer else piece
        end = _end_of_events(data, len(self._buffer))
        if end == len(data):
            self._buffer = b""
        elif len(data) - end > MAX_BUFFERED:
            self._buffer = b""
            end = len(data)
        else:
            self._buffer = data[end:]
            data = data[:end]
        return self._read(data) if data else b""

    def flush(self) -> bytes:
        """At a clean end of the stream: what was buffered, an event with no blank line."""
        rest, self._buffer = self._buffer, b""
        if rest and not self.has_ended and (error := error_of(_decoded(rest))) is not None:
            # Some servers send the error of a stream that has begun as it is, and no event:
            # nobody would see it.
            self.error = error
            return b"data: " + rest.strip().replace(b"\n", b"\ndata: ") + b"\n\n"
        return self._read(rest) if rest else b""

    @property
    def has_ended(self) -> bool:
        """Whether the answer has, or the server has said why not: then nothing was cut short,
        whatever becomes of the connection."""
        if self.done or self.error is not None:
            return True
        if self._finish is None:
            return False
        data, at = self._finish
        start, end = _event_around(data, at, 0)
        return self._protocol.is_finish(_data_of(data[start:end]))

    def usage(self) -> TokenUsage | None:
        """The tokens that the stream reported; None where it reported none."""
        first = tokens.from_answer(_data_of(self._first)) if self._first else None
        last = tokens.from_answer(_data_of(self._last)) if self._last else None
        return tokens.merge(first, last)

    def estimate(self) -> TokenUsage | None:
        """For a stream that reported none: a chunk is about a token. None for one that failed
        before its first."""
        if self.error is not None and self.chunks <= 0:
            return None
        return TokenUsage(completion_tokens=max(0, self.chunks), estimated=True)

    def _read(self, data: bytes) -> bytes:
        """Reads whole events; returns what is to be sent on of them. Plain searches, and more only
        where they hit: this is asked of every piece of every stream."""
        self.chunks += data.count(b"\ndata:") + data.startswith(b"data:")
        if offsets := find_error_offsets(data):
            self._read_errors(data, offsets)
        if not self.done:
            if self._protocol.finish and (at := data.rfind(self._protocol.finish)) >= 0:
                self._finish = (data, at)
            if self._protocol.ends(data):
                self.done = True
                self.chunks -= 1
        if offsets := tokens.find_usage_offsets(data):
            data = self._read_usage(data, offsets)
        return data

    def _read_errors(self, data: bytes, offsets: list[int]) -> None:
        for start, end in _events_at(data, offsets):
            event = data[start:end]
            if (error := error_of(_data_of(event))) is not None:
                self.chunks -= 1
            else:
                error = error_of({"error": _data_of(event, b"error:")})
            self.error = self.error or error

    def _read_usage(self, data: bytes, offsets: list[int]) -> bytes:
        kept = []
        position = 0
        for start, end in _events_at(data, offsets):
            event = data[start:end]
            self._first = self._first or event
            self._last = event
            if self._strip_usage and _is_usage_chunk(event):
                self.chunks -= 1
                kept.append(data[position:start])
            else:
                kept.append(data[position:end])
            position = end
        kept.append(data[position:])
        return b"".join(kept)


def _end_of_events(data: bytes, searched: int) -> int:
    """The index behind the last blank line; ``searched`` bytes are known to hold none."""
    if data.endswith((b"\n\n", b"\r\n\r\n")):
        return len(data)
    start = max(0, searched - 3)
    plain, windows = data.rfind(b"\n\n", start), data.rfind(b"\r\n\r\n", start)
    return max(plain + 2 if plain >= 0 else 0, windows + 4 if windows >= 0 else 0)


def _events_at(data: bytes, offsets: list[int]) -> Iterator[tuple[int, int]]:
    """Start and end of each event that an offset is in, once; the offsets are in order."""
    position = 0
    for offset in offsets:
        if offset >= position:  # else in the event before
            start, position = _event_around(data, offset, position)
            yield start, position


def _event_around(data: bytes, at: int, floor: int) -> tuple[int, int]:
    """Start and end of the event that the byte ``at`` is in; it starts at ``floor`` at least."""
    start, end = floor, len(data)
    for blank in _BLANK_LINES:
        before = data.rfind(blank, start, at)
        if before >= 0:
            start = before + len(blank)
        behind = data.find(blank, at, end)
        if behind >= 0:
            end = behind + len(blank)
    return start, end


def _data_of(event: bytes, field: bytes = b"data:") -> Any:
    lines = [line[len(field) :] for line in event.splitlines() if line.startswith(field)]
    return _decoded(b"\n".join(lines))


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_usage_chunk(event: bytes) -> bool:
    """Whether it holds usage and nothing of an answer. Of a usage chunk's choices servers make an
    empty list, null, or one choice that says nothing."""
    chunk = _data_of(event)
    if not isinstance(chunk, dict) or not isinstance(chunk.get("usage"), dict):
        return False
    choices = chunk.get("choices")
    if isinstance(choices, list):
        return all(isinstance(choice, dict) and _is_silent(choice) for choice in choices)
    # A chunk of OpenAI's, and no other event.
    return choices is None and ("choices" in chunk or "object" in chunk)


def _is_silent(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    spoken = delta.values() if isinstance(delta, dict) else (delta,)
    others = (value for name, value in choice.items() if name not in ("index", "delta"))
    return not any(spoken) and not any(others)

"""Server-sent events on their way through: pure, bytes in, bytes out.

Events are passed on whole and unchanged. Only the last, incomplete event is buffered
until the rest of it has arrived, so that a stream that breaks never ends in half an event.
"""

from __future__ import annotations

import json
import re
from typing import Any

from manager import tokens
from manager.tokens import TokenUsage

# Beyond this an event is passed on in parts: memory is worth more than its wholeness.
MAX_BUFFERED = 1 << 20

_BLANK_LINES = (b"\n\n", b"\r\n\r\n")
_DONE = re.compile(rb"(?:^|\n)data: ?\[DONE\]")


class EventStream:
    """One stream. Feed it what arrives; forward what it returns.

    ``strip_usage`` takes the extra usage chunk out that the manager asked for and the client
    did not. ``chunks`` counts the events so far, ``done`` says that ``[DONE]`` has passed.
    """

    def __init__(self, strip_usage: bool = False) -> None:
        self.chunks = 0
        self.done = False
        self._strip_usage = strip_usage
        self._buffer = b""
        self._first: bytes | None = None
        self._last: bytes | None = None

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
        if not data:
            return b""
        self.chunks += data.count(b"\ndata:") + data.startswith(b"data:")
        if offsets := tokens.find_usage_offsets(data):
            data = self._read_usage(data, offsets)
        # A plain search first: this is asked of every piece of every stream.
        if not self.done and b"[DONE]" in data and _DONE.search(data):
            self.done = True
            self.chunks -= 1
        return data

    def flush(self) -> bytes:
        """At a clean end of the stream: what was buffered, an event with no blank line."""
        rest, self._buffer = self._buffer, b""
        self.done = self.done or bool(_DONE.search(rest))
        return rest

    def usage(self) -> TokenUsage | None:
        """The tokens that the stream reported; None where it reported none."""
        first = tokens.from_answer(_data_of(self._first)) if self._first else None
        last = tokens.from_answer(_data_of(self._last)) if self._last else None
        return tokens.merge(first, last)

    def estimate(self) -> TokenUsage:
        """For a truncated stream: a chunk is about a token."""
        return TokenUsage(completion_tokens=max(0, self.chunks), estimated=True)

    def _read_usage(self, data: bytes, offsets: list[int]) -> bytes:
        kept = []
        position = 0
        for offset in offsets:
            if offset < position:
                continue  # in an event that has been read
            start, end = _event_around(data, offset, position)
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


def error_event(body: dict[str, Any]) -> bytes:
    """An error as the last event of a stream that has already begun."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def _end_of_events(data: bytes, searched: int) -> int:
    """The index behind the last blank line; ``searched`` bytes are known to hold none."""
    if data.endswith((b"\n\n", b"\r\n\r\n")):
        return len(data)
    start = max(0, searched - 3)
    plain, windows = data.rfind(b"\n\n", start), data.rfind(b"\r\n\r\n", start)
    return max(plain + 2 if plain >= 0 else 0, windows + 4 if windows >= 0 else 0)


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


def _data_of(event: bytes) -> Any:
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    try:
        return json.loads(b"\n".join(lines))
    except (ValueError, RecursionError):
        return None


def _is_usage_chunk(event: bytes) -> bool:
    chunk = _data_of(event)
    return isinstance(chunk, dict) and chunk.get("choices") == [] and "usage" in chunk

"""Server-sent events on their way through: pure, bytes in, bytes out.

Events are passed on whole and unchanged. Only the last, incomplete event is buffered
until the rest of it has arrived, so that a stream that breaks never ends in half an event.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from manager import tokens
from manager.interfaces import AnswerError, StreamProtocol, error_of, find_error_offsets
from manager.tokens import TokenUsage

# Beyond this an event is passed on in parts: memory is worth more than its wholeness.
MAX_BUFFERED = 1 << 20

# What ends an event, where lines end in LF, CR or CRLF: its last line's end, then an empty line's.
# One that ends in CR is over, and an LF may still follow, which belongs to the CR.
_WHOLE_ENDS = (b"\n\n", b"\n\r\n", b"\r\r\n")
_CR = 13  # a search for a number is the quickest

_UNNAMED_ERROR = "the model's server reported an error and did not say which"


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
        self.protocol = protocol
        self._strip_usage = strip_usage
        self._buffer = b""
        self._is_plain = False  # False while one of the next three is to be thought of
        self._is_start = True
        self._late_lf: bytes | None = None  # behind a CR: what an LF that follows is sent on as
        self._long: bytes | None = None  # in an event that is passed on in parts: its latest bytes
        self._long_usage: TokenUsage | None = None
        self._first: bytes | None = None  # events with usage
        self._last: bytes | None = None
        # The last that may have ended the answer, as events and an offset: few are ever read.
        self._finish: tuple[bytes, int] | None = None

    def feed(self, piece: bytes) -> bytes:
        """Takes the next bytes, as they came; returns those to send on now."""
        if not self._is_plain:
            return self._feed_with_care(piece)
        data = self._buffer + piece if self._buffer else piece
        if data.endswith(_WHOLE_ENDS):
            self._buffer = b""
            return self._read(data)
        return self._split(data, len(self._buffer))

    def flush(self) -> bytes:
        """At a clean end of the stream: what was buffered, an event with no blank line."""
        rest, self._buffer = self._buffer, b""
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
        return self.protocol.is_finish(data_of(data[start:end]))

    @property
    def truncated(self) -> str | None:
        """What is wrong with a stream whose connection has ended in order; None where nothing."""
        is_other = self.protocol.has_dialects and self._finish is None
        return None if self.has_ended or is_other else self.protocol.truncated

    def usage(self) -> TokenUsage | None:
        """The tokens that the stream reported; None where it reported none."""
        first = tokens.from_answer(data_of(self._first)) if self._first else None
        last = tokens.from_answer(data_of(self._last)) if self._last else None
        return tokens.merge(self._long_usage, tokens.merge(first, last))

    def estimate(self) -> TokenUsage | None:
        """For a stream that reported none: a chunk is about a token. None for one that failed
        before its first."""
        if self.error is not None and self.chunks <= 0:
            return None
        chunks = max(0, self.chunks - self.protocol.preface)
        return TokenUsage(completion_tokens=chunks, estimated=True)

    def result(self, status: int, error: str | None) -> tuple[int, str | None, TokenUsage | None]:
        """Status, error and tokens of a request whose stream has ended so: an error that the
        server has reported in it comes first."""
        usage = self.usage()
        if usage is None or (self.protocol.counts_prompt_first and self._first is self._last):
            usage = tokens.merge(usage, self.estimate())
        if self.error is not None:
            return self.error.status, self.error.message, usage
        return status, error, usage

    def _feed_with_care(self, piece: bytes) -> bytes:
        """As ``feed``, at the start of a stream, behind a CR and in a long event."""
        sent = b""
        if self._late_lf is not None and piece:
            if piece.startswith(b"\n"):
                sent, piece = self._late_lf, piece[1:]
            self._late_lf = None
        if self._long is not None:
            end = self._read_part(piece)
            sent, piece = sent + piece[:end], piece[end:]
        elif self._is_start:
            piece = self._buffer + piece
            self._buffer = b""
            if len(piece) < len(codecs.BOM_UTF8) and codecs.BOM_UTF8.startswith(piece):
                self._buffer = piece
                return b""
            self._is_start = False
            if piece.startswith(codecs.BOM_UTF8):
                sent, piece = codecs.BOM_UTF8, piece.removeprefix(codecs.BOM_UTF8)
        self._is_plain = self._long is None and self._late_lf is None
        if piece:
            sent += self._split(self._buffer + piece, len(self._buffer))
        return sent

    def _split(self, data: bytes, searched: int) -> bytes:
        """Reads the events that are whole, and buffers the rest; ``searched`` bytes are known to
        hold no event's end."""
        end = _end_of_events(data, max(0, searched - 1), len(data))
        self._buffer = data[end:]
        self._late_lf = _lf_behind(data, end)
        sent = self._read(data[:end]) if end else b""
        if len(self._buffer) > MAX_BUFFERED:
            self._read_part(self._buffer)
            sent, self._buffer = sent + self._buffer, b""
        self._is_plain = self._late_lf is None and self._long is None
        return sent

    def _read_part(self, piece: bytes) -> int:
        """Reads on in a long event; returns how many bytes of the piece are part of it."""
        known = self._long or b""
        data = known + piece
        end = _end_of_event(data, max(0, len(known) - 1))
        is_over = end >= 0
        if is_over:
            self._late_lf = _lf_behind(data, end)
            data = data[:end]
        self._long = None if is_over else data[-tokens.MAX_REPORT :]
        if self.protocol.has_dialects:
            self._finish = None  # it may be the last, and too little of it is kept to see that
        self._long_usage = tokens.from_part(data) or self._long_usage
        part = data[len(known) :]
        self.chunks += part.count(b"\ndata:") + (not known and part.startswith(b"data:"))
        if not self.done and self.protocol.is_ended_by(part):
            self.done = True
            self.chunks -= 1
        return len(part)

    def _read(self, data: bytes) -> bytes:
        """Reads whole events; returns what is to be sent on of them. Plain searches, and more only
        where they hit: this is asked of every piece of every stream."""
        self.chunks += data.count(b"\ndata:") + data.startswith(b"data:")
        if _CR in data:
            self.chunks += data.count(b"\rdata:")
        if offsets := find_error_offsets(data):
            data = self._read_errors(data, offsets)
        if not self.done:
            if self.protocol.finish and (at := data.rfind(self.protocol.finish)) >= 0:
                self._finish = (data, at)
            if self.protocol.is_ended_by(data):
                self.done = True
                self.chunks -= 1
        if offsets := tokens.find_usage_offsets(data):
            data = self._read_usage(data, offsets)
        return data

    def _read_errors(self, data: bytes, offsets: list[int]) -> bytes:
        kept = []
        position = 0
        for start, end in _events_at(data, offsets):
            event = data[start:end]
            if (error := error_in_event(event)) is not None:
                self.chunks -= len(_values(event, b"data:"))
            elif not self.has_ended and (error := error_of(_decoded(event))) is not None:
                # Some servers send the error of a stream that has begun as it is, and no event:
                # nobody would see it.
                kept += [data[position:start], _as_event(event)]
                position = end
            self.error = self.error or error
        kept.append(data[position:])
        return b"".join(kept)

    def _read_usage(self, data: bytes, offsets: list[int]) -> bytes:
        kept = []
        position = 0
        for start, end in _events_at(data, offsets):
            event = data[start:end]
            self._first = self._first or event
            self._last = event
            if self._strip_usage and _is_usage_chunk(event):
                self.chunks -= len(_values(event, b"data:"))
                kept.append(data[position:start])
                if self._late_lf is not None and end == len(data):
                    self._late_lf = b""
            else:
                kept.append(data[position:end])
            position = end
        kept.append(data[position:])
        return b"".join(kept)


def _end_of_events(data: bytes, start: int, stop: int) -> int:
    """The index behind the last blank line between the two; 0 where there is none."""
    at = data.rfind(b"\n\n", start, stop)
    if _CR in data:
        at = max(at, data.rfind(b"\n\r", start, stop), data.rfind(b"\r\r", start, stop))
    return _behind(data, at) if at >= 0 else 0


def _end_of_event(data: bytes, start: int) -> int:
    """The index behind the first blank line from ``start`` on; -1 where there is none."""
    first, stop = -1, len(data)
    for blank in (b"\n\n", b"\n\r", b"\r\r") if _CR in data else (b"\n\n",):
        at = data.find(blank, start, stop)
        if at >= 0:
            first, stop = at, at + 1
    return _behind(data, first) if first >= 0 else -1


def _behind(data: bytes, at: int) -> int:
    """The index behind the blank line at ``at``, with the LF of a CRLF."""
    return at + (3 if data[at + 1 : at + 3] == b"\r\n" else 2)


def _lf_behind(data: bytes, end: int) -> bytes | None:
    """An LF that may come behind these bytes, where the event that ends there has ended in CR."""
    return b"\n" if end == len(data) and data.endswith(b"\r") else None


def _events_at(data: bytes, offsets: list[int]) -> Iterator[tuple[int, int]]:
    """Start and end of each event that an offset is in, once; the offsets are in order."""
    position = 0
    for offset in offsets:
        if offset >= position:  # else in the event before
            start, position = _event_around(data, offset, position)
            yield start, position


def _event_around(data: bytes, at: int, floor: int) -> tuple[int, int]:
    """Start and end of the event that the byte ``at`` is in; it starts at ``floor`` at least."""
    start = max(floor, _end_of_events(data, floor, at))
    end = _end_of_event(data, at)
    return start, end if end >= 0 else len(data)


def _values(event: bytes, field: bytes) -> list[bytes]:
    return [line[len(field) :] for line in event.splitlines() if line.startswith(field)]


def data_of(event: bytes, field: bytes = b"data:") -> Any:
    """The decoded data of one event; None where they are no JSON."""
    return _decoded(b"\n".join(_values(event, field)))


def error_in_event(event: bytes) -> AnswerError | None:
    """The error that one event is: by its data, by its name, whatever its data are then, or in a
    field of its own, which builds of llama.cpp send."""
    data = data_of(event)
    error = error_of(data)
    if error is None and b"error" in (name.strip() for name in _values(event, b"event:")):
        text = b"\n".join(_values(event, b"data:")).decode("utf-8", "replace").strip()[:200]
        error = error_of({"error": data}) or error_of({"error": text or _UNNAMED_ERROR})
    return error or error_of({"error": data_of(event, b"error:")})


def _as_event(data: bytes) -> bytes:
    return b"data: " + b"\ndata: ".join(data.strip().splitlines()) + b"\n\n"


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_usage_chunk(event: bytes) -> bool:
    """Whether it holds usage and nothing of an answer. Of a usage chunk's choices servers make an
    empty list, null, another empty value, or one choice that says nothing."""
    chunk = data_of(event)
    if not isinstance(chunk, dict) or not isinstance(chunk.get("usage"), dict):
        return False
    choices = chunk.get("choices")
    if isinstance(choices, list):
        return all(_is_silent(choice) for choice in choices)
    # A chunk of OpenAI's, and no other event.
    return _is_silent(choices) and ("choices" in chunk or "object" in chunk)


def _is_silent(choice: Any) -> bool:
    if not isinstance(choice, dict):
        return not choice
    delta = choice.get("delta")
    spoken = delta.values() if isinstance(delta, dict) else (delta,)
    others = (value for name, value in choice.items() if name not in ("index", "delta"))
    return not any(spoken) and not any(others)

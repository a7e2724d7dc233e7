"""HTTP/1.1 chunked framing (RFC 9112, section 7.1): pure, bytes in, bytes out."""

from __future__ import annotations

import re

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_MAX_SIZE_LINE = 4096
_MAX_TRAILERS = 1 << 16


class NotChunked(ValueError):
    """The bytes are not chunked framing."""


class ChunkedDecoder:
    """Takes the framing off a body, all that has arrived at once.

    A stream of tokens comes as hundreds of small chunks a read; one piece of data for all of
    them is what lets one process forward hundreds of thousands a second.
    """

    def __init__(self) -> None:
        self.finished = False
        self.rest = b""  # once finished: what came behind the body
        self._waiting = b""  # framing that is not complete yet
        self._left = 0  # data still to come of the chunk under way
        self._line_end_due = False
        self._in_trailers = False

    def feed(self, data: bytes) -> bytes:
        """The body's bytes that are in these; may be empty. Raises NotChunked."""
        if self._waiting:
            data = self._waiting + data
        parts = []
        at = 0
        while not self._in_trailers:
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                if self._left:
                    break
                self._line_end_due = True
            if self._line_end_due:
                if len(data) - at < 2:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise NotChunked("a chunk is longer than it said")
                at += 2
                self._line_end_due = False
            match = _SIZE_LINE.match(data, at)
            if not match:
                if len(data) - at > _MAX_SIZE_LINE or b"\n" in data[at:]:
                    raise NotChunked(f"a chunk's size is not a number: {data[at : at + 40]!r}")
                break
            at = match.end()
            self._left = int(match[1], 16)
            self._in_trailers = self._left == 0
        self._waiting = data[at:]
        if self._in_trailers:
            self._skip_trailers()
        return b"".join(parts)

    def _skip_trailers(self) -> None:
        waiting = self._waiting
        if waiting.startswith(b"\r\n"):
            end = 2
        else:
            end = waiting.find(b"\r\n\r\n") + 4
            if end < 4:
                if len(waiting) > _MAX_TRAILERS:
                    raise NotChunked("the trailers have no end")
                return
        self.finished = True
        self.rest = waiting[end:]
        self._waiting = b""

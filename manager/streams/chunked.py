"""HTTP/1.1 chunked framing (RFC 9112, section 7.1): pure, bytes in, bytes out."""

from __future__ import annotations

import re

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_MAX_SIZE_LINE = 4096
_MAX_TRAILERS = 1 << 16


class NotChunked(ValueError):
    """The bytes are not chunked framing; ``data`` is what came whole before those."""

    data = b""


class ChunkedDecoder:
    """Takes the framing off a body, all that has arrived at once.

    A stream of tokens comes as hundreds of small chunks a read; one piece of data for all of
    them lets one process forward hundreds of thousands a second.
    """

    def __init__(self) -> None:
        self.finished = False
        self.rest = b""  # once finished: the bytes after the body
        self._buffer = b""  # framing that is not complete yet
        self._remaining = 0  # bytes of the current chunk still to come
        self._line_end_due = False
        self._in_trailers = False

    def feed(self, data: bytes) -> bytes:
        """The body's bytes that are in these; may be empty. Raises NotChunked."""
        parts: list[bytes] = []
        try:
            self._read(self._buffer + data if self._buffer else data, parts)
        except NotChunked as error:
            error.data = b"".join(parts)
            raise
        return b"".join(parts)

    def _read(self, data: bytes, parts: list[bytes]) -> None:
        at = 0
        while not self._in_trailers:
            if self._remaining:
                part = data[at : at + self._remaining]
                parts.append(part)
                at += len(part)
                self._remaining -= len(part)
                if self._remaining:
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
            self._remaining = int(match[1], 16)
            self._in_trailers = self._remaining == 0
        self._buffer = data[at:]
        if self._in_trailers:
            self._skip_trailers()

    def _skip_trailers(self) -> None:
        buffer = self._buffer
        if buffer.startswith(b"\r\n"):
            end = 2
        else:
            end = buffer.find(b"\r\n\r\n") + 4
            if end < 4:
                if len(buffer) > _MAX_TRAILERS:
                    raise NotChunked("the trailers have no end")
                return
        self.finished = True
        self.rest = buffer[end:]
        self._buffer = b""


class UntilClose:
    """A body that ends with its connection, with the face of ChunkedDecoder."""

    finished = False
    rest = b""

    def feed(self, data: bytes) -> bytes:
        return data

"""A request's form (multipart/form-data): its fields, and how to change some of them in place.

It stays in the file that the server has received it in. Of a recording or a picture no more than a
piece is in memory, and everything that is not changed is sent as it came.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from multipart import (
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    content_disposition_quote,
)
from urllib3 import encode_multipart_formdata

from manager.errors import ApiError
from manager.relay.body import Spooled

MAX_PARTS = 256
MAX_TEXT = 1 << 16  # bytes of a field that is read; a longer one goes on unread
_PIECE = 1 << 18  # bytes that are in memory at a time
_BOUNDARY = re.compile("[ -~]{0,200}[!-~]")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')
_PARAMETER = re.compile(r";\s*([^=;\s]+)\s*=")


@dataclass(frozen=True)
class _Part:
    """``sent`` is all of it, from its delimiter to the next one: a range of the file, or new bytes.
    ``text`` is None of a file, and of what is too long to be read or not UTF-8."""

    name: str
    text: str | None
    sent: bytes | tuple[int, int]


class Form:
    """A form in ``file``, which has to stay open as long; ``boundary`` is what its header says.

    One in which another reader could see other parts, or another name of a part, is refused: the
    fields that are set here are to be those that the model's server reads.

    Raises ApiError 400 ``invalid_form``.
    """

    def __init__(self, file: BinaryIO, boundary: str) -> None:
        if not _BOUNDARY.fullmatch(boundary):
            raise _invalid("its Content-Type names no boundary")
        self._file = file
        self._delimiter = b"--" + boundary.encode()
        file.seek(0)
        try:
            self._parts, self._start, self._end = self._read(boundary)
        except MultipartError as error:
            raise _invalid(str(error.args[0])) from None
        self._size = file.tell()
        if len(self._of("model")) > 1:  # of which servers read the first or the last
            raise _invalid("the field model is there twice")

    @property
    def fields(self) -> Mapping[str, str]:
        """The texts, by name; the last of a repeated one."""
        return {part.name: part.text for part in self._parts if part.text is not None}

    def changed(
        self, strip: Collection[str], default: Mapping[str, Any], fixed: Mapping[str, Any]
    ) -> Form:
        """Without the parts ``strip``, files too, then with the fields of ``default`` that it
        lacks, then with those that are ``fixed``; the same object where all that is so already.
        What is not a text is written as in JSON. Raises ApiError."""
        stripped = set(strip) - fixed.keys()
        kept = [part for part in self._parts if part.name not in stripped]
        names = {part.name for part in kept}
        changes = {name: value for name, value in default.items() if name not in names} | {
            name: value
            for name, value in fixed.items()
            if [part.text for part in self._of(name)] != [_written(value)]
        }
        if len(kept) == len(self._parts) and not changes:
            return self
        form = copy.copy(self)
        form._parts = self._with(kept, changes)
        return form

    def with_changes(self, changes: dict[str, Any]) -> Spooled:
        """The form with these fields set, every other byte as it was. Raises ApiError."""
        parts = [part.sent for part in self._with(self._parts, changes)]
        return Spooled(self._file, _joined([(0, self._start), *parts, (self._end, self._size)]))

    def _of(self, name: str) -> list[_Part]:
        return [part for part in self._parts if part.name == name]

    def _with(self, parts: Sequence[_Part], changes: Mapping[str, Any]) -> list[_Part]:
        """In the place of the first of a name, or behind all others."""
        missing = dict(changes)
        result = []
        for part in parts:
            if part.name not in changes:
                result.append(part)
            elif part.name in missing:
                result.append(self._made(part.name, missing.pop(part.name)))
        return result + [self._made(name, value) for name, value in missing.items()]

    def _made(self, name: str, value: Any) -> _Part:
        text = _written(value)
        disposition = f"Content-Disposition: form-data; name={content_disposition_quote(name)}"
        content = f"{disposition}\r\n\r\n{text}\r\n".encode()
        if self._delimiter in content:
            # The client has chosen it, and could end the field within its value.
            raise _invalid(f"its boundary is in what is to be set as its field {name}")
        return _Part(name, text, self._delimiter + b"\r\n" + content)

    def _read(self, boundary: str) -> tuple[list[_Part], int, int]:
        """The parts, where the first begins, and where what is behind the last does. Raises
        ApiError, MultipartError."""
        segments = _Segments(boundary)
        delimiters = _Delimiters(self._delimiter)
        while piece := self._file.read(_PIECE):
            delimiters.feed(piece)
            segments.feed(piece)
        segments.close()
        found, at = segments.found, delimiters.found
        # Each delimiter of the parser's is among them; others are in a part, or around all parts.
        if len(at) != len(found) + 1:
            raise _invalid("its boundary is also within a part, or before or behind its parts")
        ranges = itertools.pairwise(at)
        parts = [_Part(name, text, sent) for (name, text), sent in zip(found, ranges, strict=True)]
        return parts, at[0], at[-1]


class _Segments:
    """The names and the texts of the parts."""

    def __init__(self, boundary: str) -> None:
        self.found: list[tuple[str, str | None]] = []
        self._parser = PushMultipartParser(boundary, max_segment_count=MAX_PARTS)
        self._name = ""
        self._text: bytearray | None = None

    def feed(self, piece: bytes) -> None:
        for event in self._parser.parse(piece):
            if isinstance(event, MultipartSegment):
                _check_names([v for n, v in event.headerlist if n == "Content-Disposition"])
                self._name = event.name or ""
                self._text = None if event.filename is not None else bytearray()
            elif event is None:
                self.found.append((self._name, _decoded(self._text)))
            elif self._text is not None:
                self._text += event
                if len(self._text) > MAX_TEXT:
                    self._text = None

    def close(self) -> None:
        self._parser.close()


def _check_names(dispositions: Sequence[str]) -> None:
    """Raises ApiError where readers differ in which name of a part they take."""
    named = _QUOTED.sub("", ";".join(dispositions)).lower()
    names = [name for name in _PARAMETER.findall(named) if name.partition("*")[0] == "name"]
    if names != ["name"] or len(dispositions) != 1:
        raise _invalid("a part has two names, or one that not every server reads")


class _Delimiters:
    """Where a delimiter begins, with or without an end of a line before it."""

    def __init__(self, delimiter: bytes) -> None:
        self.found: list[int] = []
        self._delimiter = delimiter
        self._rest = b""  # in which one may have begun
        self._at = 0  # where that is

    def feed(self, piece: bytes) -> None:
        """Raises ApiError."""
        data, searched = self._rest + piece, 0
        while (at := data.find(self._delimiter, searched)) >= 0:
            self.found.append(self._at + at)
            searched = at + len(self._delimiter)
            if len(self.found) > MAX_PARTS + 1:
                raise _invalid(f"it has more than {MAX_PARTS} parts")
        searched = max(searched, len(data) - len(self._delimiter) + 1)
        self._rest = data[searched:]
        self._at += searched


def encoded_form(fields: Mapping[str, str | tuple[str, bytes]]) -> tuple[bytes, str]:
    """A small form and its Content-Type; a file is its name and its bytes."""
    return encode_multipart_formdata(fields)


def _joined(parts: Sequence[bytes | tuple[int, int]]) -> list[bytes | tuple[int, int]]:
    """With ranges that follow each other as one."""
    joined: list[bytes | tuple[int, int]] = []
    for part in parts:
        before = joined[-1] if joined else b""
        if isinstance(before, tuple) and isinstance(part, tuple) and before[1] == part[0]:
            joined[-1] = (before[0], part[1])
        else:
            joined.append(part)
    return joined


def _decoded(text: bytearray | None) -> str | None:
    try:
        return None if text is None else text.decode()
    except UnicodeDecodeError:
        return None


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _invalid(why: str) -> ApiError:
    return ApiError(400, "invalid_form", f"The request's form cannot be read: {why}")

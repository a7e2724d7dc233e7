"""A request's JSON body: what it asks for, and how to change one field of it in place.

The body is never rebuilt: a client's numbers, spacing, order and unknown fields reach the
model as they were sent.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from manager.errors import ApiError

_DECODE = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\n\r]*")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


class Payload:
    """A JSON object as text, with the offsets of its top-level values.

    ``fields`` are the decoded top-level values; the last of a repeated key counts, as
    everywhere. A byte order mark in front is dropped. Raises ApiError 400 ``invalid_json``.
    """

    def __init__(self, body: bytes) -> None:
        body = body.removeprefix(codecs.BOM_UTF8)  # not every model's server reads it
        self._body = body
        self._spans: list[tuple[str, int, int, int]] = []  # where a key and its value begin, an end
        self.fields: dict[str, Any] = {}
        try:
            self._text = body.decode("utf-8")
            self._read()
        except (ValueError, RecursionError) as error:
            # ValueError: bad UTF-8, bad JSON, or a number of more digits than Python reads.
            message = f"The request body is not a JSON object: {json_fault(body, error)}"
            raise ApiError(400, "invalid_json", message) from None

    def with_changes(self, changes: dict[str, Any]) -> bytes:
        """The body with these top-level values set, every other byte as it was."""
        if not changes:
            return self._body
        parts: list[str] = []
        position = 0
        for key, _, start, end in self._spans:
            if key in changes:
                parts += [self._text[position:start], json.dumps(changes[key])]
                position = end
        missing = {key: value for key, value in changes.items() if key not in self.fields}
        if missing:
            added = json.dumps(missing)[1:-1]
            parts += [self._text[position : self._end], ", " if self.fields else "", added]
            position = self._end
        parts.append(self._text[position:])
        return "".join(parts).encode("utf-8")

    def changed(
        self, strip: Collection[str], default: Mapping[str, Any], fixed: Mapping[str, Any]
    ) -> Payload:
        """Without the fields ``strip``, then with those of ``default`` that it lacks, then with
        those that are ``fixed``; the same object where all that is so already."""
        stripped = {name for name in strip if name in self.fields and name not in fixed}
        left = self.fields.keys() - stripped
        added = {name: value for name, value in default.items() if name not in left} | {
            name: value
            for name, value in fixed.items()
            # 1 and true are equal in Python.
            if name not in self.fields or json.dumps(self.fields[name]) != json.dumps(value)
        }
        if not stripped and not added:
            return self
        payload = Payload(self._without(stripped - added.keys())) if stripped else self
        return Payload(payload.with_changes(added)) if added else payload

    def _without(self, names: Collection[str]) -> bytes:
        parts = [self._text[: self._spans[0][1]]]
        is_first, before = True, 0
        for key, key_at, _, end in self._spans:
            if key not in names:
                separator = "" if is_first else self._text[before:key_at]
                parts += [separator, self._text[key_at:end]]
                is_first = False
            before = end
        parts.append(self._text[before:])
        return "".join(parts).encode("utf-8")

    def _read(self) -> None:
        text = self._text
        at = self._skip(0)
        if text[at : at + 1] != "{":
            raise ValueError("it has to begin with {")
        at = self._skip(at + 1)
        if text[at : at + 1] == "}":
            self._finish(at)
            return
        while True:
            if text[at : at + 1] != '"':
                raise ValueError(f"a key in double quotes is expected at character {at}")
            key_at = at
            key, at = _DECODE(text, at)
            at = self._skip(at)
            if text[at : at + 1] != ":":
                raise ValueError(f"a colon is expected at character {at}")
            start = self._skip(at + 1)
            self.fields[key], end = _DECODE(text, start)
            self._spans.append((key, key_at, start, end))
            at = self._skip(end)
            separator = text[at : at + 1]
            if separator == "}":
                self._finish(at)
                return
            if separator != ",":
                raise ValueError(f"a comma or a closing brace is expected at character {at}")
            at = self._skip(at + 1)

    def _finish(self, at: int) -> None:
        self._end = at
        if self._skip(at + 1) != len(self._text):
            raise ValueError(f"there is more behind its end at character {at + 1}")

    def _skip(self, at: int) -> int:
        match = _SPACE.match(self._text, at)
        return match.end() if match else at


def json_fault(body: bytes, error: Exception) -> str:
    """Why a body could not be read; what it is instead, where it is no text in UTF-8."""
    if body.startswith(b"--"):
        return "it is a form (multipart/form-data), and JSON is taken here"
    for start, coding in _COMPRESSED.items():
        if body.startswith(start):
            return f"it is {coding}, which the header Content-Encoding: {coding} has to say"
    encoding = json.detect_encoding(body)
    if not encoding.startswith("utf-8"):
        return f"it is in {encoding[:6].upper()}, and JSON is sent in UTF-8"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8: {error.reason} at byte {error.start}"
    return str(error)

"""Answers in server-sent events: how they end, what an error in one looks like. Pure.

A protocol is asked with whole events, as bytes: what a mark means is only looked at where a plain
search has found it, since this is done for every piece of every stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_ERROR = re.compile(rb'"error"\s*:\s*[{"]')
_ERROR_FIELD = b"error:"
_UPSTREAM_FAULT = 502


@dataclass(frozen=True)
class AnswerError:
    """An error that a server reports in an answer which began with status 200; ``status`` is what
    it would have been as an answer of its own."""

    status: int
    message: str


@dataclass(frozen=True)
class StreamProtocol:
    """``end``: the word whose line ends a stream, b"" where none does: a stream without it was cut
    short, unless its answer has ended. ``finish``: what stands in the event that ends the answer;
    ``is_finish`` says whether it does, of the event's decoded data."""

    end: bytes = b""
    finish: bytes = b""
    is_finish: Callable[[Any], bool] = lambda _data: False

    def ends(self, data: bytes) -> bool:
        """Whether the line that ends a stream is among these events."""
        at = data.find(self.end) if self.end else -1
        while at >= 0:
            # In a model's words it is never at the beginning of a line: JSON escapes line ends.
            if data[data.rfind(b"\n", 0, at) + 1 : at] in (b"data: ", b"data:"):
                return True
            at = data.find(self.end, at + 1)
        return False

    def error_event(self, error: Mapping[str, Any]) -> bytes:
        """An error as the last event of a stream that has begun; ``error`` is its JSON body."""
        return b"data: " + json.dumps(error, ensure_ascii=False).encode() + b"\n\n"


def _has_finish_reason(data: Any) -> bool:
    choices = data.get("choices") if isinstance(data, dict) else None
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") for choice in choices
    )


ANY_STREAM = StreamProtocol()
"""A stream of which nothing is known: it ends with its connection."""
OPENAI_STREAM = StreamProtocol(b"[DONE]", b'"finish_reason"', _has_finish_reason)
"""Chat and text completions."""


def find_error_offsets(data: bytes) -> list[int]:
    """Where something that may be an error begins, in order: in an event's data, or as a field of
    an event of its own, which builds of llama.cpp send."""
    offsets = []
    if (at := data.find(b'"error"')) >= 0:
        offsets += [match.start() for match in _ERROR.finditer(data, at)]
    if data.startswith(_ERROR_FIELD):
        offsets.append(0)
    at = data.find(b"\n" + _ERROR_FIELD)
    while at >= 0:
        offsets.append(at + 1)
        at = data.find(b"\n" + _ERROR_FIELD, at + 1)
    return sorted(offsets)


def error_of(data: Any) -> AnswerError | None:
    """The error that a decoded answer or event reports; None where it is an answer.

    OpenAI and llama.cpp: ``{"error": {"message", "code"}}``, or a text in its place. Anthropic's
    event has the same. Responses: ``{"type": "response.failed", "response": {"error"}}``.
    """
    if not isinstance(data, dict):
        return None
    response = data.get("response")
    error = data.get("error") or (response.get("error") if isinstance(response, dict) else None)
    if isinstance(error, str) and error:
        return AnswerError(_UPSTREAM_FAULT, error)
    if not isinstance(error, dict) or not error:
        return None
    code, message = error.get("code"), error.get("message")
    status = code if isinstance(code, int) and 400 <= code < 600 else _UPSTREAM_FAULT
    text = message if isinstance(message, str) and message else json.dumps(error)[:200]
    return AnswerError(status, text)

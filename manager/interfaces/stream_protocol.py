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

from manager.errors import ApiError
from manager.interfaces.error_shapes import anthropic_error, openai_error, openai_event

_ERROR = re.compile(
    # The word comes first, which makes the search a quick one.
    rb"""error(?:
        (?<="error)"\s*:\s*[{"]
        | (?:(?<="type":"error) | (?<="type":\ "error))"
        | (?:(?<="object":"error) | (?<="object":\ "error))"
        | (?<![^\r\n]error):
        | (?:(?<=event:error)(?<![^\r\n]event:error) | (?<=event:\ error)(?<![^\r\n]event:\ error))
          (?![^\r\n])
    )""",
    re.VERBOSE,
)
_UPSTREAM_FAULT = 502


@dataclass(frozen=True)
class AnswerError:
    """An error that a server reports in an answer which began with status 200; ``status`` is what
    it would have been as an answer of its own."""

    status: int
    message: str


@dataclass(frozen=True)
class StreamProtocol:
    """How the streams of an API go.

    - ``name``: that among PROTOCOLS, "" for a plugin's own.
    - ``ends``: the words whose line, in the field ``end_field``, ends a stream; none where none
      does. A stream without one was cut short, unless its answer has ended.
    - ``finish``: what stands in the event that ends the answer; ``is_finish`` says whether it does,
      of the event's decoded data. ``has_dialects``: a stream in which ``finish`` never stood is of
      a server with events of its own, and ends with its connection.
    - ``preface``: how many events come before that of the first token. ``counts_prompt_first``: the
      first report of usage has the prompt's tokens, and those of the answer are only in the last.
    - ``error`` and ``error_name``: the data and the name of the event that an error is.
    """

    name: str = ""
    ends: tuple[bytes, ...] = ()
    end_field: bytes = b"data"
    finish: bytes = b""
    is_finish: Callable[[Any], bool] = lambda _data: False
    has_dialects: bool = False
    preface: int = 0
    counts_prompt_first: bool = False
    error: Callable[[ApiError], Mapping[str, Any]] = openai_error
    error_name: bytes = b""

    def is_ended_by(self, data: bytes) -> bool:
        """Whether a line that ends a stream is among these events."""
        for end in self.ends:
            at = data.find(end)
            while at >= 0:
                # In a model's words it is never at the beginning of a line: JSON escapes line ends.
                line = max(data.rfind(b"\n", 0, at), data.rfind(b"\r", 0, at)) + 1
                if data[line:at].rstrip(b" ") == self.end_field + b":":
                    return True
                at = data.find(end, at + 1)
        return False

    def error_event(self, error: ApiError) -> bytes:
        """An error as the last event of a stream that has begun."""
        name = b"event: " + self.error_name + b"\n" if self.error_name else b""
        body = json.dumps(self.error(error), ensure_ascii=False).encode()
        return name + b"data: " + body + b"\n\n"

    @property
    def truncated(self) -> str | None:
        """What is wrong with a stream that has none of its ends; None where it needs none."""
        if self.has_dialects:
            return "the model's server ended its stream before its last event"
        end = self.ends[0] if self.ends else self.finish
        return f"the model's server ended its stream without {end.decode()}" if end else None


def _has_finish_reason(data: Any) -> bool:
    choices = data.get("choices") if isinstance(data, dict) else None
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") for choice in choices
    )


def _is_message_stop(data: Any) -> bool:
    return isinstance(data, dict) and data.get("type") == "message_stop"


def _is_done(data: Any) -> bool:
    """Of a transcript by vLLM, too, whose events are like those of a chat."""
    kind = data.get("type") if isinstance(data, dict) else None
    return (isinstance(kind, str) and kind.endswith((".done", ".completed"))) or (
        _has_finish_reason(data)
    )


def _is_last(data: Any) -> bool:
    return isinstance(data, dict) and data.get("stop") is True


ANY_STREAM = StreamProtocol("any")
"""A stream of which nothing is known: it ends with its connection."""
OPENAI_STREAM = StreamProtocol(
    "openai", (b"[DONE]",), finish=b'"finish_reason"', is_finish=_has_finish_reason
)
"""Chat and text completions."""
RESPONSES_STREAM = StreamProtocol(
    "responses",
    (b"response.completed", b"response.incomplete", b"response.failed"),
    b"event",
    preface=4,
    error=openai_event,
    error_name=b"error",
)
"""OpenAI's Responses."""
ANTHROPIC_STREAM = StreamProtocol(
    "anthropic",
    (b"message_stop",),
    b"event",
    b'"message_stop"',
    _is_message_stop,
    preface=2,
    counts_prompt_first=True,
    error=anthropic_error,
    error_name=b"error",
)
"""Anthropic's messages."""
LLAMA_STREAM = StreamProtocol("llama.cpp", finish=b'"stop"', is_finish=_is_last)
"""llama.cpp's own completions."""
TRANSCRIPT_STREAM = StreamProtocol(
    "transcript", (b"[DONE]",), finish=b'"transcript', is_finish=_is_done, has_dialects=True
)
"""Of a recording."""
SPEECH_STREAM = StreamProtocol(
    "speech", (b"[DONE]",), finish=b'"speech.', is_finish=_is_done, has_dialects=True
)
"""Speech in events; more often it comes as the bytes of a sound file."""
IMAGE_STREAM = StreamProtocol(
    "image", (b"[DONE]",), finish=b'"image_', is_finish=_is_done, has_dialects=True
)
"""Pictures, of which sketches come first."""

PROTOCOLS = {
    each.name: each
    for each in (
        ANY_STREAM,
        OPENAI_STREAM,
        RESPONSES_STREAM,
        ANTHROPIC_STREAM,
        LLAMA_STREAM,
        TRANSCRIPT_STREAM,
        SPEECH_STREAM,
        IMAGE_STREAM,
    )
}


def find_error_offsets(data: bytes) -> list[int]:
    """Where something that may be an error is, in order: in the JSON of an answer or an event, in
    an event that is called an error, or in a line ``error:``, which builds of llama.cpp send."""
    if data.find(b"error") < 0:  # quicker than `in`: this is asked of every piece of every stream
        return []
    return [match.start() for match in _ERROR.finditer(data)]


def error_in(body: bytes) -> AnswerError | None:
    """The error that a whole answer with status 200 is."""
    if not find_error_offsets(body):
        return None
    try:
        return error_of(json.loads(body))
    except (ValueError, RecursionError):
        return None  # no JSON, or only the end of it


def error_of(data: Any) -> AnswerError | None:
    """The error that a decoded answer or event reports; None where it is an answer.

    OpenAI and llama.cpp: ``{"error": {"message", "code"}}``, or a text in its place. Anthropic's
    event has the same. Responses: ``{"type": "response.failed", "response": {"error"}}``, and
    ``{"type": "error", "message", "code"}``.
    """
    if not isinstance(data, dict):
        return None
    response = data.get("response")
    error = data.get("error") or (response.get("error") if isinstance(response, dict) else None)
    if not error and "error" in (data.get("type"), data.get("object")):
        error = data
    if isinstance(error, str) and error:
        return AnswerError(_status_of(data.get("code")), error)
    if not isinstance(error, dict) or not error:
        return None
    message = error.get("message")
    text = message if isinstance(message, str) and message else json.dumps(error)[:200]
    return AnswerError(_status_of(error.get("code")), text)


def _status_of(code: Any) -> int:
    """An error's code where it is a status of HTTP, as a number or a text."""
    if isinstance(code, str) and len(code) == 3 and code.isdecimal():
        code = int(code)
    return code if isinstance(code, int) and 400 <= code < 600 else _UPSTREAM_FAULT

"""An answer of one of OpenAI's endpoints as Ollama's clients expect it: JSON for JSON, lines of
JSON for server-sent events. Pure: bytes in, bytes out; the time is an argument."""

from __future__ import annotations

import codecs
import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from manager import tokens
from manager.interfaces import OPENAI_STREAM, error_of, find_error_offsets
from manager.streams import data_of, error_in_event
from manager.tokens import TokenUsage

MAX_EVENT = 1 << 24  # bytes, far above what a model says at a time
_REASONS = {"tool_calls": "stop", "function_call": "stop"}
_BAD_GATEWAY = 502
_MAX_MS = 1e12  # of a duration that a server reports
_MAX_SHOWN = 500  # characters of an error that is no JSON


class Kind(enum.Enum):
    """Whose answer it is, by its path."""

    CHAT = "/api/chat"
    GENERATE = "/api/generate"
    EMBED = "/api/embed"
    EMBEDDINGS = "/api/embeddings"


@dataclass
class _ToolCall:
    """Its arguments are JSON once all of them have come."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def decoded(self) -> dict[str, Any] | None:
        """Its arguments; None where they are no object, which Ollama's clients need."""
        try:
            arguments = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            return None
        return arguments if isinstance(arguments, dict) else None

    def fields(self, index: int) -> dict[str, Any]:
        named = {"id": self.id} if self.id else {}
        function = {"index": index, "name": self.name, "arguments": self.decoded()}
        return {**named, "function": function}


@dataclass
class _Message:
    """What a model says, or a piece of that."""

    content: str = ""
    thinking: str = ""
    calls: dict[int, _ToolCall] = field(default_factory=dict)

    @classmethod
    def of(cls, part: Mapping[str, Any], hides_thinking: bool) -> _Message:
        """What is in a choice's ``message`` or ``delta``, or in a choice that is a text; without
        the tool calls."""
        message = cls(_text(part.get("content")) or _text(part.get("text")))
        if not hides_thinking:  # llama.cpp's and DeepSeek's name for it, then vLLM's
            message.thinking = _text(part.get("reasoning_content")) or _text(part.get("reasoning"))
        return message

    def add_calls(self, calls: Any) -> None:
        """Of a stream each piece has the next part of some of them."""
        for place, one in enumerate(calls if isinstance(calls, list) else ()):
            if not isinstance(one, Mapping):
                continue
            index, function = one.get("index"), one.get("function")
            call = self.calls.setdefault(index if isinstance(index, int) else place, _ToolCall())
            call.id = call.id or _text(one.get("id"))
            if isinstance(function, Mapping):
                call.name = call.name or _text(function.get("name"))
                arguments = function.get("arguments")
                # Some servers send the object itself.
                is_object = isinstance(arguments, Mapping)
                call.arguments += json.dumps(arguments) if is_object else _text(arguments)

    @property
    def fault(self) -> str | None:
        """What is wrong with one of the calls."""
        for call in self.calls.values():
            if call.decoded() is None:
                return f"the model called {call.name!r} with arguments that are no JSON object"
        return None

    def fields(self, kind: Kind) -> dict[str, Any]:
        thinking = {"thinking": self.thinking} if self.thinking else {}
        if kind is Kind.GENERATE:
            return {"response": self.content, **thinking}
        message: dict[str, Any] = {"role": "assistant", "content": self.content, **thinking}
        if self.calls:
            message["tool_calls"] = [call.fields(n) for n, call in sorted(self.calls.items())]
        return {"message": message}


@dataclass(frozen=True)
class Form:
    """What an answer is written from beside what the model says.

    ``model`` is the name that was asked for. ``hides_thinking``: what the model thinks is left
    out. ``began`` and ``ready`` are when the request came and when its model was ready for it, on
    the monotonic clock in seconds; ``began_at`` is the first in epoch seconds.
    """

    kind: Kind
    model: str
    began: float
    began_at: float
    ready: float
    hides_thinking: bool = False

    def whole(self, answer: bytes, now: float) -> tuple[int, bytes]:
        """The status and the body for an answer that came whole, and was no refusal."""
        try:
            body = json.loads(answer)
            if (error := error_of(body)) is not None:
                return error.status, error_line(error.message)
            if self.kind in (Kind.EMBED, Kind.EMBEDDINGS):
                return 200, self._vectors(body, now)
            choice = body["choices"][0]
            part = choice.get("message") or choice
            message = _Message.of(part, self.hides_thinking)
            message.add_calls(part.get("tool_calls"))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return _BAD_GATEWAY, error_line("what the model's server sent is no answer to this")
        if (fault := message.fault) is not None:
            return _BAD_GATEWAY, error_line(fault)
        report = _Report(self, self.ready)
        report.read(body)
        return 200, self._line(now, message, report.end(choice.get("finish_reason"), now))

    def nothing_asked(self, reason: str, now: float) -> bytes:
        """The answer where the model was only to be loaded or unloaded, as ``reason`` says."""
        if self.kind is Kind.EMBEDDINGS:
            return _line({"embedding": []})
        if self.kind is Kind.EMBED:
            return _line({"model": self.model, "embeddings": []})
        return self._line(now, _Message(), {"done_reason": reason})

    def _line(self, now: float, message: _Message, end: Mapping[str, Any] | None = None) -> bytes:
        """A piece of an answer, the last of which has an ``end``."""
        head = {"model": self.model, "created_at": rfc3339(self.began_at + now - self.began)}
        tail = {"done": False} if end is None else {"done": True, **end}
        return _line({**head, **message.fields(self.kind), **tail})

    def _vectors(self, body: Any, now: float) -> bytes:
        data = sorted(body["data"], key=lambda one: one.get("index", 0))
        vectors = [one["embedding"] for one in data]
        if self.kind is Kind.EMBEDDINGS:
            return _line({"embedding": vectors[0]})
        usage = tokens.from_answer(body)
        return _line(
            {
                "model": self.model,
                "embeddings": vectors,
                "total_duration": _ns(now - self.began),
                "load_duration": _ns(self.ready - self.began),
                "prompt_eval_count": usage.prompt_tokens if usage else 0,
            }
        )


class _Report:
    """What the last line says of an answer: why it ended, its tokens, durations in ns."""

    def __init__(self, form: Form, first_at: float) -> None:
        self._form = form
        self._first_at = first_at
        self._usage: TokenUsage | None = None
        self._timings: Mapping[str, Any] = {}

    def read(self, event: Mapping[str, Any]) -> None:
        self._usage = tokens.merge(self._usage, tokens.from_answer(event))
        timings = event.get("timings")
        if isinstance(timings, Mapping):
            self._timings = timings

    def end(self, reason: Any, now: float) -> dict[str, Any]:
        form, usage = self._form, self._usage
        reason = _text(reason) or "stop"
        end: dict[str, Any] = {
            "done_reason": _REASONS.get(reason, reason),
            "total_duration": _ns(now - form.began),
            "load_duration": _ns(form.ready - form.began),
        }
        if usage is not None:
            end["prompt_eval_count"] = usage.prompt_tokens
        end["prompt_eval_duration"] = self._duration("prompt_ms", self._first_at - form.ready)
        if usage is not None:
            end["eval_count"] = usage.completion_tokens
        end["eval_duration"] = self._duration("predicted_ms", now - self._first_at)
        return end

    def _duration(self, name: str, measured: float) -> int:
        """As llama.cpp has measured it, in ms; else the seconds that were measured here."""
        value = self._timings.get(name)
        is_plausible = isinstance(value, int | float) and 0 <= value < _MAX_MS
        return _ns(value / 1000 if is_plausible and value is not None else measured)


class LineStream:
    """A stream of server-sent events as lines of JSON, however its bytes are cut. Feed it what
    arrives and send on what it returns; then ``close`` it."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._report: _Report | None = None
        self._rest = b""  # of a line that is not over
        self._is_behind_cr = False  # an LF that comes next belongs to it
        self._is_start = True
        self._event: list[bytes] = []  # lines of it
        self._size = 0
        self._last = _Message()  # what is said at the end: the tool calls
        self._reason: str | None = None
        self._is_over = False

    def feed(self, piece: bytes, now: float) -> bytes:
        """The lines that are complete with these bytes."""
        if self._is_behind_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._is_behind_cr = False
        self._is_behind_cr = self._is_behind_cr or piece.endswith(b"\r")
        first, *others = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest += first
        lines = b""
        for line in others:
            lines += self._take(self._rest, now)
            self._rest = line
        if self._size + len(self._rest) > MAX_EVENT and not self._is_over:
            lines += self._fail(f"the model's server has sent an event of over {MAX_EVENT} bytes")
        if self._is_over:
            self._rest, self._event, self._size = b"", [], 0
        return lines

    def close(self, now: float) -> bytes:
        """The lines that are left at the end of the stream, which may have been cut short."""
        lines = self._take(self._rest, now) + self._take(b"", now)
        self._rest = b""
        if self._is_over:
            return lines
        if self._reason is None:
            return lines + self._fail("the model's answer was cut short")
        return lines + self._finish(now)

    def _take(self, line: bytes, now: float) -> bytes:
        if self._is_start:
            self._is_start = False
            line = line.removeprefix(codecs.BOM_UTF8)
        if line:
            self._event.append(line)
            self._size += len(line)
            return b""
        event, self._event, self._size = b"\n".join(self._event), [], 0
        return self._read(event, now) if event and not self._is_over else b""

    def _read(self, event: bytes, now: float) -> bytes:
        if find_error_offsets(event) and (error := error_in_event(event)) is not None:
            return self._fail(error.message)
        if OPENAI_STREAM.is_ended_by(event):
            return self._finish(now)
        data = data_of(event)
        if not isinstance(data, dict):
            return b""
        self._report = self._report or _Report(self._form, now)
        self._report.read(data)
        choices = data.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        return self._read_choice(choice, now) if isinstance(choice, dict) else b""

    def _read_choice(self, choice: Mapping[str, Any], now: float) -> bytes:
        delta = choice.get("delta")
        part = delta if isinstance(delta, Mapping) else choice
        message = _Message.of(part, self._form.hides_thinking)
        self._last.add_calls(part.get("tool_calls"))
        self._reason = _text(choice.get("finish_reason")) or self._reason
        return self._form._line(now, message) if message.content or message.thinking else b""

    def _finish(self, now: float) -> bytes:
        if (fault := self._last.fault) is not None:
            return self._fail(fault)
        self._is_over = True
        report = self._report or _Report(self._form, now)
        calls = self._form._line(now, self._last) if self._last.calls else b""
        return calls + self._form._line(now, _Message(), report.end(self._reason, now))

    def _fail(self, message: str) -> bytes:
        self._is_over = True
        return error_line(message)


def error_line(message: str) -> bytes:
    """An error as Ollama's clients expect it: an answer of its own, or the last of a stream."""
    return _line({"error": message})


def refusal(body: bytes) -> bytes:
    """The same of a refusal by a model's server."""
    try:
        error = error_of(json.loads(body))
    except (ValueError, RecursionError):
        error = None
    text = error.message if error else body.decode("utf-8", "replace")[:_MAX_SHOWN].strip()
    return error_line(text or "the model's server has not said why")


def rfc3339(epoch: float) -> str:
    """A moment as Ollama writes it."""
    moment = datetime.fromtimestamp(epoch, timezone.utc)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _ns(seconds: float) -> int:
    """At least one: clients divide by it."""
    return max(1, round(seconds * 1e9))


def _line(body: Mapping[str, Any]) -> bytes:
    # In ASCII: JSON can spell half a character, which UTF-8 cannot.
    return json.dumps(body).encode() + b"\n"

"""How many tokens an answer reports: pure, bytes or JSON in, counts out.

Understood are OpenAI's ``usage`` of chat, completions and responses, with what DeepSeek and others
add to it, llama.cpp's ``timings`` and Anthropic's ``usage``, wherever they stand. Numbers come from
other programs, so whatever is not a plausible count is ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

# No context is longer than this; a larger number is a fault of the upstream, not a count.
MAX_TOKENS = 2**31 - 1

_BYTES_PER_TOKEN = 4  # of a JSON body, about
_MAX_ESTIMATED_BYTES = 1 << 16  # pictures are large, and few tokens

# A usage object in a part of an answer is read where it is no longer.
MAX_REPORT = 1 << 14  # bytes
_MAX_TRIED = 8  # of the usage objects in one part

_DECODE = json.JSONDecoder().raw_decode
_OBJECT = re.compile(rb"\s*:\s*\{")


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of one answer. ``prompt_tokens`` includes ``cached_tokens``."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False


def prompt_estimate(size: int) -> int:
    """About how many tokens a prompt of so many bytes has."""
    return min(size, _MAX_ESTIMATED_BYTES) // _BYTES_PER_TOKEN


def _plausible(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():  # some servers write 12.0
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS:
        return value
    return None


def _first(*counts: int | None) -> int | None:
    """The first count that is not 0. Some servers write a field of each API, and zeros into those
    that they do not know."""
    return max((count for count in counts if count is not None), key=bool, default=None)


def _count(source: Mapping[str, Any], *names: str) -> int | None:
    return _first(*(_plausible(source.get(name)) for name in names))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def from_answer(answer: Any) -> TokenUsage | None:
    """Reads a decoded answer or event; None where it reports no tokens.

    Anthropic counts its cached tokens beside ``input_tokens``, OpenAI inside of ``prompt_tokens``
    and ``input_tokens``; llama.cpp's ``prompt_n`` is what was computed and ``cache_n`` what came
    from its cache.
    """
    answer = _mapping(answer)
    usage = _usage_of(answer)
    timings = _mapping(answer.get("timings"))

    prompt = _count(usage, "prompt_tokens")
    cached = _first(
        _count(_mapping(usage.get("prompt_tokens_details")), "cached_tokens"),
        _count(_mapping(usage.get("input_tokens_details")), "cached_tokens"),
        _count(usage, "prompt_cache_hit_tokens", "cached_tokens"),  # DeepSeek, Moonshot
    )
    if not prompt and (fresh := _count(usage, "input_tokens")) is not None:
        read = _count(usage, "cache_read_input_tokens") or 0
        prompt = fresh + read + (_count(usage, "cache_creation_input_tokens") or 0)
        cached = read or cached
    cached = _first(cached, _count(timings, "cache_n"))
    if not prompt and (computed := _count(timings, "prompt_n")) is not None:
        prompt = computed + (cached or 0)
    completion = _first(
        _count(usage, "completion_tokens", "output_tokens"), _count(timings, "predicted_n")
    )
    if not prompt and not completion:
        prompt = _first(prompt, _count(usage, "total_tokens"))  # all that some rerankers report

    if prompt is None and completion is None:
        return None
    prompt = prompt or 0
    return TokenUsage(prompt, min(cached or 0, prompt), completion or 0)


def _usage_of(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The usage object: of the answer itself, of the ``response`` in an event of Responses, of the
    ``message`` in Anthropic's first event, of the ``x_groq`` in Groq's last chunk, or in the first
    choice, as Moonshot has it. Nowhere deeper: there stands what a client may have written."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    named = (answer.get(name) for name in ("response", "message", "x_groq"))
    for holder in (answer, *named, first):
        if usage := _mapping(_mapping(holder).get("usage")):
            return usage
    return {}


def from_body(body: bytes) -> TokenUsage | None:
    """Reads a JSON answer, whole or only its end; None where it reports no tokens."""
    if not find_usage_offsets(body):
        return None
    try:
        return from_answer(json.loads(body))
    except (ValueError, RecursionError):
        return from_part(body)  # only its end: of a large answer no more is kept


def from_part(part: bytes) -> TokenUsage | None:
    """Reads a part of a JSON answer or event, cut anywhere: the last report that is whole in it."""
    for at in reversed(find_usage_offsets(part)[-_MAX_TRIED:]):
        text = part[at : at + MAX_REPORT].decode("utf-8", "replace")
        try:
            name, end = _DECODE(text)
            value, _ = _DECODE(text, text.index("{", end))
        except (ValueError, RecursionError):
            continue
        if (usage := from_answer({name: value})) is not None:
            return usage
    return None


def find_usage_offsets(data: bytes) -> list[int]:
    """Where usage objects begin, in order.

    Plain searches, and the regex only where they hit: this is asked of every piece of every
    stream.
    """
    found = []
    for name in (b'"usage"', b'"timings"'):
        at = data.find(name)
        while at >= 0:
            if _OBJECT.match(data, at + len(name)):
                found.append(at)
            at = data.find(name, at + 1)
    return sorted(found)


def merge(first: TokenUsage | None, last: TokenUsage | None) -> TokenUsage | None:
    """One usage from a stream's first and last report: Anthropic's first has the prompt,
    its last the completion; everybody else's last has all."""
    if first is None or last is None:
        return last or first
    return replace(
        last,
        prompt_tokens=max(first.prompt_tokens, last.prompt_tokens),
        cached_tokens=max(first.cached_tokens, last.cached_tokens),
        completion_tokens=max(first.completion_tokens, last.completion_tokens),
    )

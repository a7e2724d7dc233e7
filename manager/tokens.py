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

_DECODE = json.JSONDecoder().raw_decode
_OBJECT = re.compile(rb"\s*:\s*\{")
_USAGE_OBJECT = re.compile(rb'"(?:usage|timings)"\s*:\s*\{')


@dataclass(frozen=True)
class TokenUsage:
    """Tokens of one answer. ``prompt_tokens`` includes ``cached_tokens``."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False


def prompt_estimate(size: int) -> int:
    """About how many tokens a request's body of so many bytes has."""
    return min(size, _MAX_ESTIMATED_BYTES) // _BYTES_PER_TOKEN


def _count(source: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = source.get(name)
        if isinstance(value, float) and value.is_integer():  # some servers write 12.0
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS:
            return value
    return None


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
    completion = _count(usage, "completion_tokens", "output_tokens")
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    cached = _count(_mapping(details), "cached_tokens")
    if cached is None:
        cached = _count(usage, "prompt_cache_hit_tokens", "cached_tokens")  # DeepSeek, Moonshot
    if prompt is None and (fresh := _count(usage, "input_tokens")) is not None:
        read = _count(usage, "cache_read_input_tokens") or 0
        prompt = fresh + read + (_count(usage, "cache_creation_input_tokens") or 0)
        cached = read or cached
    if prompt is None and completion is None:
        prompt = _count(usage, "total_tokens")  # some rerankers report no more than this
    if cached is None:
        cached = _count(timings, "cache_n")
    if prompt is None and (computed := _count(timings, "prompt_n")) is not None:
        prompt = computed + (cached or 0)
    if completion is None:
        completion = _count(timings, "predicted_n")

    if prompt is None and completion is None:
        return None
    prompt = prompt or 0
    return TokenUsage(prompt, min(cached or 0, prompt), completion or 0)


def _usage_of(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The usage object: of the answer itself, of the ``response`` in an event of Responses, of the
    ``message`` in Anthropic's first event, or in the first choice, as Moonshot has it. Nowhere
    deeper: there stands what a client may have written."""
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    for holder in (answer, answer.get("response"), answer.get("message"), first):
        if usage := _mapping(_mapping(holder).get("usage")):
            return usage
    return {}


def from_body(body: bytes) -> TokenUsage | None:
    """Reads a JSON answer, whole or only its end; None where it reports no tokens."""
    matches = list(_USAGE_OBJECT.finditer(body))
    if not matches:
        return None
    try:
        return from_answer(json.loads(body))
    except (ValueError, RecursionError):
        pass  # only its end: of a large answer no more is kept
    text = body[matches[-1].start() :].decode("utf-8", "replace")
    try:
        name, at = _DECODE(text)
        value, _ = _DECODE(text, text.index("{", at))
    except (ValueError, RecursionError):
        return None
    return from_answer({name: value})


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

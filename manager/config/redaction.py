"""What of a config may be a secret, which nobody is shown."""

from __future__ import annotations

import re
from collections.abc import Sequence

MASK = "***"

Spans = list[tuple[int, int]]
"""Parts of a text, from and to, in order."""

_SECRET = re.compile(
    r"(?<!require_)key|token|secret|pass(?!ed|ing|ive)|pwd|_pat\b|bearer|credential|auth|密码",
    re.IGNORECASE,
)
"""Words after which a secret may follow."""
_WORD = re.compile(r"[\w-]+")
_BEFORE_VALUE = re.compile(r"[\"']?(?:\s*[=:]\s*|\s+)(?=\S)")
_PASSWORD_IN_URL = re.compile(r"(://(?:[^/\s:@]*:)?)([^/\s]*)@")  # or a token, without a user


def is_secret_name(name: str) -> bool:
    """Whether what stands under that name, or behind that option, may be a secret."""
    return bool(_SECRET.search(name))


def secret_spans(text: str) -> Spans:
    """What may be a password in a URL, and what is behind a telling word: all of it to the end,
    since nobody knows where it ends."""
    found = [match.span(2) for match in _PASSWORD_IN_URL.finditer(text)]
    # A password is no telling word.
    rest = _PASSWORD_IN_URL.sub(lambda match: match[1] + "*" * len(match[2]) + "@", text)
    # Word by word: one pattern for all would try each word from every place in it.
    for word in _WORD.finditer(rest):
        if is_secret_name(word[0]) and (behind := _BEFORE_VALUE.match(rest, word.end())):
            return [span for span in found if span[1] < behind.end()] + [(behind.end(), len(text))]
    return found


def redact(text: str) -> str:
    """The text with asterisks for what `secret_spans` names."""
    return redact_spans(text, secret_spans(text))


def redact_spans(text: str, spans: Spans) -> str:
    """The text with asterisks for these parts of it."""
    pieces, position = [], 0
    for start, end in spans:
        pieces += [text[position:start], MASK]
        position = end
    return "".join([*pieces, text[position:]])


def argument_spans(arguments: Sequence[str]) -> list[Spans]:
    """For each argument what may be a secret: also one that follows ``--api-key`` and its like."""
    result: list[Spans] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next and not argument.startswith("--"):
            result.append([(0, len(argument))])
        else:
            result.append(secret_spans(argument))
        hide_next = name.startswith("-") and is_secret_name(name) and not equals
    return result

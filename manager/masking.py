"""What of a config may be a secret, which nobody is shown: the rules, for values and for lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MASK = "***"

Spans = list[tuple[int, int]]
"""Parts of a text, from and to, in order."""

_SECRET = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)
_WORD = re.compile(r"[\w-]+")
_BEFORE_VALUE = re.compile(r"[\"']?(?:\s*[=:]\s*|\s+)(?=\S)")
_BEFORE_VALUE_IN_LINE = re.compile(r"[\"']?(?:\s*[=:,]\s*|\s+)(?=\S)")
_PASSWORD_IN_URL = re.compile(r"(://[^/\s:@]*:)([^/\s]*)@")
_BLANK = " \t\r\n#"  # before a line's content; a text that is no YAML has comments, too
_BLOCK = re.compile(r"(?:^|\s)[|>][-+0-9]*(?:\s+#.*)?$")
_ENTRY = re.compile(r"[\"']?[^\s\"':#][^\"':#]*[\"']?:(?:\s|$)")


def is_telling(name: str) -> bool:
    """Whether what stands under that name, or behind that option, may be a secret."""
    return bool(_SECRET.search(name))


def secret_spans(text: str) -> Spans:
    """What may be a password in a URL, and what is behind a telling word: all of it to the end,
    since nobody knows where it ends."""
    return _spans(text, _BEFORE_VALUE)


def hidden(text: str) -> str:
    """The text with asterisks for what `secret_spans` names."""
    return masked_at(text, secret_spans(text))


def masked_at(text: str, spans: Spans) -> str:
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
        if hide_next and not argument.startswith("-"):
            result.append([(0, len(argument))])
        else:
            result.append(secret_spans(argument))
        hide_next = name.startswith("-") and is_telling(name) and not equals
    return result


def line_spans(lines: Iterable[str]) -> list[Spans]:
    """For each line what may be a secret, where the lines are no YAML: a comment, a broken file.

    It rather hides too much: what is behind a telling word, and where the value of such a word
    may go on, the lines below as well.
    """
    result: list[Spans] = []
    telling_indent: int | None = None  # lines that are deeper belong to a telling word
    block_indent: int | None = None  # deeper lines are one text
    is_key_only = False
    next_item = ""
    for line in lines:
        indent = len(line) - len(line.lstrip(_BLANK))
        content = line[indent:].rstrip()
        if not content:
            result.append([])
            continue
        if block_indent is not None and indent <= block_indent:
            block_indent = None
        is_deeper = telling_indent is not None and indent > telling_indent
        if is_deeper and is_key_only and _ENTRY.match(content):
            is_deeper, telling_indent = False, None  # a mapping: the word is the name of something
        if is_deeper or (next_item and _is_value(content, next_item)):
            result.append([(indent, indent + len(content))])
            is_key_only, next_item = False, ""
            continue
        found = _spans(line.rstrip(), _BEFORE_VALUE_IN_LINE)
        result.append(found)
        words = [word[0] for word in _WORD.finditer(content) if is_telling(word[0])]
        telling_indent = None
        if words:  # in a text, where secrets go to its end, to that of the text
            telling_indent = indent if block_indent is None else block_indent
        if block_indent is None and _BLOCK.search(content):
            block_indent = indent
        ends = bool(words) and content.rstrip("\"',:\\ \t").endswith(words[-1])
        is_key_only = ends and content.endswith(":")
        if ends and (content.startswith("- ") or is_key_only):
            next_item = "-"
        else:
            is_option = ends and (content.endswith(",") or words[-1].startswith("-"))
            next_item = "," if is_option else ""
    return result


def _is_value(content: str, kind: str) -> bool:
    """Whether the line may hold the argument of an option on the line before, which was an item
    of a list with dashes, or else of one in brackets or of a text."""
    if kind == "-":
        return content.startswith("- ") and not content[1:].lstrip(" \"'").startswith("-")
    return not content.lstrip("\"'").startswith("-")


def _spans(text: str, before_value: re.Pattern[str]) -> Spans:
    found = [match.span(2) for match in _PASSWORD_IN_URL.finditer(text)]
    # A password is no telling word.
    rest = _PASSWORD_IN_URL.sub(lambda match: match[1] + "*" * len(match[2]) + "@", text)
    # Word by word: one pattern for all would try each word from every place in it.
    for word in _WORD.finditer(rest):
        if is_telling(word[0]) and (behind := before_value.match(rest, word.end())):
            return [span for span in found if span[1] < behind.end()] + [(behind.end(), len(text))]
    return found

"""A config's text without its secrets, and with them again.

Whatever may be a secret is replaced where it stands by a numbered mark, ``<hidden 1>``, which YAML
takes for a plain value. A text that comes back edited has its secrets put back by their numbers,
wherever their marks stand now. No part has an end of line in it: every line keeps its number.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

import yaml

from manager.config import yaml_reader
from manager.config.redaction import (
    SECRET,
    Spans,
    argument_spans,
    is_reference,
    is_secret_name,
    secret_spans,
)
from manager.config.yaml_reader import TAG, Problem, Unreadable

_MARK = re.compile(r"<hidden (\d{1,6})>")
_LINE = re.compile("[^\r\n\x85\u2028\u2029]+")  # YAML ends lines at all of these
_ENTRY = re.compile(r"[\"']?[\w.-]+[\"']?:(?:\s|$)")
_TELLING = re.compile(rf"(?i).*?(?:{SECRET})[\w-]*[\s\"':=,]*")
_NOTE = re.compile(r"#\s*")
_SHOWN = "TokenTracker"  # a list of modes
_MASKED = ("env", "command", "queue")  # of which GET /api/config hides parts
_DEEP = 3  # levels of names: program or Local-Models, models, schemes; further down are values


def mask(text: str) -> str:
    """The text without its secrets."""
    pieces, position = [], 0
    for number, (start, end) in enumerate(_parts(text), 1):
        pieces += [text[position:start], f"<hidden {number}>"]
        position = end
    return "".join([*pieces, text[position:]])


def unmask(edited: str, original: str) -> tuple[str, list[Problem]]:
    """The edited text of a masked one with the secrets of the original, and what is wrong: marks
    of nothing, and marks at places where what they hide would be shown."""
    hidden = [original[start:end] for start, end in _parts(original)]
    pieces, position, length = [], 0, 0
    put_back: Spans = []
    problems = []
    for mark in _MARK.finditer(edited):
        number = int(mark[1])
        if not 1 <= number <= len(hidden):
            problems.append(Problem(_line_of(edited, mark.start()), f"{mark[0]} hides nothing"))
            continue
        pieces += [edited[position : mark.start()], hidden[number - 1]]
        length += mark.start() - position + len(hidden[number - 1])
        put_back.append((length - len(hidden[number - 1]), length))
        position = mark.end()
    restored = "".join([*pieces, edited[position:]])
    # Of a text that is no YAML too much is hidden to ask for that: it is to be mended.
    shown = _shown(put_back, _parts(restored, strictly=True)) if _is_document(original) else []
    as_before = set(mask(original).split("\n"))  # where nothing was changed nothing is told anew
    lines = edited.split("\n")
    problems += [
        Problem(line, "what is hidden would be shown here: write it anew")
        for line in sorted({_line_of(restored, start) for start, _ in shown})
        if lines[line - 1] not in as_before
    ]
    return restored, sorted(set(problems))


def _is_document(text: str) -> bool:
    try:
        yaml_reader.compose(text)
    except Unreadable:
        return False
    return True


def _shown(spans: Spans, hidden: Spans) -> Spans:
    """Those that are not within one of the hidden ones."""
    starts = [start for start, _ in hidden]
    result = []
    for start, end in spans:
        place = bisect_right(starts, start) - 1
        if place < 0 or end > hidden[place][1]:
            result.append((start, end))
    return result


def _line_of(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


# --- what is hidden --------------------------------------------------------------------------


def _parts(text: str, *, strictly: bool = False) -> Spans:
    """What may be a secret, by the places in the text, in order and apart. What looks like a mark
    is taken for one of them, so that it comes back as it was.

    ``strictly``: only where nobody else shows it either. A model's name or alias is hidden here
    from a telling word on, and told by every other answer.
    """
    try:
        found = list(_in_document(text, yaml_reader.compose(text), strictly))
    except Unreadable:
        found = list(_in_lines(text, 0, len(text)))
    found = [(start, end) for start, end in found if not is_reference(text[start:end])]
    found += [mark.span() for mark in _MARK.finditer(text)]
    result: Spans = []
    for start, end in sorted(set(found)):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        elif start < end:
            result.append((start, end))
    return result


def _in_document(text: str, root: yaml.Node | None, strictly: bool) -> Iterator[tuple[int, int]]:
    scalars: list[tuple[int, int]] = []
    seen = set()
    # Each with how deep it is, whether all of it is secret, and whether some of it may be.
    first = (root, 0, False, not strictly)
    waiting: list[tuple[yaml.Node, int, bool, bool]] = [first] if root else []  # type: ignore[list-item]
    while waiting:
        node, depth, is_secret, may_be = waiting.pop()
        if (id(node), is_secret, may_be) in seen:
            continue
        seen.add((id(node), is_secret, may_be))
        if isinstance(node, yaml.ScalarNode):
            span = node.start_mark.index, node.end_mark.index
            scalars.append(span)
            if is_secret or may_be:
                yield from _in_scalar(text, node, *span, is_secret)
        elif isinstance(node, yaml.SequenceNode):
            texts = [one.value if isinstance(one, yaml.ScalarNode) else "" for one in node.value]
            for item, value, spans in zip(node.value, texts, argument_spans(texts), strict=True):
                is_whole = may_be and bool(value) and spans == [(0, len(value))]
                waiting.append((item, depth + 1, is_secret or is_whole, may_be))
        else:
            for key, value in node.value:
                is_all = value.tag == TAG + "null"  # such as {API_KEY=abc}
                waiting.append((key, depth + 1, False, not strictly or (may_be and is_all)))
                name = key.value if isinstance(key, yaml.ScalarNode) else ""
                # A model may be called Monkey.
                is_name = isinstance(value, yaml.MappingNode) and depth < _DEEP
                is_telling_key = is_secret_name(name) and not is_name and name != _SHOWN
                is_kept = may_be or name in _MASKED
                waiting.append((value, depth + 1, is_secret or is_telling_key, is_kept))
    # What is between scalars is comments, and marks of YAML's own that tell nothing.
    position = 0
    for start, end in [*sorted(scalars), (len(text), len(text))]:
        yield from _in_lines(text, position, start)
        position = max(position, end)


def _in_scalar(
    text: str, node: yaml.ScalarNode, start: int, end: int, is_secret: bool
) -> Iterator[tuple[int, int]]:
    """Of a secret value all, line by line; of another what is behind a telling word."""
    if node.style in ("|", ">"):
        start = text.index("\n", start, end) if "\n" in text[start:end] else end  # its header
    if is_secret and not (node.tag == TAG + "null" and start == end):
        for line in _LINE.finditer(text, start, end):
            blank = len(line[0]) - len(line[0].lstrip(" \t"))
            yield line.start() + blank, line.start() + len(line[0].rstrip())
    elif spans := secret_spans(node.value):
        written = text[start:end]
        if node.style in ("'", '"'):
            start, written = start + 1, written[1:-1]
        if written == node.value:
            yield from ((start + low, start + high) for low, high in spans)
        else:  # escaped, or on several lines
            yield from _in_scalar(text, node, start, start + len(written), True)


def _in_lines(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What is behind a telling word in comments, or in a text that is no YAML, and the lines below
    up to the next entry that is no deeper: rather too much is hidden than too little."""
    before = text[text.rfind("\n", 0, start) + 1 : start]
    telling: int | None = None
    for line in _LINE.finditer(text, start, end):
        content = line[0].lstrip(" \t#")
        indent = len(line[0]) - len(content)
        is_entry = telling is not None and indent <= telling and _ENTRY.match(content)
        if telling is not None and not is_entry:
            yield line.start() + indent, line.end()
            continue
        for low, high in secret_spans(line[0]):
            yield line.start() + low, line.start() + high
        telling = indent if is_secret_name(content) else None
        if word := _TELLING.match(line[0]):  # such as an option in a list, before its comma
            yield line.start() + word.end(), line.end()
        if line.start() == start and is_secret_name(before) and (note := _NOTE.search(line[0])):
            yield line.start() + note.end(), line.end()  # of a key without a value

"""A config's text without its secrets.

What is hidden is replaced where it stands, line by line, so that all else is as it was and every
line keeps its number.
"""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from manager import yamlnodes
from manager.masking import (
    MASK,
    Spans,
    argument_spans,
    is_telling,
    line_spans,
    secret_spans,
)
from manager.yamlnodes import TAG, Unreadable

_PROPERTIES = re.compile(r"(?:[&!]\S*\s+)*")
_LINE = re.compile("[^\r\n\x85\u2028\u2029]+")  # YAML ends lines at all of these
_NOTHING = ("~", "null")
_SHOWN = ("program", "TokenTracker")  # a list of modes
_SCHEME_DEPTH = 3  # of the root, program and Local-Models are 0 and 1

Path = tuple[Any, ...]
Edit = tuple[int, int, str]
"""What is to stand instead of the text from and to."""


@dataclass(frozen=True)
class Scalar:
    """A scalar in a text; `start` and `end` are of what was written, but for an anchor,
    a tag and a block's first line."""

    path: Path
    place: Path | None  # of an item of a list: by its number
    node: yaml.ScalarNode
    start: int
    end: int

    @property
    def style(self) -> str:
        return self.node.style or ""


@dataclass(frozen=True)
class Document:
    """A text that is YAML. `scalars` are all, keys too, each once and in the order of the text."""

    text: str
    root: yaml.Node | None
    scalars: list[Scalar]

    @classmethod
    def read(cls, text: str) -> Document:
        """Raises Unreadable."""
        root = yamlnodes.compose(text)
        return cls(text, root, _scalars(root, text))

    def masked(self) -> str:
        """The text with its secrets masked; in rare cases that is no YAML any more."""
        return replaced(self.text, self.mask_edits())

    def mask_edits(self) -> tuple[Edit, ...]:
        """What masks the secrets."""
        secrets = _Secrets(self.root)
        edits: list[Edit] = []
        for scalar in self.scalars:
            whole = id(scalar.node) in secrets.whole
            spans = _merged(secrets.parts[id(scalar.node)])
            if whole or spans:
                edits += _scalar_edits(self.text, scalar, None if whole else spans)
        edits += comment_edits(self.text, comments(self), secrets.empty)
        return tuple(sorted(edits))


@dataclass(frozen=True)
class Masked:
    """A text with asterisks, which `edits` made from the original; `documents` are the original
    and this one, or None where it is not YAML and was masked by a look at each line."""

    text: str
    edits: tuple[Edit, ...]
    documents: tuple[Document, Document] | None


def mask(text: str) -> Masked:
    """The text with ``***``` for whatever may be a secret, by the rules of `manager.masking`.

    In quotes where YAML needs them. A comment is masked line by line, and so is all of a text
    that is not YAML.
    """
    try:
        document = Document.read(text)
    except Unreadable:
        edits = _line_edits(text)
        return Masked(replaced(text, edits), edits, None)
    edits = document.mask_edits()
    try:
        shown = Document.read(replaced(text, edits))
        if len(shown.scalars) == len(document.scalars):
            return Masked(shown.text, edits, (document, shown))
    except Unreadable:
        pass  # such as an alias of an anchor that is a part of what was hidden
    edits = _united([*edits, *_line_edits(text)])
    return Masked(replaced(text, edits), edits, None)


def replaced(text: str, edits: Sequence[Edit]) -> str:
    """The text with these edits, which are in order."""
    pieces, position = [], 0
    for start, end, replacement in edits:
        pieces += [text[position:start], replacement]
        position = end
    return "".join([*pieces, text[position:]])


def _united(edits: list[Edit]) -> tuple[Edit, ...]:
    """One mask for those that overlap; they are all within a line."""
    result: list[Edit] = []
    for start, end, replacement in sorted(edits):
        if result and start < result[-1][1]:
            first, last, _ = result.pop()
            start, end, replacement = first, max(last, end), MASK
        result.append((start, end, replacement))
    return tuple(result)


def _line_edits(text: str) -> tuple[Edit, ...]:
    lines = text.split("\n")
    edits, offset = [], 0
    for line, spans in zip(lines, line_spans(lines), strict=True):
        edits += [(offset + start, offset + end, MASK) for start, end in spans]
        offset += len(line) + 1
    return tuple(edits)


# --- where the values are ----------------------------------------------------------------


def _scalars(root: yaml.Node | None, text: str) -> list[Scalar]:
    result: list[Scalar] = []
    seen: set[int] = set()
    waiting: list[tuple[yaml.Node, Path, Path | None]] = [(root, (), None)] if root else []
    while waiting:
        node, path, place = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            start, end = node.start_mark.index, node.end_mark.index
            if properties := _PROPERTIES.match(text, start, end):
                start = properties.end()
            if node.style in ("|", ">") and (header := _LINE.match(text, start, end)):
                start = header.end()
            result.append(Scalar(path, place, node, start, end))
        elif isinstance(node, yaml.SequenceNode):
            waiting += reversed(list(_items(path, node.value)))
        else:
            waiting += reversed(list(_entries(path, node.value)))
    return result


def _entries(
    path: Path, entries: list[tuple[yaml.Node, yaml.Node]]
) -> Iterator[tuple[yaml.Node, Path, None]]:
    times: defaultdict[str, int] = defaultdict(int)
    for key, value in entries:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        yield key, (*path, "?", name, times[name]), None
        yield value, (*path, ":", name, times[name]), None
        times[name] += 1


def _items(path: Path, items: list[yaml.Node]) -> Iterator[tuple[yaml.Node, Path, Path]]:
    """An item of a list is known by what it says, or by the option before it, so that others may
    come before it."""
    times: defaultdict[tuple[str, str], int] = defaultdict(int)
    before = ""
    for number, item in enumerate(items):
        place = (*path, "-", number)
        if isinstance(item, yaml.ScalarNode):
            says = (before if item.value == MASK else "", item.value)
            yield item, (*path, "-", says, times[says]), place
            times[says] += 1
            before = item.value
        else:
            yield item, place, place


def _merged(spans: Spans) -> Spans:
    result: Spans = []
    for start, end in sorted(set(spans)):
        if result and start <= result[-1][1]:
            start, end = result[-1][0], max(result.pop()[1], end)
        result.append((start, end))
    return result


class _Secrets:
    """Which nodes of a document are secret, as a whole or in parts of their values, by id; and
    where telling keys end that have no value, but perhaps a comment that was meant as one."""

    def __init__(self, root: yaml.Node | None) -> None:
        self.whole: set[int] = set()
        self.parts: defaultdict[int, Spans] = defaultdict(list)
        self.empty: list[int] = []
        seen: set[tuple[int, bool]] = set()
        # With the path as far as a scheme, and whether all below is secret.
        waiting: list[tuple[yaml.Node, Path, bool]] = [(root, (), False)] if root else []
        while waiting:
            node, path, hide = waiting.pop()
            if (id(node), hide) in seen:
                continue
            seen.add((id(node), hide))
            if isinstance(node, yaml.ScalarNode):
                self._scalar(node, hide, secret_spans(node.value))
            elif isinstance(node, yaml.SequenceNode):
                waiting += [(item, path, hide) for item in self._items(node, hide)]
            else:
                for key, value in node.value:
                    waiting += self._entry(key, value, path, hide)

    def _items(self, node: yaml.SequenceNode, hide: bool) -> list[yaml.Node]:
        """Notes a list's scalars; the items that are none."""
        is_scalar = [isinstance(item, yaml.ScalarNode) for item in node.value]
        texts = [
            item.value if scalar else "" for item, scalar in zip(node.value, is_scalar, strict=True)
        ]
        for item, scalar, spans in zip(node.value, is_scalar, argument_spans(texts), strict=True):
            if scalar:
                whole = bool(item.value) and spans == [(0, len(item.value))]
                self._scalar(item, hide or whole, spans)
        return [item for item, scalar in zip(node.value, is_scalar, strict=True) if not scalar]

    def _entry(
        self, key: yaml.Node, value: yaml.Node, path: Path, hide: bool
    ) -> list[tuple[yaml.Node, Path, bool]]:
        if not isinstance(key, yaml.ScalarNode):
            return [(key, path, hide), (value, path, hide)]
        below = (*path, key.value) if len(path) <= _SCHEME_DEPTH else path
        is_name = isinstance(value, yaml.MappingNode) and len(path) < _SCHEME_DEPTH
        is_secret = is_telling(key.value) and not is_name and below != _SHOWN
        if value.tag == TAG + "null":
            if is_secret:
                self.empty.append(key.end_mark.index)
            self._scalar(key, False, secret_spans(key.value))  # such as {API_KEY=abc}
        return [(value, below, hide or is_secret)]

    def _scalar(self, node: yaml.ScalarNode, hide: bool, spans: Spans) -> None:
        is_nothing = node.value.lower() in _NOTHING or node.start_mark.index == node.end_mark.index
        if hide and not (node.tag == TAG + "null" and is_nothing):
            self.whole.add(id(node))
        else:
            self.parts[id(node)] += spans


def _scalar_edits(text: str, scalar: Scalar, spans: Spans | None) -> list[Edit]:
    """What hides these parts of the value, or all of it; where the value was written in other
    characters than it has, everything from the first of them."""
    start, end = scalar.start, scalar.end
    if scalar.style in ("'", '"'):
        start, end = start + 1, end - 1
    written, value = text[start:end], scalar.node.value
    if spans is not None:
        first = spans[0][0]
        if written == value:
            return [(start + low, start + high, MASK) for low, high in spans]
        if scalar.style == "|" and (offsets := _literal_offsets(written, value)) is not None:
            return _literal_edits(value, spans, [start + offset for offset in offsets])
        is_block = scalar.style in ("|", ">")
        is_escaped = re.search(r"[\\'\"]", value[:first])
        if first and written.startswith(value[:first]) and not is_block and not is_escaped:
            return _masked_lines(text, start + first, end)
    edits = _masked_lines(text, start, end)
    if not scalar.style:  # YAML takes no asterisk there
        edits[0] = (*edits[0][:2], '"' + edits[0][2])
        edits[-1] = (*edits[-1][:2], edits[-1][2] + '"')
    return edits


def _masked_lines(text: str, start: int, end: int) -> list[Edit]:
    """One mask for what is on the first line, one for each further line that is not blank."""
    edits: list[Edit] = []
    for line in _LINE.finditer(text, start, end):
        low, high = line.span()
        if low > start or high < end:
            blank = len(line[0]) - len(line[0].lstrip(" \t"))
            low, high = (low if low == start else low + blank), low + len(line[0].rstrip(" \t"))
        if low < high:
            edits.append((low, high, MASK))
    return edits or [(start, start, MASK)]


def _literal_offsets(written: str, value: str) -> list[int] | None:
    """Where each line of a literal block's value begins in what was written, behind its header;
    None where they are not the same lines."""
    lines = list(re.finditer(r"(?<=\n)[^\r\n]*", written))
    offsets = []
    for number, line in enumerate(value.split("\n")):
        if number >= len(lines):
            if line:
                return None
            break
        if not lines[number][0].endswith(line):
            return None
        offsets.append(lines[number].end() - len(line))
    return offsets


def _literal_edits(value: str, spans: Spans, offsets: list[int]) -> list[Edit]:
    edits = []
    position = 0
    for offset, line in zip(offsets, value.split("\n"), strict=False):
        for low, high in spans:
            first, last = max(low - position, 0), min(high - position, len(line))
            if first < last and (hidden := line[first:last].strip(" \t")):
                begin = offset + first + line[first:last].index(hidden)
                edits.append((begin, begin + len(hidden), MASK))
        position += len(line) + 1
    return edits


# --- comments ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Comment:
    """What is behind the # of a comment, and where; `line` is from 0."""

    text: str
    start: int
    line: int


def comments(document: Document) -> list[Comment]:
    """Every comment: outside of scalars nothing else has a #, but for tags."""
    text = document.text
    starts = line_starts(text)
    result: list[Comment] = []

    def look(start: int, end: int) -> None:
        for line in _LINE.finditer(text, start, end):
            found = re.search("#+", line[0])
            if found:
                begin = line.start() + found.end()
                number = bisect.bisect_right(starts, begin) - 1
                result.append(Comment(text[begin : line.end()], begin, number))

    position = 0
    for scalar in document.scalars:
        look(position, scalar.start)
        position = max(position, scalar.end)
    look(position, len(text))
    return result


def comment_edits(text: str, found: list[Comment], empty: Iterable[int] = ()) -> list[Edit]:
    """What hides secrets in comments; those on lines below one another are read as one text.
    `empty` are places behind which, on the same line, a comment is a secret."""
    starts = line_starts(text)
    secret_lines = {bisect.bisect_right(starts, place) - 1 for place in empty}
    edits: list[Edit] = []
    block: list[Comment] = []

    def flush() -> None:
        for comment, spans in zip(block, line_spans([one.text for one in block]), strict=True):
            content = comment.text.strip()
            if comment.line in secret_lines and content:
                low = comment.text.index(content)
                spans = [(low, low + len(content))]
            edits.extend((comment.start + low, comment.start + high, MASK) for low, high in spans)
        block.clear()

    for comment in found:
        if block and comment.line > block[-1].line + 1:
            flush()
        block.append(comment)
    flush()
    return edits


def line_starts(text: str) -> list[int]:
    """Where each line begins."""
    return [0, *(match.end() for match in re.finditer("\n", text))]

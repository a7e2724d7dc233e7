"""A text that was shown without its secrets and came back edited: with them again."""

from __future__ import annotations

import bisect
import itertools
import re
from collections import defaultdict
from dataclasses import dataclass

from manager.maskedtext import (
    Comment,
    Document,
    Edit,
    Masked,
    Path,
    Scalar,
    comment_edits,
    comments,
    line_starts,
    mask,
    replaced,
)
from manager.masking import MASK
from manager.yamlnodes import Problem, Unreadable

_TOKEN = re.compile(r"(?<!\*)\*{3}(?!\*)")
_ONLY_TOKEN = re.compile(r"([\"']?)\*{3}\1")
_NEIGHBOURS = 10  # lines on each side that tell a line from its equals
_MOST_EQUALS = 50
_UNKNOWN = (
    "no hidden value belongs here, so that *** cannot be put back: write the value itself"
    " (also where what it is in got another name)"
)


def put_back(edited: str, original: str) -> tuple[str, list[Problem]]:
    """The edited text with the original's values where it has ``***``; and a problem for each of
    which there is none, and then the text is as it came.

    A value is known by its path in the document. A comment, and all of an original that is not
    YAML, is known by what its line says and by the lines around it.
    """
    masked = mask(original)
    if masked.documents is None:
        return _put_back_lines(edited, _Lines(edited, masked, original))
    try:
        document = Document.read(edited)
        edits, problems = _Search(document, masked, original).edits()
        if problems:
            return edited, problems
        restored = Document.read(replaced(edited, edits))
    except Unreadable as error:
        return edited, [error.problem]
    # Nothing that was hidden may come to a place where it would be shown.
    line = _first_difference(restored.masked(), document.masked())
    if line is not None:
        return edited, [Problem(line, _UNKNOWN)]
    return restored.text, []


def _put_back_lines(edited: str, lines: _Lines) -> tuple[str, list[Problem]]:
    restored, problems = [], []
    for number, shown in enumerate(edited.split("\n")):
        text: str | None = shown
        if _TOKEN.search(shown):
            start, end = _margins(shown)
            found = lines.find(number, shown)
            text = None if found is None else shown[:start] + found + shown[end:]
        if text is None:
            problems.append(Problem(number + 1, _UNKNOWN))
        else:
            restored.append(text)
    return (edited, problems) if problems else ("\n".join(restored), [])


def _first_difference(one: str, other: str) -> int | None:
    lines = zip(one.split("\n"), other.split("\n"), strict=False)
    for number, (left, right) in enumerate(lines, 1):
        if left.replace(f"'{MASK}'", f'"{MASK}"') != right.replace(f"'{MASK}'", f'"{MASK}"'):
            return number
    return None


@dataclass(frozen=True)
class _Before:
    """How a scalar was shown, in which style, and how it is written; `tokens` are what each of
    its asterisks stands for."""

    style: str
    shown: str
    written: str
    tokens: list[str]


def _scalars_before(masked: Masked, original: str) -> dict[Path, _Before]:
    stands_for: dict[int, str] = {}
    shift = 0
    for start, end, mark in masked.edits:
        stands_for[start + shift + mark.index(MASK)] = original[start:end]
        shift += len(mark) - (end - start)
    result = {}
    if masked.documents is None:
        return {}
    for old, new in zip(*(document.scalars for document in masked.documents), strict=True):
        tokens = _TOKEN.finditer(masked.text, new.start, new.end)
        before = _Before(
            new.style,
            masked.text[new.start : new.end],
            original[old.start : old.end],
            [stands_for.get(token.start(), MASK) for token in tokens],
        )
        result[new.path] = before
        if new.place:
            result[new.place] = before
    return result


@dataclass(frozen=True)
class _Line:
    """A line or a comment that was shown with asterisks, by its line's number from 0."""

    number: int
    written: str
    is_comment: bool


class _Lines:
    """The lines of the original, by how they were shown. Blanks around them and # before them do
    not count."""

    def __init__(self, edited: str, masked: Masked, original: str) -> None:
        self._shown = [_bare(line) for line in masked.text.split("\n")]
        self._edited = [_bare(line) for line in edited.split("\n")]
        self._equals: defaultdict[str, list[_Line]] = defaultdict(list)
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for number, line in enumerate(self._edited):
            self._places[line].append(number)
        lines = zip(masked.text.split("\n"), original.split("\n"), strict=True)
        for number, (shown, written) in enumerate(lines):
            self._add(number, shown, written, shown.lstrip().startswith("#"))
        if masked.documents:
            for written_one, shown_one in zip(*map(comments, masked.documents), strict=True):
                if _bare(shown_one.text) != self._shown[shown_one.line]:
                    self._add(shown_one.line, shown_one.text, written_one.text, True)

    def _add(self, number: int, shown: str, written: str, is_comment: bool) -> None:
        if _TOKEN.search(shown):
            start, end = _margins(shown)
            text = written[start : len(written) + end - len(shown)]
            self._equals[_bare(shown)].append(_Line(number, text, is_comment))

    def find(self, number: int, shown: str, *, only_comments: bool = False) -> str | None:
        """What was written where `shown` is in a line of the edited text; None if that is not
        to be known."""
        found = [
            line
            for line in self._equals.get(_bare(shown), ())
            if line.is_comment or not only_comments
        ]
        if len({line.written for line in found}) > 1:
            found = self._nearest(number, shown, found)
        return found[0].written if found else None

    def _nearest(self, number: int, shown: str, found: list[_Line]) -> list[_Line]:
        if len(found) <= _MOST_EQUALS:
            likeness = [self._likeness(number, line.number) for line in found]
            best = max(likeness)
            near = [line for line, like in zip(found, likeness, strict=True) if like == best]
            if len({line.written for line in near}) == 1:
                return near
        places = self._places.get(_bare(shown), [])
        if len(places) == len(found) and number in places:
            return [found[places.index(number)]]
        return []

    def _likeness(self, edited: int, shown: int) -> int:
        """How many lines above and below are the same, up to the first that is not."""
        result = 0
        for step in (-1, 1):
            for distance in range(1, _NEIGHBOURS + 1):
                here, there = edited + step * distance, shown + step * distance
                if not (0 <= here < len(self._edited) and 0 <= there < len(self._shown)):
                    break
                if self._edited[here] != self._shown[there]:
                    break
                result += 1
        return result


def _telling_lines(shown: str) -> list[str]:
    return [_bare(line) for line in shown.splitlines() if _TOKEN.search(line)]


def _margins(line: str) -> tuple[int, int]:
    """Where a line's content begins and ends."""
    bare = line.lstrip(" \t\r#")
    return len(line) - len(bare), len(line) - len(bare) + len(bare.rstrip(" \t\r"))


def _bare(line: str) -> str:
    start, end = _margins(line)
    return line[start:end]


class _Search:
    """Finds what the asterisks of one edited text stand for."""

    def __init__(self, document: Document, masked: Masked, original: str) -> None:
        self._document = document
        self._edited = edited = document.text
        self._starts = line_starts(edited)
        self._before = _scalars_before(masked, original)
        self._lines = _Lines(edited, masked, original)
        self._edits: set[Edit] = set()
        self._unknown: set[int] = set()  # places

    def edits(self) -> tuple[list[Edit], list[Problem]]:
        """What is to be put back, in order, and the problems."""
        for scalar in self._document.scalars:
            if _TOKEN.search(self._edited, scalar.start, scalar.end) and not self._by_path(scalar):
                self._by_line(scalar)
        found = comments(self._document)
        hidden = {start for start, _, _ in comment_edits(self._edited, found)}
        for comment in found:
            self._comment(comment, hidden)
        edits = sorted(self._edits)
        for first, second in itertools.pairwise(edits):
            if second[0] < first[1]:
                self._unknown.add(second[0])
        lines = sorted({bisect.bisect_right(self._starts, place) for place in self._unknown})
        return edits, [Problem(line, _UNKNOWN) for line in lines]

    def _by_path(self, scalar: Scalar) -> bool:
        shown = self._edited[scalar.start : scalar.end]
        before = self._before.get(scalar.path)
        if before is None and scalar.place:
            before = self._before.get(scalar.place)
            # It is edited, but still the same one?
            if before and _telling_lines(before.shown) != _telling_lines(shown):
                before = None
        if before is None:
            return False
        tokens = list(_TOKEN.finditer(shown))
        if scalar.style == before.style and len(tokens) == len(before.tokens):
            written = replaced(
                shown,
                [(*token.span(), text) for token, text in zip(tokens, before.tokens, strict=True)],
            )
            if before.shown[:1] != before.written[:1] and before.shown.startswith('"'):
                written = written[1:-1]  # the quotes are the mask's
        elif _ONLY_TOKEN.fullmatch(before.shown) and _ONLY_TOKEN.fullmatch(shown):
            written = before.written
        else:
            self._unknown.add(scalar.start)
            return True
        self._edits.add((scalar.start, scalar.end, written))
        return True

    def _by_line(self, scalar: Scalar) -> None:
        """For a line that was a comment before."""
        for token in _TOKEN.finditer(self._edited, scalar.start, scalar.end):
            number = bisect.bisect_right(self._starts, token.start()) - 1
            if not self._put_line(number, only_comments=True):
                self._unknown.add(token.start())

    def _comment(self, comment: Comment, hidden: set[int]) -> None:
        tokens = list(_TOKEN.finditer(comment.text))
        if not tokens:
            return
        text = self._lines.find(comment.line, comment.text)
        if text is not None:
            self._put(comment.start, comment.text, text)
        elif not self._put_line(comment.line):
            # Elsewhere three asterisks are only three asterisks.
            places = (comment.start + token.start() for token in tokens)
            self._unknown.update(place for place in places if place in hidden)

    def _put_line(self, number: int, *, only_comments: bool = False) -> bool:
        start = self._starts[number]
        end = self._starts[number + 1] if number + 1 < len(self._starts) else len(self._edited)
        shown = self._edited[start:end].rstrip("\n")
        text = self._lines.find(number, shown, only_comments=only_comments)
        if text is not None:
            self._put(start, shown, text)
        return text is not None

    def _put(self, start: int, shown: str, text: str) -> None:
        begin, end = _margins(shown)
        self._edits.add((start + begin, start + end, text))

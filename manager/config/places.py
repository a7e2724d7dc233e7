"""Where in config.yaml's text each key and value is, and what to replace to change one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from manager.config.entry import (
    BY_HAND,
    EditError,
    Entry,
    EntryText,
    NoEntry,
    matches,
    read_entry,
    written,
)
from manager.config.yaml_reader import LOADER, TAG

_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")

Edit = tuple[int, int, str]
"""From and to where a text is replaced, in characters, and by what."""


@dataclass
class Part:
    """A value in the text, with its place: `start` and, but for a block, `end` are (line, column)
    from 0, `after` is the line after its last one. `shares`: an anchor, an alias, a tag or a merge
    key is at it or in it. `is_flow`: between braces or brackets. `pairs` are those of a mapping."""

    node: yaml.Node
    start: tuple[int, int]
    end: tuple[int, int]
    after: int
    shares: bool
    is_flow: bool = False
    pairs: list[Pair] = field(default_factory=list)

    @property
    def is_block_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode) and not self.is_flow

    @property
    def stands_for_nothing(self) -> bool:
        """Nothing at all, `~`, or an empty pair of braces."""
        return not self.shares and (
            self.node.tag == TAG + "null"
            or (isinstance(self.node, yaml.MappingNode) and not self.pairs)
        )

    def find(self, name: str) -> Pair | None:
        return next((pair for pair in self.pairs if pair.key.node.value == name), None)


@dataclass
class Pair:
    """A key and its value, in the mapping `parent`, as the `number`-th (from 0)."""

    key: Part
    value: Part
    parent: Part
    number: int

    @property
    def line(self) -> int:
        return self.key.start[0]

    @property
    def after(self) -> int:
        """The line after its last one."""
        return max(self.key.after, self.value.after)


class Document:
    """A text that has a line end at its end, and where what is in it."""

    def __init__(self, text: str, node: yaml.Node | None) -> None:
        self._text = text
        self._starts = [0, *(found.end() for found in _BREAK.finditer(text))]
        self._line_end = line_end(text)
        root = self._read(node)
        if root and not root.stands_for_nothing and not root.is_block_mapping:
            raise EditError(f"the file is not one key a line: {BY_HAND}")
        self._root = root if root and root.pairs else None
        self._step = self._find_step()

    def _read(self, node: yaml.Node | None) -> Part | None:
        if node is None:
            return None
        events = yaml.parse(self._text, Loader=LOADER)
        while not isinstance(next(events), yaml.DocumentStartEvent):
            pass
        return self._part(next(events), node, events)

    def _part(self, event: yaml.Event, node: yaml.Node, events: Iterator[yaml.Event]) -> Part:
        """What begins with that event and was composed to that node, at most `MAX_DEPTH` deep."""
        start, end = _place(event.start_mark), _place(event.end_mark)
        shares = any(getattr(event, name, None) is not None for name in ("anchor", "tag"))
        part = Part(node, start, end, end[0] + 1, shares or node.tag == TAG + "merge")
        if start == end and isinstance(event, yaml.ScalarEvent):
            part.after = 0  # missing, as behind `?`: the parser finds it where the next thing is
        elif isinstance(event, yaml.ScalarEvent) and event.style in ("|", ">") and not end[1]:
            part.after = end[0]
            if not event.value.endswith("\n\n") and event.value != "\n":  # as `|+` keeps them
                while self._is_blank(part.after - 1):
                    part.after -= 1
        elif isinstance(event, yaml.CollectionStartEvent):
            part.is_flow = bool(event.flow_style)
            children = [self._part(next(events), child, events) for child in _children(node)]
            closing = next(events)
            if part.is_flow:
                part.end = _place(closing.end_mark)
                part.after = part.end[0] + 1
            else:  # its own end is only where something else begins
                part.after = max((child.after for child in children), default=0)
                part.after = max(part.after, start[0] + 1)
            part.shares |= any(child.shares for child in children)
            if isinstance(node, yaml.MappingNode):
                pairs = zip(children[::2], children[1::2], strict=True)
                part.pairs = [Pair(*pair, part, number) for number, pair in enumerate(pairs)]
        return part

    def find(self, section: str, name: str) -> Pair | None:
        under = self._root.find(section) if self._root else None
        return under.value.find(name) if under else None

    def require(self, section: str, name: str) -> Pair:
        """Raises EditError where there is none that can be changed."""
        found = self.find(section, name)
        if found is None:
            raise NoEntry(f"{section} has no entry of its own for {name}: {BY_HAND}")
        if found.parent.is_flow:
            raise EditError(f"{section} is written in braces: {BY_HAND}")
        return found

    def add(self, section: str, entries: Entry) -> list[Edit]:
        """Entries after the last one of a section, which is made where it is missing."""
        root = self._root
        if root is None:
            return [self._section(len(self._starts) - 1, section, entries, 0)]
        under, column = root.find(section), root.start[1]
        if under is None:
            after = self._after_comments(root.pairs[-1].after, column)
            return [self._section(after, section, entries, column)]
        value = under.value
        if value.is_block_mapping:
            after = self._after_comments(under.after, value.start[1])
            # Behind a blank line that is content (`|+`), one more would be content, too.
            fits = self._is_blank(after) and not self._is_blank(after - 1)
            apart = fits and self._is_set_apart(value)
            return [self._insertion(after, entries, value.start[1], apart=apart)]
        if not value.stands_for_nothing or "#" in self._written(value):
            raise EditError(f"{section} is written in braces or elsewhere: {BY_HAND}")
        after = self._after_comments(under.after, column)
        edits = [self._insertion(after, entries, column + self._step)]
        return edits if value.start == value.end else [*edits, self._cut(value)]

    def removal(self, pair: Pair) -> Edit:
        """With one of the blank lines around it, where it has them on both sides."""
        first, after = pair.line, self._after_comments(pair.after, pair.parent.start[1])
        above = pair.parent.pairs[pair.number - 1].after if pair.number else 0
        if first > above and self._is_blank(first - 1) and self._is_blank(after):
            first -= 1
        return self._starts[first], self._starts[after], ""

    def replacement(self, pair: Pair, data: Any) -> list[Edit]:
        """Another value for a key. Raises EditError."""
        self._require_own(pair)
        if not isinstance(data, EntryText):
            return list(self._replaced(pair, data))
        column, value = pair.parent.start[1], pair.value
        if value.pairs and read_entry(self.shown(pair)).text == data.text:
            return []  # also where an indent or a comment is not shown as it is
        after = self._starts[self._after_comments(pair.after, column)]
        if value.start[0] != pair.line:
            lines = data.indented(value.start[1])
            return [(self._starts[pair.line + 1], after, self._ended(lines))]
        if value.is_flow:  # the comments behind and below it, which were not shown, stay
            lines = [" " * column + line for line in data.indented(self._step)]
            place = self._starts[pair.after]
            return [self._cut(value), (place, place, self._ended(lines))]
        text = self._lines({pair.key.node.value: data}, column)
        return [(self._starts[pair.line], after, text)]

    def shown(self, pair: Pair) -> str:
        """A value of that mapping as lines of their own, which end with one character. Raises
        EditError."""
        self._require_own(pair)
        value = pair.value
        if value.start[0] == pair.line:
            return "\n".join(_BREAK.split(self._written(value))) + "\n"
        if self._line(value.start[0])[: value.start[1]].strip():
            raise EditError(f"{pair.key.node.value} is written with `?` and `:`: {BY_HAND}")
        after = self._after_comments(pair.after, pair.parent.start[1])
        lines = []
        for number in range(pair.line + 1, after):
            line = _BREAK.sub("", self._line(number))
            indented = len(line) - len(line.lstrip())
            lines.append(line[min(indented, value.start[1]) :])
        return "\n".join(lines) + "\n"

    def _require_own(self, pair: Pair) -> None:
        if pair.value.shares or pair.key.shares:
            name = pair.key.node.value
            raise EditError(f"{name} is written with anchors, merge keys or tags: {BY_HAND}")

    def _replaced(self, pair: Pair, data: Any) -> Iterator[Edit]:
        value, column = pair.value, pair.parent.start[1]
        if matches(value.node, data):
            return
        if value.is_block_mapping and isinstance(data, Mapping) and _is_in_order(value, data):
            yield from self._merged(value, data)
            return
        lines = written({"k": data}).splitlines()
        if len(lines) == 1 and pair.line == value.start[0] and pair.after == pair.line + 1:
            # What is behind it on its line stays.
            begin, end = self._offset(value.start), self._offset(value.end)
            yield begin, end, lines[0][2 if begin == end else 3 :]
            return
        text = self._lines({pair.key.node.value: data}, column)
        yield self._starts[pair.line], self._starts[pair.after], text

    def _merged(self, old: Part, data: Entry) -> Iterator[Edit]:
        """A mapping's keys one by one."""
        column, at = old.start[1], old.pairs[0].line
        for key, value in data.items():
            pair = old.find(key)
            if pair is None:
                yield self._insertion(at, {key: value}, column)
            else:
                yield from self._replaced(pair, value)
                at = self._after_comments(pair.after, column)
        yield from (self.removal(pair) for pair in old.pairs if pair.key.node.value not in data)

    def _written(self, value: Part) -> str:
        return self._text[self._offset(value.start) : self._offset(value.end)]

    def _cut(self, value: Part) -> Edit:
        """Takes it out, with the blanks before it."""
        begin = self._offset(value.start)
        blanks = len(self._text[:begin]) - len(self._text[:begin].rstrip(" \t"))
        return begin - blanks, self._offset(value.end), ""

    def _section(self, line: int, name: str, entries: Entry, column: int) -> Edit:
        head = self._ended([" " * column + f"{name}:"])
        place = self._starts[line]
        return place, place, head + self._lines(entries, column + self._step)

    def _insertion(self, line: int, data: Entry, column: int, *, apart: bool = False) -> Edit:
        return self._starts[line], self._starts[line], self._lines(data, column, apart=apart)

    def _lines(self, data: Entry, column: int, *, apart: bool = False) -> str:
        """Data as it stands in that column, each entry below a blank line where it is `apart`."""
        lines: list[str] = []
        for key, value in data.items():
            lines += [""] if apart else []
            if isinstance(value, EntryText):
                # Behind a long key the value is on a line of its own.
                entry = [written({key: True}).rstrip().removesuffix("true").rstrip()]
                entry += value.indented(self._step)
            else:
                entry = written({key: value}, self._step).removesuffix("\n").split("\n")
            lines += [" " * column + line if line else "" for line in entry]
        return self._ended(lines)

    def _ended(self, lines: Iterable[str]) -> str:
        return "".join(line + self._line_end for line in lines)

    def _find_step(self) -> int:
        """By how much the file indents."""
        pairs = self._root.pairs if self._root else []
        steps = (pair.value.start[1] - pair.parent.start[1] for pair in pairs if pair.value.pairs)
        return next((step for step in steps if 2 <= step <= 8), 2)

    def _after_comments(self, line: int, column: int) -> int:
        """The line after an entry that ends before `line` and stands in that column, and after the
        comments that are indented further than it, as what is in it."""
        after = line
        for number in range(line, len(self._starts) - 1):
            here = self._line(number)
            text = here.lstrip()
            if text and not (text.startswith("#") and len(here) - len(text) > column):
                break
            after = number + 1 if text else after
        return after

    def _is_set_apart(self, mapping: Part) -> bool:
        """Whether a blank line is above its last entry, or above the comments over that."""
        line = mapping.pairs[-1].line - 1
        while line > 0 and self._line(line).lstrip().startswith("#"):
            line -= 1
        return len(mapping.pairs) > 1 and self._is_blank(line)

    def _is_blank(self, line: int) -> bool:
        """True also where the text is over."""
        return not self._line(line).strip()

    def _line(self, line: int) -> str:
        end = self._starts[line + 1] if line + 1 < len(self._starts) else None
        return self._text[self._starts[line] : end]

    def _offset(self, place: tuple[int, int]) -> int:
        return self._starts[place[0]] + place[1]


def is_cut(text: str) -> bool:
    """Whether its last line has no end."""
    return bool(text) and not _BREAK.fullmatch(text[-1])


def line_end(text: str) -> str:
    """The one that the text has first."""
    found = _BREAK.search(text)
    return found.group() if found else "\n"


def _place(mark: Any) -> tuple[int, int]:
    return mark.line, mark.column


def _children(node: yaml.Node) -> list[yaml.Node]:
    """In the order of the text."""
    if isinstance(node, yaml.MappingNode):
        return [each for pair in node.value for each in pair]
    return list(node.value)


def _is_in_order(old: Part, data: Entry) -> bool:
    """Whether the keys that stay are in the order that they have: a model's schemes have one."""
    stay = [pair.key.node.value for pair in old.pairs if isinstance(pair.key.node, yaml.ScalarNode)]
    stay = [key for key in stay if key in data]
    return len(stay) > 0 and stay == [key for key in data if key in stay]

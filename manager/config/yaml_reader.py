"""YAML read as values that know their line, with every problem collected.

YAML guesses types and hides duplicate keys; readers see what was written instead. A reader takes a
`Value` and returns what it read or raises `InvalidValue`; whoever called it through `Value.read` or
`Section.read` gets a default, and the document has one `Problem` more.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

T = TypeVar("T")
D = TypeVar("D")

LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

TAG = "tag:yaml.org,2002:"
KINDS = {
    TAG + "str": "text",
    TAG + "int": "a number",
    TAG + "float": "a number",
    TAG + "bool": "true or false",
    TAG + "null": "nothing",
    TAG + "timestamp": "a date",
    TAG + "seq": "a list",
    TAG + "map": "a mapping",
}

# A text may come from a page. Deeper than this it could end the program, since libyaml's nodes are
# built by recursion; and with aliases a small text can stand for more than a computer can hold.
MAX_DEPTH = 100
MAX_VALUES = 200_000
MAX_PROBLEMS = 1000


@dataclass(frozen=True, order=True)
class Problem:
    """What is wrong on a line (1-based) and how to fix it."""

    line: int
    message: str


class InvalidValue(Exception):
    """A value is not what its reader expected; the message says what to write instead."""


class UnreadableFile(Exception):
    """The text is not YAML, so that nothing more can be said about it than `problem`."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem


class TooManyProblems(Exception):
    """There is too much of it to read on; what was found is among the document's problems."""


def parse(text: str, label: str, folder: Path) -> tuple[Value, list[Problem]]:
    """The document in `text`, named `label` in messages, and the list its problems will go to.
    Relative paths in it begin at `folder`.

    Raises UnreadableFile. An empty document is a Value that `is_null`. Whoever reads it gets
    TooManyProblems where it is too much.
    """
    node = compose(text)
    if node is None or node.tag == TAG + "null":
        node = _nothing()
    document = _Document(folder)
    return Value(label, 1, node, document), document.problems


def compose(text: str) -> yaml.Node | None:
    """The document's root, None where it is empty. Raises UnreadableFile."""
    try:
        _require_shallow(text)
        return yaml.compose(text, Loader=LOADER)
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        problem = Problem(line, "take out the half of a character (a lone surrogate)")
        raise UnreadableFile(problem) from error
    except yaml.reader.ReaderError as error:
        character = chr(int(error.character))
        line = text.count("\n", 0, text.find(character)) + 1
        raise UnreadableFile(
            Problem(line, f"take out the control character {character!r}")
        ) from error
    except yaml.MarkedYAMLError as error:
        raise UnreadableFile(_syntax_problem(text, error)) from error


def _require_shallow(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise UnreadableFile(
                    Problem(line, f"more than {MAX_DEPTH} levels deep: write it flatter")
                )
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _nothing() -> yaml.Node:
    return yaml.ScalarNode(TAG + "null", "")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _syntax_problem(text: str, error: yaml.MarkedYAMLError) -> Problem:
    problem, context = error.problem or "", error.context or ""
    mark = error.problem_mark or error.context_mark
    begin = error.context_mark or mark
    if mark is None or begin is None:
        return Problem(1, f"this is not YAML: {problem}")
    if "simple key" in context or "end of stream" in problem:
        mark = begin  # what was left open began there; the parser noticed only further down
    character = text[mark.index : mark.index + 1]
    if character == "\t":
        how = "indent with spaces: YAML takes no tab there"
    elif "cannot start any token" in problem:
        how = f"put text that begins with {character} in quotes"
    elif text[: mark.index].endswith("$") and character == "{":
        how = 'put a ${NAME} that is between brackets in quotes: "${NAME}"'
    elif context == "while scanning an alias":
        how = "put text that begins with * in quotes"
    elif "escape character" in problem:
        how = "in double quotes \\ begins an escape: write / instead, or use single quotes"
    elif "end of stream" in problem:
        how = "close the quotes that begin here"
    elif "expected ':'" in problem:
        how = "write a colon and a space after the key"
    elif "mapping values" in problem:
        how = (
            "check the indentation and the `: ` (colon, space) here and on the line above; "
            "text with `: ` in it needs quotes"
        )
    else:
        how = f"this is not YAML: {problem}; check the indentation, the brackets and the quotes"
    if begin.line < mark.line:
        how += f" (in the part that begins on line {begin.line + 1})"
    return Problem(min(mark.line + 1, max(1, len(text.rstrip().splitlines()))), how)


@dataclass
class _Document:
    """What all values of one file share."""

    folder: Path
    modes: Collection[str] = ()  # the known ones
    problems: list[Problem] = field(default_factory=list)
    warnings: set[Problem] = field(default_factory=set)
    noted: set[Problem] = field(default_factory=set)
    values: int = 0  # read, and how often
    complaints: int = 0  # a problem may be noted again for each that merges it
    # By the node's id, so that a base that many models merge is read once.
    entries: dict[int, dict[str, Value]] = field(default_factory=dict)

    def count(self, values: int, line: int) -> None:
        """Counts them. Raises TooManyProblems."""
        self.values += values
        if self.values > MAX_VALUES:
            message = f"more than {MAX_VALUES} values, those of aliases counted: write fewer"
            self.problems.append(Problem(line, message))
            raise TooManyProblems


@dataclass(frozen=True)
class Value:
    """A node, the key it stands under and that key's line."""

    label: str
    key_line: int
    node: yaml.Node
    document: _Document

    @property
    def line(self) -> int:
        return _line(self.node) if self.node.start_mark else self.key_line

    @property
    def is_null(self) -> bool:
        return bool(self.node.tag == TAG + "null")

    @property
    def is_mapping(self) -> bool:
        return isinstance(self.node, yaml.MappingNode)

    @property
    def kind(self) -> str:
        """What was found, without its content: that may be a secret."""
        return KINDS.get(self.node.tag, f"something tagged {self.node.tag}")

    @property
    def found(self) -> str:
        """What was found, with its content."""
        if not isinstance(self.node, yaml.ScalarNode) or self.is_null:
            return self.kind
        shown = self.node.value if len(self.node.value) <= 60 else self.node.value[:57] + "..."
        return f"the text {shown!r}" if self.node.tag == TAG + "str" else shown

    def items(self) -> Iterator[Value]:
        """What a list has in it."""
        for number, node in enumerate(self.node.value, 1):
            yield Value(f"{self.label}, item {number}", _line(node), node, self.document)

    def read(self, reader: Callable[[Value], T], default: D) -> T | D:
        """What `reader` makes of this, or `default` after noting the problem.

        Raises TooManyProblems.
        """
        self.document.count(1, self.line)
        try:
            return reader(self)
        except InvalidValue as wrong:
            self.problem(str(wrong))
            return default

    def problem(self, message: str, line: int | None = None) -> None:
        """Note a problem with this value, on its own line unless `line` is given.

        Raises TooManyProblems.
        """
        problem = Problem(self.line if line is None else line, f"{self.label}: {message}")
        # A base that several models merge is read once for each of them.
        if problem not in self.document.noted:
            self.document.noted.add(problem)
            self.document.problems.append(problem)
        self.document.complaints += 1
        if self.document.complaints >= MAX_PROBLEMS:
            raise TooManyProblems

    def warn(self, message: str, line: int | None = None) -> None:
        """Note what is odd about this value, yet keeps no program from starting."""
        problem = Problem(self.line if line is None else line, f"{self.label}: {message}")
        self.document.warnings.add(problem)


@dataclass(frozen=True)
class Reader(Generic[T]):
    """Makes a `T` of a value, or raises InvalidValue; `schema` is what it takes, as JSON Schema."""

    function: Callable[[Value], T]
    schema: Mapping[str, Any]

    def __call__(self, value: Value) -> T:
        return self.function(value)


def reader(**schema: Any) -> Callable[[Callable[[Value], T]], Reader[T]]:
    """Makes a function a reader of what the JSON Schema describes."""
    return lambda function: Reader(function, schema)


class Section:
    """A mapping: its entries in file order, merge keys (`<<`) resolved, duplicates reported.

    It remembers which keys were read, so that the others can be called unknown.
    """

    def __init__(self, value: Value) -> None:
        self.value = value
        self._entries = _entries(value, set())
        self._known: dict[str, None] = {}

    def get(self, key: str) -> Value | None:
        """What stands under `key`; a key with nothing after it counts as not given."""
        self._known[key] = None
        value = self._entries.get(key)
        return None if value is None or value.is_null else value

    def read(self, key: str, reader: Callable[[Value], T], default: D) -> T | D:
        """What `reader` makes of the key, or `default` where it is absent or wrong."""
        value = self.get(key)
        return default if value is None else value.read(reader, default)

    def section(self, key: str) -> Section:
        """The mapping under `key`; an empty one where it is absent or wrong."""
        absent = Value(key, self.value.key_line, _nothing(), self.value.document)
        return self.read(key, section, Section(absent))

    def unread(self) -> Iterator[tuple[str, Value]]:
        """The entries that nobody has read, in file order."""
        for key, value in self._entries.items():
            if key not in self._known:
                self.value.document.count(1, value.key_line)
                yield key, value

    def unknown(self, key: str) -> None:
        """Report `key` as unknown, with the nearest of the known ones."""
        self._entries[key].problem(
            f"unknown key{did_you_mean(key, self._known)}", self._entries[key].key_line
        )

    def reject_unread(self) -> None:
        """Report every key that nobody has read."""
        for key, _ in self.unread():
            self.unknown(key)

    def require(self, key: str, how: str) -> None:
        """Report `key` where it is absent, on the line of the section's own key."""
        if self.get(key) is None:
            self.value.problem(f"{key} is missing: {how}", self.value.key_line)


def _entries(value: Value, under_way: set[int]) -> dict[str, Value]:
    """A mapping's values by key, merged ones at the place of their `<<` unless overridden."""
    node, document = value.node, value.document
    if not value.is_mapping:
        return {}
    if id(node) in document.entries:
        return document.entries[id(node)]
    under_way = under_way | {id(node)}
    own: dict[str, Value] = {}
    result: dict[str, Value] = {}
    for key_node, value_node in node.value:
        line = _line(key_node)
        if not isinstance(key_node, yaml.ScalarNode):
            value.problem("a key must be plain text; lists and mappings cannot be keys", line)
            continue
        key = key_node.value
        entry = Value(key, line, value_node, document)
        if key in own:
            entry.problem(
                f"this key is here twice, first on line {own[key].key_line}: keep one", line
            )
            continue
        own[key] = entry
        if key_node.tag == TAG + "merge":
            for merged in _merged(entry, under_way):
                document.count(len(merged), line)
                for name, inherited in merged.items():
                    result.setdefault(name, inherited)
        else:
            result[key] = entry
    document.entries[id(node)] = result
    return result


def _merged(entry: Value, under_way: set[int]) -> Iterator[dict[str, Value]]:
    nodes = entry.node.value if isinstance(entry.node, yaml.SequenceNode) else [entry.node]
    for node in nodes:
        if not isinstance(node, yaml.MappingNode):
            entry.problem("merges mappings only: write `<<: *name` or `<<: [*one, *two]`")
        elif id(node) in under_way:
            entry.problem("a mapping cannot merge itself: take this line out")
        elif len(under_way) > MAX_DEPTH:
            entry.problem(f"more than {MAX_DEPTH} mappings, each merged into the next: merge fewer")
        else:
            yield _entries(Value(entry.label, entry.key_line, node, entry.document), under_way)


def nearest(word: str, words: Collection[str]) -> str | None:
    """The one of `words` that was probably meant; case, `-` and `_` count for little."""
    folded = {known.casefold().replace("-", "_"): known for known in words}
    near = difflib.get_close_matches(word.casefold().replace("-", "_"), folded, 1)
    return folded[near[0]] if near else None


def did_you_mean(word: str, words: Collection[str]) -> str:
    """The end of a message: the nearest of `words`, or all of them."""
    near = nearest(word, words)
    if near is not None:
        return f"; did you mean {near}?"
    return f"; known here: {', '.join(words)}" if words else ""


def has_control(text: str) -> bool:
    """Whether it has what no name or path has: control characters, line ends, lone surrogates."""
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text)


def section(value: Value) -> Section:
    """A mapping; nothing at all is an empty one."""
    if not value.is_mapping and not value.is_null:
        raise InvalidValue(f"expected a mapping (lines of `key: value`), found {value.kind}")
    return Section(value)

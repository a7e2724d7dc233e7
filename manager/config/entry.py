"""A part of the config as data: written as YAML, and found again in what was composed."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.emitter import Emitter
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from manager.config.yaml_reader import LOADER, MAX_DEPTH, TAG, UnreadableFile, compose, has_control

Pairs = list[tuple[yaml.Node, yaml.Node]]
Entry = Mapping[str, Any]
"""What stands under a key, of the kinds that JSON has."""

BY_HAND = "edit the text of the file itself"
_WIDTH = 96  # of a line with a list that is written, before it is indented
_LONG_LIST = re.compile(r"( *)([^\[]*: \[)(.*\])")
_ITEM = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|[^,'"])+(?:, |\]$)""")


class EditError(Exception):
    """The text cannot be changed in this way; the message says why, and what to do."""


class NoEntry(EditError):
    """The file has no such model."""


class NameTaken(EditError):
    """There is such a model already."""


class _Emitter(Emitter):
    MAX_SIMPLE_KEY_LENGTH = 1000  # as YAML has it: a longer key would be two lines


@dataclass(frozen=True)
class EntryText:
    """An entry as a person wrote it: lines that stay as they are, the last one without its end, and
    what they stand for."""

    text: str
    node: yaml.Node

    def indented(self, step: int) -> list[str]:
        """Its lines, without their ends."""
        return [" " * step + line if line.strip() else "" for line in self.text.split("\n")]


def read_entry(text: str) -> EntryText:
    """An entry from lines of YAML. Raises EditError."""
    whole = re.sub("\r\n|[\r\x85]", "\n", text).lstrip("\n").removesuffix("\n")
    text, node = whole.rstrip(), _composed_entry(whole)
    if text != whole and not are_equal([(node, node)], [(node, _composed_entry(text))]):
        text = whole  # the blanks at its end are content, as behind `|+`
    events = yaml.parse(text, Loader=LOADER)
    if any(getattr(event, "anchor", None) is not None for event in events):
        raise EditError(f"an entry cannot have anchors or use them: {BY_HAND}")
    return EntryText(text, node)


def _composed_entry(text: str) -> yaml.MappingNode:
    try:
        node = compose(text + "\n")  # as it has it in a file: a block of text may end there
    except UnreadableFile as error:
        line, message = error.problem.line, error.problem.message
        raise EditError(f"line {line} of the entry: {message}") from error
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise EditError("an entry is a mapping: lines of `key: value`")
    return node


def written(entry: Mapping[str, Any], step: int = 2) -> str:
    """Data as lines of YAML, indented by `step`. Raises EditError."""
    _check(entry)
    writer = YAML()
    writer.Emitter = _Emitter
    writer.version = (1, 1)  # as the reader: else `on` and 010 would be left without quotes
    writer.indent(mapping=step, sequence=step + 2, offset=step)
    writer.default_flow_style = False
    writer.allow_unicode = True
    writer.width = 1 << 20  # it would indent each further line of a list otherwise
    writer.representer.ignore_aliases = lambda _data: True
    stream = io.StringIO()
    try:
        writer.dump(_styled(entry), stream)
    except (YAMLError, UnicodeError) as error:
        raise EditError(f"this cannot be written as YAML: {error}") from error
    text = stream.getvalue().split("---\n", 1)[1]  # after the version's directive
    return "".join(f"{_wrapped(line)}\n" for line in text.removesuffix("\n").split("\n"))


def _wrapped(line: str) -> str:
    """A long list in brackets on lines of the usual width, as far as its items are short."""
    found = _LONG_LIST.fullmatch(line)
    if len(line) <= _WIDTH or not found:
        return line
    indent, begin, rest = found.groups()
    items = _ITEM.findall(rest)
    if "".join(items) != rest:
        return line
    lines = [indent + begin]
    for item in items:
        if len(lines[-1]) + len(item) > _WIDTH and lines[-1].strip():
            lines.append(f"{indent}    ")
        lines[-1] += item
    return "\n".join(part.rstrip() for part in lines)


def _styled(data: Any) -> Any:
    """Mappings with a key a line, lists of scalars in brackets."""
    if isinstance(data, Mapping):
        return {_styled(key): _styled(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        items = CommentedSeq(_styled(item) for item in data)
        if not any(isinstance(item, (dict, list)) for item in items):
            items.fa.set_flow_style()
        return items
    if isinstance(data, str) and has_control(data):
        return DoubleQuotedScalarString(data)  # else some stand there as they are
    return data


def matches(node: yaml.Node, data: Any) -> bool:
    """Whether that data is written there, keys in the same order."""
    if isinstance(data, EntryText):
        return are_equal([(node, node)], [(data.node, data.node)])
    if isinstance(data, Mapping):
        return (
            isinstance(node, yaml.MappingNode)
            and [key.value for key, _ in node.value] == list(data)
            and all(matches(value, data[key.value]) for key, value in node.value)
        )
    if isinstance(data, (list, tuple)):
        return (
            isinstance(node, yaml.SequenceNode)
            and len(node.value) == len(data)
            and all(map(matches, node.value, data))
        )
    if not isinstance(node, yaml.ScalarNode) or node.tag != TAG + _KINDS[type(data)]:
        return False
    if isinstance(data, str) or data is None:
        return data is None or node.value == data
    try:
        return bool(json.loads(node.value.lower().replace("_", "")) == data)
    except ValueError:
        return False


def pairs(node: yaml.Node | None) -> Pairs:
    """Those of a mapping; none of anything else."""
    return node.value if isinstance(node, yaml.MappingNode) else []


def are_equal(ours: Pairs, theirs: Pairs) -> bool:
    """Each two nodes are compared once, however many aliases lead to them; without recursion, since
    a mapping may lead to itself."""
    waiting: list[tuple[Any, Any]] = [(ours, theirs)]
    seen = set()
    while waiting:
        left, right = waiting.pop()
        if isinstance(left, yaml.Node):
            if (id(left), id(right)) in seen:
                continue
            seen.add((id(left), id(right)))
            if type(left) is not type(right) or left.tag != right.tag:
                return False
            left, right = left.value, right.value
        if isinstance(left, str):
            if left != right:
                return False
        elif len(left) != len(right):
            return False
        else:
            waiting += zip(left, right, strict=True)
    return True


_KINDS = {str: "str", bool: "bool", int: "int", float: "float", type(None): "null"}


def _check(data: Any, depth: int = MAX_DEPTH) -> None:
    """Raises EditError for what is not data of JSON's kinds."""
    if not depth:
        raise EditError(f"an entry is at most {MAX_DEPTH} levels deep")
    if isinstance(data, Mapping):
        for key, value in data.items():
            if not isinstance(key, str):
                raise EditError(f"a key is text, not {key!r}")
            _check(value, depth - 1)
    elif isinstance(data, (list, tuple)):
        for value in data:
            _check(value, depth - 1)
    elif type(data) not in _KINDS or (isinstance(data, float) and not math.isfinite(data)):
        raise EditError(f"an entry has no values of the kind {type(data).__name__}, or without end")

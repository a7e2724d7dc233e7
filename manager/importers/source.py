"""Files of other programs as they are read here: bounded, and none of them is trusted."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from manager.config import loader, yaml_reader
from manager.config.yaml_reader import TAG, InvalidValue, UnreadableFile, Value, section

MAX_BYTES = 1 << 20  # of a config; those of people have some thousands
_MAX_DEPTH = 32
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


class SourceError(Exception):
    """What is to be imported cannot be read; the message is a line that says why."""


def read_bytes(path: Path, most: int = MAX_BYTES, *, follow: bool = True) -> bytes:
    """All of a regular file of at most so many bytes; `follow` says whether it may be a link.
    Raises SourceError."""
    try:
        content = loader.read_regular(path, most + 1, follow=follow)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise SourceError(f"{path} has more than {most:,} bytes, which no config has")
    return content


def read_document(path: Path) -> tuple[Value, list[yaml_reader.Problem]]:
    """A file of YAML or JSON, and the list that its problems will go to. Raises SourceError."""
    content = read_bytes(path)
    if path.suffix.lower() == ".json":
        content = content.replace(b"\t", b"  ")  # which YAML takes no tab for; texts have none
    try:
        return yaml_reader.parse(loader.decode(content), path.name, path.absolute().parent)
    except UnreadableFile as error:
        [where] = loader.located(path, [error.problem])
        raise SourceError(where) from error


def plain(value: Value, depth: int = _MAX_DEPTH) -> Any:
    """What JSON can say, as YAML 1.2 reads it: `on` and `yes` are texts. What is no number of JSON
    is the text that was written.

    Raises InvalidValue, TooManyProblems.
    """
    value.document.count(1, value.line)
    node = value.node
    if not depth:
        raise InvalidValue(f"is nested more than {_MAX_DEPTH} deep")
    if isinstance(node, yaml.SequenceNode):
        return [plain(item, depth - 1) for item in value.items()]
    if isinstance(node, yaml.MappingNode):
        return {name: plain(entry, depth - 1) for name, entry in section(value).unread()}
    return _scalar(node.tag, str(node.value))


def _scalar(tag: str, written: str) -> Any:
    if tag == TAG + "null":
        return None
    if tag == TAG + "bool" and written.lower() in ("true", "false"):
        return written.lower() == "true"
    if tag == TAG + "int" and _INTEGER.fullmatch(written):
        return int(written)
    if tag == TAG + "float" and _NUMBER.fullmatch(written) and math.isfinite(float(written)):
        return float(written)
    return written

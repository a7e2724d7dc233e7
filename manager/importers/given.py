"""A mapping of a source as it is read key by key: what is wrong becomes a note, and is left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from manager.config import readers
from manager.config.yaml_reader import InvalidValue, Section, Value
from manager.importers.draft import Part
from manager.importers.source import plain

T = TypeVar("T")

Reader = Callable[[Value], T]

seconds = readers.integer(-1, 4_000_000)
count = readers.integer(0, 1_000_000)


def texts(value: Value) -> list[str]:
    """A list of texts, or one text."""
    found = plain(value)
    items = found if isinstance(found, list) else [found]
    if any(isinstance(item, (list, dict)) or item is None for item in items):
        raise InvalidValue("expected a list of texts")
    return [str(item) for item in items]


def mapping(value: Value) -> dict[str, Any]:
    """A mapping with whatever JSON can say."""
    found = plain(value)
    if not isinstance(found, dict):
        raise InvalidValue("expected a mapping")
    return found


class Given:
    """The keys of one section; notes are those of `part`, with `label` before the key."""

    def __init__(self, given: Section, part: Part, label: str = "") -> None:
        self._given = given
        self._part = part
        self._label = label

    def line(self, key: str) -> int | None:
        """Where the key is, None where it is not."""
        value = self._given.get(key)
        return None if value is None else value.key_line

    def read(self, key: str, reader: Reader[T]) -> T | None:
        """The key's value, None where it is absent or wrong. Raises TooManyProblems."""
        value = self._given.get(key)
        if value is None:
            return None
        try:
            return reader(value)
        except InvalidValue as fault:
            self._part.note(value.line, f"{self._label}{key} is left out: {fault}")
            return None

    def note(self, key: str, message: str) -> None:
        """A note on the line of the key."""
        self._part.note(self.line(key), f"{self._label}{key}: {message}")

    def note_rest(self, known: Mapping[str, str]) -> None:
        """A note on each key that nobody has read: what `known` says, else that it means nothing
        here. Those that begin with ``x-`` are for YAML's anchors."""
        for key, value in self._given.unread():
            if key.startswith("x-"):
                continue
            message = known.get(key, "has no counterpart")
            self._part.note(value.key_line, f"{self._label}{key}: {message}")

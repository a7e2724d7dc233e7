"""config.yaml's text with a model or a key changed: all else in it stays, byte for byte.

The places come from the reader's own parser, so that no second one can take the text for something
else. Only what changes is written, by ruamel.yaml, and put between the lines. The result is
composed again and compared: where anything else would change its meaning, such as a mapping that
shares an anchor, the change is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress

import yaml

from manager.config import yaml_reader
from manager.config.entry import (
    BY_HAND,
    EditError,
    Entry,
    EntryText,
    NameTaken,
    NoEntry,
    Pairs,
    are_equal,
    matches,
    pairs,
    read_entry,
    written,
)
from manager.config.places import Document, Edit, is_cut, line_end
from manager.config.yaml_reader import UnreadableFile

__all__ = [
    "EditError",
    "Entry",
    "EntryText",
    "NameTaken",
    "NoEntry",
    "add_models",
    "entry_text",
    "lines_of",
    "read_entry",
    "remove_model",
    "replace_model",
    "written",
]

_MODELS = "Local-Models"
_BOM = "\ufeff"
_ABSENT = object()


def add_models(text: str, entries: Mapping[str, Entry | EntryText]) -> str:
    """The text with further models after the ones that are there. Raises EditError."""

    def edits(document: Document) -> list[Edit]:
        for name in entries:
            if document.find(_MODELS, name):
                raise NameTaken(f"there is a model {name} already: choose another name")
        return document.add(_MODELS, entries)

    return _edited(text, entries, edits)


def remove_model(text: str, name: str) -> str:
    """The text without a model, and without the comments in its entry; those above it stay.
    Raises EditError."""

    def edits(document: Document) -> list[Edit]:
        return [document.removal(document.require(_MODELS, name))]

    return _edited(text, {name: _ABSENT}, edits)


def replace_model(text: str, name: str, entry: Entry | EntryText) -> str:
    """The text with another entry for a model. Of data only what differs is written, so that the
    other lines keep their comments; a text is put in place of the whole entry, with its comments.
    Raises EditError."""

    def edits(document: Document) -> list[Edit]:
        return document.replacement(document.require(_MODELS, name), entry)

    return _edited(text, {name: entry}, edits)


def entry_text(text: str, name: str) -> str:
    """A model's entry as `read_entry` takes it, with its comments. Raises EditError."""
    document = _document(text)
    return document.shown(document.require(_MODELS, name))


def lines_of(text: str, name: str) -> range:
    """The lines (from 1) of a model, that of its name first. Raises EditError."""
    pair = _document(text).require(_MODELS, name)
    return range(pair.line + 1, pair.after + 1)


def _edited(text: str, expected: Entry, edits: Callable[[Document], list[Edit]]) -> str:
    """The text after its edits. Raises EditError, also where anything changes its meaning but what
    is `expected` of the models: entries by name, `_ABSENT` for what is not to be there."""
    mark = _BOM if text.startswith(_BOM) else ""
    text = text.removeprefix(_BOM)
    before = _composed(text)
    # For the time of the change it ends as every line does.
    lacking = line_end(text) if is_cut(text) else ""
    result = text + lacking
    changes = edits(Document(result, before))
    if not changes:
        return mark + text
    # From behind, since each moves what is behind it; of two at one place the one that takes away
    # is first, and then the later one.
    order = sorted(range(len(changes)), key=lambda number: (*changes[number][:2], number))
    for begin, end, other in (changes[number] for number in reversed(order)):
        result = result[:begin] + other + result[end:]
    # The end of the last line stays where it is content of what is new.
    for after in dict.fromkeys((result.removesuffix(lacking), result)):
        with suppress(UnreadableFile):
            if _is_same(before, yaml_reader.compose(after), _MODELS, expected):
                return mark + after
    raise EditError(
        f"{', '.join(expected)} in {_MODELS} cannot be changed alone: something else in the"
        " file would change as well, such as what shares an anchor, or a blank line behind `|+`:"
        f" {BY_HAND}"
    )


def _document(text: str) -> Document:
    text = text.removeprefix(_BOM)
    return Document(text + (line_end(text) if is_cut(text) else ""), _composed(text))


def _composed(text: str) -> yaml.Node | None:
    try:
        return yaml_reader.compose(text)
    except UnreadableFile as error:
        line, message = error.problem.line, error.problem.message
        raise EditError(f"the file cannot be read, line {line}: {message}") from error


def _is_same(
    before: yaml.Node | None, after: yaml.Node | None, section: str, expected: Entry
) -> bool:
    """Whether two documents differ in what was expected of that section, and in nothing else."""
    (others, ours), (their_others, theirs) = _split(before, section), _split(after, section)
    found = {key.value: value for key, value in theirs if _is_named(key, expected)}
    return (
        are_equal(others, their_others)
        and are_equal(_without(ours, expected), _without(theirs, expected))
        and len(theirs) == len(_without(theirs, expected)) + len(found)
        and all(
            key not in found if data is _ABSENT else key in found and matches(found[key], data)
            for key, data in expected.items()
        )
    )


def _split(root: yaml.Node | None, section: str) -> tuple[Pairs, Pairs]:
    """The pairs of a document without that section, and those of the section."""
    every = pairs(root)
    under = [value for key, value in every if key.value == section]
    return [pair for pair in every if pair[0].value != section], pairs(under[0] if under else None)


def _without(section: Pairs, names: Entry) -> Pairs:
    return [pair for pair in section if not _is_named(pair[0], names)]


def _is_named(key: yaml.Node, names: Entry) -> bool:
    return isinstance(key, yaml.ScalarNode) and key.value in names

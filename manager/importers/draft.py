"""What is known of an import while it goes on: models as config.yaml has them, and the notes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from manager.importers.source import SourceError

MAX_MODELS = 2000
SCHEME = "Default"
"""The name of a model's scheme, where the source has one way to start it."""


@dataclass(frozen=True)
class Note:
    """What a person has to know, and the line of the source that it is about (None: no single
    one). It has no value of a key, a password or a variable in it."""

    line: int | None
    message: str


@dataclass
class Part:
    """The settings of a model, or of the program.

    `entry` is what config.yaml has under the name, `taken` says which keys of the source it is
    made of.
    """

    name: str
    line: int | None = None
    entry: dict[str, Any] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Why config.yaml does not have it; empty where it does."""

    def set(self, theirs: str, ours: str, value: Any) -> None:
        """Has `ours` in the entry, which stands for the source's `theirs`."""
        self.entry[ours] = value
        self.take(theirs, ours)

    def take(self, theirs: str, ours: str) -> None:
        self.taken.append(theirs if theirs == ours else f"{theirs} → {ours}")

    def drop(self, ours: str, why: str) -> None:
        """Takes a key out again where it is there, with a note."""
        if self.entry.pop(ours, None) is not None:
            self.taken = [one for one in self.taken if one.split(" → ")[-1] != ours]
            self.note(None, f"{ours} is left out: {why}")

    def note(self, line: int | None, message: str) -> None:
        self.notes.append(Note(line, message))


@dataclass
class Draft:
    """All that an import makes. `source` is the name of what was read."""

    source: str
    program: Part = field(default_factory=lambda: Part("program"))
    models: dict[str, Part] = field(default_factory=dict)
    # Those that the program's environment has to have.
    variables: set[str] = field(default_factory=set)
    _aliases: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, line: int | None = None) -> Part:
        """A further model, which has a name of its own. Raises SourceError."""
        if len(self.models) >= MAX_MODELS:
            raise SourceError(f"{self.source} has more than {MAX_MODELS} models")
        self.models[name] = model = Part(name, line)
        return model

    def find(self, name: str) -> Part | None:
        """The model with this name or alias."""
        return self.models.get(self._aliases.get(name, name))

    def kept(self) -> list[Part]:
        """The models that config.yaml will have."""
        return [model for model in self.models.values() if not model.left_out]

    def take_alias(self, model: Part, alias: str, line: int | None) -> bool:
        """Whether the model may have it; else a note says who has it. All models have to be there
        already: their names come first."""
        owner = alias if alias in self.models else self._aliases.setdefault(alias, model.name)
        if owner == model.name:
            return True
        model.note(line, f"the alias {alias} is left out: it is the name of, or leads to, {owner}")
        return False

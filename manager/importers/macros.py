"""llama-swap's macros: ``${name}`` for a text that stands elsewhere in its config. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from manager.importers.source import SourceError

MAX_EXPANDED = 128 * 1024  # characters; Linux runs no program with a longer argument
_MAX_WORK = 8 * 1024 * 1024  # characters that are looked through for macros, over all models
_REFERENCE = re.compile(r"\$\{([A-Za-z0-9_-]+)\}")
_ENVIRONMENT = re.compile(r"\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}")
_BUILT_IN = ("PORT", "MODEL_ID", "PID")
_OURS = ("PORT", "MODEL", "SCHEME", "DEVICES")


class Macros:
    """The macros that one model sees, in the order of their definition: each may have those before
    it in its text, as llama-swap has it, so that none can recur."""

    def __init__(self, values: Mapping[str, Any], work: list[int] | None = None) -> None:
        self._names = list(values)
        self._values = list(values.values())
        self._index = {name: number for number, name in enumerate(self._names)}
        self._work = [_MAX_WORK] if work is None else work  # what is left of it, for all to share

    def within(self, own: Mapping[str, Any]) -> Macros:
        """Those of a model that has some of its own: they replace those of the same name."""
        return Macros({**dict(zip(self._names, self._values, strict=True)), **own}, self._work)

    def expand(self, text: str) -> str:
        """The text with each macro's text in place of it; what is no macro stays. Raises
        SourceError where that is too long."""
        last = len(self._names)
        while True:
            self._work[0] -= len(text)
            if self._work[0] < 0:
                raise SourceError("its macros stand for more text than can be read: use fewer")
            found = {self._index.get(name, last) for name in _REFERENCE.findall(text)}
            last = max((index for index in found if index < last), default=-1)
            if last < 0:
                return text
            text = self._replaced(text, last)

    def _replaced(self, text: str, index: int) -> str:
        reference, value = f"${{{self._names[index]}}}", _written(self._values[index])
        growth = len(value) - len(reference)
        if len(text) + growth * text.count(reference) > MAX_EXPANDED:
            raise SourceError(
                f"the macro {self._names[index]} makes a text of more than {MAX_EXPANDED}"
                " characters: no system runs such a command"
            )
        return text.replace(reference, value)

    def expand_all(self, value: Any) -> Any:
        """The same in a list or a mapping; a text that is one macro is that macro's value."""
        if isinstance(value, str):
            alone = _REFERENCE.fullmatch(value)
            if alone and alone[1] in self._index:
                own = self._values[self._index[alone[1]]]
                return self.expand(own) if isinstance(own, str) else own
            return self.expand(value)
        if isinstance(value, list):
            return [self.expand_all(item) for item in value]
        if isinstance(value, dict):
            return {self.expand(name): self.expand_all(item) for name, item in value.items()}
        return value


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def environment_names(text: str) -> list[str]:
    """The variables that a text has as ``${env.NAME}``."""
    return _ENVIRONMENT.findall(text)


def in_command(text: str) -> str:
    """A command line as LLM-Manager expands it: ``${NAME}`` for each ``${env.NAME}``."""
    return _ENVIRONMENT.sub(r"${\1}", text).replace("${MODEL_ID}", "${MODEL}")


def in_value(text: str) -> str:
    """The same for a value that may have variables of the environment in it, and nothing else:
    another ``${`` is itself there as ``$${``."""
    escaped = text.replace("${", "$${")
    return re.sub(r"\$\$\{env\.([A-Za-z_][A-Za-z0-9_]*)\}", r"${\1}", escaped)


def in_text(text: str, values: Mapping[str, str]) -> str:
    """A text with the values of its variables; one that has none stays as it is."""
    return _ENVIRONMENT.sub(lambda found: values.get(found[1], found[0]), text)


def hidden_names(text: str) -> list[str]:
    """The variables in a command line that it cannot have here, where their names mean other
    things."""
    return [name for name in environment_names(text) if name in _OURS]


def unknown_names(text: str) -> list[str]:
    """What is written as a macro and is none."""
    return [name for name in dict.fromkeys(_REFERENCE.findall(text)) if name not in _BUILT_IN]

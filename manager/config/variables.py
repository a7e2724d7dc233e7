"""``${NAME}`` in the config: what stands in the program's environment instead."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from manager.config.yaml_reader import InvalidValue

NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(rf"\$\$\{{|\$\{{({NAME})\}}|\$\{{")
_OURS = "LLM_MANAGER_"


class Expanded(NamedTuple):
    """A text with the values in it, and the names of the variables that they are from."""

    text: str
    names: frozenset[str]


def expand(written: str) -> Expanded:
    """The text with the value of NAME for each ``${NAME}``, and ``${`` for each ``$${``.

    Raises InvalidValue, without a value of any variable and without the rest of the text.
    """
    names: set[str] = set()

    def value(found: re.Match[str]) -> str:
        if found[0] == "$${":
            return "${"
        name = found[1]
        if name is None:
            raise InvalidValue(
                "write ${NAME}, of letters, digits and _, or $${ for a ${ that is meant"
            )
        if name not in os.environ:
            raise InvalidValue(
                f"the environment has no {name}: set it where the program is started,"
                f" or write $${{{name}}} if the text itself is meant"
            )
        names.add(name)
        return os.environ[name]

    return Expanded(_REFERENCE.sub(value, written), frozenset(names))


# What a command is given when it is run; until then each stands for itself.
_AT_LAUNCH = {
    name: f"${{{name}}}"
    for name in (
        *("PORT", "MODEL", "SCHEME", "DEVICES"),
        *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HIP_VISIBLE_DEVICES"),
        *(f"{_OURS}{name}" for name in ("MODEL", "SCHEME", "PORT")),
    )
}


def expand_command(command: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """A command with the value of NAME for each ``${NAME}``, ``${`` for each ``$${``, and the home
    directory for a leading ``~``. A name that has no value stays as it is, for a shell to read."""

    def value(found: re.Match[str]) -> str:
        return "${" if found[0] == "$${" else values.get(found[1] or "", found[0])

    return [_REFERENCE.sub(value, os.path.expanduser(argument)) for argument in command]


def known_values(env: Mapping[str, str]) -> dict[str, str]:
    """What a command of a scheme with this `env` can name, as far as it is known before a launch;
    what the launch decides stands for itself."""
    return {**child_environment(), **env, **_AT_LAUNCH}


def unknown_names(argument: str, values: Mapping[str, str]) -> list[str]:
    """The names in an argument of a command that have no value."""
    names = [found[1] for found in _REFERENCE.finditer(argument) if found[1]]
    return [name for name in dict.fromkeys(names) if name not in values]


def child_environment() -> dict[str, str]:
    """Our environment for a model's server: without our own variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}

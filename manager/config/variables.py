"""``${NAME}`` in the config: a secret that stands in the program's environment instead."""

from __future__ import annotations

import os
import re
from collections.abc import Set
from typing import NamedTuple

from manager.config.yaml_reader import Wrong

NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = re.compile(rf"\$\$\{{|\$\{{({NAME})\}}|\$\{{")
_OURS = "LLM_MANAGER_"


class Expanded(NamedTuple):
    """A text with the values in it, and the names of the variables that they are from."""

    text: str
    names: frozenset[str]


def expanded(written: str) -> Expanded:
    """The text with the value of NAME for each ``${NAME}``, and ``${`` for each ``$${``.

    Raises Wrong, without a value of any variable and without the rest of the text.
    """
    names: set[str] = set()

    def value(found: re.Match[str]) -> str:
        if found[0] == "$${":
            return "${"
        name = found[1]
        if name is None:
            raise Wrong("write ${NAME}, of letters, digits and _, or $${ for a ${ that is meant")
        if name not in os.environ:
            raise Wrong(
                f"the environment has no {name}: set it where the program is started,"
                f" or write $${{{name}}} if the text itself is meant"
            )
        names.add(name)
        return os.environ[name]

    return Expanded(_REFERENCE.sub(value, written), frozenset(names))


def child_environment(secrets: Set[str]) -> dict[str, str]:
    """Our environment for a model's server: without these variables, and without our own."""
    if os.name == "nt":  # which tells no case apart, and writes all of them in capitals
        secrets = {name.upper() for name in tuple(secrets)}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in secrets and not name.startswith(_OURS)
    }

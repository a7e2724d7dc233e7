"""The patterns of ``--override-tensor``, read only where a search for them ends soon.

llama.cpp has the whole of ECMAScript's regular expressions (``std::regex_search``), of which some
take a backtracking search minutes for one name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from manager.gguf.reader import GgufError

# Names, classes, anchors, and groups that do not repeat.
_PATTERN = re.compile(r"(?:(?:[\w.-]|\\[.dws-]|\[\^?[\w.-]+\])[*+]?|\((?:\?:)?|[)|^$])*", re.ASCII)
_GROUP = re.compile(r"\(([^()]*)\)")
_MAX_PATTERNS = 2048
_MAX_PATTERN = 512  # characters
_MAX_NAME = 64  # characters of a tensor's name: GGML_MAX_NAME of ggml.h
_MAX_ALTERNATIVES = 512
_MAX_TRIES = 4 * _MAX_NAME**2  # ways to match a pattern from one place on


def searches(patterns: tuple[str, ...]) -> list[Callable[[str], object]]:
    """A search of a tensor's name for each of them. Raises GgufError for one that is not read."""
    if len(patterns) > _MAX_PATTERNS:
        raise GgufError(f"no estimate: more than {_MAX_PATTERNS} patterns of --override-tensor")
    return [_search(_pattern(each)) for each in patterns]


def _search(pattern: re.Pattern[str]) -> Callable[[str], object]:
    return lambda name: pattern.search(name, 0, _MAX_NAME)


def _pattern(written: str) -> re.Pattern[str]:
    """What --override-tensor has before its ``=``. Raises GgufError for one that a search might
    take long for."""
    if len(written) <= _MAX_PATTERN and _PATTERN.fullmatch(written):
        alternatives = [*_GROUP.findall(written), _GROUP.sub("", written)]
        choices = math.prod(each.count("|") + 1 for each in alternatives)
        tries = choices * _MAX_NAME ** len(re.findall(r"[*+]", written))
        # What is left of nested groups has parentheses still.
        is_short = choices <= _MAX_ALTERNATIVES and tries <= _MAX_TRIES
        if is_short and "(" not in alternatives[-1]:
            try:
                return re.compile(written)
            except re.error:
                pass
    raise GgufError(
        f"no estimate: the pattern {written[:80]!r} of --override-tensor is not read here, only"
        " short ones of names, classes, at most two of * and +, and groups of alternatives that"
        " do not repeat"
    )

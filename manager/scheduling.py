"""Pure decisions: no clock, no I/O, no locks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from manager.config import Scheme


@dataclass(frozen=True)
class Choice:
    """The first scheme that can be used, None where none can, and why the ones before it
    cannot: scheme name → reason."""

    scheme: Scheme | None
    passed_over: dict[str, str]


def choose_scheme(schemes: Sequence[Scheme], obstacle: Callable[[Scheme], str | None]) -> Choice:
    """Tries the schemes in the file's order; ``obstacle`` says what speaks against one."""
    passed_over: dict[str, str] = {}
    for scheme in schemes:
        reason = obstacle(scheme)
        if reason is None:
            return Choice(scheme, passed_over)
        passed_over[scheme.name] = reason
    return Choice(None, passed_over)

"""What stands in the address of a model's own web page in place of a cookie."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

HOURS = 12
_WHO = ("account", "generation", "local_token")  # of a session
_SECONDS = HOURS * 3600.0
_MAX_KEPT = 1000
_PATH = re.compile(r"/+upstream/@([\w-]{32})(?:/|$)", re.ASCII)


class PagePass(NamedTuple):
    """``session`` is what it was made from, and ends with it; ``model`` the only one it is for."""

    session: Mapping[str, Any]
    model: str
    until: float


class PagePasses:
    """A page of a model's server is sandboxed: a browser sends no cookie of ours with what it asks
    for, and what it sends is cross-site. So its address has a pass in it, which nobody else can
    know; those with a pass may use that one server. Kept in memory; the oldest give way."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._kept: dict[str, PagePass] = {}

    def issue(self, session: Mapping[str, Any], model: str) -> str:
        """The path of the model's server with a new pass in it, without a slash at its end."""
        code = secrets.token_urlsafe(24)
        made = PagePass(dict(session), model, self._monotonic() + _SECONDS)
        with self._lock:
            if len(self._kept) >= _MAX_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[code] = made
        return f"/upstream/@{code}"

    def drop(self, session: Mapping[str, Any]) -> None:
        """Who signs out ends the passes of the account, those of other browsers too."""
        with self._lock:
            self._kept = {
                code: made
                for code, made in self._kept.items()
                if any(made.session.get(name) != session.get(name) for name in _WHO)
            }

    def find(self, path: str) -> PagePass | None:
        """The pass in a path that `has_pass`, where it is good."""
        found = _PATH.match(path)
        kept = self._kept.get(found[1]) if found else None
        return kept if kept is not None and self._monotonic() < kept.until else None


def has_pass(path: str) -> bool:
    return _PATH.match(path) is not None


def without_pass(path: str) -> str:
    """The path as a log or a message may have it."""
    found = _PATH.match(path)
    return path if found is None else f"/upstream/@…{path[found.end(1) :]}"

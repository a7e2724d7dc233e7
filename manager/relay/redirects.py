"""Redirects of a server whose root the client has at another path. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urljoin, urlsplit, urlunsplit

_DOT = re.compile("%2e", re.IGNORECASE)
_ROOT = "//server"


def put_below(location: str, target: str, base: str, own: Collection[str]) -> str | None:
    """The Location that the client gets of an answer to ``target``, a path at the server, whose
    root is at ``base`` for it. ``own`` are the hosts that the server may name itself by; None for
    what leads to another host: there are too many ways to spell our own address."""
    # As browsers read it, who would climb out of the base by these.
    spelled = _DOT.sub(".", location.replace("\\", "/").replace("\t", ""))
    try:
        there = urlsplit(urljoin(f"http:{_ROOT}{target}", spelled))
    except ValueError:  # no address
        return f"{base}/"
    is_own = f"//{there.netloc.lower()}" == _ROOT or there.netloc.lower() in own
    if there.scheme not in ("http", "https") or not is_own:
        return None
    path = "/" + there.path.lstrip("/") if there.path else "/"
    return base + urlunsplit(("", "", path, there.query, there.fragment))

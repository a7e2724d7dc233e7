"""A door with nobody in front of it, for the application over a part of a house."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from manager.access.registry import AccessSnapshot


def unlocked() -> Any:
    """The ``access`` of a house where no password is set and no key was made."""
    return SimpleNamespace(snapshot=AccessSnapshot(), record=lambda _function: None)

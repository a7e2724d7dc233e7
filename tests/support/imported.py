"""Configs of other programs, imported, and read again as the program reads its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from manager.config import Config, loader
from manager.importers import READERS, Imported, finish
from manager.interfaces import BUILT_IN

Import = Callable[[str], tuple[Config, str]]
"""Imports a text; the config that was made, and the report."""


def imported(kind: str, source: Path) -> Imported:
    """What is made of a source of that kind, for the config beside it."""
    return finish(READERS[kind](source), source.parent / "config.yaml")


def read_again(made: Imported, folder: Path) -> Config:
    """The config that was made."""
    modes = [interface.mode for interface in BUILT_IN]
    return loader.parse(made.text, folder / "config.yaml", lambda _plugins: modes)

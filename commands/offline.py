"""Changes to usage.db by a user of the machine, audited; a running program sees them within a
second."""

from __future__ import annotations

import argparse
import getpass
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from commands import options
from manager.access import audit, registry
from manager.billing import calendar
from manager.storage import Store, data_dir, maintenance

T = TypeVar("T")


class OfflineDatabase:
    """usage.db in a data folder. Functions get a connection to it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "usage.db"

    def read(self, function: Callable[[Any], T]) -> T:
        """Raises StoreError, DataDirInUse, OSError."""
        self._require()
        with closing(maintenance.connect(self._path)) as connection:
            return function(connection)

    def change(
        self,
        action: str,
        subject: str,
        detail: dict[str, Any],
        function: Callable[[Any], T],
    ) -> T:
        """Calls it within a transaction that also records who did what. Raises what it raises,
        StoreError, DataDirInUse, OSError."""
        self._require()
        with (
            closing(maintenance.connect(self._path)) as connection,
            maintenance.transaction(connection),
        ):
            result = function(connection)
            registry.changed(connection)
            audit.add(connection, options.now_ms(), who(), "", action, subject, detail)
        return result

    def _require(self) -> None:
        """Makes the database where the program has never run, so that a machine can be set up
        before it is started."""
        if not self._path.exists():
            with data_dir.lock(self._folder), closing(Store(self._path)):
                pass


Act = Callable[[argparse.Namespace, OfflineDatabase], None]
"""What a command does with the database in its data folder."""


def command(commands: Any, name: str, act: Act, summary: str) -> argparse.ArgumentParser:
    """Adds a command to those of `add_subparsers`."""

    def run(arguments: argparse.Namespace) -> None:
        act(arguments, OfflineDatabase(arguments.data_dir))

    parser = options.command(commands, name, run, summary)
    options.add_data_dir(parser)
    return parser


def who() -> str:
    """The user of the machine, who may be a number alone, as in many containers."""
    try:
        return f"shell {getpass.getuser()}"
    except (KeyError, OSError, ImportError):
        return f"shell uid {os.getuid()}"


def iso(ms: int | None) -> str:
    return "never" if ms is None else calendar.iso(ms)


def table(rows: Sequence[tuple[str, ...]]) -> None:
    """Prints rows in columns; the first row has the heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())

"""What `python -m commands.keys` and `python -m commands.users` share: changes from a shell,
which a running program sees within a second."""

from __future__ import annotations

import argparse
import getpass
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from manager.access import audit, registry
from manager.billing import calendar
from manager.errors import ApiError
from manager.storage import data_dir, maintenance
from manager.storage.store import Store, StoreError

T = TypeVar("T")


class OfflineDatabase:
    """usage.db in a data folder, as one user of the machine's changes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "usage.db"

    def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Raises StoreError, sqlite3.Error."""
        self._require()
        with closing(maintenance.connect(self._path)) as connection:
            return function(connection)

    def change(
        self,
        action: str,
        subject: str,
        detail: dict[str, Any],
        function: Callable[[sqlite3.Connection], T],
    ) -> T:
        """Calls it within a transaction that also notes who did what. Raises what it raises,
        StoreError, sqlite3.Error, OSError."""
        self._require()
        with (
            closing(maintenance.connect(self._path)) as connection,
            maintenance.transaction(connection),
        ):
            result = function(connection)
            registry.changed(connection)
            audit.add(connection, now_ms(), who(), "", action, subject, detail)
        return result

    def _require(self) -> None:
        """Makes the database where the program has never run, so that a machine can be set up
        before it is started."""
        if not self._path.exists():
            with data_dir.lock(self._folder), closing(Store(self._path)):
                pass


Act = Callable[[argparse.Namespace, OfflineDatabase], None]
"""What a command does."""


def command(commands: Any, name: str, act: Act, help_text: str) -> argparse.ArgumentParser:
    """Adds a command to those of `add_subparsers`."""
    made: argparse.ArgumentParser = commands.add_parser(name, help=help_text)
    made.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR")
    made.set_defaults(act=act)
    return made


def run(parser: argparse.ArgumentParser) -> int:
    """Reads the command line and does what it says; the exit code. What goes wrong is told."""
    arguments = parser.parse_args()
    try:
        arguments.act(arguments, OfflineDatabase(arguments.data_dir))
    except ApiError as error:
        print(error.message, file=sys.stderr)
        return 1
    except (StoreError, data_dir.DataDirInUse, sqlite3.Error, OSError) as error:
        print(f"Nothing was changed: {error}", file=sys.stderr)
        return 1
    return 0


def who() -> str:
    """The user of the machine, who may be a number alone, as in many containers."""
    try:
        return f"shell {getpass.getuser()}"
    except (KeyError, OSError, ImportError):
        return f"shell uid {os.getuid()}"


def now_ms() -> int:
    return int(time.time() * 1000)


def moment_ms(text: str) -> int:
    """A moment in ISO 8601, the machine's own time where it says no zone. For argparse."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"expected a moment such as 2027-01-31 or 2027-01-31T18:00, found {text[:40]!r}"
        ) from None


def iso(ms: int | None) -> str:
    return "never" if ms is None else calendar.iso(ms)


def table(rows: Sequence[tuple[str, ...]]) -> None:
    """Prints rows, the first of which are the heads, in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())

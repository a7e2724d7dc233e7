"""The data folder, which belongs to one running program at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO

_SECRET_BYTES = 32


class DataDirInUse(Exception):
    """Another program runs on the same folder."""


def claim(folder: Path) -> BinaryIO:
    """Makes the folder and locks it until the program ends, however it ends.

    Two programs on one folder would stop each other's models. Keep what it returns open.
    Raises DataDirInUse, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("a+b")
    try:
        _lock(file)
    except OSError:
        file.seek(0)
        owner = file.read().decode("ascii", "replace").strip()
        file.close()
        raise DataDirInUse(
            f"{folder} is in use by another LLM-Manager (pid {owner or 'unknown'});"
            " stop it, or choose another folder with --data-dir"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()).encode())
    file.flush()
    return file


def secret(folder: Path) -> bytes:
    """What signs the pages' sessions: kept, so that open pages outlive a restart. Raises
    OSError."""
    path = folder / "secret"
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        found = b""
    if len(found) != _SECRET_BYTES:  # also half of one, of a program that was killed
        found = os.urandom(_SECRET_BYTES)
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(found)
    return found


if sys.platform == "win32":
    import msvcrt

    def _lock(file: BinaryIO) -> None:
        file.seek(1 << 20)  # behind the content: a locked range cannot be read by others
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)

else:
    import fcntl

    def _lock(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

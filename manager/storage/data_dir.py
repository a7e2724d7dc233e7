"""The data folder, which belongs to one running program at a time."""

from __future__ import annotations

import logging
import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

_SECRET_BYTES = 32
_OTHERS = 0o027  # rights in the folder: all of others', and the group's to write
_NOT_OWNER = 0o077  # rights of a file
# With secrets in them, or what secrets could be guessed from.
_PRIVATE = ("secret", "usage.db", "usage.db-wal", "usage.db-shm", "backups/*")


class DataDirInUse(Exception):
    """Another program runs on the same folder."""


def create(folder: Path) -> None:
    """Makes the folder where it is missing, for its owner alone. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def make_private(path: Path) -> None:
    """Makes an empty file that only its owner may read, where there is none. Raises OSError."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def restrict_permissions(folder: Path) -> None:
    """Takes from a folder that was there before what rights others have in it, and its group's to
    write; and from the files in it that hold secrets, all but their owner's. What cannot be
    changed is told to the log and stays. Windows has no such rights."""
    if sys.platform == "win32":
        return
    closed = []
    files = (path for pattern in _PRIVATE for path in folder.glob(pattern) if path.is_file())
    for path, rights in [(folder, _OTHERS), *((path, _NOT_OWNER) for path in files)]:
        try:
            before = stat.S_IMODE(path.stat().st_mode)
            if before & stat.S_ISVTX:  # such as /tmp, which others need as it is
                log.warning("%s is a folder for everybody: name one of your own", path)
            elif before & rights:
                path.chmod(before & ~rights)
                closed.append(f"{path} (was {before:o})")
        except FileNotFoundError:  # SQLite's come and go
            continue
        except OSError as error:
            log.warning("others may look into %s, which cannot be changed: %s", path, error)
    if closed:
        log.warning("others had rights here and have none any more: %s", ", ".join(closed))


def lock(folder: Path) -> BinaryIO:
    """Makes the folder and locks it until the program ends, however it ends.

    Two programs on one folder would stop each other's models. Keep what it returns open.
    Raises DataDirInUse, OSError.
    """
    create(folder)
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


def session_secret(folder: Path) -> bytes:
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

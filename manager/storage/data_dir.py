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
_MAX_PRIVATE_BYTES = 4096
_OTHERS = 0o027  # rights in the folder: all of others', and the group's to write
_OTHERS_WRITE = 0o022
_NOT_OWNER = 0o077  # rights of a file
# With secrets in them, or what secrets could be guessed from.
_PRIVATE = ("secret", "usage.db*", "queue.db*", "backups/*")
_PRIVATE_MODE = 0o600


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
    changed is logged and stays. Windows has no such rights."""
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


def is_for_everybody(path: Path) -> bool:
    """Whether every user of the machine could change the file, or put another in its place."""
    if sys.platform == "win32":
        return False
    try:
        file, folder = path.stat().st_mode, path.resolve().parent.stat().st_mode
    except OSError:
        return False
    return bool(file & stat.S_IWOTH or (folder & stat.S_IWOTH and not folder & stat.S_ISVTX))


def lock(folder: Path) -> BinaryIO:
    """Makes the folder and locks it until the program ends, however it ends.

    Two programs on one folder would stop each other's models. Keep what it returns open.
    Raises DataDirInUse, OSError; PermissionError where another user has put something there.
    """
    create(folder)
    _refuse_others_files(folder)
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


def _refuse_others_files(folder: Path) -> None:
    """Nothing in the folder is opened that another user may have put there while they could: a
    database with accounts of theirs, or a link to a file that we would write to. What belongs to
    the folder's owner is trusted. Raises PermissionError."""
    if sys.platform == "win32":
        return
    state = folder.stat()
    # First, lest something is put there between the look and the use.
    mode = stat.S_IMODE(state.st_mode)
    if mode & _OTHERS_WRITE and not mode & stat.S_ISVTX and state.st_uid == os.geteuid():
        log.warning("%s was writable by others (%o), and is not any more", folder, mode)
        folder.chmod(mode & ~_OTHERS_WRITE)
    trusted = {os.geteuid(), state.st_uid}
    for place in (folder, *(folder / name for name in ("logs", "backups", "exports"))):
        if not place.is_dir():
            continue
        for entry in os.scandir(place):
            if entry.stat(follow_symlinks=False).st_uid not in trusted:
                raise PermissionError(
                    f"{entry.path} belongs to another user, who could have put anything into it:"
                    " take it away, or name another folder with --data-dir"
                )


def owner(folder: Path) -> int | None:
    """The pid of the program that runs on the folder; None where none does. Raises OSError."""
    try:
        file = (folder / "lock").open("r+b")
    except FileNotFoundError:
        return None
    with file:
        try:
            _lock(file)
        except OSError:
            file.seek(0)
            pid = file.read().decode("ascii", "replace").strip()
            return int(pid) if pid.isdecimal() else None
    return None


def session_secret(folder: Path) -> bytes:
    """What signs the pages' sessions: kept, so that open pages outlive a restart. Raises
    OSError."""
    path = folder / "secret"
    found = read_private(path)
    if found is None or len(found) != _SECRET_BYTES:
        found = os.urandom(_SECRET_BYTES)
        write_private(path, found)
    return found


def read_private(path: Path) -> bytes | None:
    """What is in a file that its owner alone can read and write, and that is ours. None where
    there is no such file: a link, another user's file or one that others may read holds nothing
    that is secret. Raises OSError where it cannot be read."""
    # Without waiting, should somebody have put a pipe there.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return None
    except OSError:
        if path.is_symlink():
            return None
        raise
    with open(descriptor, "rb") as file:
        # Of the open file: by its name it could be another one a moment later.
        if not _is_private(os.fstat(descriptor)):
            return None
        return file.read(_MAX_PRIVATE_BYTES)


def write_private(path: Path, content: bytes) -> None:
    """Puts a file there that nobody else can read at any moment, whatever was there: a link is
    replaced, not followed. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(part, flags, _PRIVATE_MODE)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _is_private(state: os.stat_result) -> bool:
    if not stat.S_ISREG(state.st_mode):
        return False
    if sys.platform == "win32":
        return True
    return state.st_uid == os.geteuid() and not stat.S_IMODE(state.st_mode) & _NOT_OWNER


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

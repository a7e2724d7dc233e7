"""Who else may write to a file that names programs to run."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

_MAX_LINKS = 40  # as Linux has it


def find_fault(path: Path) -> str | None:
    """Why a file is not to be trusted as we trust ourselves: it is no regular file, or somebody
    other than its user, who has to be us or root, may write to it or put another in its place. None
    where all is well, and on Windows, where it is not checked.

    Each folder counts in which a name is looked up on the way, those of links too. A group may
    write where it is the owner's own, as many systems make one for each user: of the same name,
    with nobody else in it. In a folder with the sticky bit nobody may replace the files of others,
    and nobody may write to what is mounted read-only, as Kubernetes mounts a ConfigMap.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return f"{path} is no regular file"
        if sys.platform == "win32":
            return None
        for folder, name in _lookups(path):
            place = os.path.join(folder, name)
            fault = _folder_fault(folder) or _owner_fault(place)
            if fault:
                return fault
        return _write_fault(os.path.realpath(path))
    except OSError as error:
        return f"{path} cannot be examined: {error.strerror}"


def _lookups(path: Path) -> Iterator[tuple[str, str]]:
    """The folders and the names in them that lead to a file, links followed. Raises OSError."""
    absolute = path.absolute()
    folder, names, links = absolute.anchor, list(absolute.parts[:0:-1]), 0
    while names:
        name = names.pop()
        if name == "..":
            folder = os.path.dirname(folder)
            continue
        yield folder, name
        place = os.path.join(folder, name)
        if not os.path.islink(place):
            folder = place
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = Path(os.readlink(place))
        folder = target.anchor or folder
        names += reversed(target.parts[1:] if target.anchor else target.parts)


if sys.platform != "win32":
    import grp
    import pwd

    def _folder_fault(folder: str) -> str | None:
        """Whether others may put something else in place of what is ours in it."""
        is_sticky = os.stat(folder).st_mode & stat.S_ISVTX
        return _owner_fault(folder) or (None if is_sticky else _write_fault(folder))

    def _owner_fault(place: str) -> str | None:
        if os.lstat(place).st_uid in (os.geteuid(), 0) or _is_read_only(place):
            return None
        return f"{place} belongs to another user"

    def _write_fault(place: str) -> str | None:
        state = os.stat(place)
        by_group = state.st_mode & stat.S_IWGRP and not _is_own_group(place, state)
        if not (state.st_mode & stat.S_IWOTH or by_group) or _is_read_only(place):
            return None
        return f"other users may write to {place}: chmod {'g-w,' if by_group else ''}o-w"

    def _is_own_group(place: str, state: os.stat_result) -> bool:
        try:
            user, group = pwd.getpwuid(state.st_uid).pw_name, grp.getgrgid(state.st_gid)
        except KeyError:
            return False
        return group.gr_name == user and set(group.gr_mem) <= {user} and not _has_acl(place)

    def _has_acl(place: str) -> bool:
        """Whether the group's bits stand for more than the group."""
        if sys.platform != "linux":
            return False
        try:
            return bool(os.getxattr(place, "system.posix_acl_access"))
        except OSError:  # it has none, or its file system knows none
            return False

    def _is_read_only(place: str) -> bool:
        return bool(os.statvfs(place).f_flag & os.ST_RDONLY)

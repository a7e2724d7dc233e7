"""The memory limits that hold for this process: a container's, a systemd unit's.

Linux keeps them in files of its control groups ("cgroups"), below ``/sys/fs/cgroup``: of version 2,
and of version 1 where the memory controller is there. Other systems have no such files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")

_MIN_LIMIT = 2**20  # bytes; no Python runs in less: such a file means something else
_MAX_DIGITS = 20  # of 2**64


@dataclass(frozen=True)
class MemoryLimit:
    """One cgroup's limit, and what all processes in it and below it use. In bytes.

    ``used`` includes the cached files, of which ``inactive_files`` were not read again lately.
    ``source`` is the file that has the limit.
    """

    source: str
    limit: int
    used: int
    active_files: int
    inactive_files: int

    def available(self, mapped: int) -> int:
        """How much more can be used; below 0 where it is over its limit.

        What is used and cannot be reclaimed is ``memory.current - inactive_file``, as ``docker
        stats`` counts it (docs.docker.com/reference/cli/docker/container/stats). But files that
        models have ``mapped`` (bytes) are not counted as reclaimable, wherever they are cached:
        without them a model would wait for the disk at every token.
        """
        not_mapped = max(0, self.active_files + self.inactive_files - mapped)
        return self.limit - (self.used - min(self.inactive_files, not_mapped))


@dataclass(frozen=True)
class _Version:
    folder: str
    limit: str
    used: str
    stat_prefix: str


_V1 = _Version("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
_V2 = _Version("sys/fs/cgroup", "memory.max", "memory.current", "")


def memory_limits(below: int, root: Path = ROOT) -> list[MemoryLimit]:
    """Every limit under ``below`` bytes, of the process's own cgroup and of those above it.

    The smallest holds, but one further up may leave less, since others use of it too. A file
    that is missing or has no number (``max``) is no limit; nor is version 1's number for none,
    which is beyond any machine's memory. ``root`` is where ``proc`` and ``sys`` are.

    In a container the cgroups above its own are not there, and its own is the topmost folder,
    whatever path ``/proc/self/cgroup`` has.
    """
    limits = []
    for folder, version in _folders(root):
        limit = _number(folder / version.limit)
        if limit is not None and _MIN_LIMIT <= limit < below:
            files = _cached_files(folder / "memory.stat", version.stat_prefix)
            used = _number(folder / version.used) or 0
            limits.append(MemoryLimit(str(folder / version.limit), limit, used, *files))
    return limits


def _folders(root: Path) -> Iterator[tuple[Path, _Version]]:
    """Its own cgroup's folder and those above, of each version; they need not exist."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        # "0::/user.slice/a.scope" is version 2, "4:memory:/docker/1234" version 1.
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            version = _V2
        elif "memory" in controllers.split(","):
            version = _V1
        else:
            continue
        names = PurePosixPath(path).parts[1:]
        if ".." in names:
            continue  # outside of the namespace: none of the folders here is above it
        top = root / version.folder
        for depth in range(len(names), -1, -1):
            yield top.joinpath(*names[:depth]), version


def _cached_files(file: Path, prefix: str) -> tuple[int, int]:
    """Bytes: active, inactive; 0 where the file does not say."""
    found = dict(line.split(" ", 1) for line in _text(file).splitlines() if " " in line)
    return (
        _as_number(found.get(f"{prefix}active_file", "")) or 0,
        _as_number(found.get(f"{prefix}inactive_file", "")) or 0,
    )


def _number(file: Path) -> int | None:
    return _as_number(_text(file))


def _as_number(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_DIGITS else None


def _text(file: Path) -> str:
    """What stands in a file; nothing where it cannot be read."""
    try:
        return os.fsdecode(file.read_bytes())
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return ""

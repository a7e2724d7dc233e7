"""Takes the oldest output away from a file that a model's server goes on writing to.

The server appends to the file by itself, so that the file cannot be replaced under it. ext4 and XFS
take blocks out of the front of a file in one step, between two writes of whoever appends: nothing
is lost. Elsewhere the newest output is copied and the file is emptied before the copy is appended:
what is written in that moment may be lost, or come before the copy.
"""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

_FALLOC_FL_COLLAPSE_RANGE = 8  # linux/falloc.h
_BLOCK = 1 << 16  # bytes; a multiple of any file system's block
_MAX_COPIED = 8 << 20  # bytes
_MAX_ROUNDS = 5  # of copying what was written while it was copied
_NOTE = b"; earlier output was deleted"
_NO_TITLE = b"# earlier output was deleted"


@dataclass(frozen=True)
class Cut:
    """What was taken from the front of a file: ``removed`` bytes since the program has known it;
    of what is left, that before the byte ``first`` (counted from the file's original begin) was
    overwritten by the title. While it is ``under_way`` nobody knows what is where."""

    removed: int = 0
    first: int = 0
    under_way: bool = False


UNCUT = Cut()


def cut(path: Path, keep: int, before: Cut) -> Cut:
    """Takes output away so that some ``keep`` bytes of the newest stay, at most 8 MB where the
    file system cannot do it in place, below the title that the file began with. Raises OSError."""
    # Appending, for the copy.
    with path.open("ab+", buffering=0) as file:
        descriptor = file.fileno()
        title = _title(os.pread(descriptor, _BLOCK, 0))
        unwanted = (os.fstat(descriptor).st_size - keep) // _BLOCK * _BLOCK
        if unwanted <= 0:
            return before
        if _collapse(descriptor, unwanted):
            head = _with_title(os.pread(descriptor, _BLOCK, 0), title)
            with path.open("rb+", buffering=0) as beginning:
                beginning.write(head)
        else:
            unwanted, head = _copy(descriptor, min(keep, _MAX_COPIED), title)
    removed = before.removed + unwanted
    return Cut(removed, removed + len(head))


def _collapse(descriptor: int, length: int) -> bool:
    """Whether the first ``length`` bytes were taken out of the file."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if fallocate is None:
        return False
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(fallocate(descriptor, _FALLOC_FL_COLLAPSE_RANGE, 0, length) == 0)


def _copy(descriptor: int, keep: int, title: bytes) -> tuple[int, bytes]:
    """How many bytes there are less before the newest that stayed, and the head of these."""
    newest, copied = b"", 0
    for _ in range(_MAX_ROUNDS):
        size = os.fstat(descriptor).st_size
        begin = max(copied, size - keep)
        if begin == size:
            break
        piece = os.pread(descriptor, size - begin, begin)
        newest = newest + piece if begin == copied else piece
        copied = begin + len(piece)
    head = _with_title(newest[:_BLOCK], title)
    size = os.fstat(descriptor).st_size
    os.ftruncate(descriptor, 0)  # all between the copy and this is lost
    left = memoryview(head + newest[len(head) :])
    while left:
        left = left[os.write(descriptor, left) :]
    return size - len(newest), head


def _title(beginning: bytes) -> bytes:
    line = beginning.partition(b"\n")[0]
    if not line.startswith(b"# "):
        return _NO_TITLE
    line = line.rstrip()
    return line if line.endswith(_NOTE[2:]) else line + _NOTE


def _with_title(beginning: bytes, title: bytes) -> bytes:
    """What to write over the beginning: the title, up to the end of a line. Empty where no line
    ends there that is long enough."""
    end = beginning.find(b"\n", len(title))
    return b"" if end < 0 else title.ljust(end) + b"\n"

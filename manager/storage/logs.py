"""Logs: a model's output, one file a run, and the program's own; tails, followers."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

_BLOCK = 1 << 16
_MAX_LINE = 1 << 16
_MAX_TAIL = 4 << 20  # bytes; a progress bar can be one line of gigabytes
POLL = 0.25
"""Seconds between two looks at a file that somebody follows."""
_MAX_BEHIND = 1 << 20  # bytes that a follower may be behind
_CAUGHT_UP = 100  # lines with which it goes on then
PROGRAM_LOG = "llm-manager.log"
_UNSAFE = re.compile(r'[<>:"/\\|?*%\x00-\x1f]|^\.|[. ]$')
# Windows keeps these names for devices, whatever stands behind a dot.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)\s*(?:\.|$)", re.IGNORECASE)


def folder_name(model: str) -> str:
    """A name for the model's folder that every file system takes, different for each model."""
    name = _UNSAFE.sub(lambda match: _escaped(match[0]), model)
    if _DEVICE.match(name):
        name = _escaped(name[0]) + name[1:]
    if len(name.encode()) > 120:
        digest = hashlib.sha256(model.encode()).hexdigest()[:12]
        name = name.encode()[:100].decode("utf-8", "ignore") + "~" + digest
    return name


class ModelLogs:
    """The log files of all models, below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def create(self, model: str, run: str, title: str) -> tuple[Path, int]:
        """A new file for a run: its path and a descriptor that appends to it.

        The model writes to the file itself, so that its output survives the manager. Raises
        OSError, also for a full disk, which shows when the title is written.
        """
        folder = self._folder / folder_name(model)
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now(timezone.utc)
        path = folder / f"{now:%Y%m%dT%H%M%S.%fZ}-{run[:8]}.log"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            _write_all(descriptor, f"# {now:%Y-%m-%d %H:%M:%S} UTC {title}\n".encode())
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        return path, descriptor

    def append(self, model: str, run: str) -> int:
        """A descriptor that appends to the file of a run, or to the model's newest where that is
        not there any more. Raises OSError, FileNotFoundError where there is none at all."""
        path = self.of_run(model, run) or self.newest(model)
        if path is None:
            raise FileNotFoundError(f"{model} has no log")
        return os.open(path, os.O_WRONLY | os.O_APPEND)

    def newest(self, model: str) -> Path | None:
        """The file of the latest run, None where the model has never run."""
        files = self._files(model)
        return files[-1] if files else None

    def of_run(self, model: str, run: str) -> Path | None:
        """The file of one run, None where it is not there any more."""
        return next(
            (file for file in self._files(model) if file.stem.endswith(f"-{run[:8]}")), None
        )

    def tail(self, model: str, lines: int, run: str | None = None) -> str:
        """The last lines of the latest run, or of that one; "" where there is none."""
        path = self.newest(model) if run is None else self.of_run(model, run)
        return "\n".join(_last_lines(path, lines)) if path else ""

    def follow(self, model: str, lines: int, stopped: threading.Event) -> Iterator[str | None]:
        """The last lines, then every line to come, over later runs as well, until ``stopped``.

        None stands for a quiet moment, so that the caller can show that it is still there.
        """
        follower = self.follower(model, lines)
        while not stopped.is_set():
            found = follower.read()
            if found is not None:
                yield from found
            else:
                yield None
                stopped.wait(POLL)

    def follower(self, model: str, lines: int) -> Follower:
        """Reads on in the model's log, from its last lines on."""
        return Follower(lambda: self._files(model), lines)

    def program_follower(self, lines: int) -> Follower:
        """The same of the program's own log."""
        return Follower(self._program_files, lines)

    def program_tail(self, lines: int) -> str:
        """The last lines of the program's own log."""
        return "\n".join(
            line for path in self._program_files() for line in _last_lines(path, lines)
        )

    def clean(self, days: float) -> int:
        """Removes files that nothing was written to for ``days``, except each model's latest.
        Returns how many."""
        removed = 0
        limit = time.time() - days * 86400
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            if not folder.is_dir():
                continue
            for path in sorted(folder.glob("*.log"))[:-1]:
                if path.stat().st_mtime < limit:
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed

    def _files(self, model: str) -> list[Path]:
        return sorted((self._folder / folder_name(model)).glob("*.log"))

    def _program_files(self) -> list[Path]:
        path = self._folder / PROGRAM_LOG
        return [path] if path.exists() else []


class Follower:
    """Reads on in a log, over later runs as well. For one thread."""

    def __init__(self, files: Callable[[], list[Path]], lines: int) -> None:
        self._files = files
        self._path: Path | None = None
        self._offset = 0
        self._partial = b""
        self._first: list[str] = []
        if found := files():
            self._path = found[-1]
            self._offset = self._path.stat().st_size
            self._first = _last_lines(self._path, lines, self._offset)

    def read(self) -> list[str] | None:
        """What was added since; None in a quiet moment, after which more may come."""
        if self._first:
            first, self._first = self._first, []
            return first
        # In this order: what was written before the next run began is read before it.
        later = next((file for file in self._files() if self._is_later(file)), None)
        data = b""
        if self._path is not None:
            size = self._path.stat().st_size if self._path.exists() else 0
            if size - self._offset > _MAX_BEHIND:
                return self._catch_up(self._path, size)
            data, self._offset = _read_from(self._path, self._offset)
        if data:
            *whole, self._partial = (self._partial + data).split(b"\n")
            if len(self._partial) > _MAX_LINE:
                whole, self._partial = [*whole, self._partial], b""
            return [_text(line) for line in whole]
        if later is None:
            return None
        rest = [_text(self._partial)] if self._partial else []
        self._path, self._offset, self._partial = later, 0, b""
        return rest

    def _catch_up(self, path: Path, size: int) -> list[str]:
        """More was written than anybody can read: goes on with the last of it."""
        left_out, self._offset, self._partial = size - self._offset, size, b""
        return [f"# {left_out} bytes are left out here", *_last_lines(path, _CAUGHT_UP, size)]

    def _is_later(self, file: Path) -> bool:
        return self._path is None or file > self._path


def _escaped(character: str) -> str:
    return f"%{ord(character):02X}"


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _text(line: bytes) -> str:
    return line.rstrip(b"\r").decode("utf-8", "replace")[:_MAX_LINE]


def _read_from(path: Path, offset: int) -> tuple[bytes, int]:
    """What is there from ``offset`` on, and the offset behind it."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < offset:
                offset = 0  # somebody has cut it, as logrotate does
            file.seek(offset)
            data = file.read(_MAX_BEHIND)
            return data, offset + len(data)
    except FileNotFoundError:
        return b"", offset


def _last_lines(path: Path, count: int, end: int | None = None) -> list[str]:
    """Reads backwards in blocks: a log may be larger than memory."""
    blocks: list[bytes] = []
    newlines = 0
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END) if end is None else end
        while position > 0 and newlines <= count and len(blocks) * _BLOCK < _MAX_TAIL:
            start = max(0, position - _BLOCK)
            file.seek(start)
            block = file.read(position - start)
            blocks.append(block)
            newlines += block.count(b"\n")
            position = start
    data = b"".join(reversed(blocks))
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return [_text(line) for line in lines[-count:]] if count > 0 else []

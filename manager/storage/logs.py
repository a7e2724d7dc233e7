"""Logs: a model's output, one file a run, and the program's own; tails, followers."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

from manager.storage import log_cuts
from manager.storage.log_cuts import UNCUT, Cut
from manager.storage.terminal import plain_text, unfinished_bytes

log = logging.getLogger(__name__)

_BLOCK = 1 << 16
_MAX_LINE = 1 << 16
_MAX_TAIL = 4 << 20  # bytes; a progress bar can be one line of gigabytes
POLL = 0.25
"""Seconds between two looks at a file that somebody follows."""
_MAX_BEHIND = 1 << 20  # bytes that a follower may be behind
_CAUGHT_UP = 100  # lines with which it goes on then
_MAX_READS = 10  # of the end of a file that is cut meanwhile
PROGRAM_LOG = "llm-manager.log"
_STAMP = "%Y%m%dT%H%M%S.%fZ"  # in UTC: the beginning of a file's name
_UNSAFE = re.compile(r'[<>:"/\\|?*%\x00-\x1f]|^\.|[. ]$')
_BEGIN = re.compile(rb"[\x1b\s]")
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
    """The log files of all models, below one folder.

    ``_lock`` guards ``_changed``, the models' folders whose files are to be listed; None: all.
    ``_sizes`` is of the thread that calls ``enforce_limit``: by folder its newest file, and the
    bytes of the others. ``_cuts`` is written by that thread; to read it is one step of the
    interpreter.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._changed: set[Path] | None = None
        self._sizes: dict[Path, tuple[Path, int]] = {}
        self._cuts: dict[Path, Cut] = {}
        self._failed: set[Path] = set()

    def create(self, model: str, run: str, title: str) -> tuple[Path, int]:
        """A new file for a run: its path and a descriptor that appends to it.

        The model writes to the file itself, so that its output survives the manager. Raises
        OSError, also for a full disk, which shows when the title is written.
        """
        folder = self._folder / folder_name(model)
        folder.mkdir(parents=True, exist_ok=True)
        now = datetime.now(timezone.utc)
        path = folder / f"{self._stamp(model, now)}-{run[:8]}.log"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        try:
            _write_all(descriptor, f"# {now:%Y-%m-%d %H:%M:%S} UTC {title}\n".encode())
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        with self._lock:
            if self._changed is not None:
                self._changed.add(folder)
        return path, descriptor

    def _stamp(self, model: str, now: datetime) -> str:
        """The beginning of a new file's name. Files are in the order of their names, so that it
        comes after all others, also where the clock was set back since."""
        newest = self.newest(model)
        stamp, _, _ = newest.name.partition("-") if newest else ("", "", "")
        try:
            last = datetime.strptime(stamp, _STAMP).replace(tzinfo=timezone.utc)
        except ValueError:
            return now.strftime(_STAMP)  # it has none, or is somebody else's
        return max(now, last + timedelta(microseconds=1)).strftime(_STAMP)

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
        return Follower(lambda: self._files(model), lines, self._cut_of)

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

    def enforce_limit(self, max_bytes: int) -> None:
        """Deletes the oldest output of each model that has more: files of earlier runs, then the
        front of the latest run's, of which half of the limit stays. Cheap enough to be called all
        the time, by one thread: where nothing has begun, it looks at the size of one file a model.
        """
        with self._lock:
            changed, self._changed = self._changed, set()
        if changed is None:
            folders = self._folder.iterdir() if self._folder.is_dir() else ()
            changed = {folder for folder in folders if folder.is_dir()}
        for folder in [*self._sizes, *(changed - self._sizes.keys())]:
            try:
                newest, others = self._sizes.get(folder, (None, 0))
                size = _size(newest) if newest and folder not in changed else None
                if size is None or others + size > max_bytes:
                    self._shrink(folder, max_bytes)
            except OSError as error:
                if folder not in self._failed:  # once, not at each call
                    self._failed.add(folder)
                    log.error("the size of the logs in %s is not limited: %s", folder, error)

    def _shrink(self, folder: Path, max_bytes: int) -> None:
        """Raises OSError."""
        sizes = {path: _size(path) or 0 for path in sorted(folder.glob("*.log"))}
        if not sizes:
            self._sizes.pop(folder, None)
            return
        *earlier, newest = sizes
        for path in earlier:
            if sum(sizes.values()) <= max_bytes:
                break
            path.unlink(missing_ok=True)
            self._cuts.pop(path, None)
            del sizes[path]
        # Windows has the server go on where it was, so that the file would be as large as before.
        if sum(sizes.values()) > max_bytes and os.name == "posix":
            self._cut(newest, max_bytes // 2)
        self._sizes[folder] = newest, sum(sizes.values()) - sizes[newest]

    def _cut(self, path: Path, keep: int) -> None:
        """Raises OSError."""
        before = self._cut_of(path)
        after = before
        self._cuts[path] = Cut(before.removed, before.first, under_way=True)
        try:
            after = log_cuts.cut(path, keep, before)
        finally:
            self._cuts[path] = after
        if not before.removed:  # once a run
            log.warning("%s is larger than model_log_mb: its oldest output is deleted", path)

    def _cut_of(self, path: Path) -> Cut:
        return self._cuts.get(path, UNCUT)

    def _files(self, model: str) -> list[Path]:
        return sorted((self._folder / folder_name(model)).glob("*.log"))

    def _program_files(self) -> list[Path]:
        path = self._folder / PROGRAM_LOG
        return [path] if path.exists() else []


class Follower:
    """Reads on in a log, over later runs as well. For one thread.

    Offsets are counted from where the file began, as if nothing had been cut from it since.
    """

    def __init__(
        self,
        files: Callable[[], list[Path]],
        lines: int,
        cut_of: Callable[[Path], Cut] = lambda _path: UNCUT,
    ) -> None:
        self._files = files
        self._cut_of = cut_of
        self._path: Path | None = None
        self._offset = 0
        self._partial = b""
        self._first: list[str] = []
        if found := files():
            self._path = found[-1]
            for _ in range(_MAX_READS):
                cut = cut_of(self._path)
                self._first = self._begin_at_end(self._path, cut, _size(self._path) or 0, lines)
                if not cut.under_way and cut_of(self._path) is cut:
                    break

    def read(self) -> list[str] | None:
        """What was added since; None in a quiet moment, after which more may come."""
        if self._first:
            first, self._first = self._first, []
            return first
        # In this order: what was written before the next run began is read before it.
        later = next((file for file in self._files() if self._is_later(file)), None)
        data = b""
        if self._path is not None:
            cut = self._cut_of(self._path)
            if cut.under_way:
                return None
            size = _size(self._path) or 0
            end = cut.removed + size
            # But for the title, with which what is left begins.
            is_lost = self._offset < cut.first and self._offset != cut.removed
            if is_lost or end - self._offset > _MAX_BEHIND:
                return self._catch_up(self._path, cut, size)
            data, position = _read_from(self._path, self._offset - cut.removed)
            if self._cut_of(self._path) is not cut:
                return None  # it was cut in the meantime: what was read is not what was meant
            self._offset = cut.removed + position
        if data:
            *whole, self._partial = (self._partial + data).split(b"\n")
            if len(self._partial) > _MAX_LINE:
                whole += self._overlong()
            return [_text(line) for line in whole]
        if later is None:
            return None
        rest = [_text(self._partial)] if self._partial else []
        self._path, self._offset, self._partial = later, self._cut_of(later).removed, b""
        return rest

    def _overlong(self) -> list[bytes]:
        """What to show of a line that is too long to be kept until its end."""
        last = self._partial.rfind(b"\r", 0, max(0, self._partial.rfind(b"\r")))
        if last >= 0:  # a progress bar: its last two states, of which one may be half
            self._partial = self._partial[last + 1 :]
        if len(self._partial) <= _MAX_LINE:
            return []
        shown = len(self._partial) - unfinished_bytes(self._partial)
        line, self._partial = self._partial[:shown], self._partial[shown:]
        return [line]

    def _begin_at_end(self, path: Path, cut: Cut, size: int, lines: int) -> list[str]:
        """The last lines; what is added to the file comes next."""
        pieces = _last_pieces(path, max(lines, 1), size)
        held = unfinished_bytes(pieces[-1])
        self._partial = pieces[-1][len(pieces[-1]) - held :]
        self._offset = cut.removed + size
        pieces[-1] = pieces[-1][: len(pieces[-1]) - held]
        return _texts(pieces, lines)

    def _catch_up(self, path: Path, cut: Cut, size: int) -> list[str] | None:
        """More was written than anybody can read: goes on with the last of it."""
        before, partial = self._offset, self._partial
        lines = self._begin_at_end(path, cut, size, _CAUGHT_UP)
        if self._cut_of(path) is not cut:
            self._offset, self._partial = before, partial
            return None
        return [f"# {self._offset - before} bytes are left out here", *lines]

    def _is_later(self, file: Path) -> bool:
        return self._path is None or file > self._path


def _escaped(character: str) -> str:
    return f"%{ord(character):02X}"


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _size(path: Path) -> int | None:
    """None where it is not there any more."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _text(line: bytes) -> str:
    line = line.removesuffix(b"\r")  # the rest of a line's end, and no progress bar's
    if len(line) > _MAX_LINE:  # of a progress bar the end is what counts
        line = line[-_MAX_LINE:] if b"\r" in line else line[:_MAX_LINE]
    return plain_text(line)


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


def _last_lines(path: Path, count: int) -> list[str]:
    for _ in range(_MAX_READS):
        size = _size(path) or 0
        lines = _texts(_last_pieces(path, count, size), count)
        if (_size(path) or 0) >= size:
            break  # else it was cut in the meantime
    return lines


def _texts(pieces: list[bytes], count: int) -> list[str]:
    whole = pieces if pieces[-1] else pieces[:-1]
    return [_text(line) for line in whole[-count:]] if count > 0 else []


def _last_pieces(path: Path, count: int, end: int) -> list[bytes]:
    """The last ``count`` lines before ``end`` or more, the last of them what has no line end yet,
    which may be empty. Reads backwards in blocks: a log may be larger than memory."""
    blocks: list[bytes] = []
    newlines = 0
    position = end
    try:
        with path.open("rb") as file:
            while position > 0 and newlines <= count and len(blocks) * _BLOCK < _MAX_TAIL:
                start = max(0, position - _BLOCK)
                file.seek(start)
                block = file.read(position - start)
                blocks.append(block)
                newlines += block.count(b"\n")
                position = start
    except FileNotFoundError:
        return [b""]
    pieces = b"".join(reversed(blocks)).split(b"\n")
    if position > 0 and newlines <= count:
        # The end of an endless line. What comes first may be the rest of a sequence.
        newest = pieces[0][-_MAX_LINE:]
        begin = _BEGIN.search(newest)
        pieces[0] = newest[begin.start() :] if begin else newest
    return pieces

"""config.yaml in use: read, replaced and applied by one at a time, by hand or when it is saved."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manager.clock import Clock
from manager.config import config_file, trust
from manager.config.config_file import ConfigFile, Modes, Written
from manager.config.loader import ConfigError
from manager.config.settings import Config
from manager.config.yaml_reader import Problem
from manager.errors import ApiError

log = logging.getLogger(__name__)

ANY_VERSION = object()
STABLE_SECONDS = 1.0
"""How long a file is not written to until it is taken for saved."""
_MAX_NAMED = 5
Stamp = tuple[str, int, int, int, int]
"""Of a file on the disk: where it is, its inode, its size, and when it was written and when it was
changed at all, in ns. The first of both can be set, as `cp -p` and `touch -r` do."""
Apply = Callable[[Config], dict[str, Any]]
"""Puts a config to use. What it returns is for the caller of the API. Raises ApiError."""


class ConfigChanged(Exception):
    """The file is another one than the change was made from."""

    def __init__(self, file: ConfigFile) -> None:
        super().__init__(file)
        self.file = file


class NotSaved(Exception):
    """The file cannot be written, and is as it was unless the message says otherwise."""


class NotApplied(Exception):
    """The file was written and could not be put to use, because of `reason`."""

    def __init__(self, written: Written, reason: ApiError) -> None:
        super().__init__(written, reason)
        self.written, self.reason = written, reason


@dataclass(frozen=True)
class Saved:
    """A file that was written and applied, and what its use returned."""

    file: ConfigFile
    applied: dict[str, Any]


@dataclass(frozen=True)
class Refusal:
    """Why a file is not applied by itself: ``others_may_write``, ``removes_models`` or
    ``not_applied``; and the same in words."""

    code: str
    message: str


@dataclass(frozen=True)
class FileState:
    """What keeps the file as it is from being in use: its problems, or why it waits for a reload
    by hand. Neither where it is in use."""

    problems: tuple[Problem, ...] = ()
    waiting: Refusal | None = None


class LiveConfig:
    """The file at `path`, whose config `apply` puts to use. `spare` is a folder for the backup of a
    file that cannot be replaced. Its lock is held while the file is read, written and applied: only
    those who change the config wait for it.

    With `watch_config` a file that somebody else has saved is applied, too, by `tick`.
    """

    def __init__(
        self,
        current: Callable[[], Config],
        load: Callable[[], Config],
        apply: Apply,
        modes: Modes,
        spare: Path,
        clock: Clock,
    ) -> None:
        self._current, self._load, self._apply = current, load, apply
        self._modes, self._spare, self._clock = modes, spare, clock
        self._path = current().path
        self._lock = threading.Lock()
        self._state = FileState()
        # Of the file that was last read: at the beginning of none, so that one that was saved
        # while the program started is read again.
        self._seen: Stamp | object | None = object()
        self._changed: tuple[Stamp | None, float] | None = None  # and since when it is as it is

    @property
    def state(self) -> FileState:
        """Of the file, as far as it is watched."""
        return self._state if self._current().program.watch_config else FileState()

    def reload(self) -> dict[str, Any]:
        """Reads the file and applies it. Raises ConfigError, and then nothing has changed;
        ApiError."""
        with self._lock:
            return self._read_and_apply()

    def save(
        self,
        change: Callable[[str], str],
        version: object = ANY_VERSION,
        *,
        is_partial: bool = False,
    ) -> Saved:
        """Writes what `change` makes of the file's text, and applies it.

        Raises ConfigChanged where the file does not have that `version`, or is written by others
        meanwhile; ConfigError, NotSaved, or what `change` raises, and then nothing was written;
        NotApplied. A change `is_partial` whose author has not seen the rest of the file: NotSaved
        where that is not in use.
        """
        with self._lock:
            found = config_file.read_file(self._path)
            if found.content is None and found.problem and os.path.exists(self._path):
                raise NotSaved(found.problem.message)
            if version not in (ANY_VERSION, found.version):
                raise ConfigChanged(found)
            if is_partial:
                self._require_in_use(found)
            edited = found.edited(change(found.text), self._modes)
            if edited.problems:
                raise ConfigError(self._path, edited.problems)
            # The check of a large file takes seconds, in which an editor may have saved it.
            now = config_file.read_file(self._path)
            if now.content != found.content:
                raise ConfigChanged(now)
            try:
                written = config_file.write(self._path, edited.text, found, self._spare)
            except OSError as error:
                raise NotSaved(f"{self._path} cannot be saved: {error}") from error
            try:
                return Saved(written.file, self._read_and_apply())
            except ConfigError as error:  # somebody else has written to it since
                reason = ApiError(400, "invalid_config", str(error))
                raise NotApplied(written, reason) from error
            except ApiError as error:
                raise NotApplied(written, error) from error

    def tick(self) -> None:
        """To be called every second: with `watch_config`, reads and applies a file that is another
        one than was last read, and has been the same for `STABLE_SECONDS`."""
        if not self._current().program.watch_config:
            self._changed = None
            return
        stamp, now = _stamp(self._path), self._clock.monotonic()
        if stamp == self._seen:
            self._changed = None
        elif self._changed is None or self._changed[0] != stamp:
            self._changed = (stamp, now)
        elif now - self._changed[1] >= STABLE_SECONDS:
            with self._lock:
                self._follow(stamp)

    def _require_in_use(self, found: ConfigFile) -> None:
        """Raises ConfigError, NotSaved."""
        if found.edited(found.text, self._modes).config == self._current():
            return
        if problems := found.problems(self._modes):
            raise ConfigError(self._path, problems)
        raise NotSaved(
            f"{self._path} has changes that are not in use: look at them and reload it first"
        )

    def _follow(self, stamp: Stamp | None) -> None:
        if stamp == self._seen:
            return  # read meanwhile, by hand
        fault = trust.find_fault(self._path) if stamp else None
        if fault:  # checked again the next time: a chmod is no other file
            self._wait("others_may_write", fault)
            return
        self._seen = stamp  # whatever comes of it: not again each second
        try:
            after = self._load()
        except ConfigError as error:
            if _stamp(self._path) == stamp:  # else it was written to while it was read
                log.error("%s was saved, and is not applied:\n%s", self._path, error)
                self._state = FileState(error.problems)
            return
        if _stamp(self._path) == stamp:
            self._apply_saved(after)

    def _apply_saved(self, after: Config) -> None:
        before = self._current()
        removed = before.models.keys() - after.models.keys()
        if 2 * len(removed) > len(before.models):
            names = ", ".join(sorted(removed)[:_MAX_NAMED])
            more = " …" if len(removed) > _MAX_NAMED else ""
            message = f"{len(removed)} of {len(before.models)} models are not in it: {names}{more}"
            self._wait("removes_models", message)
            return
        try:
            if after != before:
                self._apply(after)
        except ApiError as error:
            self._wait("not_applied", error.message)
        else:
            self._state = FileState()

    def _wait(self, code: str, message: str) -> None:
        state = FileState(waiting=Refusal(code, message))
        if state != self._state:
            log.warning("%s is not applied by itself, reload it: %s", self._path, message)
        self._state = state

    def _read_and_apply(self) -> dict[str, Any]:
        self._seen = _stamp(self._path)
        try:
            after = self._load()
        except ConfigError as error:
            self._state = FileState(error.problems)
            raise
        applied = self._apply(after)
        self._state = FileState()
        return applied


def _stamp(path: Path) -> Stamp | None:
    """None where there is no file."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    times = state.st_mtime_ns, state.st_ctime_ns
    return os.path.realpath(path), state.st_ino, state.st_size, *times

"""config.yaml as a file that a page edits: its content, and replacing it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from manager.config import loader
from manager.config.loader import ConfigError
from manager.config.settings import Config
from manager.config.yaml_reader import Problem, UnreadableFile

# What keeps a file from being replaced where it may yet be written: a bind mount, a folder without
# the right to write, another user's file in a sticky folder.
_IN_PLACE = (errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV)
_BOM = b"\xef\xbb\xbf"
# A version may be shown where the text is not: without a key, passwords in it could be guessed.
_VERSION_KEY = secrets.token_bytes(32)

Modes = Callable[[Path | None], Collection[str]]


@dataclass(frozen=True)
class Edited:
    """An edited text, the config in it or None, and what is wrong with it."""

    text: str
    config: Config | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class ConfigFile:
    """A config file at one moment; `content` is None where it is not there or cannot be read, and
    `problem` says why it has no text."""

    path: Path
    content: bytes | None
    problem: Problem | None = None

    @property
    def version(self) -> str | None:
        """Identifies the content while the program runs; None where there is none."""
        if self.content is None:
            return None
        return hashlib.blake2b(self.content, digest_size=16, key=_VERSION_KEY).hexdigest()

    @property
    def text(self) -> str:
        """All of it that can be read."""
        return (self.content or b"").removeprefix(_BOM).decode("utf-8", "replace")

    def problems(self, modes: Modes) -> tuple[Problem, ...]:
        """What is wrong with the file as it is."""
        return (self.problem,) if self.problem else self._checked(self.text, modes).problems

    def edited(self, text: str, modes: Modes) -> Edited:
        """A text that this file's was changed to, checked, with the file's ends of line."""
        if b"\r\n" in (self.content or b"") and "\r" not in text:  # as a page's text has them
            text = text.replace("\n", "\r\n")
        return self._checked(text, modes)

    def _checked(self, text: str, modes: Modes) -> Edited:
        try:
            return Edited(text, loader.parse(text, self.path, modes), ())
        except ConfigError as error:
            return Edited(text, None, error.problems)


def read_file(path: Path) -> ConfigFile:
    """The file as it is now."""
    try:
        content = loader.read(path)
    except UnreadableFile as error:
        return ConfigFile(path, None, error.problem)
    try:
        loader.decode(content)
    except UnreadableFile as error:
        return ConfigFile(path, content, error.problem)
    return ConfigFile(path, content)


def is_writable(path: Path) -> bool:
    """Whether `write` is allowed to; whether the disk has space is known only by trying."""
    target = _target(path)
    if os.path.lexists(target):
        return target.is_file() and os.access(target, os.W_OK)
    return os.access(target.parent, os.W_OK | os.X_OK)


@dataclass(frozen=True)
class Written:
    """A file that was written; `backup` has what was there before, None where there was nothing."""

    file: ConfigFile
    backup: Path | None


def write(path: Path, text: str, before: ConfigFile, spare: Path) -> Written:
    """Replaces the file (of a link, the file that it leads to) at once and for good, or not at
    all, with a backup beside it.

    A file that cannot be replaced is written in place, which is not at once: before that, its
    backup is safe in the folder `spare`, since what is beside a file that is mounted into a
    container ends with the container. Raises OSError, and then the file is as it was, unless the
    message says otherwise.
    """
    target = _target(path)
    content = text.encode()
    if (before.content or b"").startswith(_BOM) and not content.startswith(_BOM):
        content = _BOM + content
    if not os.access(target, os.W_OK) and os.path.lexists(target):
        # The folder's permission would be enough to replace it, but it was protected on purpose.
        raise PermissionError(f"{target} is write-protected")
    after, name = ConfigFile(path, content), target.name + ".bak"
    if before.content is None:
        _replace(target, content, like=target)
        return Written(after, None)
    try:
        backup = target.with_name(name)
        _replace(backup, before.content, like=target)
        _replace(target, content, like=target)
    except OSError as error:
        if error.errno not in _IN_PLACE:
            raise
        backup = spare / name
        _replace(backup, before.content)
        _overwrite(target, content, before.content, backup)
    return Written(after, backup)


def _target(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _overwrite(target: Path, content: bytes, before: bytes, backup: Path) -> None:
    descriptor = os.open(target, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        try:
            _fill(descriptor, content)
        except OSError as error:  # a full disk: what was there before has its blocks still
            try:
                _fill(descriptor, before)
            except OSError:
                raise OSError(
                    f"{error}; what is in the file now is cut, {backup} has what was there before"
                ) from error
            raise
    finally:
        os.close(descriptor)


def _fill(descriptor: int, content: bytes) -> None:
    """Gives an open file this content, and no other, for good."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    left = memoryview(content)
    while left:
        left = left[os.write(descriptor, left) :]
    os.ftruncate(descriptor, len(content))
    os.fsync(descriptor)


def _replace(target: Path, content: bytes, like: Path | None = None) -> None:
    """With the rights and the owner of the file ``like``, else for our own user alone."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    part = Path(name)
    try:
        with os.fdopen(
            descriptor, "wb"
        ) as file:  # for its owner only, until it has its permissions
            file.write(content)
            file.flush()
            if like is not None:
                _copy_permissions(part, like)
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _copy_permissions(part: Path, like: Path) -> None:
    try:
        state = like.stat()
    except FileNotFoundError:
        return
    if sys.platform != "win32":
        # Only root may change a file's owner; otherwise it stays the process's own.
        with contextlib.suppress(PermissionError):
            os.chown(part, state.st_uid, state.st_gid)
    os.chmod(part, stat.S_IMODE(state.st_mode))


def _sync(folder: Path) -> None:
    """Has the new name outlive a power failure; Windows cannot be asked for it."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""config.yaml in use: read, replaced and applied by one at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manager.config import config_file
from manager.config.config_file import ConfigFile, Modes, Written
from manager.config.loader import ConfigError
from manager.config.settings import Config
from manager.errors import ApiError

ANY_VERSION = object()
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


class LiveConfig:
    """The file at `path`, whose config `apply` puts to use. `spare` is a folder for the backup of a
    file that cannot be replaced. Its lock is held while the file is read, written and applied: only
    those who change the config wait for it."""

    def __init__(
        self, path: Path, load: Callable[[], Config], apply: Apply, modes: Modes, spare: Path
    ) -> None:
        self._path, self._load, self._apply = path, load, apply
        self._modes, self._spare = modes, spare
        self._lock = threading.Lock()

    def reload(self) -> dict[str, Any]:
        """Reads the file and applies it. Raises ConfigError, and then nothing has changed;
        ApiError."""
        with self._lock:
            return self._apply(self._load())

    def save(self, change: Callable[[str], str], version: object = ANY_VERSION) -> Saved:
        """Writes what `change` makes of the file's text, and applies it.

        Raises ConfigChanged where the file does not have that `version`; ConfigError, NotSaved, or
        what `change` raises, and then nothing was written; NotApplied.
        """
        with self._lock:
            found = config_file.read_file(self._path)
            if found.content is None and found.problem and os.path.exists(self._path):
                raise NotSaved(found.problem.message)
            if version not in (ANY_VERSION, found.version):
                raise ConfigChanged(found)
            edited = found.edited(change(found.text), self._modes)
            if edited.problems:
                raise ConfigError(self._path, edited.problems)
            try:
                written = config_file.write(self._path, edited.text, found, self._spare)
            except OSError as error:
                raise NotSaved(f"{self._path} cannot be saved: {error}") from error
            try:
                return Saved(written.file, self._apply(self._load()))
            except ConfigError as error:  # somebody else has written to it since
                reason = ApiError(400, "invalid_config", str(error))
                raise NotApplied(written, reason) from error
            except ApiError as error:
                raise NotApplied(written, error) from error

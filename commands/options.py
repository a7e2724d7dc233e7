"""What the commands share: options, how a command is added, how one fails."""

from __future__ import annotations

import argparse
import os
import shlex
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from manager.config import EmptyConfig, loader, plugins
from manager.interfaces import Interface

PROGRAM = "llm-manager"
_CONFIG, _DATA_DIR = Path("config.yaml"), Path("data")

Act = Callable[[argparse.Namespace], None]
"""What a command does. Raises CommandError, or another of the errors that `main` prints."""


class CommandError(Exception):
    """A command failed; the message is its one line on stderr."""


def command(commands: Any, name: str, act: Act, summary: str) -> argparse.ArgumentParser:
    """Adds a command to those of `add_subparsers`. Its description is the summary, as a sentence,
    unless it is set to more than that."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    parser.set_defaults(act=act)
    return parser


def group(commands: Any, name: str, summary: str) -> Any:
    """Adds a command that has commands of its own; what it returns takes them."""
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    return parser.add_subparsers(required=True, metavar="COMMAND")


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=path,
        default=_CONFIG,
        metavar="FILE",
        help="the config (default: %(default)s)",
    )


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir",
        type=path,
        default=_DATA_DIR,
        metavar="DIR",
        help="the folder that the program writes to (default: %(default)s)",
    )


def serve_command(arguments: argparse.Namespace) -> str:
    """What starts the program with the config and the data folder of a command that has both."""
    words = [PROGRAM, "serve"]
    if arguments.config != _CONFIG:
        words += ["--config", str(arguments.config)]
    if arguments.data_dir != _DATA_DIR:
        words += ["--data-dir", str(arguments.data_dir)]
    return shlex.join(words)


class ConfigLoader:
    """Reads a config file, at each call again; plugins are imported once, into ``interfaces``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.interfaces: dict[str, Interface] = {}

    def __call__(self) -> loader.Config:
        """Raises ConfigError."""
        return loader.load(self._path, self.modes)

    def existing(self) -> loader.Config | None:
        """As a call; None where the file is missing, or has nothing in it but comments."""
        try:
            return self() if self._path.exists() else None
        except EmptyConfig:
            return None

    def modes(self, folder: Path | None) -> list[str]:
        """The known modes, with those of the plugins in that folder."""
        if not self.interfaces:
            self.interfaces.update(plugins.interfaces(folder))
        return list(self.interfaces)


def path(text: str) -> Path:
    """A path; a leading ``~`` is the home directory, also where no shell has expanded it."""
    return Path(os.path.expanduser(text))


def port(text: str) -> int:
    """A port to listen on; 0 takes a free one. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def moment_ms(text: str) -> int:
    """A moment in ISO 8601, the machine's own time where it names no zone. For argparse."""
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(
            f"expected a moment such as 2027-01-31 or 2027-01-31T18:00, found {text[:40]!r}"
        ) from None

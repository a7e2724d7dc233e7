"""`llm-manager import config`: the models of llama-swap, LLM-Manager 3.x or Ollama as a config."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from commands import options
from commands.options import CommandError, ConfigLoader
from manager.config import ConfigError, config_file, edit, loader
from manager.config.edit import EditError
from manager.importers import READERS, Imported, SourceError, finish


def add_to(imports: Any) -> None:
    """Adds the command to those of `import`."""
    command = options.command(
        imports, "config", _import_config, "make a config of another program's"
    )
    command.description = (
        "Makes a config of another program's, prints it, and reports on stderr what of it is in"
        " there and what is not. Nothing of the other program is run or changed. The exit code is 1"
        " where models were left out."
    )
    command.add_argument("program", choices=tuple(READERS), metavar="PROGRAM", help=_kinds())
    command.add_argument(
        "path", type=options.path, metavar="PATH", help="its config, or the folder of its models"
    )
    command.add_argument(
        "--write",
        action="store_true",
        help="write it to the file of --config; where that is there, add the models to it",
    )
    options.add_config(command)


def _kinds() -> str:
    return "whose config it is: " + ", ".join(f"`{kind}`" for kind in READERS)


def _import_config(arguments: argparse.Namespace) -> None:
    target: Path = arguments.config
    load = ConfigLoader(target)
    existing = load.existing() if arguments.write else None
    try:
        imported = finish(READERS[arguments.program](arguments.path), target, existing)
    except SourceError as error:
        raise CommandError(str(error)) from error
    if arguments.write:
        _write(target, load, imported, is_new=existing is None)
    else:
        sys.stderr.write(imported.report)
        sys.stdout.write(imported.text)
    if imported.left_out:
        raise CommandError(f"{len(imported.left_out)} models were left out")


def _write(target: Path, load: ConfigLoader, imported: Imported, *, is_new: bool) -> None:
    """Writes a new file, or adds the models to the one that is there. Raises CommandError,
    ConfigError, OSError."""
    before = config_file.read_file(target)
    if before.problem and os.path.exists(target):
        raise ConfigError(target, [before.problem])
    text = before.text
    try:
        if is_new:
            text = _joined(text, imported.text)
        elif imported.models:
            text = edit.add_models(text, imported.models)
    except EditError as error:
        raise CommandError(f"{target} is left as it is: {error}") from error
    loader.parse(text, target, load.modes)
    sys.stderr.write(imported.report)
    if text != before.text:
        config_file.write(target, text, before, target.parent)
    print(f"{target}: {len(imported.models)} models written")


def _joined(comments: str, text: str) -> str:
    return f"{comments}\n{text}" if comments and not comments.endswith("\n") else comments + text

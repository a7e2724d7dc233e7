"""`llm-manager import config`: the models of llama-swap, LLM-Manager 3.x or Ollama as a config."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from commands import options
from commands.options import CommandError, ConfigLoader
from manager.config import Program, config_file
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
        help="write it to the file of --config, which must have no models yet",
    )
    options.add_config(command)


def _kinds() -> str:
    return "whose config it is: " + ", ".join(f"`{kind}`" for kind in READERS)


def _import_config(arguments: argparse.Namespace) -> None:
    target: Path = arguments.config
    try:
        imported = finish(READERS[arguments.program](arguments.path), target)
    except SourceError as error:
        raise CommandError(str(error)) from error
    sys.stderr.write(imported.report)
    if arguments.write:
        _write(target, imported)
        print(f"{target}: {len(imported.models)} models written")
    else:
        sys.stdout.write(imported.text)
    if imported.left_out:
        raise CommandError(f"{len(imported.left_out)} models were left out")


def _write(target: Path, imported: Imported) -> None:
    """Raises CommandError where the file has something already, OSError."""
    before = config_file.read_file(target)
    if before.content is not None:
        config = ConfigLoader(target)()
        if config.models or config.program != Program():
            raise CommandError(
                f"{target} has models or settings of its own, and is left as it is: without"
                " --write the new ones are printed, for you to paste"
            )
    config_file.write(target, imported.text, before, target.parent)

"""`llm-manager import config`: the models of llama-swap, LLM-Manager 3.x or Ollama as a config."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands import options
from commands.options import CommandError, ConfigLoader
from manager.config import Config, ConfigError, config_file, edit, loader
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
    try:
        imported = finish(READERS[arguments.program](arguments.path), target)
    except SourceError as error:
        raise CommandError(str(error)) from error
    sys.stderr.write(imported.report)
    left_out = list(imported.left_out)
    if arguments.write:
        left_out += _write(target, imported)
    else:
        sys.stdout.write(imported.text)
    if left_out:
        raise CommandError(f"{len(left_out)} models were left out")


def _write(target: Path, imported: Imported) -> list[str]:
    """Writes a new file, or adds the models to the one that is there, whose other settings stay.
    Returns the models that it cannot have. Raises CommandError, ConfigError, OSError."""
    before = config_file.read_file(target)
    if before.problem and os.path.exists(target):
        raise ConfigError(target, [before.problem])
    text, left_out = imported.text, []
    if before.content is not None:
        load = ConfigLoader(target)
        config = load()
        reasons = {name: _clash(config, name, entry) for name, entry in imported.models.items()}
        left_out = [name for name, reason in reasons.items() if reason]
        for name in left_out:
            print(f"left out: {name}: {target} has {reasons[name]} already", file=sys.stderr)
        new = {name: entry for name, entry in imported.models.items() if not reasons[name]}
        try:
            text = edit.add_models(before.text, new) if new else before.text
        except EditError as error:
            raise CommandError(f"{target} is left as it is: {error}") from error
        loader.parse(text, target, load.modes)
        print(f"the settings of the program in {target} are left as they are", file=sys.stderr)
    if text != before.text:
        config_file.write(target, text, before, target.parent)
    print(f"{target}: {len(imported.models) - len(left_out)} models written")
    return left_out


def _clash(config: Config, name: str, entry: Mapping[str, Any]) -> str:
    """What of a model's another has already in that config; empty where nothing."""
    for one in (name, *entry.get("aliases", ())):
        if config.find(one):
            return f"the name {one}"
    port = entry.get("port")
    ports = {config.program.port, *(model.port for model in config.models.values())}
    return f"port {port}" if port and port in ports else ""

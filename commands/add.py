"""`llm-manager add` and `remove`: a model in the config, whether or not the program runs."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from commands import choices, console, options
from commands.choices import Device, Questions
from commands.client import Client
from commands.options import CommandError, ConfigLoader
from manager.config import Config, ConfigError, Program, config_file, edit, plugins
from manager.devices import DeviceError
from manager.engines import BY_ID, ProposalError
from manager.gguf import GgufError
from manager.storage import data_dir, escaped

T = TypeVar("T")

_WOULD = {
    "start": "it would start at once, in scheme {scheme}",
    "evict": "it would stop {others}, then start in scheme {scheme}",
    "wait": "it would wait for {others}, then start in scheme {scheme}",
    "soon": "it would wait a moment, then start in scheme {scheme}: {reason}",
    "refuse": "it cannot start: {reason}",
    "none": "nothing would be done: {reason}",
}


def add_to(commands: Any) -> None:
    """Adds the commands to those of `add_subparsers`."""
    add = options.command(commands, "add", _add, "add a model to the config")
    add.description = (
        "Adds a model to the config and leaves everything else in it as it is. It asks on a"
        " terminal for what is not said; a running program applies it at once."
    )
    add.add_argument(
        "model",
        nargs="?",
        metavar="PATH",
        help="a GGUF file or a folder of them, or for vLLM a Hugging Face model; default: the"
        " folders of models_dir",
    )
    add.add_argument(
        "--engine", choices=[one for one in BY_ID if one != "own"], help="what runs it"
    )
    add.add_argument("--context", type=_tokens, metavar="TOKENS", help="default: what fits")
    add.add_argument("--name", help="the model's name; default: the file's")
    add.add_argument(
        "--device",
        action="append",
        metavar="NAME",
        help=f"a device that it needs, once for each; {choices.NO_DEVICE} for none",
    )
    add.add_argument("--yes", action="store_true", help="ask nothing")
    add.add_argument("--dry-run", action="store_true", help="only print what would be written")
    add.add_argument(
        "--start", action="store_true", help="start it, and show its log until it answers"
    )
    remove = options.command(commands, "remove", _remove, "remove a model from the config")
    remove.description = (
        "Removes a model from the config and leaves everything else in it as it is. A running"
        " program stops it once its requests are answered."
    )
    remove.add_argument("name", metavar="NAME")
    remove.add_argument("--yes", action="store_true", help="ask nothing")
    for parser in (add, remove):
        options.add_config(parser)
        options.add_data_dir(parser)


def _tokens(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens")
    return int(text)


def _add(arguments: argparse.Namespace) -> None:
    load = ConfigLoader(arguments.config)
    config = load.existing() or Config(arguments.config, Program(), {})
    client = _running(arguments)
    if arguments.start and client is None:
        raise CommandError(
            f"--start needs a program that runs with {arguments.config}:"
            f" `{options.serve_command(arguments)}`"
        )
    ask = Questions(is_on=not arguments.yes and sys.stdin.isatty())
    try:
        found = choices.choose(arguments, config, _devices(config, client), ask)
    except (GgufError, ProposalError) as error:
        raise CommandError(escaped(str(error))) from error
    name, entry = found.proposal.name, found.proposal.entry
    text = edit.written({name: entry})
    console.write_line(text.rstrip("\n"))
    if client is not None:
        console.write_note(_would(client.preview(name, edit.written(entry))))
    if arguments.dry_run:
        return
    if not arguments.yes:
        ask.require(f"Write this to {arguments.config}?")
    _write(arguments, client, load, lambda before: edit.add_models(before, {name: entry}))
    if client is None:
        console.write_note(
            "the program does not run with this config:"
            f" `{options.serve_command(arguments)}` starts it"
        )
        return
    client.reload()
    if arguments.start or (not arguments.yes and ask.agrees(f"Start {name} now?")):
        for line in client.start(name):
            console.write_line(line)
        console.write_note(f"{name} answers")
        if request := _curl(name, found.proposal.mode, load, client):
            console.write_note(request)


def _remove(arguments: argparse.Namespace) -> None:
    load, name = ConfigLoader(arguments.config), arguments.name
    client = _running(arguments)
    if not arguments.yes:
        _changed(lambda: edit.lines_of(_read(arguments.config).text, name))  # before it asks
        ask = Questions(is_on=sys.stdin.isatty())
        ask.require(f"Remove {name} from {arguments.config}?", "n")
    _write(arguments, client, load, lambda before: edit.remove_model(before, name))
    if client is not None:
        client.reload()


def _curl(name: str, mode: str, load: ConfigLoader, client: Client) -> str:
    """A request to copy; empty where the mode has no small one."""
    load.modes(None)
    probe = load.interfaces[mode].probe(name)
    if probe is None:
        return ""
    path, body = probe
    body.pop("max_tokens", None)  # of a probe, which wants no answer
    words = ["curl", f"{client.url.rstrip('/')}/{path.lstrip('/')}"]
    words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    key = "" if client.models_are_open() else ' -H "Authorization: Bearer $KEY"'
    return shlex.join(words) + key


# --- the config and the program -------------------------------------------------------------


def _write(
    arguments: argparse.Namespace,
    client: Client | None,
    load: ConfigLoader,
    change: Callable[[str], str],
) -> None:
    path = arguments.config
    fault = client.config_fault() if client else None
    if fault:  # else the reload would apply what nobody has looked at
        raise CommandError(
            f"{path} has changes that are not in use: look at them and reload it first: {fault}"
        )
    found = _read(path)
    edited = found.edited(_changed(lambda: change(found.text)), load.modes)
    if edited.problems:
        raise ConfigError(path, edited.problems)
    written = config_file.write(path, edited.text, found, arguments.data_dir)
    backup = f"; {written.backup} has what was there before" if written.backup else ""
    console.write_note(f"{path} was written{backup}")


def _read(path: Path) -> config_file.ConfigFile:
    """The file, which may be missing. Raises ConfigError."""
    found = config_file.read_file(path)
    if found.problem and path.exists():
        raise ConfigError(path, [found.problem])
    return found


def _changed(change: Callable[[], T]) -> T:
    """Raises CommandError where the text cannot be changed so."""
    try:
        return change()
    except edit.EditError as error:
        raise CommandError(str(error)) from error


def _running(arguments: argparse.Namespace) -> Client | None:
    """The program that runs with this config; None where none does."""
    if data_dir.owner(arguments.data_dir) is None:
        return None
    client = Client(arguments.data_dir)
    theirs = Path(client.about()["config"])
    if theirs.resolve() == arguments.config.resolve():
        return client
    console.write_note(f"the program on {arguments.data_dir} runs with another config, {theirs}")
    return None


def _devices(config: Config, client: Client | None) -> list[Device]:
    if client is not None:
        return [
            Device(one["name"], one["kind"], one["budget_mb"] or one["total_mb"])
            for one in client.devices()
        ]
    found = []
    for plugin in plugins.devices(config.program.device_plugin_dir):
        try:
            readings = plugin.read(())
        except DeviceError as error:
            console.write_note(f"{plugin.name}: {error}")
            continue
        found += [Device(one.name, one.kind, one.total_mb) for one in readings if not one.hidden_by]
    return found


def _would(preview: dict[str, Any]) -> str:
    problems = [problem["message"] for problem in preview["problems"]]
    start = preview["start"]
    if start is None:
        return "\n".join(problems)
    others = ", ".join([*start.get("stops", ()), *start.get("waits_for", ())])
    text = _WOULD[start["action"]]
    return text.format(scheme=start.get("scheme"), reason=start.get("reason"), others=others)

"""Writes what docs/commands.md has of each command, from the parser: `make reference`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from commands.__main__ import parser

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
_MARK = "<!-- made from the parser by `make reference` -->\n"


def page_text(before: str) -> str:
    """The page with the commands of now behind its mark."""
    head, mark, _ = before.partition(_MARK)
    if not mark:
        raise ValueError(f"{PAGE.name} has to have the line {_MARK.strip()}")
    return head + mark + "".join(map(_section, _commands(parser())))


def _commands(program: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Those that do something, in the order of `--help`."""
    for action in program._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _commands(command)
            return
    yield program


def _section(command: argparse.ArgumentParser) -> str:
    actions = [
        action
        for action in command._actions
        if action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction)
    ]
    required = [f" {action.metavar}" for action in actions if not action.option_strings]
    section = f"\n## {command.prog}{''.join(required)}\n\n{command.description}\n"
    rows = [(_shown(action), _meaning(action)) for action in actions]
    if rows := [row for row in rows if row[1]]:
        section += "\n| option | meaning |\n|---|---|\n"
        section += "".join(f"| `{name}` | {meaning} |\n" for name, meaning in rows)
    return section


def _shown(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar)
    if action.nargs == 0:
        return "`, `".join(action.option_strings)
    value = action.metavar or "/".join(action.choices or ()) or action.dest.upper()
    return f"{action.option_strings[0]} {value}"


def _meaning(action: argparse.Action) -> str:
    return (action.help or "") % {"default": action.default}


if __name__ == "__main__":
    PAGE.write_text(page_text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

"""`llm-manager`: the command line.

Exit codes: 0 done, 1 failed with the reason in a line on stderr, 2 wrong usage,
130 ended by Ctrl+C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from commands import add, console, data, keys, options, tray, users
from commands import open as open_pages
from commands.options import CommandError, ConfigLoader
from manager.config import ConfigError, loader
from manager.errors import ApiError
from manager.storage import DataDirInUse, StoreError, store

_INTERRUPTED = 130  # as a shell has it for SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code. Raises SystemExit with 2 for a usage error."""
    console.prepare()
    parsed = parser().parse_args(arguments)
    try:
        with store.sqlite_errors():
            parsed.act(parsed)
    except ConfigError as error:
        print(error, file=sys.stderr)  # a line for each problem, with its place
    except ApiError as error:
        _print_reason(error.message)
    except KeyboardInterrupt:
        print(file=sys.stderr)  # ends the line of a prompt
        return _INTERRUPTED
    except (CommandError, DataDirInUse, StoreError, OSError) as error:
        _print_reason(str(error))
    else:
        return 0
    return 1


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    program = argparse.ArgumentParser(
        prog=options.PROGRAM,
        description="One OpenAI-compatible address in front of every model on this machine.",
    )
    commands = program.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    check = options.command(commands, "check", _check, "check the config and name every mistake")
    options.add_config(check)
    open_pages.add_to(commands)
    add.add_to(commands)
    keys.add_to(commands)
    users.add_to(commands)
    data.add_to(commands)
    tray.add_to(commands)
    return program


def _add_serve(commands: object) -> None:
    serve = options.command(commands, "serve", _serve, "run the program until Ctrl+C or SIGTERM")
    options.add_config(serve)
    options.add_data_dir(serve)
    serve.add_argument("--host", help="listen there, instead of where the config says")
    serve.add_argument("--port", type=options.port, help="the same; 0 takes a free port")
    serve.add_argument("--tray", action="store_true", help="show an icon in the desktop's tray")
    serve.add_argument("--check", action="store_true", help="only check the config")


def _serve(arguments: argparse.Namespace) -> None:
    if arguments.check:
        _check(arguments)
        return
    from commands import serve  # the whole program, which no other command needs

    serve.run(arguments)


def _check(arguments: argparse.Namespace) -> None:
    config = ConfigLoader(arguments.config)()
    for line in loader.located(config.path, config.warnings):
        print(f"{line} (warning)", file=sys.stderr)
    print(f"{arguments.config}: {len(config.models)} models, no problems")


def _print_reason(reason: str) -> None:
    print(f"{options.PROGRAM}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

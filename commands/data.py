"""`llm-manager export`, `backup` and `import`: usage data, also while the program runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from commands import import_config, options
from commands.options import CommandError, ConfigLoader
from manager.billing import statements
from manager.storage import data_dir, maintenance, spool

_MAX_LISTED = 20  # rows left out of an import that are named one by one


def add_to(commands: Any) -> None:
    """Adds the commands to those of `add_subparsers`."""
    export = options.command(
        commands, "export", _export, "write the bill of a month or a day as CSV, and print its path"
    )
    span = export.add_mutually_exclusive_group(required=True)
    for name, example in (("month", "2026-11"), ("day", "2026-11-05")):
        span.add_argument(
            f"--{name}", dest="period", type=_period(name), metavar=example, help=f"of this {name}"
        )
    options.add_config(export)
    options.add_data_dir(export)

    backup = options.command(
        commands, "backup", _backup, "copy usage.db as it is at this moment, while it is used"
    )
    backup.description = (
        "Copies usage.db as it is at this moment, while it is used. To restore, stop the program"
        " and put the copy in place of usage.db, without the files usage.db-wal and usage.db-shm."
    )
    backup.add_argument(
        "file", type=options.path, metavar="FILE", help="an earlier copy is replaced"
    )
    options.add_data_dir(backup)

    imports = options.group(commands, "import", "take data and configs over from other programs")
    usage = options.command(
        imports, "usage", _import_usage, "add what LLM-Manager 2.2 has recorded"
    )
    usage.description = (
        "Adds the requests, run times and prices of LLM-Manager 2.2 to usage.db. What is there"
        " already is not added again. The exit code is 1 where rows were left out."
    )
    usage.add_argument(
        "file", type=options.path, metavar="monitoring.db", help="the database of 2.2"
    )
    options.add_data_dir(usage)
    import_config.add_to(imports)


def _export(arguments: argparse.Namespace) -> None:
    from jobs import (
        WorkerSettings,
        export,  # the queue's library takes a while to import
    )

    program = ConfigLoader(arguments.config)().program
    settings = WorkerSettings.of(program, arguments.data_dir)
    try:
        path, is_whole = export.write_bill(arguments.period, settings)
    except (export.WorkerTimeout, ValueError) as error:
        raise CommandError(str(error)) from error
    print(path)
    if not is_whole:
        print(
            "not all of the period is recorded yet: it is not over, requests of it are under way,"
            " or models run on that a killed program has left, until it is started again. The"
            " schedule replaces this bill; without one, make it again",
            file=sys.stderr,
        )


def _period(kind: str) -> Callable[[str], statements.Period]:
    def period(text: str) -> statements.Period:
        try:
            found = statements.Period.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if found.is_month != (kind == "month"):
            raise argparse.ArgumentTypeError(f"{text} is no {kind}")
        return found

    return period


def _backup(arguments: argparse.Namespace) -> None:
    spool.commit_leftovers(arguments.data_dir)
    size = maintenance.backup(arguments.data_dir / "usage.db", arguments.file)
    print(f"{arguments.file}: {size:,} bytes, checked")


def _import_usage(arguments: argparse.Namespace) -> None:
    from jobs import import_history

    data_dir.create(arguments.data_dir)
    try:
        report = import_history.import_file(arguments.file, arguments.data_dir / "usage.db")
    except import_history.UnsupportedDatabase as error:
        raise CommandError(str(error)) from error
    print(
        f"{report.requests} requests, {report.runs} runs and {report.prices} prices added;"
        f" {report.known} rows were there already"
    )
    for line in report.left_out[:_MAX_LISTED]:
        print(f"left out: {line}", file=sys.stderr)
    if report.left_out:
        raise CommandError(f"{len(report.left_out)} rows were left out")

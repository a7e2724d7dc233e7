"""Writes a bill, also while the program runs: `python -m jobs.export --month 2026-11`"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from jobs import tasks
from manager.billing import calendar, statements
from manager.config import loader, plugins
from manager.config.loader import ConfigError
from manager.storage import maintenance, spool
from manager.storage.store import StoreError

_WORKER_SECONDS = 120.0  # that the program's worker may take to price what is there
_LOOK_SECONDS = 0.1


class NotPriced(Exception):
    """The worker that has the database does not come along."""


def main() -> int:
    """The exit code."""
    arguments = _arguments()
    try:
        path = _write(arguments.period, arguments.config, arguments.data_dir)
    except (ConfigError, StoreError, NotPriced, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, sqlite3.Error) as error:
        print(f"The bill was not written: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


def _write(period: statements.Period, config_file: Path, data_dir: Path) -> Path:
    loaded = loader.load(config_file, lambda folder: list(plugins.interfaces(folder)))
    settings = tasks.WorkerSettings.of(loaded.program, data_dir)
    work = tasks.TaskRunner(settings)
    spool.commit_leftovers(data_dir)
    with closing(maintenance.connect(work.path)) as connection:
        with tasks.lock_billing(settings.data_dir, 0) as is_ours:
            if is_ours:
                work.bring_up_to_date(connection)
        if not is_ours:
            _wait_for_worker(connection, settings)
        return work.export(connection, period)


def _wait_for_worker(connection: sqlite3.Connection, settings: tasks.WorkerSettings) -> None:
    """Until all is priced that was there when we began. What goes on is billed every half minute,
    and is in the bill up to then."""
    newest = maintenance.newest_seq(connection)
    zone = calendar.zone(settings.timezone)
    deadline = time.monotonic() + _WORKER_SECONDS
    while maintenance.billed_seq(connection) < newest or not tasks.is_in(connection, zone):
        if time.monotonic() > deadline:
            raise NotPriced(
                "the running program has not priced all requests within two minutes: see"
                f" {settings.data_dir / 'logs' / 'worker.log'}"
            )
        time.sleep(_LOOK_SECONDS)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.export",
        description="Writes the bill of a month or a day as CSV and prints its path.",
    )
    span = parser.add_mutually_exclusive_group(required=True)
    for name, example in (("month", "2026-11"), ("day", "2026-11-05")):
        span.add_argument(f"--{name}", dest="period", type=_period(name), metavar=example)
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR")
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), metavar="FILE")
    return parser.parse_args()


def _period(kind: str) -> Callable[[str], statements.Period]:
    def period(text: str) -> statements.Period:
        try:
            found = statements.Period.read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if found.is_month != (kind == "month"):
            raise argparse.ArgumentTypeError(f"{text} is no {kind}")
        return found

    return period


if __name__ == "__main__":
    sys.exit(main())

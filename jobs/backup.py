"""Copies usage.db while the program serves: `python -m jobs.backup FILE`"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from manager.storage import maintenance, spool
from manager.storage.store import StoreError


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.backup",
        description="Copies the usage database, as it is at this moment, while the program runs."
        " To restore, stop the program and put the copy in place of usage.db, without the files"
        " usage.db-wal and usage.db-shm.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="an earlier copy is replaced")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR")
    arguments = parser.parse_args()
    try:
        spool.commit_leftovers(arguments.data_dir)
        size = maintenance.back_up(arguments.data_dir / "usage.db", arguments.file)
    except (StoreError, OSError) as error:
        print(f"No copy was made: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.file}: {size:,} bytes, checked")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""``/api/about``: which program this is, on what it runs, and what it takes on the disk."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from flask import Blueprint, Response, jsonify

from manager import __version__
from manager.billing import statements
from routes.api.usage import zone_of
from routes.services import Services

_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
_DATABASES = ("usage.db", "queue.db")
_MOST_FILES = 20_000  # looked at in one folder


def blueprint(services: Services) -> Blueprint:
    routes = Blueprint("about", __name__)
    started = services.clock.monotonic()
    # Now: what is on the disk may be renewed while this program runs on with what it has read.
    versions = packages()
    # Where bills are is one of the settings that need a restart.
    program = services.fleet.config.program
    exports = statements.directory(program.export and program.export.directory, services.data_dir)
    folders = {
        "logs": services.data_dir / "logs",
        "exports": exports,
        "backups": services.data_dir / "backups",
    }

    @routes.get("/api/about")
    def about() -> Response:
        config = services.fleet.config
        sizes = [
            {"name": name, "bytes": _database_bytes(services.data_dir / name), "complete": True}
            for name in _DATABASES
        ]
        for name, folder in folders.items():
            size, complete = bytes_below(folder)
            sizes.append({"name": name, "bytes": size, "complete": complete})
        return jsonify(
            {
                "version": __version__,
                "python": platform.python_version(),
                "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
                "started_at": services.clock.iso(started),
                "uptime_seconds": round(services.clock.monotonic() - started, 3),
                "pid": os.getpid(),
                "data_dir": str(services.data_dir.absolute()),
                "config": str(config.path.absolute()),
                "packages": versions,
                "sizes": sizes,
                "disk_free_bytes": shutil.disk_usage(services.data_dir).free,
                "timezone": str(zone_of(services)),
                "currency": config.program.currency,
                "host": platform.node(),
            }
        )

    return routes


def packages() -> dict[str, Any]:
    """The version of each package of requirements.txt, None where it is not installed."""
    try:
        lines = _REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # a copy of the program without it runs as well
        return {}
    names = [found[0] for line in lines if (found := re.match(r"[A-Za-z0-9][\w.-]*", line))]
    return {name: _version(name) for name in names}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def bytes_below(folder: Path) -> tuple[int, bool]:
    """The sizes of the files in a folder and below; links are not followed. And whether that was
    all: not where there are more than `_MOST_FILES`, or some that may not be looked at."""
    total, seen, complete = 0, 0, True
    waiting = [os.fspath(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > _MOST_FILES:
                        return total, False
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += _size(entry)
        except FileNotFoundError:
            continue  # not there, or cleared up meanwhile
        except OSError:
            complete = False
    return total, complete


def _size(file: os.DirEntry[str] | Path) -> int:
    try:
        return file.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0  # not there, or cleared up meanwhile


def _database_bytes(path: Path) -> int:
    """With what SQLite keeps beside it."""
    return sum(_size(path.with_name(path.name + end)) for end in ("", "-wal", "-shm"))

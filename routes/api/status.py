"""``/health``, ``/metrics`` and ``/api/about``: the program itself."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from flask import Response, jsonify
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from manager import __version__
from manager.billing import statements
from manager.models import Fleet, Model, State
from routes.api.usage import zone_of
from routes.calls import Api, Rule
from routes.services import Services

_REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
_DATABASES = ("usage.db", "queue.db")
_MAX_FILES = 20_000  # counted in one folder


def blueprint(services: Services) -> Api:
    api = Api("status", tag="program")
    services.metrics.registry.register(_ModelCollector(services.fleet))
    started = services.clock.monotonic()
    # Now: what is on the disk may be renewed while this program runs on with what it has read.
    versions = packages()
    # Where bills are is one of the settings that need a restart.
    program = services.fleet.config.program
    exports = statements.directory(program.export_directory, services.data_dir)
    folders = {
        "logs": services.data_dir / "logs",
        "exports": exports,
        "backups": services.data_dir / "backups",
    }

    @api.call("GET /health", Rule.OPEN)
    def health() -> Response:
        """Whether the program answers."""
        return jsonify({"status": "ok"})

    @api.call("GET /metrics", Rule.VIEW, answers={200: "Text"})
    def metrics() -> Response:
        """Metrics for Prometheus."""
        return Response(
            generate_latest(services.metrics.registry), content_type=CONTENT_TYPE_LATEST
        )

    @api.call("GET /api/about", Rule.VIEW)
    def about() -> Response:
        """Versions, where the program runs, and what it takes on the disk.

        `sizes` has `name`, `bytes` and `complete` of `usage.db`, `queue.db`, `logs`, `exports` and
        `backups`; `complete` is false where only the first 20,000 files were counted, or some may
        not be read. `packages` are those of `requirements.txt`, null where one is not installed;
        `disk_free_bytes` is in the data folder.
        """
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

    return api


class _ModelCollector(Collector):
    """Reads the models' states at the moment of the scrape."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily(
            "llm_manager_model_state", "1 for the state it is in.", labels=["model", "state"]
        )
        in_flight = GaugeMetricFamily(
            "llm_manager_in_flight", "Requests under way.", labels=["model"]
        )
        waiting = GaugeMetricFamily(
            "llm_manager_waiting", "Requests that wait for the model.", labels=["model"]
        )
        starts = CounterMetricFamily(
            "llm_manager_starts", "Starts by how they ended.", labels=["model", "outcome"]
        )
        restarts = CounterMetricFamily(
            "llm_manager_restarts",
            "Servers that were stopped and started again because they no longer served.",
            labels=["model"],
        )
        for model in self._fleet.models():
            self._add(model, state, in_flight, waiting, starts)
            restarts.add_metric([model.name], model.restarts)
        yield from (state, in_flight, waiting, starts, restarts)

    @staticmethod
    def _add(
        model: Model,
        state: GaugeMetricFamily,
        in_flight: GaugeMetricFamily,
        waiting: GaugeMetricFamily,
        starts: CounterMetricFamily,
    ) -> None:
        view = model.to_json()
        name = view["name"]
        for each in State:
            state.add_metric([name, each.value], float(view["state"] == each.value))
        in_flight.add_metric([name], view["in_flight"])
        waiting.add_metric([name], view["waiting"])
        starts.add_metric([name, "ready"], model.starts)
        starts.add_metric([name, "failed"], model.failed_starts)


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
    all: not where there are more than `_MAX_FILES`, or some that may not be read."""
    total, seen, complete = 0, 0, True
    waiting = [os.fspath(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > _MAX_FILES:
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

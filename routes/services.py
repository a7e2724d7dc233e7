"""What every route may use: the running parts of the program."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from manager.access import AccessRegistry, KeyLimits, LocalToken
from manager.billing import PriceBook
from manager.captures import Captures
from manager.clock import Clock
from manager.config import Config, ConfigError, LiveConfig, Program, keys, loader
from manager.devices import Monitor
from manager.errors import ApiError
from manager.events import Events
from manager.interfaces import Interface
from manager.metrics import Metrics
from manager.models import Fleet
from manager.placement import Placement
from manager.relay import RelayProcesses, Watcher
from manager.storage import DatabaseError, MaintenanceTasks, ModelLogs, Spool
from manager.usage import Activity, Reports
from routes.http import Slots
from routes.page_passes import PagePasses

log = logging.getLogger(__name__)

Proxied = TypeVar("Proxied")


def current(proxy: Proxied) -> Proxied:
    """What one of Flask's proxies (``request``, ``g``) stands for now: each use of the proxy looks
    it up again, which is felt where every request passes."""
    found: Proxied = proxy._get_current_object()  # type: ignore[attr-defined]
    return found


class Worker(Protocol):
    """The process that prices requests and runs maintenance tasks."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def update(self, program: Program) -> None: ...
    def view(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Services:
    """Built once, at the program's start. ``closing`` is set when the program shuts down; ``load``
    reads the config's file again; ``record_all`` brings to usage.db what bills are made of, as
    far as it is over; ``host`` is where the program listens. ``started_with`` is the config's
    `program` at the start."""

    fleet: Fleet
    interfaces: Mapping[str, Interface]
    watch: Watcher
    events: Events
    activity: Activity
    monitor: Monitor
    placement: Placement
    clock: Clock
    logs: ModelLogs
    spool: Spool
    slots: Slots
    metrics: Metrics
    data_dir: Path
    closing: threading.Event
    load: Callable[[], Config]
    reports: Reports
    prices: PriceBook
    orders: MaintenanceTasks
    record_all: Callable[[], object]
    worker: Worker
    access: AccessRegistry
    limits: KeyLimits
    local_token: LocalToken
    host: str
    relays: RelayProcesses
    captures: Captures
    page_passes: PagePasses = field(default_factory=PagePasses)
    live_config: LiveConfig = field(init=False)
    started_with: Program = field(init=False)

    def __post_init__(self) -> None:
        # Modes are loaded once, at the program's start, whatever folder a text names.
        live = LiveConfig(
            lambda: self.fleet.config,
            self.load,
            self._apply_config,
            lambda _folder: self.interfaces,
            self.data_dir,
            self.clock,
        )
        object.__setattr__(self, "live_config", live)
        object.__setattr__(self, "started_with", self.fleet.config.program)

    @property
    def models_are_open(self) -> bool:
        """Whether ``/v1`` takes requests without an API key."""
        return not self.access.snapshot.requires_key(self.fleet.config.program.require_key)

    def reload_config(self) -> dict[str, Any]:
        """Reads the config's file and applies it: the models, and the keys that the program
        runs with as they were at its start, ``{"models": [names], "restart_needed_for": [keys]}``.

        Raises ApiError 400 ``invalid_config``, and then nothing has changed; 503
        ``database_unavailable`` where all is applied but the prices of models that had none.
        """
        try:
            return self.live_config.reload()
        except ConfigError as error:
            raise ApiError(400, "invalid_config", str(error)) from error

    def _apply_config(self, after: Config) -> dict[str, Any]:
        before = self.fleet.config
        self.fleet.apply(after)
        self.fleet.watch_remote()
        self.worker.update(after.program)
        for name in before.models.keys() - after.models.keys():
            self.captures.discard(name)
        loader.log_warnings(after)
        try:
            self.prices.seed_from_config(after.first_prices())
        except DatabaseError as error:
            raise ApiError(
                503,
                "database_unavailable",
                f"The config is in use, but prices that are new in it are not: {error}. Reload"
                " again",
                retry_after=5,
            ) from error
        started = self.started_with
        changed = [
            key.name
            for key in keys(Program)
            if key.restart and getattr(started, key.field) != getattr(after.program, key.field)
        ]
        if after.program.export and started.timezone != after.program.timezone:
            changed.append("timezone")  # of the schedule: all else has it now
        log.info("the config was reloaded: %d models", len(after.models))
        if changed:
            log.warning("a restart is needed for: %s", ", ".join(changed))
        return {"models": list(after.models), "restart_needed_for": changed}

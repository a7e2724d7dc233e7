"""What every route may use: the running parts of the program."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.supervisor import Supervisor
from manager.access.limits import KeyLimits
from manager.access.local_token import LocalToken
from manager.access.registry import AccessRegistry
from manager.billing.price_versions import PriceBook
from manager.clock import Clock
from manager.config import loader
from manager.devices import Monitor
from manager.events import Events
from manager.interfaces import Interface
from manager.models.fleet import Fleet
from manager.placement.placement import Placement
from manager.relay.watcher import Watcher
from manager.storage.logs import ModelLogs
from manager.storage.maintenance_tasks import Orders
from manager.storage.spool import Spool
from manager.usage.activity import Activity
from manager.usage.reports import Reports
from routes.api.metrics import Metrics
from routes.http.slots import Slots


@dataclass(frozen=True)
class Services:
    """Built once by the front door. ``closing`` is set when the program shuts down; ``load``
    reads the config's file anew; ``host`` is where the program listens."""

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
    load: Callable[[], loader.Config]
    reports: Reports
    prices: PriceBook
    orders: Orders
    worker: Supervisor
    access: AccessRegistry
    limits: KeyLimits
    local_token: LocalToken
    host: str

    @property
    def models_are_open(self) -> bool:
        """Whether ``/v1`` asks nobody for an API key."""
        return not self.access.snapshot.requires_key(self.fleet.config.program.require_key)

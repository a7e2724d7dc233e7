"""What every route may use: the running parts of the program."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jobs.supervisor import Supervisor
from manager import config
from manager.access.limits import Limits
from manager.access.registry import Access
from manager.activity import Activity
from manager.clock import Clock
from manager.devices import Monitor
from manager.events import Events
from manager.fleet import Fleet
from manager.interfaces import Interface
from manager.logs import ModelLogs
from manager.orders import Orders
from manager.placement import Placement
from manager.prices import Prices
from manager.reports import Reports
from manager.spool import Spool
from manager.watch import Watch
from routes.metrics import Metrics
from routes.slots import Slots


@dataclass(frozen=True)
class House:
    """Built once by the front door. ``closing`` is set when the program shuts down; ``load``
    reads the config's file anew; ``host`` is where the program listens."""

    fleet: Fleet
    interfaces: Mapping[str, Interface]
    watch: Watch
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
    load: Callable[[], config.Config]
    reports: Reports
    prices: Prices
    orders: Orders
    worker: Supervisor
    access: Access
    limits: Limits
    host: str

    @property
    def models_are_open(self) -> bool:
        """Whether ``/v1`` asks nobody for an API key."""
        return not self.access.now.asks_for_key(self.fleet.config.program.require_key)

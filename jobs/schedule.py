"""APScheduler: what is done again and again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jobs.intervals import IntervalScheduler
from jobs.log_setup import BufferedLogHandler
from jobs.queue import TaskQueue
from jobs.scheduled_export import ScheduledExport
from jobs.watermark import Watermark
from manager import affinity
from manager.access import AccessRegistry
from manager.clock import Clock
from manager.devices import Monitor
from manager.models import Fleet
from manager.storage import MaintenanceTasks, ModelLogs
from manager.usage import Activity

_SWEEP_SECONDS = 1.0
_POLL_SECONDS = 1.0
_BILL_SECONDS = 1.0
_FLUSH_SECONDS = 1.0
_COUNT_SECONDS = 1.0
_ACCESS_SECONDS = 1.0
_HEARTBEAT_SECONDS = 30.0
_REMOTE_SECONDS = 30.0
_CONFIG_SECONDS = 1.0
_AFFINITY_SECONDS = 2.0
_LOG_SIZE_SECONDS = 0.2
_CLEAN_SECONDS = 86_400.0


def start(
    access: AccessRegistry,
    activity: Activity,
    fleet: Fleet,
    monitor: Monitor,
    logs: ModelLogs,
    journal: BufferedLogHandler,
    tasks: TaskQueue,
    orders: MaintenanceTasks,
    watermark: Watermark,
    clock: Clock,
    data_dir: Path,
    watch_config: Callable[[], object],
) -> IntervalScheduler:
    """Starts the clock's jobs; the caller shuts the scheduler down."""
    scheduler = IntervalScheduler(clock)
    scheduler.every(_SWEEP_SECONDS, fleet.stop_idle, "idle sweep")
    scheduler.every(_REMOTE_SECONDS, fleet.watch_remote, "health of servers that others start")
    scheduler.every(_COUNT_SECONDS, activity.tick, "throughput")
    scheduler.every(_ACCESS_SECONDS, access.tick, "keys and accounts")
    scheduler.every(_HEARTBEAT_SECONDS, watermark.tick, "heartbeat", at_once=True)
    scheduler.every(_CONFIG_SECONDS, watch_config, "config file")
    poll = scheduler.every(_POLL_SECONDS, monitor.tick, "device poll", paused=True)
    monitor.attach(poll.pause, poll.resume)
    scheduler.every(_FLUSH_SECONDS, journal.flush, "log flush")
    scheduler.every(
        _LOG_SIZE_SECONDS,
        lambda: logs.enforce_limit(fleet.config.program.model_log_mb << 20),
        "log size",
    )
    scheduler.every(_AFFINITY_SECONDS, affinity.PROGRAM.tick, "affinity")
    scheduler.every(_BILL_SECONDS, tasks.tick, "bills")
    # At once: else a program that is started each morning would never come to them.
    scheduler.every(
        _CLEAN_SECONDS,
        lambda: logs.clean(fleet.config.program.log_retention_days),
        "log clean-up",
        at_once=True,
    )
    scheduler.every(_CLEAN_SECONDS, lambda: tasks.enqueue("clean_up"), "retention", at_once=True)
    program = fleet.config.program
    if program.export:
        bills = ScheduledExport(program, program.export, data_dir, orders, clock, watermark.advance)
        scheduler.every(_BILL_SECONDS, bills.tick, "export", at_once=True)
    scheduler.start()
    return scheduler

"""APScheduler: what is done again and again."""

from __future__ import annotations

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from jobs.journal import Journal
from manager.devices import Monitor
from manager.fleet import Fleet
from manager.logs import ModelLogs

_SWEEP_SECONDS = 1.0
_POLL_SECONDS = 1.0
_FLUSH_SECONDS = 1.0
_CLEAN_HOURS = 24


def start(fleet: Fleet, monitor: Monitor, logs: ModelLogs, journal: Journal) -> BackgroundScheduler:
    """Starts the clock's jobs; the caller shuts the scheduler down."""
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(2, {"thread_name_prefix": "schedule"})},
        # A job that comes late is done once, however often it was due.
        job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
    )
    scheduler.add_job(fleet.sweep, "interval", seconds=_SWEEP_SECONDS, id="idle sweep")
    poll = scheduler.add_job(
        monitor.tick, "interval", seconds=_POLL_SECONDS, id="device poll", next_run_time=None
    )
    monitor.attach(poll.pause, poll.resume)
    scheduler.add_job(journal.flush, "interval", seconds=_FLUSH_SECONDS, id="log flush")
    scheduler.add_job(
        lambda: logs.clean(fleet.config.program.log_retention_days),
        "interval",
        hours=_CLEAN_HOURS,
        id="log clean-up",
    )
    scheduler.start()
    return scheduler

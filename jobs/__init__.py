"""Beside the request path: the queue, the worker process, billing, export, the schedule."""

from jobs import export, import_history, log_setup, schedule
from jobs.queue import TaskQueue
from jobs.supervisor import Supervisor
from jobs.tasks import WorkerSettings
from jobs.watermark import Watermark

__all__ = [
    "Supervisor",
    "TaskQueue",
    "Watermark",
    "WorkerSettings",
    "export",
    "import_history",
    "log_setup",
    "schedule",
]

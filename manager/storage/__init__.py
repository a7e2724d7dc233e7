"""The files of the data folder: usage.db with its one writer, the spool, logs."""

from manager.storage import (
    data_dir,
    latency,
    maintenance,
    maintenance_tasks,
    rollups,
    runs,
    scheme_memory,
    server_facts,
    spool,
    store,
)
from manager.storage.data_dir import DataDirInUse
from manager.storage.logs import POLL, PROGRAM_LOG, Follower, ModelLogs
from manager.storage.maintenance import (
    RECORDED_UNTIL,
    billed_seq,
    get_mark,
    recorded_until,
    transaction,
)
from manager.storage.maintenance_tasks import MaintenanceTasks, Order
from manager.storage.rows import (
    INSERT_REQUESTS,
    ONE_REQUEST,
    REQUEST_COLUMNS,
    Launch,
    RequestRow,
    Run,
    request_of,
    uuid7,
)
from manager.storage.runs import PastRun
from manager.storage.scheme_memory import LaunchKey
from manager.storage.spool import Spool
from manager.storage.store import DatabaseError, Store, StoreError, read_connection
from manager.storage.terminal import escaped, plain_text

__all__ = [
    "INSERT_REQUESTS",
    "ONE_REQUEST",
    "POLL",
    "PROGRAM_LOG",
    "RECORDED_UNTIL",
    "REQUEST_COLUMNS",
    "DataDirInUse",
    "DatabaseError",
    "Follower",
    "Launch",
    "LaunchKey",
    "MaintenanceTasks",
    "ModelLogs",
    "Order",
    "PastRun",
    "RequestRow",
    "Run",
    "Spool",
    "Store",
    "StoreError",
    "billed_seq",
    "data_dir",
    "escaped",
    "get_mark",
    "latency",
    "maintenance",
    "maintenance_tasks",
    "plain_text",
    "read_connection",
    "recorded_until",
    "request_of",
    "rollups",
    "runs",
    "scheme_memory",
    "server_facts",
    "spool",
    "store",
    "transaction",
    "uuid7",
]

"""The front door: arguments, config, everything built once, served with waitress."""

from __future__ import annotations

import argparse
import ctypes
import logging
import queue
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path

if sys.platform != "win32":
    import resource

from commands.tray import Tray, pages
from jobs import log_setup, schedule
from jobs.queue import TaskQueue
from jobs.supervisor import Supervisor
from jobs.tasks import WorkerSettings
from manager.access import local_token
from manager.access.limits import KeyLimits
from manager.access.local_token import LocalToken
from manager.access.registry import AccessRegistry
from manager.billing import calendar
from manager.billing.price_versions import Prices
from manager.clock import Clock
from manager.config import loader, plugins
from manager.config.loader import ConfigError
from manager.devices import Monitor
from manager.errors import ApiError
from manager.events import Events
from manager.interfaces import Interface
from manager.models.fleet import Fleet
from manager.models.ports import Ports
from manager.models.server import ModelDependencies
from manager.placement.placement import Placement
from manager.relay.watcher import Watcher
from manager.storage import data_dir as datadir
from manager.storage.data_dir import DataDirInUse
from manager.storage.logs import ModelLogs
from manager.storage.maintenance_tasks import Orders
from manager.storage.spool import Spool
from manager.storage.store import Store, StoreError
from manager.usage.activity import Activity
from manager.usage.reports import Reports
from routes import create_app
from routes.api import config as settings
from routes.api.metrics import Metrics
from routes.http.server import HttpServer, ListenError
from routes.http.slots import Slots
from routes.services import Services

log = logging.getLogger("manager")

_FILES = 65536
_M_ARENA_MAX = -8  # malloc.h
_RELOAD, _STOP = "reload", "stop"
_ANSWER_GRACE = 5.0  # seconds that answers have to reach their clients at the end


def main() -> int:
    """Runs the program; the exit code."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    _use_one_heap()
    _raise_file_limit()
    arguments = _arguments()
    interfaces: dict[str, Interface] = {}

    def modes(folder: Path | None) -> list[str]:
        if not interfaces:  # plugins are loaded once, at the program's start
            interfaces.update(plugins.interfaces(folder))
        return list(interfaces)

    def load() -> loader.Config:
        return loader.load(arguments.config, modes)

    try:
        loaded = load()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.check:
        for line in loader.located(loaded.path, loaded.warnings):
            print(f"{line} (warning)", file=sys.stderr)
        print(f"{arguments.config}: {len(loaded.models)} models, no problems")
        return 0
    try:
        return _serve(arguments, loaded, interfaces, load)
    except (ListenError, DataDirInUse, StoreError, sqlite3.Error, OSError) as error:
        print(f"LLM-Manager cannot start: {error}", file=sys.stderr)
        return 1


def _serve(
    arguments: argparse.Namespace,
    loaded: loader.Config,
    interfaces: dict[str, Interface],
    load: Callable[[], loader.Config],
) -> int:
    program = loaded.program
    host = arguments.host or program.host
    data_dir: Path = arguments.data_dir
    claimed = datadir.lock(data_dir)
    log_journal = log_setup.configure(data_dir / "logs", program.log_level)
    loader.log_warnings(loaded)
    datadir.restrict_permissions(data_dir)
    clock, events, metrics = Clock(), Events(), Metrics()
    monitor = Monitor(
        plugins.devices(program.device_plugin_dir),
        clock,
        pids=lambda: placement.pids(),
        watched=lambda: events.has_subscribers("devices") or placement.has_waiting(),
    )
    monitor.set_enabled(not program.disable_gpu_monitoring)
    placement = Placement(monitor, clock, events, metrics, program)
    shared = ModelDependencies(
        store=Store(data_dir / "usage.db"),
        logs=ModelLogs(data_dir / "logs"),
        events=events,
        watch=Watcher(),
        ports=Ports(),
        placement=placement,
        clock=clock,
        connections=program.threads,
    )
    fleet = Fleet(loaded, interfaces, shared)
    usage_db = data_dir / "usage.db"
    tasks = TaskQueue(data_dir)
    prices = Prices(shared.store, usage_db, clock)
    reports = Reports(usage_db)
    Spool(data_dir, shared.store.add_requests).close()  # what a killed program has left counts
    limits = KeyLimits(clock, lambda: calendar.zone(fleet.config.program.timezone), prices.cost)
    limits.load(usage_db, reports)
    spool = Spool(data_dir, shared.store.add_requests)
    worker = Supervisor(WorkerSettings.of(program, data_dir), clock)
    orders = Orders(shared.store, usage_db, clock, tasks.enqueue)
    services = Services(
        fleet=fleet,
        interfaces=interfaces,
        watch=shared.watch,
        events=events,
        activity=Activity(clock, events),
        monitor=monitor,
        placement=placement,
        clock=clock,
        logs=shared.logs,
        spool=spool,
        slots=Slots(program.threads),
        metrics=metrics,
        data_dir=data_dir,
        closing=threading.Event(),
        load=load,
        reports=reports,
        prices=prices,
        orders=orders,
        worker=worker,
        access=AccessRegistry(shared.store, usage_db, clock),
        limits=limits,
        local_token=LocalToken(data_dir),
        host=host,
    )
    # Before any model is touched: a port in use ends the program, and nothing else.
    server = HttpServer(
        create_app(services, datadir.session_secret(data_dir)),
        host,
        program.port if arguments.port is None else arguments.port,
        program.threads,
        program.max_body_mb,
        trusted_proxies=program.trusted_proxies,
    )
    wishes = _signals()
    shared.watch.start()
    monitor.start()
    services.prices.seed(loaded.models.values())
    fleet.adopt()
    worker.start()
    scheduler = schedule.start(
        services.access,
        services.activity,
        fleet,
        monitor,
        shared.logs,
        log_journal,
        tasks,
        orders,
        clock,
        data_dir,
    )
    server.start()
    # One write, end of line included: a log that shares the terminal must not come between.
    sys.stdout.write(f"Listening on http://{_address(host)}:{server.port}\n")
    sys.stdout.flush()
    if sys.stdout.isatty():  # nowhere that is kept, such as a service's log
        _print_link(services, pages(host, server.port))
    _warn(services)
    fleet.start_auto_start()
    tray = None
    if arguments.tray:
        tray = Tray(pages(host, server.port), fleet, monitor, lambda: wishes.put(_STOP))
        tray.start()

    while _next(wishes) == _RELOAD:
        _reload(services)

    log.info("stopping the models; once more leaves at once and lets them run on")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    services.closing.set()
    fleet.close()
    server.close(_ANSWER_GRACE)
    shared.watch.stop()
    monitor.stop()  # before the scheduler, which it wakes
    scheduler.shutdown()
    if tray is not None:
        tray.stop()  # now that all models are stopped
    worker.stop()
    tasks.close()
    spool.close()
    shared.store.close()
    claimed.close()
    return 0


def _print_link(services: Services, address: str) -> None:
    token = services.local_token.value
    if token is not None:
        link = local_token.sign_in_link(address, token, services.clock.wall_ms())
        minutes = local_token.LINK_SECONDS // 60
        sys.stdout.write(f"To sign in as admin, once and within {minutes} minutes: {link}\n")
        sys.stdout.flush()


def _warn(services: Services) -> None:
    """Says what is open, and how to close it."""
    known = services.access.snapshot
    path = services.fleet.config.path
    if datadir.is_for_everybody(path):
        log.warning(
            "every user of this machine can write to %s or its folder, and so have programs run as"
            " the user who runs LLM-Manager: chmod o-w",
            path,
        )
    if services.models_are_open:
        log.warning(
            "no API key is asked for: whoever reaches this address may use the models. Make a key"
            " on the page Keys or by `python -m commands.keys add NAME`, or set require_key in the"
            " config"
        )
    if not known.accounts:
        log.warning(
            "there is no account: every user of this machine may look at the pages and /api, and"
            " change nothing; nobody may from elsewhere. `llm-manager open` opens the pages as"
            " admin, where the first account is made; so does `llm-manager users add`"
        )


def _use_one_heap() -> None:
    """glibc gives its threads up to eight heaps a core, for programs whose threads allocate at
    the same time. Ours hold the interpreter's lock meanwhile: more heaps are only more memory
    that is never given back."""
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # not every libc has it
        if set_option is not None:
            set_option(_M_ARENA_MAX, 1)


def _raise_file_limit() -> None:
    """A request under way holds two descriptors, and many systems allow 1,024 unless asked."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="One OpenAI-compatible address in front of every model on this machine."
    )
    parser.add_argument("--config", type=Path, default=Path("config.yaml"), metavar="FILE")
    parser.add_argument("--host", help="instead of the config's")
    parser.add_argument("--port", type=int, help="instead of the config's; 0 takes a free one")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR")
    parser.add_argument("--tray", action="store_true", help="show an icon in the desktop's tray")
    parser.add_argument("--check", action="store_true", help="only check the config")
    return parser.parse_args()


def _signals() -> queue.SimpleQueue[str]:
    """What the signals ask for. A handler only takes a note: it may run in the middle of
    anything, so that it must not take locks."""
    wishes: queue.SimpleQueue[str] = queue.SimpleQueue()
    signal.signal(signal.SIGTERM, lambda *_: wishes.put(_STOP))
    signal.signal(signal.SIGINT, lambda *_: wishes.put(_STOP))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: wishes.put(_RELOAD))
    return wishes


def _next(wishes: queue.SimpleQueue[str]) -> str:
    while True:
        try:
            # On Windows a wait with no end would not let a handler run.
            return wishes.get(timeout=1.0)
        except queue.Empty:
            continue


def _reload(services: Services) -> None:
    try:
        done = settings.apply(services)
    except ApiError as error:
        log.error("the config was not reloaded:\n%s", error)
        return
    log.info("the config was reloaded: %d models", len(done["models"]))
    if done["restart_needed_for"]:
        log.warning("a restart is needed for: %s", ", ".join(done["restart_needed_for"]))


def _address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    sys.exit(main())

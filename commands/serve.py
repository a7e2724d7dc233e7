"""`llm-manager serve`: builds every part once, serves with waitress, ends in order."""

from __future__ import annotations

import argparse
import ctypes
import logging
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

if sys.platform != "win32":
    import resource

from commands import console, init, tray
from commands.client import pages_url
from commands.options import CommandError, ConfigLoader
from jobs import Supervisor, TaskQueue, Watermark, WorkerSettings, log_setup, schedule
from manager import affinity
from manager.access import AccessRegistry, KeyLimits, LocalToken, local_token
from manager.billing import PriceBook, calendar
from manager.captures import Captures
from manager.clock import Clock
from manager.config import loader, plugins
from manager.devices import Monitor
from manager.errors import ApiError
from manager.events import Events
from manager.metrics import Metrics
from manager.models import Fleet, ModelDependencies, Ports, SchemeMemory
from manager.placement import Placement
from manager.relay import RelayProcesses, Watcher
from manager.storage import MaintenanceTasks, ModelLogs, Spool, Store
from manager.storage import data_dir as datadir
from manager.usage import Activity, Reports
from routes import Services, create_app, ollama
from routes.http import HttpServer, ListenError, Slots

log = logging.getLogger("manager")

_FILES = 65536
_M_ARENA_MAX = -8  # malloc.h
_RELOAD, _STOP = "reload", "stop"
_ANSWER_GRACE = 5.0  # seconds that answers have to reach their clients at the end


def run(arguments: argparse.Namespace) -> None:
    """Serves until SIGTERM or SIGINT. Raises CommandError, ConfigError, DataDirInUse, StoreError,
    DatabaseError, OSError where it cannot start."""
    init.leave_process_one()
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    _use_one_heap()
    _raise_file_limit()
    affinity.PROGRAM.bind()
    load = ConfigLoader(arguments.config)
    config = load()
    host = (arguments.host or config.program.host).strip("[]")  # of an IPv6 address, as in a URL
    program = Program(config, load, arguments.data_dir, host)
    port = config.program.port if arguments.port is None else arguments.port
    try:
        program.listen(port)
    except ListenError as error:
        raise CommandError(str(error)) from error
    signals = _signals()
    program.start()
    icon = tray.start(arguments.data_dir) if arguments.tray else None

    while _next(signals, icon) == _RELOAD:
        _reload(program.services)
    log.info("stopping the models; once more leaves at once and lets them run on")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    program.stop()
    if icon is not None:
        tray.stop(icon)


class Program:
    """Every part of the program, built once: `listen`, `start`, `stop`."""

    def __init__(
        self, config: loader.Config, load: ConfigLoader, data_dir: Path, host: str
    ) -> None:
        program = config.program
        usage_db = data_dir / "usage.db"
        self._config = config
        self._lock = datadir.lock(data_dir)
        self._log_buffer = log_setup.configure(data_dir / "logs", program.log_level)
        loader.log_warnings(config)
        datadir.restrict_permissions(data_dir)
        _choose_temporary_folder(data_dir)
        clock, events, metrics = Clock(), Events(), Metrics()
        monitor = Monitor(
            plugins.devices(program.device_plugin_dir),
            clock,
            pids=lambda: placement.pids(),
            watched=lambda: events.has_subscribers("devices") or placement.has_waiting(),
        )
        monitor.set_enabled(not program.disable_gpu_monitoring)
        placement = Placement(monitor, clock, events, metrics, program)
        # First: models that went on while no program ran may have filled the disk.
        logs = ModelLogs(data_dir / "logs")
        logs.enforce_limit(program.model_log_mb << 20)
        self._store = store = Store(usage_db)
        shared = ModelDependencies(
            store=store,
            logs=logs,
            events=events,
            watch=Watcher(),
            ports=Ports(),
            placement=placement,
            memory=SchemeMemory(store, clock, monitor),
            clock=clock,
            connections=program.threads,
        )
        fleet = Fleet(config, load.interfaces, shared)
        self._tasks = TaskQueue(data_dir)
        prices = PriceBook(store, usage_db, clock)
        reports = Reports(usage_db)
        Spool(data_dir, store.add_requests).close()  # what a killed program has left counts
        limits = KeyLimits(clock, lambda: calendar.zone(fleet.config.program.timezone), prices.cost)
        limits.load(usage_db, reports)
        activity, spool = Activity(clock, events), Spool(data_dir, store.add_requests)
        self._watermark = Watermark(fleet, activity, spool, store, clock)
        self.services = Services(
            fleet=fleet,
            interfaces=load.interfaces,
            watch=shared.watch,
            events=events,
            activity=activity,
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
            orders=MaintenanceTasks(store, usage_db, clock, self._tasks.enqueue),
            record_all=self._watermark.advance,
            worker=Supervisor(WorkerSettings.of(program, data_dir), clock),
            access=AccessRegistry(store, usage_db, clock),
            limits=limits,
            local_token=LocalToken(data_dir, clock.monotonic),
            host=host,
            relays=RelayProcesses(),
            captures=Captures(clock),
        )

    def listen(self, port: int) -> None:
        """Before any model is touched: a port in use ends the program, and nothing else. Raises
        ListenError."""
        services, program = self.services, self._config.program
        app = create_app(services, datadir.session_secret(services.data_dir))
        ollama_port = program.ollama_port
        self._server = HttpServer(
            app,
            services.host,
            port,
            program.threads,
            program.max_body_mb,
            also=((ollama.alone(app, services), ollama_port),) if ollama_port else (),
            trusted_proxies=program.trusted_proxies,
            cors_origins=lambda: services.fleet.config.program.cors_origins,
        )

    def start(self) -> None:
        services = self.services
        services.watch.start()
        services.relays.start()
        services.monitor.start()
        services.prices.seed_from_config(self._config.first_prices())
        services.fleet.adopt()
        services.worker.start()
        self._scheduler = schedule.start(
            services.access,
            services.activity,
            services.fleet,
            services.monitor,
            services.logs,
            self._log_buffer,
            self._tasks,
            services.orders,
            self._watermark,
            services.clock,
            services.data_dir,
            services.live_config.tick,
        )
        self._server.start()
        address = f"[{services.host}]" if ":" in services.host else services.host
        console.write_line(f"Listening on http://{address}:{self._server.port}")
        if ollama_port := self._config.program.ollama_port:
            console.write_line(f"Ollama's API alone is on http://{address}:{ollama_port}")
        if sys.stdout.isatty():  # nowhere that is kept, such as a service's log
            _print_link(services, pages_url(services.host, self._server.port))
        _warn(services)
        services.fleet.start_auto_start()
        services.fleet.watch_remote()

    def stop(self) -> None:
        """Refuses new work, ends the models, then what they and their requests were using."""
        services = self.services
        services.closing.set()
        services.fleet.close()
        services.relays.stop(_ANSWER_GRACE)
        self._server.close(_ANSWER_GRACE)
        services.watch.stop()
        services.monitor.stop()  # before the scheduler, which it wakes
        self._scheduler.shutdown()
        services.worker.stop()
        self._tasks.close()
        services.spool.close()
        self._store.close()
        self._lock.close()


def _print_link(services: Services, address: str) -> None:
    token = services.local_token.value
    if token is not None:
        link = local_token.sign_in_link(address, token, services.clock.wall_ms())
        minutes = local_token.LINK_SECONDS // 60
        console.write_line(f"To sign in as admin, once and within {minutes} minutes: {link}")


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
    if sys.platform == "win32" and services.fleet.config.program.watch_config:
        log.warning(
            "watch_config: on Windows nobody checks who else may write to %s, which names programs"
            " to run: see to the rights of its folder",
            path,
        )
    if services.models_are_open:
        log.warning(
            "no API key is asked for: whoever reaches this address may use the models. Make a key"
            " on the page Keys or by `llm-manager keys add NAME`, or set require_key in the"
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
    the same time. Ours hold the GIL meanwhile: more heaps are only more memory that is never
    returned."""
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # not every libc has it
        if set_option is not None:
            set_option(_M_ARENA_MAX, 1)


def _choose_temporary_folder(data_dir: Path) -> None:
    """Large bodies of requests are in temporary files. In a container whose root is read-only the
    data folder may be all that can be written to."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = str(data_dir)


def _raise_file_limit() -> None:
    """A request holds two descriptors, and many systems allow 1,024 unless asked."""
    if sys.platform != "win32":
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _signals() -> queue.SimpleQueue[str]:
    """What the signals ask for. A handler only puts it into a queue: it may run in the middle of
    anything, so that it must not take locks."""
    signals: queue.SimpleQueue[str] = queue.SimpleQueue()
    signal.signal(signal.SIGTERM, lambda *_: signals.put(_STOP))
    signal.signal(signal.SIGINT, lambda *_: signals.put(_STOP))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: signals.put(_RELOAD))
    return signals


def _next(signals: queue.SimpleQueue[str], icon: subprocess.Popen[bytes] | None) -> str:
    """What the program is asked for next, by a signal or by the tray."""
    while True:
        try:
            # On Windows a wait with no end would not let a handler run.
            return signals.get(timeout=1.0)
        except queue.Empty:
            if icon is not None and icon.poll() == tray.QUIT:
                return _STOP


def _reload(services: Services) -> None:
    try:
        services.reload_config()
    except ApiError as error:
        log.error("the config was not reloaded:\n%s", error)

"""One attempt to have a ready server: placed, launched, probed, or taken over.

All of it is I/O and is called from the thread ``start-<model>``, never under a lock.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from manager.config import loader
from manager.interfaces import Interface
from manager.models import launch, ports, probe, process_tree, server_process
from manager.models.launch import LaunchPlan, launch_fingerprint
from manager.models.ports import NoFreePort
from manager.models.process_tree import LaunchError
from manager.models.run_clock import RunClock, is_before_boot
from manager.models.server import (
    DeviceLostError,
    Launched,
    LeftoverError,
    ModelDependencies,
    NotPlacedError,
    Server,
    StartCancelledError,
    StartFailedError,
    end_run,
    record_alive,
    scheme_options,
)
from manager.models.server_process import ServerProcess
from manager.placement import (
    DeviceAssignment,
    Evictable,
    PlacementError,
    QueuePosition,
    Reservation,
)
from manager.relay import Exchange, Upstream, UpstreamError, UpstreamRefused
from manager.storage import DatabaseError, Run, runs

log = logging.getLogger(__name__)

MIN_PAUSE_SECONDS = 0.02  # between two probes; grows to a fiftieth of the time waited
MAX_PAUSE_SECONDS = 0.5
ADOPTION_TIMEOUT_SECONDS = 5.0
MAX_LOST_DEVICES = 3  # during one start; more is not a loss, but a loose contact
MAX_LOG_LINES = 15  # of the model's own output, in an error
MAX_LOG_CHARACTERS = 4000
STOP_PAUSE_SECONDS, MAX_STOP_PAUSE_SECONDS = 0.5, 30.0
RETRIED_STATUSES = frozenset((429, 502, 503, 504))  # of a probe
REFUSALS = frozenset(range(400, 500)) - RETRIED_STATUSES - {401, 403}


class Start:
    """One attempt to have a ready server, which can be cancelled at any moment."""

    def __init__(
        self,
        evictable: Evictable,
        settings: loader.Model,
        interface: Interface,
        shared: ModelDependencies,
        avoid_ports: set[int],
        on_change: Callable[[], None],
    ) -> None:
        self.scheme: str | None = None
        self.passed_over: Mapping[str, str] = {}
        self.port: int | None = None
        self.pid: int | None = None
        self.waiting: QueuePosition | None = None  # for memory
        self.began = shared.clock.monotonic()  # the wait for memory, then the launch
        self._evictable = evictable
        self._settings = settings
        self._interface = interface
        self._shared = shared
        self._avoid_ports = avoid_ports
        self._on_change = on_change
        self._deadline = float("inf")
        self._cancelled = threading.Event()
        self._given_up = threading.Event()
        self._lock = threading.Lock()
        self._exchange: Exchange | None = None

    def cancel(self) -> None:
        """Ends the attempt, also in the middle of a probe that the server does not answer."""
        self._cancelled.set()
        with self._lock:
            exchange = self._exchange
        if exchange is not None:
            exchange.abort()
        self._shared.placement.wake()

    def give_up(self) -> None:
        """Cancels it, and tries no longer to stop what may still come up: the program ends."""
        self._given_up.set()
        self.cancel()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def run(self) -> Server:
        """Waits for memory, launches the server and waits until it answers. Raises
        StartFailedError, and then nothing of it is left but with a LeftoverError."""
        for _ in range(MAX_LOST_DEVICES):
            try:
                return self._run_once()
            except DeviceLostError as error:
                log.warning("%s is placed again: %s", self._settings.name, error)
                self.scheme = self.port = self.pid = None
                self._on_change()
        return self._run_once()

    def _run_once(self) -> Server:
        reservation, assignment = self._reserve()
        self.scheme, self.passed_over = assignment.scheme, assignment.passed_over
        self._begin(self._settings.start_timeout)
        try:
            return self._launch_on_port(reservation, assignment)
        except BaseException as error:
            failed = isinstance(error, StartFailedError) and not self.cancelled
            failed = failed and not isinstance(error, LeftoverError)
            lost = self._shared.placement.lost_devices(reservation) if failed else []
            self._shared.placement.release(reservation)
            if lost:
                message = f"{', '.join(lost)} was lost while it started. {error}"
                raise DeviceLostError(message) from error
            raise

    def _reserve(self) -> tuple[Reservation, DeviceAssignment]:
        options = scheme_options(self._settings)
        try:
            return self._shared.placement.reserve(
                self._evictable, options, self._cancelled.is_set, self._report_position
            )
        except PlacementError as error:
            self.passed_over = error.passed_over
            if self.cancelled:
                raise StartCancelledError from error
            raise NotPlacedError(str(error), error.code) from error

    def _report_position(self, waiting: QueuePosition | None) -> None:
        self.waiting = waiting
        self._on_change()

    def _begin(self, timeout: float) -> None:
        self.began = self._shared.clock.monotonic()
        self._deadline = self.began + timeout

    def _launch_on_port(self, reservation: Reservation, assignment: DeviceAssignment) -> Server:
        chosen = self._settings.port is None
        try:
            self.port = self._settings.port or self._shared.ports.choose(self._avoid_ports)
        except NoFreePort as error:
            raise StartFailedError(str(error)) from error
        try:
            if not chosen and not ports.is_free(self.port):
                raise StartFailedError(
                    f"its port {self.port} is held by {ports.holder(self.port)};"
                    " stop that, or give the model another port"
                )
            return self._launch(reservation, assignment, self.port)
        except BaseException:
            self._shared.ports.release(self.port)
            raise

    def take_over(self, run: Run, process: ServerProcess, reservation: Reservation) -> Server:
        """Goes on with a server that an earlier program left running, if it is healthy.
        Raises StartFailedError, and then nothing of it is left but with a LeftoverError."""
        self.scheme, self.port, self.pid = run.scheme, run.port, process.pid
        self._shared.ports.claim(run.port)
        upstream = Upstream(run.port, self._shared.connections, run.launch.host)
        is_old = is_before_boot(run, self._shared.clock)
        unseen = is_old or not process.alive()
        clock = None if unseen else RunClock.resume(run, self._shared.clock)
        if clock is not None:
            record_alive(self._shared, run.id, clock)
        try:
            if is_old:
                raise StartFailedError("the system was started again since it ran")
            if clock is None:
                raise StartFailedError(process.describe_end())
            scheme = next((s for s in self._settings.schemes if s.name == run.scheme), None)
            if scheme is None or launch_fingerprint(self._settings, scheme) != run.fingerprint:
                raise StartFailedError("its settings have changed")
            if run.ready_ms is None:
                raise StartFailedError("it had not become ready")
            self._begin(ADOPTION_TIMEOUT_SECONDS)
            self._await_health(process, upstream, (run.launch.host,))
            process.settle()
        except BaseException as error:
            upstream.close()
            failure = self._stop(run, process, reservation, f"not adopted: {error}", clock)
            self._shared.ports.release(run.port)
            self._shared.placement.release(reservation)
            if failure is not None:
                raise failure from error
            raise
        age = (clock.now_ms(self._shared.clock) - run.started_ms) / 1000
        return Server(
            launched=Launched(run.id, clock, process, reservation, run.port),
            settings=self._settings,
            interface=self._interface,
            scheme=run.scheme,
            passed_over={},
            upstream=upstream,
            started_at=self._shared.clock.monotonic() - max(0.0, age),
            start_seconds=(run.ready_ms - run.started_ms) / 1000,
        )

    def _launch(self, reservation: Reservation, assignment: DeviceAssignment, port: int) -> Server:
        shared, settings = self._shared, self._settings
        try:
            clock = RunClock.begin(shared.clock)
            plan = launch.plan(settings, assignment, port, clock.epoch_ms)
            # Before the launch: if we are killed in between, the run's id still finds the process.
            runs.begin(shared.store, plan.run)
        except LaunchError as error:
            raise StartFailedError(str(error)) from error
        except DatabaseError as error:
            raise StartFailedError(f"its start cannot be recorded in usage.db: {error}") from error
        run = plan.run
        try:
            process = self._spawn(plan)
        except BaseException as error:
            end_run(self._shared, run.id, str(error), clock)
            raise
        upstream = Upstream(port, shared.connections)
        try:
            self._await_ready(run, clock, process, reservation, upstream)
        except BaseException as error:
            upstream.close()
            if isinstance(error, DatabaseError):
                message = f"its start cannot be recorded in usage.db: {error}"
                failure = self._stop(run, process, reservation, message, clock)
                raise failure or StartFailedError(message) from error
            if failure := self._stop(run, process, reservation, str(error), clock):
                raise failure from error
            raise
        shared.placement.mark_ready(reservation)
        return Server(
            launched=Launched(run.id, clock, process, reservation, port),
            settings=settings,
            interface=self._interface,
            scheme=run.scheme,
            passed_over=assignment.passed_over,
            upstream=upstream,
            started_at=self.began,
            start_seconds=shared.clock.monotonic() - self.began,
        )

    def _spawn(self, plan: LaunchPlan) -> ServerProcess:
        run, logs = plan.run, self._shared.logs
        try:
            path, output = logs.create(
                run.model, run.id, f"{run.model}, scheme {run.scheme}, port {run.port}"
            )
        except OSError as error:
            raise StartFailedError(f"its log cannot be written: {error}") from error
        try:
            return server_process.start(plan, output, logs, self._settings.start_timeout)
        except LaunchError as error:
            path.unlink(missing_ok=True)  # it holds nothing but its title
            raise StartFailedError(str(error)) from error
        finally:
            os.close(output)

    def _await_ready(
        self,
        run: Run,
        clock: RunClock,
        process: ServerProcess,
        reservation: Reservation,
        upstream: Upstream,
    ) -> None:
        """Until it answers, and that is recorded. Raises StartFailedError, DatabaseError."""
        store = self._shared.store
        self.pid = process.pid
        reservation.pids = process.pids
        self._on_change()
        runs.launched(store, run.id, process.pid, process.created)
        self._await_health(process, upstream, ports.HOSTS)
        self._check_listener(process, run)
        self._await_token(process, upstream)
        recorded = process.recorded(upstream.host)
        if recorded != run.launch:
            runs.record_launch(store, run.id, recorded)
        clock_ms = self._shared.clock.monotonic_ms()
        runs.ready(
            store,
            run.id,
            clock.at_ms(clock_ms),
            process.pid,
            process.created,
            boot_id=self._shared.clock.boot_id,
            clock_ms=clock_ms,
        )

    def _stop(
        self,
        run: Run,
        process: ServerProcess,
        reservation: Reservation,
        reason: str,
        clock: RunClock | None,
    ) -> LeftoverError | None:
        """Ends what was launched; tries again while a server of it may still come up. Returns the
        failure to raise where something of it runs on: then its run has not ended either, and the
        program's next start tries again."""
        self._shared.placement.mark_stopping(reservation, ended=process.has_ended())
        pause = STOP_PAUSE_SECONDS
        fault = process.stop(self._settings.stop_timeout)
        # It keeps its port and its memory meanwhile: nobody else would end it.
        while fault and process.may_come_up() and not self._given_up.wait(pause):
            pause = min(2 * pause, MAX_STOP_PAUSE_SECONDS)
            if process.may_come_up():  # else the last fault stands: nobody knows of its end
                fault = process.stop(self._settings.stop_timeout)
        if fault:
            first, *log_lines = reason.splitlines()
            left = f"{first}. It could not be stopped: {fault}"
            return LeftoverError("\n".join([left, *log_lines]))
        end_run(self._shared, run.id, reason, clock)
        return None

    def _await_health(
        self, process: ServerProcess, upstream: Upstream, hosts: Sequence[str]
    ) -> None:
        """Waits until it says that it is well, at the first of the addresses where anything takes
        connections."""
        question = probe.HealthQuestion(self._settings, upstream)
        last = "nothing listened on its port"
        others = list(hosts[1:])
        while True:
            timeout = min(self._check(process, last), probe.HEALTH_TIMEOUT_SECONDS)
            try:
                fault = question.ask(partial(self._ask, upstream, timeout))
            except UpstreamRefused as error:
                last = str(error)
                if others:
                    upstream.use(others.pop(0))
                    continue
                upstream.use(hosts[0])
                others = list(hosts[1:])
            except UpstreamError as error:
                last = str(error)
            else:
                if fault is None:
                    return
                last = fault
            self._pause()

    def _check_listener(self, process: ServerProcess, run: Run) -> None:
        """What answers must not be another manager's model: both may have found the port free
        while their models were loading. (A server outside the tree, in a container, is fine.)"""
        if process.settle():
            return
        pid = ports.listener(run.port)
        other = process_tree.run_id_of(pid) if pid else None
        if other not in (None, run.id):
            raise StartFailedError(
                f"its port {run.port} was taken meanwhile by another manager's model (pid {pid})"
            )

    def _await_token(self, process: ServerProcess, upstream: Upstream) -> None:
        """Sends one real request: a server can say that it is well long before it answers."""
        request = probe.one_token_request(self._interface, self._settings)
        if request is None:
            return
        last = "its first request was not answered"
        while True:
            timeout = self._check(process, last)
            try:
                status, answer = self._ask(upstream, timeout, request)
            except UpstreamError as error:
                last = str(error)
            else:
                if status < 300:
                    return
                last = f"a one-token request to {request.path} got {status}: {answer[:500]!r}"
                if status in (401, 403):
                    last += "; start the server without a key: it listens on loopback only"
                elif self._interface.may_refuse_probe and status in REFUSALS:
                    return
                if status not in RETRIED_STATUSES:
                    raise StartFailedError(last)
            self._pause()

    def _check(self, process: ServerProcess, last: str) -> float:
        """Seconds left for the next probe. Raises StartFailedError where it is pointless."""
        if self.cancelled:
            raise StartCancelledError
        if not process.alive():
            raise StartFailedError(process.describe_end() + self.last_lines())
        left = self._deadline - self._shared.clock.monotonic()
        if left <= 0:
            waited = self._deadline - self.began
            raise StartFailedError(
                f"it was not ready after {waited:g} seconds: {last}{self.last_lines()}",
                "start_timeout",
            )
        return left

    def _pause(self) -> None:
        waited = self._shared.clock.monotonic() - self.began
        self._cancelled.wait(min(max(MIN_PAUSE_SECONDS, waited / 50), MAX_PAUSE_SECONDS))

    def _ask(
        self, upstream: Upstream, timeout: float, request: probe.ProbeRequest
    ) -> tuple[int, bytes]:
        exchange = request.exchange(timeout)
        with self._lock:
            self._exchange = exchange
        if self.cancelled:  # before the exchange could be seen and aborted
            raise StartCancelledError
        response = upstream.send(exchange)
        return response.status, b"".join(response.iter_bytes())

    def last_lines(self) -> str:
        """The end of the model's own output, to put behind an error."""
        try:
            tail = self._shared.logs.tail(self._settings.name, MAX_LOG_LINES)
        except OSError as error:
            return f" (its log cannot be read: {error})"
        return f"\nThe last lines of its log:\n{tail[-MAX_LOG_CHARACTERS:]}" if tail else ""

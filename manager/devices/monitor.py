"""The devices' last readings: polled beside the requests, and only while somebody needs them.

Locks: ``_waking`` orders falling asleep and waking, ``_changed`` guards all the rest,
``_notifying`` keeps snapshots in order for listeners. ``_changed`` may be taken while one of the
others is held, never the other way round; no plugin is called under any of them.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from manager.clock import Clock
from manager.devices.base import DeviceError, DevicePlugin, Reading

log = logging.getLogger(__name__)

ACTIVE_SECONDS = 10.0  # that polling goes on after the last request
HUNG_AFTER_SECONDS = 3.0  # after which a poll is not waited for any more
STOP_SECONDS = 2.0  # that stop() waits for polls under way
MAX_LOGGED_FAULTS = 100  # different ones of a plugin


@dataclass(frozen=True)
class Device:
    """A device's last reading. ``read_at``: monotonic seconds, when that poll began.

    ``stale``: there is no newer one, though its driver was polled.
    """

    reading: Reading
    read_at: float
    stale: bool


@dataclass(frozen=True)
class Snapshot:
    """All devices at one moment, in the order of the plugins.

    ``hidden``: those that are not used, though they are online: their ``hidden_by`` says why.
    ``faults``: why the last poll of a plugin failed, or that it hangs, by the plugin's name.
    ``taken_at``: the oldest ``read_at`` of the plugins that are not at fault; None before all of
    them were read, and where every plugin is at fault.
    """

    devices: tuple[Device, ...] = ()
    faults: Mapping[str, str] = field(default_factory=dict)
    taken_at: float | None = None
    hidden: tuple[Reading, ...] = ()


class _Poller:
    """One plugin and what is known of it. But for the plugin, all is under ``_changed``."""

    def __init__(self, plugin: DevicePlugin) -> None:
        self.plugin = plugin
        self.wanted = False
        self.began: float | None = None  # the poll under way
        self.answered: float | None = None  # the last poll that ended, well or not: its begin
        self.read_at: float | None = None  # the last good poll: its begin
        self.readings: tuple[Reading, ...] = ()
        self.fault: str | None = None
        self.logged: set[str] = set()

    def answered_since(self, moment: float) -> bool:
        return self.answered is not None and self.answered >= moment

    def hangs(self, now: float) -> bool:
        return self.began is not None and now - self.began >= HUNG_AFTER_SECONDS

    def fault_at(self, now: float) -> str | None:
        if self.began is not None and self.hangs(now):
            return f"has not answered for {now - self.began:.0f} seconds"
        return self.fault


class Monitor:
    """Polls each plugin in a thread of its own, named ``device-<plugin>``, and keeps its readings.

    Awake it is polled by ``tick``, once a second, until ten seconds after the last ``touch`` with
    ``watched`` saying no; then the ticks are paused. ``pids`` gives the processes of the running
    models; it is called in a plugin's thread.

    A device that a good poll no longer lists is offline and removed. While a plugin fails or hangs
    its last readings stay, marked stale.
    """

    def __init__(
        self,
        plugins: Sequence[DevicePlugin],
        clock: Clock,
        pids: Callable[[], Collection[int]],
        watched: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._pids = pids
        self._watched = watched
        self._changed = threading.Condition()
        self._waking = threading.Lock()
        self._notifying = threading.Lock()
        self._pollers = [_Poller(plugin) for plugin in plugins]
        self._threads: list[threading.Thread] = []
        self._listeners: list[Callable[[Snapshot], None]] = []
        self._pause: Callable[[], None] = _nothing
        self._resume: Callable[[], None] = _nothing
        self._touched = -math.inf
        self._asleep = True  # changes under _waking, read without it by touch()
        self._enabled = True  # changes under both
        self._stopping = False

    # --- its life -----------------------------------------------------------------------

    def start(self) -> None:
        """Starts the threads; nothing is polled before somebody asks."""
        for poller in self._pollers:
            name = f"device-{poller.plugin.name}"
            # A daemon, since a plugin that hangs never comes back: see stop().
            thread = threading.Thread(target=self._run, args=(poller,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Ends the threads. From now on nothing is polled, whoever asks."""
        with self._waking:
            self._asleep = False  # a late request must not resume a job that may have been removed
            with self._changed:
                self._stopping = True
                self._changed.notify_all()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            # One whose driver hangs cannot be ended from here, and waiting for it would have the
            # program hang with the driver: the thread is left, and ends with the process.
            thread.join(max(0.0, deadline - time.monotonic()))

    def attach(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        """How the ticks are paused and resumed. Until this is called, they are paused.

        Both are called under a lock, one after the other: they must not wait for a thread that
        calls this object, and must not raise.
        """
        with self._waking:
            self._pause, self._resume = pause, resume
            if self._enabled and not self._asleep:
                resume()

    @property
    def enabled(self) -> bool:
        return self._enabled

    def set_enabled(self, enabled: bool) -> None:
        """While it is off nothing is polled and there are no devices. On, it polls at once."""
        with self._waking:
            if enabled == self._enabled or self._stopping:
                return
            if not enabled and not self._asleep:
                self._pause()
            # Off is not asleep: touch() has nothing to wake then.
            self._asleep = enabled
            with self._changed:
                self._enabled = enabled
                for poller in self._pollers:
                    poller.wanted = False
                    poller.readings, poller.read_at, poller.fault = (), None, None
                    poller.answered = None  # what it reported before is dropped
                self._changed.notify_all()
        if enabled:
            self.touch()

    # --- asking for polls ---------------------------------------------------------------

    def touch(self) -> None:
        """Somebody needs the devices: a request came, or a page begins to watch.

        Cheap enough for every request. Keeps the monitor awake for ten seconds; where it slept,
        it is polled at once.
        """
        # In this order: see _falls_asleep.
        self._touched = self._clock.monotonic()
        if self._asleep:
            self._wake()

    def tick(self) -> None:
        """Once a second: polls each plugin that is not being polled, or falls asleep."""
        if not self._enabled or self._stopping:
            return
        # watched() takes locks of others, who may call touch() while they hold them: no lock of
        # ours is held here.
        is_wanted = self._was_touched() or self._watched()
        if not is_wanted and self._falls_asleep():
            return
        with self._changed:
            self._want(poller for poller in self._pollers if poller.began is None)
            now = self._clock.monotonic()
            all_hang = all(poller.hangs(now) for poller in self._pollers)
        if all_hang:
            self._notify()  # no poll will, and the faults name a longer time than before

    def refresh(self) -> None:
        """Has every plugin polled now, without waiting.

        One that is being polled is polled once more after that: what the caller wants to see
        may have happened behind the back of the poll under way.
        """
        with self._changed:
            self._want(self._pollers)

    def wait_for_reading(self, since: float, timeout: float) -> Snapshot:
        """The devices as they are at ``since`` (monotonic seconds) or later.

        Waits until a poll that began then or later has ended, well or not, for every plugin;
        begins polls where they are needed. A plugin that hangs is not waited for, and nothing is
        for longer than ``timeout`` seconds: the answer is the best there is.
        """
        # The clock given says when polls began; how long this thread waits is real time, as
        # that of its condition.
        deadline = time.monotonic() + timeout
        with self._changed:
            since = min(since, self._clock.monotonic())
            while self._enabled and not self._stopping:
                now = self._clock.monotonic()
                left = deadline - time.monotonic()
                late = [each for each in self._pollers if not each.answered_since(since)]
                # One whose poll began too early is asked once more when that has ended.
                self._want(each for each in late if each.began is None)
                waited_for = [each for each in late if not each.hangs(now)]
                if not waited_for or left <= 0:
                    break
                begun = (each.began for each in waited_for if each.began is not None)
                self._changed.wait(
                    min(
                        left,
                        HUNG_AFTER_SECONDS,
                        *(moment + HUNG_AFTER_SECONDS - now for moment in begun),
                    )
                )
            return self._compose()

    # --- what is known ------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """What is known now; never waits for a device."""
        with self._changed:
            return self._compose()

    def add_listener(self, callback: Callable[[Snapshot], None]) -> None:
        """Calls back after each poll, in the thread of the plugin, one call at a time and each
        with what is newest then. It must be quick, since it holds up further polls."""
        self._listeners.append(callback)

    def _compose(self) -> Snapshot:
        """Under ``_changed``."""
        if not self._enabled:
            return Snapshot()
        now = self._clock.monotonic()
        devices: dict[str, Device] = {}
        faults: dict[str, str] = {}
        moments: list[float | None] = []
        for poller in self._pollers:
            fault = poller.fault_at(now)
            if fault is not None:
                faults[poller.plugin.name] = fault
            else:
                moments.append(poller.read_at)
            if poller.read_at is not None:
                for reading in poller.readings:
                    # Of two plugins that list the same device, the later one is right.
                    device = Device(reading, poller.read_at, stale=fault is not None)
                    devices[reading.id] = device
        known = [moment for moment in moments if moment is not None]
        taken_at = min(known) if known and len(known) == len(moments) else None
        return Snapshot(
            tuple(each for each in devices.values() if each.reading.hidden_by is None),
            faults,
            taken_at,
            tuple(each.reading for each in devices.values() if each.reading.hidden_by is not None),
        )

    # --- sleeping and waking ------------------------------------------------------------

    def _was_touched(self) -> bool:
        return self._clock.monotonic() - self._touched < ACTIVE_SECONDS

    def _falls_asleep(self) -> bool:
        """Pauses the ticks, unless somebody came at the last moment.

        Hazard: a tick decides to sleep, a request touches and sees that we are awake, the tick
        pauses, and nobody polls although a request came. So the tick first says that it sleeps
        and then checks once more whether somebody touched, and touch() first says that it came
        and then checks whether we sleep: at least one of the two sees the other. And pause and
        resume are called under one lock with the decision, so that a pause that was decided
        before cannot come after a resume.
        """
        with self._waking:
            if not self._enabled or self._stopping:
                return True
            self._asleep = True
            if self._was_touched():
                self._asleep = False
                return False
            self._pause()
            return True

    def _wake(self) -> None:
        with self._waking:
            if not self._asleep:
                return  # somebody else woke it, or the tick has seen that we came
            self._asleep = False
            self._resume()
        with self._changed:
            self._want(poller for poller in self._pollers if poller.began is None)

    # --- polling ------------------------------------------------------------------------

    def _want(self, pollers: Iterable[_Poller]) -> None:
        """Under ``_changed``."""
        if not self._enabled:
            return
        not_yet_wanted = [poller for poller in pollers if not poller.wanted]
        for poller in not_yet_wanted:
            poller.wanted = True
        # Only where there is news: those who wait in wait_for_reading() come through here, and
        # would wake each other for ever.
        if not_yet_wanted:
            self._changed.notify_all()

    def _run(self, poller: _Poller) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: poller.wanted or self._stopping)
                if self._stopping:
                    return
                poller.wanted = False
                poller.began = self._clock.monotonic()
            readings, fault = self._poll(poller)
            with self._changed:
                poller.answered, poller.began = poller.began, None
                if self._enabled:
                    if readings is not None:
                        poller.readings, poller.read_at = readings, poller.answered
                    poller.fault = fault
                self._changed.notify_all()
                is_news = self._enabled and not self._stopping
            if is_news:
                self._notify()

    def _poll(self, poller: _Poller) -> tuple[tuple[Reading, ...] | None, str | None]:
        """The readings, or None and why there are none. The thread outlives whatever it is."""
        try:
            readings = tuple(poller.plugin.read(self._pids()))
            for reading in readings:
                if not isinstance(reading, Reading):
                    raise TypeError(f"read() must return Readings, not a {type(reading).__name__}")
                if fault := reading.fault():
                    raise TypeError(fault)
            return readings, None
        except DeviceError as error:
            fault = str(error) or "cannot be read"
            if self._is_new(poller, fault):
                log.warning("device plugin %s: %s", poller.plugin.name, fault)
        except (Exception, SystemExit) as error:
            # A user's plugin may fail in any way, and must neither end its thread nor fill the
            # log with the same traceback each second.
            fault = f"{type(error).__name__}: {error}"
            if self._is_new(poller, fault):
                log.exception("device plugin %s failed", poller.plugin.name)
        return None, fault

    def _is_new(self, poller: _Poller, fault: str) -> bool:
        if fault in poller.logged or len(poller.logged) >= MAX_LOGGED_FAULTS:
            return False
        poller.logged.add(fault)
        return True

    def _notify(self) -> None:
        # Composed under the lock under which listeners are called: else the older one of two
        # threads' snapshots could be reported last, and stay on a page.
        with self._notifying:
            snapshot = self.snapshot
            for callback in self._listeners:
                try:
                    callback(snapshot)
                except Exception:
                    # A listener's fault must not end the polling.
                    log.exception("a listener to the devices failed")


def _nothing() -> None:
    """There are no ticks to pause or resume."""

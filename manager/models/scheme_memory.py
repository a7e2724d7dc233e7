"""How much memory each scheme takes: as declared, as measured, as its model's file lets expect."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manager.clock import Clock
from manager.config import loader, variables
from manager.devices import Monitor
from manager.gguf import Estimate, GgufError, estimate
from manager.models import process_tree
from manager.models.launch import launch_fingerprint
from manager.placement import Basis, SchemeOption, matches
from manager.storage import DatabaseError, LaunchKey, Store, scheme_memory

log = logging.getLogger(__name__)

# A measurement beyond this is worth a warning: the devices' own readings differ by less.
TOLERATED_SHARE, TOLERATED_MB = 1.1, 100
FIRST_READING_SECONDS = 3.5  # a driver that takes longer hangs


@dataclass(frozen=True)
class Figures:
    """What is known of a scheme, each as MB by name as in ``required_devices``; ``problem`` says
    why there is no estimate where there could be one."""

    declared_mb: Mapping[str, int]
    measured_mb: Mapping[str, int]
    estimated_mb: Mapping[str, int]
    problem: str | None = None

    @property
    def used(self) -> tuple[Basis, Mapping[str, int]]:
        """What counts, and whence it is."""
        for basis, mb in (
            (Basis.DECLARED, self.declared_mb),
            (Basis.MEASURED, self.measured_mb),
            (Basis.ESTIMATED, self.estimated_mb),
        ):
            if mb:
                return basis, mb
        return Basis.WHOLE, {}


class SchemeMemory:
    """The figures of all schemes. Every method may be called from any thread.

    What was measured is kept in usage.db by a hash of the command, so that another command begins
    without. One that is handed ``${MEMORY_MB}`` or ``${MEMORY_FRACTION}`` takes what it is given:
    of that nothing is learned.
    """

    def __init__(self, store: Store, clock: Clock, monitor: Monitor) -> None:
        """Raises DatabaseError."""
        self._store = store
        self._clock = clock
        self._monitor = monitor
        self._lock = threading.Lock()  # of these three
        self._measured = scheme_memory.remembered(store.path)
        self._estimates: dict[LaunchKey, Estimate | GgufError | None] = {}
        self._warned: set[tuple[LaunchKey, str]] = set()

    def options(self, settings: loader.Model) -> tuple[SchemeOption, ...]:
        """The model's schemes as they are placed. Reads the headers of their models' files."""
        self.read_files(settings, again=True)
        options = []
        for scheme in settings.schemes:
            basis, mb = self.figures(settings, scheme).used
            unusable = process_tree.unusable_reason(scheme.script_path)
            options.append(SchemeOption(scheme.name, scheme.required_devices, mb, unusable, basis))
        return tuple(options)

    def figures(self, settings: loader.Model, scheme: loader.Scheme) -> Figures:
        """What is known of it so far; of no file that was not read yet."""
        key = _key(settings, scheme)
        with self._lock:
            measured = _most(self._measured.get(key, {}))
            estimated = self._estimates.get(key)
        if measured.keys() != set(scheme.required_devices):
            measured = {}
        if not isinstance(estimated, Estimate):
            problem = str(estimated) if estimated else None
            return Figures(scheme.memory_mb, measured, {}, problem)
        return Figures(scheme.memory_mb, measured, self._by_device(estimated, scheme))

    def read_files(self, settings: loader.Model, *, again: bool = False) -> None:
        """Estimates what its schemes take, of those that name a file and were not read yet, or of
        all of them. Where there is an estimate, waits for the first reading of the devices, which
        it is divided by."""
        for scheme in settings.schemes:
            key = _key(settings, scheme)
            if not scheme.required_devices or not scheme.command:
                continue
            if key in self._estimates and not again:
                continue
            command = variables.expand_command(scheme.command, variables.known_values(scheme.env))
            found: Estimate | GgufError | None
            try:
                found = estimate(command, scheme.cwd, scheme.env)
            except GgufError as error:
                found = error
            except Exception:
                # A fault of ours: no reason to refuse the model's start, or the list of all models.
                log.exception("estimating %s, scheme %s, failed", settings.name, scheme.name)
                found = GgufError("estimating its memory failed: see the log of LLM-Manager")
            if found is not None and not isinstance(found, GgufError):
                self._await_devices()
            with self._lock:
                self._estimates[key] = found

    def _await_devices(self) -> None:
        if self._monitor.enabled and self._monitor.snapshot.taken_at is None:
            self._monitor.wait_for_reading(self._clock.monotonic(), FIRST_READING_SECONDS)

    def reserved(
        self, settings: loader.Model, scheme_name: str, memory_mb: Mapping[str, int]
    ) -> tuple[Mapping[str, int], Basis]:
        """What a run of it holds that was started with ``memory_mb``, by device id: less where it
        is known by now to take less."""
        scheme = next((one for one in settings.schemes if one.name == scheme_name), None)
        if scheme is None or scheme.memory_mb:
            return memory_mb, Basis.DECLARED
        measured = self.figures(settings, scheme).measured_mb
        if not measured:
            return memory_mb, Basis.WHOLE
        known = {on: _named(on, measured) for on in memory_mb}
        return {on: min(mb, known[on] or mb) for on, mb in memory_mb.items()}, Basis.MEASURED

    def record(
        self, settings: loader.Model, scheme_name: str, run: str, peak_mb: Mapping[str, int]
    ) -> None:
        """The most that a run of it was seen to take, by device id; remembered. ``settings`` are
        those that it was launched with."""
        scheme = next(one for one in settings.schemes if one.name == scheme_name)
        key = _key(settings, scheme)
        peaks = {
            name: max(found)
            for name in scheme.required_devices
            if (found := [mb for on, mb in peak_mb.items() if matches(name, _name_of(on))])
        }
        self._warn(key, scheme, peaks)
        if not peaks or _is_handed_its_share(scheme):
            return
        with self._lock:
            runs = self._measured.setdefault(key, {})
            is_news = runs.get(run) != peaks
            runs[run] = peaks
            while len(runs) > scheme_memory.KEPT_RUNS:
                del runs[next(iter(runs))]
        if is_news:
            try:
                now_ms = self._clock.wall_ms()
                scheme_memory.remember(self._store, key, run, peaks, now_ms)
            except DatabaseError as error:  # then it is known as long as the program runs
                log.warning("the memory of %s is not in usage.db: %s", settings.name, error)

    def to_json(self, settings: loader.Model) -> list[dict[str, Any]]:
        """As in ``/api/models``, a scheme each."""
        result = []
        for scheme in settings.schemes:
            figures = self.figures(settings, scheme)
            basis, used = figures.used
            devices = [
                {
                    "name": name,
                    "declared_mb": figures.declared_mb.get(name),
                    "measured_mb": figures.measured_mb.get(name),
                    "estimated_mb": figures.estimated_mb.get(name),
                    "used_mb": used.get(name),
                }
                for name in dict.fromkeys(scheme.required_devices)
            ]
            result.append(
                {
                    "scheme": scheme.name,
                    "basis": basis.value if devices else None,
                    "devices": devices,
                    "problem": figures.problem,
                }
            )
        return result

    def _by_device(self, found: Estimate, scheme: loader.Scheme) -> dict[str, int]:
        """The estimate on the devices that the scheme's names mean now: llama.cpp divides a model
        by the memory of the cards, and what is not on them is in the machine's own."""
        readings = [device.reading for device in self._monitor.snapshot.devices]
        totals: list[tuple[str, int]] = []
        host: list[str] = []
        for name in scheme.required_devices:
            meant = [reading for reading in readings if matches(name, reading.name)]
            if any(reading.kind == "cpu" for reading in meant):
                host.append(name)
            else:
                totals.append((name, next((one.total_mb or 1 for one in meant), 1)))
        whole = sum(total for _, total in totals)
        split = found.on([total / whole for _, total in totals])
        result = dict.fromkeys(host, split.host_mb)
        for (name, _), mb in zip(totals, split.device_mb, strict=True):
            result[name] = max(mb, result.get(name, 0))
        return result

    def _warn(self, key: LaunchKey, scheme: loader.Scheme, peaks: Mapping[str, int]) -> None:
        """Of what takes far more than it declares, once for each device."""
        for name, mb in peaks.items():
            declared = scheme.memory_mb.get(name)
            if declared is None or mb <= declared * TOLERATED_SHARE + TOLERATED_MB:
                continue
            with self._lock:
                is_news = (key, name) not in self._warned
                self._warned.add((key, name))
            if is_news:
                log.warning(
                    "%s, scheme %s, takes %d MB of %s, and its memory_mb declares %d: write %d, or"
                    " leave memory_mb out, and what is measured counts",
                    *(key.model, key.scheme, mb, name, declared, mb),
                )


def _most(runs: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """The most of all of them, by device."""
    most: dict[str, int] = {}
    for peaks in runs.values():
        for name, mb in peaks.items():
            most[name] = max(mb, most.get(name, 0))
    return most


def _key(settings: loader.Model, scheme: loader.Scheme) -> LaunchKey:
    return LaunchKey(settings.name, scheme.name, launch_fingerprint(settings, scheme))


def _is_handed_its_share(scheme: loader.Scheme) -> bool:
    return any(
        f"${{{name}}}" in argument
        for argument in scheme.command
        for name in variables.PLANNED_MEMORY
    )


def _name_of(device_id: str) -> str:
    return device_id.rpartition(" #")[0]


def _named(device_id: str, by_name: Mapping[str, int]) -> int | None:
    found = [mb for name, mb in by_name.items() if matches(name, _name_of(device_id))]
    return max(found, default=None)

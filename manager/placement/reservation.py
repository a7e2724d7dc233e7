"""A model's memory on the devices for one run: what it declared, what it was seen to take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from manager.devices import Device, Reading
from manager.placement.types import Basis, Evictability


@dataclass(frozen=True)
class EvictionStatus:
    """Whether a model may be stopped at this moment, and what decides at what cost;
    ``last_used`` is monotonic, the others are seconds."""

    evictability: Evictability
    last_used: float | None
    mean_gap: float | None
    start_seconds: float
    yielding: bool


class Evictable(Protocol):
    """What placement asks of a model, and what it has the model do."""

    @property
    def name(self) -> str: ...

    def eviction_status(self) -> EvictionStatus: ...

    def waiting_priority(self) -> int | None:
        """The highest priority among the requests that wait for it; 0 where it was only started
        manually, None where nobody has asked for it."""

    def begin_eviction(self) -> bool:
        """Takes no request any more if it is idle, so that it can be evicted; else False."""

    def cancel_eviction(self) -> None: ...

    def evict(self, reason: str) -> None:
        """Begins to stop it, after ``begin_eviction``. Raises ApiError where the system has no
        thread."""

    def set_yielding(self, yielding: bool) -> None:
        """Whether new requests wait behind others, until it can be stopped."""


class PlacementMetrics(Protocol):
    """What counts evictions and waits."""

    def record_eviction(self, model: str) -> None: ...

    def record_wait(self, model: str, seconds: float, outcome: str) -> None: ...


@dataclass(eq=False)
class Reservation:
    """What one run of a model holds.

    All of it is guarded by the placement's lock, but for ``pids``, which is called without: it
    returns the processes that hold the server's memory, none where they are not known.

    MB are by device id: ``memory_mb`` is what was reserved, ``measured_mb`` what it was last seen
    to take, ``peak_mb`` the most of that since its first request had ended. ``ram_mb`` is what its
    processes have of the machine's memory, reserved or not. ``used_before`` is what was used on a
    device before the launch, while no other model has started or stopped there since;
    ``used_when_stopping`` what was used when the stop began.

    While the server sleeps, ``asleep_mb`` is what it holds and ``awake_mb`` what it needs to wake;
    ``moving_mb`` is what it may take of the machine's memory while it falls asleep.

    ``ready_at`` and ``served_at`` are monotonic, None until the server answers, and until its first
    request has ended."""

    evictable: Evictable
    memory_mb: Mapping[str, int] = field(default_factory=dict)
    basis: Basis = Basis.DECLARED
    measured_mb: dict[str, int] = field(default_factory=dict)
    peak_mb: dict[str, int] = field(default_factory=dict)
    ram_mb: int | None = None
    asleep_mb: Mapping[str, int] | None = None
    awake_mb: Mapping[str, int] = field(default_factory=dict)
    moving_mb: int = 0
    ready_at: float | None = None
    served_at: float | None = None
    stopping: bool = False
    ended: bool = False  # by itself, before the stop began
    used_before: dict[str, int] = field(default_factory=dict)
    used_when_stopping: dict[str, int] = field(default_factory=dict)
    pids: Callable[[], Collection[int]] = tuple
    seen_pids: Collection[int] = ()


def reading_includes(device: Device | None, reservation: Reservation) -> bool:
    """Whether the reading shows all of what the reservation's model has taken. A stale one
    will not get better, and a device that nobody reads shows nothing ever."""
    if reservation.ready_at is None:
        return False
    if device is None or device.stale or device.reading.used_mb is None:
        return True
    return read_after_ready(device, reservation)


def read_after_ready(device: Device, reservation: Reservation) -> bool:
    """Whether the device was read after the reservation's model had taken what it takes."""
    return reservation.ready_at is not None and device.read_at > reservation.ready_at


def record_measurement(reservation: Reservation, device: Device, *, alone: bool) -> None:
    """Records what the reservation's model has taken there. ``alone``: it is the only one of ours
    on the device, so that what is used more and more is counted as its own."""
    reading = device.reading
    # A container's processes may not be known: then what is used shows what it takes.
    if reading.held_mb is not None and reservation.seen_pids:
        held = _held_mb(reservation, reading)
        if held is not None:
            reservation.measured_mb[reading.id] = held
    elif reading_includes(device, reservation) and reading.used_mb is not None:
        before = reservation.used_before.get(reading.id)
        known = reservation.measured_mb.get(reading.id)
        if before is not None and (known is None or alone):
            reservation.measured_mb[reading.id] = max(0, known or 0, reading.used_mb - before)
    measured = reservation.measured_mb.get(reading.id)
    has_served = reservation.served_at is not None and device.read_at > reservation.served_at
    is_awake = reservation.asleep_mb is None and reservation.ready_at is not None
    if measured is not None and has_served and is_awake:
        peak = reservation.peak_mb.get(reading.id, 0)
        reservation.peak_mb[reading.id] = max(peak, measured)


def record_ram(reservation: Reservation, reading: Reading) -> None:
    """Records what its processes have of the machine's memory."""
    reservation.ram_mb = _held_mb(reservation, reading)


def adopt_peak(reservation: Reservation) -> None:
    """What was only assumed is replaced by what it was seen to take while it served."""
    is_assumed = reservation.basis in (Basis.ESTIMATED, Basis.WHOLE)
    if (
        is_assumed
        and reservation.asleep_mb is None
        and reservation.peak_mb.keys() >= reservation.memory_mb.keys()
    ):
        reservation.memory_mb = {on: reservation.peak_mb[on] for on in reservation.memory_mb}


def rest_mb(reservation: Reservation, reading: Reading) -> int:
    """What is left of the reservation's memory there once its server sleeps; a tenth where nothing
    shows that, since "over 90 %" is freed (docs.vllm.ai, "Sleep Mode")."""
    whole = reservation.measured_mb.get(reading.id, reservation.memory_mb[reading.id])
    if reading.held_mb is not None and reservation.seen_pids:
        held = _held_mb(reservation, reading)
        if held is not None or reading.id in reservation.measured_mb:
            return held or 0
    before = reservation.used_when_stopping.get(reading.id)
    if before is None or reading.used_mb is None:
        return whole // 10
    return min(whole, max(0, whole - (before - reading.used_mb)))


def _held_mb(reservation: Reservation, reading: Reading) -> int | None:
    held_mb = reading.held_mb or {}
    held = [held_mb[pid] for pid in reservation.seen_pids if pid in held_mb]
    return sum(held) if held else None


def memory_returned(reservation: Reservation, reading: Reading) -> bool:
    """Whether the reading shows that the stopped server's memory is free again."""
    # A container's processes may not be known: what it held shows in what is used.
    is_known = reservation.seen_pids and reading.id in reservation.measured_mb
    if reading.held_mb is not None and is_known:
        return not any(pid in reading.held_mb for pid in reservation.seen_pids)
    if reading.used_mb is None:
        return True
    # Half: others may have taken some of it meanwhile.
    most = reservation.used_when_stopping[reading.id] - _expected_mb(reservation, reading.id) / 2
    return reading.used_mb <= most


def count_as_returned(
    reservation: Reservation, reading: Reading, others: Iterable[Reservation]
) -> None:
    """The reservation's memory is free: of those that are stopping beside it none may take that
    for its own, else the last one's memory would pass for another program's."""
    returned = _expected_mb(reservation, reading.id)
    for other in others:
        before = other.used_when_stopping.get(reading.id)
        if before is None or reading.used_mb is None:
            continue
        if before - reading.used_mb >= returned / 2:  # its stop began before that was free
            other.used_when_stopping[reading.id] = before - returned


def _expected_mb(reservation: Reservation, device_id: str) -> int:
    return reservation.measured_mb.get(device_id, reservation.memory_mb[device_id])


def begin_evictions(victims: Sequence[Evictable]) -> list[Evictable] | None:
    """All of them or none: a request may have come to one since it was decided."""
    begun: list[Evictable] = []
    for victim in victims:
        if not victim.begin_eviction():
            for other in begun:
                other.cancel_eviction()
            return None
        begun.append(victim)
    return begun

"""What happens with each model that is to be started: which scheme, on which devices, whom to
stop, who waits.

Pure: no clock, no I/O, no locks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from manager.placement.matching import assignments, missing_devices
from manager.placement.memory import Memory, MemoryAfterQueue
from manager.placement.types import (
    Action,
    Allocation,
    Decision,
    DeviceBudget,
    Evictability,
    Megabytes,
    SchemeOption,
    StartRequest,
)
from manager.placement.victims import Shortage, VictimChooser, choose_victims

YIELD_AFTER_SECONDS = 10.0  # that a model waits for busy ones before these are asked to yield
PRIORITY_STEP_SECONDS = 10.0  # of waiting that each step of priority counts as

Plan = Callable[
    [Sequence[StartRequest], Sequence[DeviceBudget], Sequence[Allocation]], list[Decision]
]


def stop_cost(idle_seconds: float, mean_gap_seconds: float | None, start_seconds: float) -> float:
    """What stopping a model is likely to cost:
    ``(start_seconds + 10) / sqrt(idle_seconds * mean_gap_seconds)``.

    ``start_seconds`` is how long it takes to start; ten seconds more stand for what every stop
    costs, whatever is stopped: one more model that has to go through the queue again. It is
    needed again the sooner, the shorter it has been idle and the shorter it usually is
    (``mean_gap_seconds``); neither alone says enough, so the middle of both counts, which is the
    geometric mean of two times that may be far apart.
    """
    idle = max(idle_seconds, 0.1)
    gap = idle if mean_gap_seconds is None else max(mean_gap_seconds, 0.1)
    return (start_seconds + 10.0) / math.sqrt(idle * gap)


def update_mean_gap(before: float | None, gap: float) -> float:
    """The mean of the gaps between a model's uses, where each new one counts for a tenth.

    To be called with each request that comes while the model has none in flight or waiting, with
    the ``gap`` in seconds since the end of its last one, be it running or not; ``before`` is the
    mean up to now.
    """
    return gap if before is None else before + 0.1 * (gap - before)


def yield_at(queued_since: float, ready_at: Sequence[float]) -> float:
    """When the models in a start's way are asked to yield; ``ready_at`` is when each of them was
    ready, infinity for one that is starting.

    They have ``YIELD_AFTER_SECONDS`` from then as well: one that had to yield as soon as it is
    ready would have been started for the few that waited for it.
    """
    return max(queued_since, *ready_at) + YIELD_AFTER_SECONDS


def queue_rank(arrival: float, priority: int) -> tuple[float, float]:
    """The rank in a queue: the lesser goes first. Every step of priority counts as
    ``PRIORITY_STEP_SECONDS`` more of waiting, and of two that come out equal the one goes first
    that came first.

    It never changes while one waits. So nobody waits for ever: one is overtaken only by those of
    higher priority that came within ``PRIORITY_STEP_SECONDS`` times the difference.
    """
    return (arrival - PRIORITY_STEP_SECONDS * priority, arrival)


def plan(
    queue: Sequence[StartRequest],
    devices: Sequence[DeviceBudget],
    allocations: Sequence[Allocation],
    victims: VictimChooser = choose_victims,
) -> list[Decision]:
    """What happens now with every model that is to be started, in the order of the queue.

    A later one goes before an earlier one only where that takes nothing from it: they share no
    device, or both fit once the earlier one has its memory.
    """
    now = Memory(devices, allocations)
    later = MemoryAfterQueue(now)
    claimed: dict[str, str] = {}  # device id → the first model that waits for it
    decisions = []
    for request in queue:
        decision = _decide(request, now, later, claimed, victims)
        decisions.append(decision)
        if decision.action is Action.REJECT:
            continue
        frees_memory = decision.action in (Action.EVICT, Action.QUEUE) and not decision.behind_queue
        stopped = decision.models if frees_memory else ()
        later.reserve(now.units(decision.memory_mb), stopped)
        if decision.action is Action.START:
            now.allocate(
                Allocation(request.model, decision.memory_mb, Evictability.BUSY, settled=False)
            )
            continue
        for device_id in decision.memory_mb:
            claimed.setdefault(device_id, request.model)
        if decision.action is Action.EVICT:
            now.mark_stopping(stopped)
    return decisions


# --- one model ------------------------------------------------------------------------------


def _decide(
    request: StartRequest,
    now: Memory,
    later: MemoryAfterQueue,
    claimed: Mapping[str, str],
    victims: VictimChooser,
) -> Decision:
    """The first scheme in the file's order that can have its memory without waiting for busy
    models; else the first that can have it at all."""
    passed_over: dict[str, str] = {}
    waiting: Decision | None = None
    code = "no_matching_scheme"
    names = {device.id: device.name for device in now.most_free_first()}
    planned = request.planned
    if planned is not None and names.keys() >= planned.memory_mb.keys():
        decision = _place_in_queue(request, planned.memory_mb, now, later, claimed, victims)
        if decision.action in (Action.START, Action.AWAIT_MEMORY):
            return _with_scheme(decision, request, planned.scheme, planned.passed_over)
    for option in request.options:
        if option.unusable_reason is not None:
            passed_over[option.scheme] = option.unusable_reason
            continue
        choices = [
            _place_in_queue(request, need, now, later, claimed, victims)
            for need in _needs(option, names, now)
        ]
        if not choices:
            passed_over[option.scheme] = missing_devices(option.required_devices, names)
            continue
        decision = (
            min(choices, key=lambda choice: _preference(choice, now)) if choices[1:] else choices[0]
        )
        if decision.action <= Action.AWAIT_MEMORY:
            return _with_scheme(decision, request, option.scheme, passed_over)
        if decision.action is Action.REJECT:
            code = "insufficient_memory"
        elif waiting is None:
            waiting = _with_scheme(decision, request, option.scheme, passed_over)
        passed_over[option.scheme] = decision.reason
    if waiting is not None:
        return waiting
    return Decision(request.model, Action.REJECT, passed_over=passed_over, code=code)


def _needs(option: SchemeOption, names: Mapping[str, str], now: Memory) -> Iterator[Megabytes]:
    if option.on is None:
        for assigned in assignments(option.required_devices, names):
            yield now.need(option, assigned)
    elif names.keys() >= option.on.keys():
        # It has all of a device whose memory nobody knows also while it sleeps.
        yield {on: mb for on, mb in option.on.items() if on not in now.unknown}


def _preference(decision: Decision, now: Memory) -> tuple[float, ...]:
    """The lesser the better: what is done, how many have to yield that do not yet, what stopping
    costs, how little of the devices is left, how small they are where one is taken whole."""
    named = [each for each in now.allocations if each.model in decision.models]
    in_use = sum(map(_is_in_use, named)) if decision.action is Action.QUEUE else 0
    left = []
    for device_id, mb in now.units(decision.memory_mb).items():
        left.append(now.free(device_id, soon=True) - mb)
    # Among devices where it fits the emptiest: two models on two devices do not share one's speed.
    cost = sum(allocation.cost for allocation in named)
    whole = -sum(decision.memory_mb.values())  # the same for all of them where it is declared
    return (decision.action, in_use, cost, -min(left, default=0), whole)


def _with_scheme(
    decision: Decision, request: StartRequest, scheme: str | None, passed_over: Mapping[str, str]
) -> Decision:
    return replace(
        decision,
        model=request.model,
        scheme=scheme,
        passed_over=dict(passed_over),
        code="",
    )


# --- one assignment of devices --------------------------------------------------------------


def _place_in_queue(
    request: StartRequest,
    declared: Megabytes,
    now: Memory,
    later: MemoryAfterQueue,
    claimed: Mapping[str, str],
    victims: VictimChooser,
) -> Decision:
    decision = _place_units(request, now.units(declared), now, later, claimed, victims)
    return replace(decision, memory_mb=declared)


def _place_units(
    request: StartRequest,
    need: Megabytes,
    now: Memory,
    later: MemoryAfterQueue,
    claimed: Mapping[str, str],
    victims: VictimChooser,
) -> Decision:
    earlier = list(dict.fromkeys(claimed[on] for on in need if on in claimed and need[on]))
    if earlier:
        rejection = _rejection(request.model, need, now)
        if rejection is not None:
            return rejection
        if now.shortage(need, soon=False) or not later.fits(need):
            return Decision(
                "",
                Action.QUEUE,
                memory_mb=need,
                models=tuple(earlier),
                reason=f"before it in the queue: {', '.join(earlier)}",
                behind_queue=True,
            )
    decision = _place(request.model, need, now, victims)
    if not request.may_evict and decision.action in (Action.EVICT, Action.QUEUE):
        return Decision(
            "",
            Action.REJECT,
            memory_mb=need,
            reason=f"{decision.reason}; nothing is stopped for a model that nobody has asked for",
        )
    return decision


def _place(model: str, need: Megabytes, memory: Memory, victims: VictimChooser) -> Decision:
    """With nobody before it in the queue."""
    rejection = _rejection(model, need, memory)
    if rejection is not None:
        return rejection
    if not memory.shortage(need, soon=False):
        return Decision("", Action.START, memory_mb=need)
    shortage = memory.shortage(need, soon=True)
    if not shortage:
        return _await_memory(need, memory)
    # One that is to be woken is not stopped for itself.
    others = [each for each in memory.allocations if each.model != model]
    idle = [each for each in others if each.evictability is Evictability.IDLE]
    chosen = victims(shortage, idle)
    if chosen is not None:
        if not _is_surely_enough(chosen, need, memory):
            return _await_memory(need, memory)
        action = Action.EVICT
    else:
        action = Action.QUEUE
        busy = [each for each in others if each.evictability is Evictability.BUSY]
        more_than_all_idle = 1.0 + sum(allocation.cost for allocation in idle)
        chosen = choose_victims(
            shortage,
            [*idle, *busy],
            # As few busy ones as possible, and rather those that yield already.
            lambda each: each.cost + (more_than_all_idle if _is_in_use(each) else 0.0),
        )
    return Decision(
        "",
        action,
        memory_mb=need,
        models=tuple(allocation.model for allocation in chosen or ()),
        reason=_explain(need, shortage, memory),
    )


def _rejection(model: str, need: Megabytes, memory: Memory) -> Decision | None:
    """None where it fits, be it one day."""
    for device_id, mb in need.items():
        total = memory.devices[device_id].total_mb
        if total is not None and mb > total:
            reason = f"it needs {mb} MB on {device_id}, which has {total} MB in all"
            return Decision("", Action.REJECT, memory_mb=need, reason=reason)
    if memory.can_ever_hold(model, need):
        return None
    reason = _explain(need, memory.shortage(need, soon=True), memory)
    reason += "; stopping the models that may be stopped is not enough"
    return Decision("", Action.REJECT, memory_mb=need, reason=reason)


def _await_memory(need: Megabytes, memory: Memory) -> Decision:
    short = memory.shortage(need, soon=False)
    changing = [
        allocation.model
        for allocation in memory.allocations
        if _is_changing(allocation) and any(allocation.held_mb(on) for on in short)
    ]
    reason = f"memory on {', '.join(short)} is about to be free"
    return Decision("", Action.AWAIT_MEMORY, memory_mb=need, models=tuple(changing), reason=reason)


def _is_surely_enough(chosen: Collection[Allocation], need: Megabytes, memory: Memory) -> bool:
    """Whether there is enough free memory once these have stopped, also where a start under way
    has taken nothing yet and what is used is other programs'. Else nobody is stopped until that
    is known: the model could not start before anyway."""
    for device_id, mb in need.items():
        free = memory.surely_free(device_id)
        if mb and free + sum(one.held_mb(device_id) for one in chosen) < mb:
            return False
    return True


def _is_in_use(allocation: Allocation) -> bool:
    return allocation.evictability is Evictability.BUSY and not allocation.yielding


def _is_changing(allocation: Allocation) -> bool:
    return allocation.evictability is Evictability.STOPPING or not allocation.settled


def _explain(need: Megabytes, shortage: Shortage, memory: Memory) -> str:
    """The numbers, for a person: ``it needs 8000 MB on A #0, where 3000 of 16000 MB are free``."""
    parts = []
    for device_id, missing in shortage.items():
        if device_id in memory.unknown:
            parts.append(_explain_unknown(device_id, memory))
            continue
        total = memory.devices[device_id].total_mb
        part = f"it needs {need[device_id]} MB on {device_id}"
        part += f", where {need[device_id] - missing} of {total} MB are free"
        held = [
            f"{allocation.model} {mb}"
            for allocation in memory.allocations
            if (mb := allocation.held_mb(device_id))
            and allocation.evictability is not Evictability.STOPPING
        ]
        if memory.least_others[device_id]:
            held.append(f"other programs {memory.least_others[device_id]}")
        if held:
            part += f" (held: {', '.join(held)} MB)"
        parts.append(part)
    return "; ".join(parts)


def _explain_unknown(device_id: str, memory: Memory) -> str:
    held = ", ".join(
        allocation.model
        for allocation in memory.allocations
        if allocation.held_mb(device_id) and allocation.evictability is not Evictability.STOPPING
    )
    return (
        f"{held} has {device_id}, whose memory its driver does not report: one model at a time is"
        " placed on it unless device_memory_mb in the config says how much there is"
    )

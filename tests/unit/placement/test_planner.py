"""Who starts where, who is stopped for it, and who waits."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.placement.memory import free_mb
from manager.placement.planner import (
    YIELD_AFTER_SECONDS,
    plan,
    stop_cost,
    update_mean_gap,
    yield_at,
)
from manager.placement.types import (
    Action,
    Allocation,
    Basis,
    Decision,
    DeviceBudget,
    Evictability,
    SchemeOption,
    StartRequest,
)
from manager.placement.victims import choose_victims

IDLE, BUSY, PINNED, STOPPING = (
    Evictability.IDLE,
    Evictability.BUSY,
    Evictability.PINNED,
    Evictability.STOPPING,
)
START, EVICT, AWAIT_MEMORY, QUEUE, REJECT = Action


def card(card_id: str, total: int | None = 16000, used: int = 0) -> DeviceBudget:
    return DeviceBudget(card_id, card_id.partition(" #")[0], total, used)


def holds(model: str, evictability: Evictability, cost: float = 1.0, **mb: int) -> Allocation:
    """``A=4000``: MB by card."""
    return Allocation(model, mb, evictability, cost=cost)


def wants(model: str, *schemes: Mapping[str, int]) -> StartRequest:
    """The first scheme is called ``first``."""
    titles = ["first", "second", "third"]
    return StartRequest(
        model,
        tuple(
            SchemeOption(title, tuple(scheme), scheme)
            for title, scheme in zip(titles, schemes, strict=False)
        ),
    )


def read(cards: Sequence[DeviceBudget], allocations: Sequence[Allocation]) -> list[DeviceBudget]:
    """The cards as they are measured: others' memory is what they have already."""
    return [
        replace(
            each,
            used_mb=each.used_mb + sum(one.held_mb(each.id) for one in allocations if one.settled),
        )
        for each in cards
    ]


def decide(
    wanted: StartRequest | Sequence[StartRequest],
    cards: Sequence[DeviceBudget],
    *allocations: Allocation,
) -> list[Decision]:
    queue = [wanted] if isinstance(wanted, StartRequest) else wanted
    return plan(queue, read(cards, allocations), allocations)


# --- which scheme -----------------------------------------------------------------------------


def test_the_first_scheme_of_the_file_that_fits_is_used() -> None:
    model = wants("m", {"A": 9000, "B": 9000}, {"B": 15000})
    [decision] = decide(model, [card("A"), card("B")])
    assert (decision.action, decision.scheme) == (START, "first")
    assert decision.memory_mb == {"A": 9000, "B": 9000}
    [decision] = decide(model, [card("B")])
    assert (decision.action, decision.scheme) == (START, "second")
    assert decision.passed_over == {"first": "A is not online"}


def test_an_earlier_scheme_is_worth_stopping_an_idle_model_but_not_waiting_for_a_busy_one() -> None:
    model = wants("m", {"A": 9000}, {"B": 9000})
    cards = [card("A"), card("B")]
    [decision] = decide(model, cards, holds("other", IDLE, A=9000))
    assert (decision.action, decision.scheme, decision.models) == (EVICT, "first", ("other",))
    [decision] = decide(model, cards, holds("other", BUSY, A=9000))
    assert (decision.action, decision.scheme) == (START, "second")
    assert "it needs 9000 MB on A, where 7000 of 16000 MB are free" in decision.passed_over["first"]


def test_a_scheme_that_this_system_cannot_run_is_passed_over() -> None:
    model = StartRequest(
        "m",
        (SchemeOption("windows", unusable_reason="a .bat file needs Windows"), SchemeOption("any")),
    )
    [decision] = decide(model, [])
    assert (decision.action, decision.scheme) == (START, "any")
    assert decision.passed_over == {"windows": "a .bat file needs Windows"}


def test_of_equal_devices_the_one_with_most_free_memory_is_taken() -> None:
    cards = [card("V #0"), card("V #1"), card("V #2")]
    held = [Allocation("a", {"V #0": 5000}, BUSY), Allocation("b", {"V #2": 2000}, BUSY)]
    queue = [wants("m", {"V": 4000}), wants("n", {"V": 4000})]
    first, second = decide(queue, cards, *held)
    assert first.memory_mb == {"V #1": 4000}
    assert second.memory_mb == {"V #2": 4000}


def test_of_equal_devices_the_one_with_the_cheaper_eviction_is_taken() -> None:
    held = [
        Allocation("a", {"V #0": 9000}, IDLE, cost=3),
        Allocation("b", {"V #1": 9000}, IDLE, cost=2),
    ]
    [decision] = decide(wants("m", {"V": 9000}), [card("V #0"), card("V #1")], *held)
    assert (decision.action, decision.models) == (EVICT, ("b",))


# --- free memory ------------------------------------------------------------------------------


def test_what_other_programs_use_is_not_free() -> None:
    allocations = [holds("m", IDLE, A=4000)]
    assert free_mb("A", read([card("A", used=3000)], allocations), allocations) == 9000


def test_a_model_holds_what_it_took_where_that_is_more_than_it_declared() -> None:
    allocations = [Allocation("m", {"A": 4000}, IDLE, {"A": 6000})]
    assert free_mb("A", [card("A", used=6000)], allocations) == 10000
    allocations = [Allocation("m", {"A": 4000}, IDLE, {"A": 1000})]
    assert free_mb("A", [card("A", used=1000)], allocations) == 12000


# --- a device whose memory its driver does not report -------------------------------------------


@pytest.mark.parametrize("mb", [0, 4000, 10**9])
@pytest.mark.parametrize("used", [0, 9000])
def test_one_model_at_a_time_has_a_device_of_unknown_memory(mb: int, used: int) -> None:
    cards = [card("A", total=None, used=used)]
    model = wants("m", {"A": mb})
    assert free_mb("A", cards, []) is None
    assert decide(model, cards)[0].action is START
    first, second = decide([wants("n", {"A": 100}), model], cards)
    assert (first.action, first.memory_mb) == (START, {"A": 100})
    assert (second.action, second.models, second.memory_mb) == (QUEUE, ("n",), {"A": mb})


@pytest.mark.parametrize("held", [0, 100])
def test_the_model_that_has_it_is_stopped_if_it_is_idle_and_waited_for_if_not(held: int) -> None:
    cards, model = [card("A", total=None)], wants("m", {"A": 4000})
    outcomes = {IDLE: EVICT, BUSY: QUEUE, STOPPING: AWAIT_MEMORY, PINNED: REJECT}
    for evictability, action in outcomes.items():
        [decision] = decide(model, cards, holds("other", evictability, A=held))
        assert decision.action is action
    assert "other has A, whose memory its driver does not report" in decision.passed_over["first"]
    assert "device_memory_mb" in decision.passed_over["first"]


def test_a_device_with_free_memory_is_taken_rather_than_one_of_unknown_memory() -> None:
    cards = [card("A #0", total=None), card("A #1")]
    [decision] = decide(wants("m", {"A": 4000}), cards)
    assert decision.memory_mb == {"A #1": 4000}


def test_models_that_an_earlier_version_started_beside_each_other_all_stop_for_the_next() -> None:
    held = [holds("one", IDLE, A=4000), holds("two", IDLE, A=4000)]
    [decision] = decide(wants("m", {"A": 4000}), [card("A", total=None)], *held)
    assert (decision.action, set(decision.models)) == (EVICT, {"one", "two"})


# --- starts and stops under way ----------------------------------------------------------------


def test_two_starts_at_once_do_not_count_the_same_memory() -> None:
    queue = [wants("m", {"A": 9000}), wants("n", {"A": 9000})]
    first, second = decide(queue, [card("A")])
    assert first.action is START
    assert (second.action, second.models) == (QUEUE, ("m",))


def test_a_start_under_way_is_not_counted_as_other_programs_for_good() -> None:
    starting = Allocation("m", {"A": 8000}, BUSY, settled=False)
    cards = [card("A", used=8000)]  # it has taken all of it, and nobody knows whose it is
    [decision] = plan([wants("n", {"A": 8000})], cards, [starting])
    assert (decision.action, decision.models) == (AWAIT_MEMORY, ("m",))


def test_what_a_start_under_way_has_taken_since_it_was_measured_is_its_own() -> None:
    starting = Allocation("m", {"A": 9000}, BUSY, {"A": 900}, settled=False)
    [decision] = plan([wants("n", {"A": 9000})], [card("A", used=9000)], [starting])
    assert (decision.action, decision.models) == (QUEUE, ("m",))


def test_memory_of_a_stopping_model_is_waited_for_and_nobody_else_is_stopped() -> None:
    stopping, idle = holds("old", STOPPING, A=9000), holds("idle", IDLE, A=6000)
    [decision] = decide(wants("m", {"A": 9000}), [card("A")], stopping, idle)
    assert (decision.action, decision.models) == (AWAIT_MEMORY, ("old",))


def test_a_model_for_which_others_were_stopped_waits_for_their_memory() -> None:
    cards = [card("A"), card("B")]
    held = [holds("old", STOPPING, B=9000), holds("idle", IDLE, A=9000)]
    planned = Decision("m", EVICT, "second", {"B": 9000}, ("old",))
    model = replace(wants("m", {"A": 9000}, {"B": 9000}), planned=planned)
    [decision] = decide(model, cards, *held)
    assert (decision.action, decision.scheme) == (AWAIT_MEMORY, "second")


def test_a_model_that_can_never_fit_is_rejected_with_the_numbers() -> None:
    [decision] = decide(wants("m", {"A": 17000}), [card("A")])
    assert (decision.action, decision.code) == (REJECT, "insufficient_memory")
    assert decision.passed_over == {"first": "it needs 17000 MB on A, which has 16000 MB in all"}
    [decision] = decide(
        wants("m", {"A": 9000}),
        [card("A", used=1000)],
        holds("p", PINNED, A=8000),
        holds("i", IDLE, A=2000),
    )
    assert (decision.action, decision.code) == (REJECT, "insufficient_memory")
    assert "5000 of 16000 MB are free" in decision.passed_over["first"]
    assert "p 8000, i 2000, other programs 1000 MB" in decision.passed_over["first"]


def test_a_model_whose_devices_are_missing_is_rejected() -> None:
    [decision] = decide(wants("m", {"A": 1}), [card("B")])
    assert (decision.action, decision.code) == (REJECT, "no_matching_scheme")


def test_nothing_is_stopped_for_a_model_that_nobody_has_asked_for() -> None:
    model = replace(wants("m", {"A": 9000}), may_evict=False)
    assert decide(model, [card("A")])[0].action is START
    [decision] = decide(model, [card("A")], holds("idle", IDLE, A=9000))
    assert decision.action is REJECT
    assert "nothing is stopped" in decision.passed_over["first"]


# --- who waits --------------------------------------------------------------------------------


def test_busy_models_in_the_way_are_waited_for_as_few_as_possible() -> None:
    held = [
        holds("small", BUSY, cost=1, A=3000),
        holds("large", BUSY, cost=5, A=9000),
        holds("idle", IDLE, cost=50, A=3000),
    ]
    [decision] = decide(wants("m", {"A": 10000}), [card("A")], *held)
    assert (decision.action, set(decision.models)) == (QUEUE, {"large"})
    assert not decision.behind_queue


def test_of_two_equal_devices_the_one_whose_models_yield_already_is_waited_for() -> None:
    held = [
        Allocation("a", {"V #0": 9000}, BUSY, cost=1),
        Allocation("b", {"V #1": 9000}, BUSY, cost=9, yielding=True),
    ]
    [decision] = decide(wants("m", {"V": 9000}), [card("V #0"), card("V #1")], *held)
    assert (decision.action, decision.models) == (QUEUE, ("b",))


def test_a_later_model_goes_ahead_where_that_takes_nothing_from_an_earlier_one() -> None:
    busy = holds("busy", BUSY, A=12000)
    queue = [wants("big", {"A": 12000}), wants("small", {"A": 4000}), wants("other", {"B": 9000})]
    big, small, other = decide(queue, [card("A"), card("B")], busy)
    assert [big.action, small.action, other.action] == [QUEUE, START, START]


def test_a_later_model_does_not_take_what_an_earlier_one_waits_for() -> None:
    busy = holds("busy", BUSY, A=12000)
    queue = [wants("big", {"A": 13000}), wants("small", {"A": 4000})]
    big, small = decide(queue, [card("A")], busy)
    assert big.action is QUEUE
    assert (small.action, small.models, small.behind_queue) == (QUEUE, ("big",), True)
    assert small.reason == "before it in the queue: big"


def test_a_later_model_does_not_overtake_one_that_waits_for_a_start_to_end() -> None:
    starting = Allocation("starting", {"A": 6000}, BUSY, settled=False)
    queue = [wants("first", {"A": 6000}), wants("second", {"A": 5000})]
    first, second = plan(queue, [card("A", used=5000)], [starting])
    assert (first.action, first.models) == (AWAIT_MEMORY, ("starting",))
    assert (second.action, second.behind_queue) == (QUEUE, True)


def test_models_are_asked_to_yield_after_ten_seconds_of_waiting_and_of_being_ready() -> None:
    assert yield_at(100.0, [20.0, 30.0]) == 100.0 + YIELD_AFTER_SECONDS
    assert yield_at(100.0, [20.0, 130.0]) == 130.0 + YIELD_AFTER_SECONDS
    assert yield_at(100.0, [20.0, float("inf")]) == float("inf")


# --- whom to stop -----------------------------------------------------------------------------

seconds = st.floats(0, 1e6)


@given(seconds, st.none() | seconds, seconds, st.floats(1.5, 10))
def test_it_costs_more_to_stop_what_was_used_lately_or_often_or_starts_slowly(
    idle: float, gap: float | None, start: float, more: float
) -> None:
    cost = stop_cost(idle, gap, start)
    assert cost > 0
    assert stop_cost(idle * more + 1, gap, start) < cost
    assert stop_cost(idle, gap, start * more + 1) > cost
    if gap is not None:
        assert stop_cost(idle, gap * more + 1, start) < cost


@given(st.floats(1, 1e4), st.floats(1, 1e4))
def test_the_mean_gap_is_the_first_one_and_follows_the_later_ones(one: float, other: float) -> None:
    gap = update_mean_gap(None, one)
    assert gap == one
    for _ in range(100):
        gap = update_mean_gap(gap, other)
        assert min(one, other) * 0.999 <= gap <= max(one, other) * 1.001
    assert gap == pytest.approx(other, rel=0.3) or abs(one / other) > 1000


def test_one_that_fits_is_stopped_rather_than_several_that_are_older() -> None:
    held = [
        holds("old", IDLE, cost=1.0, A=3000),
        holds("older", IDLE, cost=0.9, A=3000),
        holds("large", IDLE, cost=1.5, A=9000),
    ]
    [decision] = decide(wants("m", {"A": 7000}), [card("A")], *held)
    assert decision.models == ("large",)


megabytes = st.integers(0, 6).map(lambda number: number * 1000)
evictabilities = st.sampled_from(list(Evictability))
costs = st.sampled_from([0.1, 0.5, 1.0, 2.0, 5.0])


some_mb = st.integers(0, 9000)


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.floats(0.1, 10), some_mb, some_mb), min_size=3, max_size=7),
    st.dictionaries(st.sampled_from("AB"), st.integers(1, 20000), min_size=1),
)
def test_the_cheapest_is_what_trying_them_all_finds(
    held: list[tuple[float, int, int]], lacking: dict[str, int]
) -> None:
    models = [
        Allocation(f"m{number}", {"A": a, "B": b}, IDLE, cost=cost)
        for number, (cost, a, b) in enumerate(held)
    ]

    def enough(chosen: Sequence[Allocation]) -> bool:
        return all(sum(one.held_mb(on) for one in chosen) >= mb for on, mb in lacking.items())

    every = [
        chosen
        for size in range(len(models) + 1)
        for chosen in itertools.combinations(models, size)
        if enough(chosen)
    ]
    found = choose_victims(lacking, models)
    assert (found is None) == (not every)
    if found is not None:
        assert enough(found)
        least = min(sum(one.cost for one in chosen) for chosen in every)
        assert sum(one.cost for one in found) == pytest.approx(least)


@settings(max_examples=20)
@given(st.lists(st.tuples(costs, megabytes, megabytes), min_size=25, max_size=60))
def test_among_many_models_none_is_stopped_that_could_be_left_out(
    held: list[tuple[float, int, int]],
) -> None:
    models = [
        Allocation(f"m{number}", {"A": a, "B": b}, IDLE, cost=cost)
        for number, (cost, a, b) in enumerate(held)
    ]
    lacking = {on: sum(one.held_mb(on) for one in models) // 2 for on in "AB"}
    found = choose_victims(lacking, models)
    assert found is not None
    for left_out in [None, *found]:
        left = [one for one in found if one is not left_out]
        is_enough = all(sum(one.held_mb(on) for one in left) >= mb for on, mb in lacking.items())
        assert is_enough == (left_out is None)


# --- whatever the machine ---------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """What one plan is made of."""

    queue: list[StartRequest]
    cards: list[DeviceBudget]
    allocations: list[Allocation]


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """One to three cards, some of them equal, with models on them that hold no more than there
    is, and a queue of models with one or two schemes."""
    names = draw(st.lists(st.sampled_from("AB"), min_size=1, max_size=3))
    cards = [card(f"{name} #{at}", used=draw(megabytes)) for at, name in enumerate(names)]
    free = {each.id: 16000 - each.used_mb for each in cards}
    allocations = []
    for number in range(draw(st.integers(0, 6))):
        declared = {}
        for on in draw(st.lists(st.sampled_from(cards), min_size=1, max_size=2)):
            mb = min(draw(megabytes), free[on.id])
            if on.id not in declared and mb:
                declared[on.id] = mb
                free[on.id] -= mb
        evictability = draw(evictabilities)
        settled = evictability is not BUSY or draw(st.booleans())
        is_yielding = evictability is BUSY and draw(st.booleans())
        allocations.append(
            Allocation(f"h{number}", declared, evictability, {}, settled, draw(costs), is_yielding)
        )
    kinds = st.lists(st.sampled_from("AB"), min_size=1, max_size=2)
    schemes = st.builds(
        lambda names, mb, basis: SchemeOption(
            "", tuple(names), {} if basis is Basis.WHOLE else dict.fromkeys(names, mb), None, basis
        ),
        kinds,
        st.integers(0, 17).map(lambda number: number * 1000),
        st.sampled_from([*[Basis.DECLARED] * 3, *Basis]),
    )
    queue = []
    for number in range(draw(st.integers(1, 4))):
        options = draw(st.lists(schemes, min_size=1, max_size=2))
        options = [replace(option, scheme=f"s{at}") for at, option in enumerate(options)]
        queue.append(StartRequest(f"w{number}", tuple(options), draw(st.integers(0, 9)) > 0))
    return Scene(queue, read(cards, allocations), allocations)


class Ledger:
    """The memory of a scene as its decisions are carried out, counted again each time."""

    def __init__(self, scene: Scene) -> None:
        self.others = {
            each.id: each.used_mb
            - sum(one.held_mb(each.id) for one in scene.allocations if one.settled)
            for each in scene.cards
        }
        self.allocations = {one.model: one for one in scene.allocations}

    def free(self, on: str, without: Collection[str] = ()) -> int:
        """Once these models have stopped."""
        held = sum(one.held_mb(on) for one in self.allocations.values() if one.model not in without)
        return 16000 - self.others[on] - held

    def stopping(self) -> list[str]:
        return [one.model for one in self.allocations.values() if one.evictability is STOPPING]

    def reservation(self, decision: Decision) -> None:
        self.allocations[decision.model] = Allocation(decision.model, decision.memory_mb, BUSY)

    def mark_stopping(self, models: Sequence[str]) -> None:
        for model in models:
            self.allocations[model] = replace(self.allocations[model], evictability=STOPPING)


@given(scenes())
def test_memory_is_never_promised_twice(scene: Scene) -> None:
    ledger = Ledger(scene)
    for decision in plan(scene.queue, scene.cards, scene.allocations):
        if decision.action is START:
            ledger.reservation(decision)
            assert all(ledger.free(on) >= 0 for on in decision.memory_mb)


@given(scenes(), st.data())
def test_no_two_models_are_started_on_a_card_of_unknown_memory(
    scene: Scene, data: st.DataObject
) -> None:
    unknown = data.draw(st.sets(st.sampled_from([each.id for each in scene.cards]), min_size=1))
    cards = [replace(each, total_mb=None) if each.id in unknown else each for each in scene.cards]
    held = {on: [o for o in scene.allocations if on in o.declared_mb] for on in unknown}
    started: list[str] = []
    for decision in plan(scene.queue, cards, scene.allocations):
        on_unknown = unknown.intersection(decision.memory_mb)
        if decision.action is START:
            started += on_unknown
            assert not any(held[on] for on in on_unknown)
        elif decision.action is EVICT:
            idle = {one.model for one in scene.allocations if one.evictability is IDLE}
            assert idle.issuperset(decision.models)
    assert len(started) == len(set(started))


@given(scenes())
def test_only_idle_models_are_stopped_and_each_once(scene: Scene) -> None:
    idle = {one.model for one in scene.allocations if one.evictability is IDLE}
    for decision in plan(scene.queue, scene.cards, scene.allocations):
        if decision.action is EVICT:
            assert decision.models
            assert idle.issuperset(decision.models)
            idle.difference_update(decision.models)


@given(scenes())
def test_what_is_stopped_is_enough_and_no_less_would_have_been(scene: Scene) -> None:
    ledger = Ledger(scene)
    for decision in plan(scene.queue, scene.cards, scene.allocations):
        if decision.action is START:
            ledger.reservation(decision)
        if decision.action is EVICT:
            stopped = [*decision.models, *ledger.stopping()]
            need = decision.memory_mb
            assert all(ledger.free(on, stopped) >= mb for on, mb in need.items())
            for spared in decision.models:
                left = [model for model in stopped if model != spared]
                assert any(ledger.free(on, left) < mb for on, mb in need.items())
            ledger.mark_stopping(decision.models)


def needed(option: SchemeOption, name: str, on: DeviceBudget, ledger: Ledger) -> int:
    if option.basis is Basis.DECLARED:
        return option.memory_mb[name]
    whole = max(1, 16000 - ledger.others[on.id])
    return min(option.memory_mb.get(name, whole), whole)


def sum_of_starts(scene: Scene) -> dict[str, int]:
    """By card, as far as it can be others' at all."""
    return {
        each.id: min(
            sum(one.held_mb(each.id) for one in scene.allocations if not one.settled),
            each.used_mb - sum(one.held_mb(each.id) for one in scene.allocations if one.settled),
        )
        for each in scene.cards
    }


@given(scenes())
def test_a_model_is_rejected_only_where_no_scheme_can_ever_fit(scene: Scene) -> None:
    ledger = Ledger(scene)
    for wanted, decision in zip(
        scene.queue, plan(scene.queue, scene.cards, scene.allocations), strict=True
    ):
        movable = [m for m, one in ledger.allocations.items() if one.evictability is not PINNED]
        # What a start under way has taken already may be what looks like others' memory.
        perhaps = sum_of_starts(scene)
        possible = any(
            all(
                ledger.free(on.id, movable) + perhaps[on.id] >= mb
                for name, on in zip(option.required_devices, way, strict=True)
                if (mb := needed(option, name, on, ledger))
            )
            for option in wanted.options
            for way in itertools.permutations(scene.cards, len(option.required_devices))
            if all(on.name == name for name, on in zip(option.required_devices, way, strict=True))
        )
        if wanted.may_evict:
            assert (decision.action is REJECT) == (not possible)
        if decision.action is START:
            ledger.reservation(decision)
        if decision.action is EVICT:
            ledger.mark_stopping(decision.models)


@given(scenes())
def test_no_model_is_overtaken_at_its_expense(scene: Scene) -> None:
    ledger = Ledger(scene)
    waiting: list[Decision] = []
    stopped: list[str] = ledger.stopping()
    for decision in plan(scene.queue, scene.cards, scene.allocations):
        if decision.action is START:
            ledger.reservation(decision)
            # Once those before have what they wait for, all of them and this fit.
            for on, mb in decision.memory_mb.items():
                promised = [each.memory_mb.get(on, 0) for each in waiting]
                if mb and any(promised):
                    assert ledger.free(on, stopped) >= sum(promised)
        elif decision.action is EVICT or (decision.action is QUEUE and not decision.behind_queue):
            taken = {on for each in waiting for on, mb in each.memory_mb.items() if mb}
            assert not taken.intersection(on for on, mb in decision.memory_mb.items() if mb)
            waiting.append(decision)
            stopped += decision.models
        elif decision.action is AWAIT_MEMORY:
            waiting.append(decision)
        elif decision.behind_queue:
            assert set(decision.models) <= {each.model for each in scene.queue}


# --- memory that nobody has declared -----------------------------------------------------------


def unknown(model: str, *names: str, basis: Basis = Basis.WHOLE, **mb: int) -> StartRequest:
    return StartRequest(model, (SchemeOption("s", names, mb, None, basis),))


def test_a_model_of_unknown_need_has_its_device_alone() -> None:
    [decision] = plan([unknown("new", "A")], [card("A #0", used=500)], [])
    assert (decision.action, decision.memory_mb) == (START, {"A #0": 15500})
    cards = [card("A #0", used=4500)]
    [decision] = plan([unknown("new", "A")], cards, [holds("small", IDLE, **{"A #0": 4000})])
    assert (decision.action, decision.models) == (EVICT, ("small",))
    assert decision.memory_mb == {"A #0": 15500}
    [decision] = plan([unknown("new", "A")], cards, [holds("small", BUSY, **{"A #0": 4000})])
    assert (decision.action, decision.models) == (QUEUE, ("small",))


def test_two_models_of_unknown_need_never_share_a_device() -> None:
    first, second = plan([unknown("one", "A"), unknown("two", "A")], [card("A #0")], [])
    assert (first.action, second.action) == (START, QUEUE)
    assert second.models == ("one",)


def test_no_model_is_placed_beside_one_of_unknown_need() -> None:
    alone = holds("alone", IDLE, **{"A #0": 16000})
    [decision] = plan([wants("known", {"a": 1000})], [card("A #0", used=3000)], [alone])
    assert (decision.action, decision.models) == (EVICT, ("alone",))


@pytest.mark.parametrize("basis", [Basis.MEASURED, Basis.ESTIMATED])
def test_a_figure_that_nobody_declared_is_never_a_reason_to_reject(basis: Basis) -> None:
    [decision] = plan([unknown("large", "A", basis=basis, A=20000)], [card("A #0", used=900)], [])
    assert (decision.action, decision.memory_mb) == (START, {"A #0": 15100})
    [decision] = plan([unknown("small", "A", basis=basis, A=2000)], [card("A #0")], [])
    assert decision.memory_mb == {"A #0": 2000}


def test_a_device_that_other_programs_fill_is_not_tried() -> None:
    [decision] = plan([unknown("new", "A")], [card("A #0", used=16000)], [])
    assert (decision.action, decision.code) == (REJECT, "insufficient_memory")


def test_of_free_devices_a_model_of_unknown_need_gets_the_largest() -> None:
    cards = [card("A #0", 8000), card("A #1", 24000), card("A #2", 12000)]
    [decision] = plan([unknown("new", "A")], cards, [])
    assert decision.memory_mb == {"A #1": 24000}


def test_a_model_on_a_device_that_was_lost_can_still_be_stopped_for_another() -> None:
    both = Allocation("both", {"A #0": 9000, "B #0": 9000}, IDLE)
    cards = [DeviceBudget("A #0", "A", 16000, 9000)]
    [decision] = plan(
        [StartRequest("next", (SchemeOption("s", ("a",), {"a": 9000}),))], cards, [both]
    )
    assert (decision.action, decision.models) == (EVICT, ("both",))


def test_with_many_equal_devices_those_where_it_fits_are_found() -> None:
    cards = [DeviceBudget(f"V100 #{n}", "V100", 16000) for n in range(16)]
    pinned = Allocation("pinned", {"V100 #0": 9000}, Evictability.PINNED)
    wanted = StartRequest("large", (SchemeOption("s", ("v100",) * 8, {"v100": 9000}),))
    [decision] = plan([wanted], cards, [pinned])
    assert decision.action is START
    assert len(decision.memory_mb) == 8
    assert "V100 #0" not in decision.memory_mb

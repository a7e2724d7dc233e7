"""A day of requests on a simulated clock: nobody waits for ever, and nobody is stopped wrongly."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.placement.policies import POLICIES, in_order
from bench.placement.simulation import ALIVE, STOPPING, Outcome, Simulation
from bench.placement.traces import TRACES, ModelSpec, Trace, devices_of, varied
from manager.placement.planner import YIELD_AFTER_SECONDS, plan
from manager.placement.types import (
    Action,
    Allocation,
    Decision,
    DeviceBudget,
    Evictability,
    SchemeOption,
    StartRequest,
)
from manager.placement.victims import VictimChooser

OURS = POLICIES["ours"]


def trace(
    cards: Sequence[tuple[str, int]],
    models: dict[str, tuple[float, dict[str, int]]],
    requests: Sequence[tuple[float, str, float]],
) -> Trace:
    """``models``: name → seconds to start, MB by card."""
    specs = [
        ModelSpec(name, start, (SchemeOption("scheme 1", tuple(mb), mb),))
        for name, (start, mb) in models.items()
    ]
    return Trace(devices_of(cards), tuple(specs), tuple(requests))


def run(played: Trace) -> Outcome:
    return Simulation(played, OURS).run()


# --- the rules --------------------------------------------------------------------------------


def test_all_requests_for_a_stopped_model_share_one_start() -> None:
    requests = [(0.0, "m", 1.0), (1.0, "m", 1.0), (30.0, "m", 1.0)]
    outcome = run(trace([("A", 8000)], {"m": (5.0, {"A": 4000})}, requests))
    assert outcome.cold_starts == 1
    assert outcome.waits == [5.0, 4.0, 0.0]


def test_an_idle_model_is_stopped_for_another_and_what_is_stopping_is_waited_for() -> None:
    models = {"m": (5.0, {"A": 6000}), "n": (3.0, {"A": 6000})}
    outcome = run(trace([("A", 8000)], models, [(0.0, "m", 1.0), (60.0, "n", 1.0)]))
    assert (outcome.cold_starts, outcome.evictions) == (2, 1)
    assert outcome.waits == [5.0, STOPPING + 3.0]


def test_an_idle_model_is_stopped_after_a_quarter_of_an_hour() -> None:
    requests = [(0.0, "m", 1.0), (6.0 + ALIVE - 1, "m", 1.0), (6.0 + 2 * ALIVE + 60, "m", 1.0)]
    outcome = run(trace([("A", 8000)], {"m": (5.0, {"A": 4000})}, requests))
    assert (outcome.cold_starts, outcome.evictions) == (2, 0)
    assert outcome.waits == [5.0, 0.0, 5.0]


def test_a_model_in_steady_use_yields_after_ten_seconds_and_then_gets_its_turn_again() -> None:
    models = {"m": (0.0, {"A": 6000}), "n": (5.0, {"A": 6000})}
    # One request of m is always under way; n is asked for at 100 s.
    steady = [(float(at), "m", 4.0) for at in range(0, 200, 3)]
    outcome = run(trace([("A", 8000)], models, sorted([*steady, (100.0, "n", 1.0)])))
    # m's last request before it yields came at 108 s.
    assert max(outcome.waits) == pytest.approx(YIELD_AFTER_SECONDS + 2.0 + STOPPING + 5.0, abs=3.0)
    assert outcome.cold_starts == 3
    assert len(outcome.waits) == len(steady) + 1


def test_the_share_of_memory_that_was_used_is_known() -> None:
    outcome = run(trace([("A", 8000)], {"m": (0.0, {"A": 4000})}, [(ALIVE, "m", 1.0)]))
    half = 4000 * (ALIVE + 1 + STOPPING) / (8000 * (2 * ALIVE + 1 + STOPPING))
    assert outcome.memory_used == pytest.approx(half)


def test_a_trace_can_be_repeated_until_there_are_enough_requests() -> None:
    played = trace([("A", 8000)], {"m": (5.0, {"A": 4000})}, [(0.0, "m", 1.0), (10.0, "m", 1.0)])
    outcome = Simulation(played, OURS).run(7)
    assert len(outcome.waits) == 7
    assert outcome.cold_starts == 1


def test_a_policy_in_order_spares_models_that_hold_nothing_where_it_lacks() -> None:
    held = [
        Allocation("elsewhere", {"B": 9000}, Evictability.IDLE, cost=1),
        Allocation("old", {"A": 2000}, Evictability.IDLE, cost=2),
        Allocation("young", {"A": 9000}, Evictability.IDLE, cost=3),
    ]
    chosen = in_order({"A": 1000}, held)
    assert chosen is not None
    assert [one.model for one in chosen] == ["old"]
    assert in_order({"A": 12000}, held) is None


# --- whatever happens ---------------------------------------------------------------------------

sizes = st.integers(1, 16).map(lambda number: number * 1000)


@st.composite
def traces(draw: st.DrawFn, *, pinned: bool = False) -> Trace:
    """One to three cards, some of them equal; two to six models with one or two schemes, each of
    which fits the empty machine; up to forty requests close together."""
    cards = draw(st.lists(st.sampled_from([("A", 8000), ("B", 16000)]), min_size=1, max_size=3))
    specs = []
    for number in range(draw(st.integers(2, 6))):
        options = []
        for _ in range(draw(st.integers(1, 2))):
            chosen = draw(st.lists(st.sampled_from(cards), min_size=1, max_size=2))
            if any(chosen.count(each) > cards.count(each) for each in chosen):
                chosen = chosen[:1]
            memory_mb = {name: min(draw(sizes), total) for name, total in chosen}
            names = tuple(name for name, _ in chosen)
            options.append(SchemeOption(f"scheme {len(options) + 1}", names, memory_mb))
        start = draw(st.integers(0, 30)) / 2
        is_pinned = pinned and draw(st.integers(0, 3)) == 0
        specs.append(ModelSpec(f"m{number}", start, tuple(options), is_pinned))
    gaps = st.sampled_from([0.0, 0.5, 2.0, 7.0, 20.0])
    takes = st.sampled_from([0.5, 3.0, 12.0, 40.0])
    at, requests = 0.0, []
    for _ in range(draw(st.integers(1, 40))):
        at += draw(gaps)
        requests.append((at, f"m{draw(st.integers(0, len(specs) - 1))}", draw(takes)))
    return Trace(devices_of(cards), tuple(specs), tuple(requests))


class Watched(Simulation):
    """Looks at every decision before it is carried out."""

    def __init__(self, played: Trace) -> None:
        super().__init__(played, OURS, self._look)

    def _look(
        self,
        line: Sequence[StartRequest],
        cards: Sequence[DeviceBudget],
        holdings: Sequence[Allocation],
        victims: VictimChooser,
    ) -> list[Decision]:
        decisions = plan(line, cards, holdings, victims)
        promised = [one.declared_mb for one in holdings]
        promised += [each.memory_mb for each in decisions if each.action is Action.START]
        for card in cards:
            assert card.total_mb is not None
            assert sum(mb.get(card.id, 0) for mb in promised) <= card.total_mb, "over-committed"
        for decision in decisions:
            if decision.action is Action.EVICT:
                self._look_at_victims(decision, decisions, cards, holdings)
        return decisions

    def _look_at_victims(
        self,
        decision: Decision,
        decisions: Sequence[Decision],
        cards: Sequence[DeviceBudget],
        holdings: Sequence[Allocation],
    ) -> None:
        for name in decision.models:
            model = self.models[name]
            assert not model.in_flight, "stopped a busy one"
            assert not model.waiting, "stopped one that requests wait for"
            assert not model.spec.pinned, "stopped a pinned one"
        # All that takes or gives memory before this one has its own.
        others = [each for each in decisions if each is not decision]
        started = [each.memory_mb for each in others if each.action is Action.START]
        gone = {one.model for one in holdings if one.evictability is Evictability.STOPPING}
        gone |= {name for each in others if each.action is Action.EVICT for name in each.models}

        def fits(stopped: Sequence[str]) -> bool:
            for card in cards:
                held = [
                    one.declared_mb
                    for one in holdings
                    if one.model not in gone and one.model not in stopped
                ]
                taken = sum(mb.get(card.id, 0) for mb in [*held, *started, decision.memory_mb])
                if card.id in decision.memory_mb and taken > (card.total_mb or 0):
                    return False
            return True

        assert fits(decision.models), "stopped for nothing"
        for fewer in range(len(decision.models)):
            for stopped in itertools.combinations(decision.models, fewer):
                assert not fits(stopped), "stopped more than needed"


@settings(max_examples=150)
@given(traces())
def test_every_model_that_fits_the_machine_is_served_in_the_end(played: Trace) -> None:
    outcome = Watched(played).run()
    assert outcome.refused == 0
    assert len(outcome.waits) == len(played.requests)
    assert min(outcome.waits) >= 0


@settings(max_examples=100)
@given(traces(pinned=True))
def test_a_pinned_model_is_never_stopped_for_another_and_all_others_are_answered(
    played: Trace,
) -> None:
    outcome = Watched(played).run()
    assert outcome.refused + len(outcome.waits) == len(played.requests)


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(1, 8), st.sampled_from([1.0, 4.0, 9.0]))
def test_two_busy_models_in_the_way_of_a_third_let_it_in(
    start: int, every: int, takes: float
) -> None:
    models = {
        "left": (1.0, {"A": 6000}),
        "right": (1.0, {"B": 6000}),
        "both": (float(start), {"A": 7000, "B": 7000}),
    }
    steady = [(at * every / 4, name, takes) for at in range(400) for name in ("left", "right")]
    asked = 20.25
    played = trace([("A", 8000), ("B", 8000)], models, sorted([*steady, (asked, "both", 1.0)]))
    simulation = Simulation(played, OURS)
    outcome = simulation.run()
    assert len(outcome.waits) == len(played.requests)
    # Ten seconds, what is under way, the stop, its own start.
    both = simulation.models["both"]
    assert both.last_used is not None
    assert both.last_used - 1.0 - asked <= YIELD_AFTER_SECONDS + takes + 2 * STOPPING + start


# --- the traces of the docs ----------------------------------------------------------------


@pytest.mark.parametrize("name", TRACES)
def test_ours_starts_less_and_keeps_nobody_waiting_as_long(name: str) -> None:
    played = TRACES[name]()
    ours, *others = [Simulation(played, policy).run() for policy in POLICIES.values()]
    for other in others:
        assert ours.cold_starts < other.cold_starts
        assert ours.wait(1.0) < other.wait(1.0)
        assert len(ours.waits) == len(other.waits) == len(played.requests)


def test_the_command_prints_a_line_for_each_policy() -> None:
    command = [sys.executable, "-m", "bench.placement", "big_and_small", "--requests", "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    policies = [line.split(" | ")[1] for line in done.stdout.splitlines()[2:]]
    assert policies == [*POLICIES, "ours, nothing declared"]


@pytest.mark.parametrize("trace", TRACES)
def test_with_nothing_declared_there_are_hardly_more_cold_starts(trace: str) -> None:
    played = TRACES[trace]()
    declared = Simulation(played, POLICIES["ours"]).run()
    learned = Simulation(played, POLICIES["ours"], learns=True).run()
    assert learned.refused == 0
    assert learned.cold_starts <= declared.cold_starts * 1.05


def test_a_model_that_a_repeated_decision_has_chosen_already_is_stopped_once() -> None:
    played = varied(107)  # in which a request comes to a victim while the queue is decided
    outcome = Simulation(played, POLICIES["score"]).run()
    assert len(outcome.waits) == len(played.requests)


def test_a_trace_is_the_same_each_time() -> None:
    assert varied(7) == varied(7)

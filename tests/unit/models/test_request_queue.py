"""The queue of requests that wait for one model: by priority and arrival, and nobody for ever."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from manager.models.lease import RequestQueue, Ticket
from manager.placement.planner import PRIORITY_STEP_SECONDS

ROUNDING = 1e-6  # seconds


def new_queue() -> RequestQueue:
    return RequestQueue(threading.Lock())


def enqueued(to: RequestQueue, *asked: tuple[float, int]) -> list[Ticket]:
    """Tickets of requests, each with its arrival and priority."""
    return [to.enqueue(arrival, priority) for arrival, priority in asked]


def popped(from_: RequestQueue) -> list[Ticket]:
    return [from_.pop() for _ in range(len(from_))]


def order(tickets: Sequence[Ticket], as_popped: Sequence[Ticket]) -> list[int]:
    return [tickets.index(ticket) for ticket in as_popped]


def test_equals_go_in_the_order_in_which_they_came() -> None:
    one = new_queue()
    tickets = enqueued(one, (5, 3), (5, 3), (6, 3), (7, 3))
    assert order(tickets, popped(one)) == [0, 1, 2, 3]


def test_who_comes_at_the_same_time_goes_by_priority() -> None:
    one = new_queue()
    tickets = enqueued(one, (5, 0), (5, 10), (5, 1), (5, 10))
    assert order(tickets, popped(one)) == [1, 3, 2, 0]


@pytest.mark.parametrize(("later", "first"), [(29.9, 1), (30.0, 0), (30.1, 0)])
def test_three_steps_of_priority_overtake_who_came_up_to_thirty_seconds_before(
    later: float, first: int
) -> None:
    one = new_queue()
    tickets = enqueued(one, (0, 4), (later, 7))
    assert order(tickets, popped(one))[0] == first


def test_a_stream_of_the_highest_priority_holds_the_lowest_up_for_a_hundred_seconds() -> None:
    one = new_queue()
    [lowest] = enqueued(one, (0, 0))
    served = 0
    for second in range(1, 1000):
        one.enqueue(float(second), 10)
        if one.pop() is lowest:
            break
        served += 1
    assert served == 99


def test_the_queue_has_the_highest_priority_that_waits_now() -> None:
    one = new_queue()
    assert one.priority is None
    tickets = enqueued(one, (0, 2), (1, 9), (2, 9), (3, 5))
    assert one.priority == 9
    for ticket in tickets[1:3]:
        one.remove(ticket)
    assert one.priority == 5
    popped(one)
    assert one.priority is None


def test_a_removed_request_is_not_served_and_may_be_removed_again() -> None:
    one = new_queue()
    tickets = enqueued(one, (0, 0), (0, 1), (1, 1), (1, 0))
    one.remove(tickets[1])
    one.remove(tickets[3])
    assert order(tickets, popped(one)) == [2, 0]
    for ticket in tickets:
        one.remove(ticket)
    assert len(one) == 0


def test_a_request_that_comes_while_the_model_yields_waits_behind_whatever_its_priority() -> None:
    one = new_queue()
    tickets = enqueued(one, (0, 0), (1, 5))
    one.yielding = True
    tickets += enqueued(one, (2, 10), (2, 0))
    assert not one.is_blocked()
    assert order(tickets, [one.pop(), one.pop()]) == [1, 0]
    assert one.is_blocked()
    one.stop_yielding()
    assert not one.is_blocked()
    assert order(tickets, popped(one)) == [2, 3]


def test_when_the_model_does_not_yield_any_more_all_go_by_their_ranks_again() -> None:
    one = new_queue()
    tickets = enqueued(one, (0, 0), (1, 5))
    one.yielding = True
    tickets += enqueued(one, (2, 10), (3, 0), (4, 5))
    one.stop_yielding()
    assert order(tickets, popped(one)) == [2, 1, 4, 0, 3]


def test_a_model_that_yields_serves_no_request_that_comes_first() -> None:
    one = new_queue()
    assert not one.is_blocked()
    one.yielding = True
    assert one.is_blocked()


def test_each_rejected_request_gets_an_exception_of_its_own() -> None:
    one = new_queue()
    tickets = enqueued(one, (0, 0), (0, 1), (1, 1))
    with one._lock:
        one.reject_all(lambda: ValueError("stopped"))
    assert len(one) == 0
    errors = {id(ticket.error) for ticket in tickets}
    assert len(errors) == 3
    assert all(isinstance(ticket.error, ValueError) for ticket in tickets)


@dataclass(eq=False)
class Waiting:
    """A request as the test knows it."""

    ticket: Ticket
    arrival: float
    priority: int
    behind: bool

    @property
    def place(self) -> tuple[bool, float, float]:
        return (self.behind, self.arrival - 10 * self.priority, self.arrival)


class LineMachine(RuleBasedStateMachine):
    """Requests come, leave and have their turns while the clock goes on, and the model yields
    now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.queue = new_queue()
        self.waiting: list[Waiting] = []

    @rule(seconds=st.one_of(st.integers(0, 120), st.floats(0.001, 120)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(priorities=st.lists(st.integers(0, 10), min_size=1, max_size=5))
    def some_come(self, priorities: list[int]) -> None:
        for priority in priorities:
            ticket = self.queue.enqueue(self.now, priority)
            self.waiting.append(Waiting(ticket, self.now, priority, self.queue.yielding))

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0))
    def one_leaves(self, which: int) -> None:
        self.queue.remove(self.waiting.pop(which % len(self.waiting)).ticket)

    @precondition(lambda self: self.waiting)
    @rule()
    def one_has_its_turn(self) -> None:
        ticket = self.queue.pop()
        [taken] = [each for each in self.waiting if each.ticket is ticket]
        self.waiting.remove(taken)
        assert all(taken.place <= other.place for other in self.waiting)
        for overtaken in self.waiting:
            if overtaken.arrival < taken.arrival:
                assert overtaken.priority < taken.priority
                span = PRIORITY_STEP_SECONDS * (taken.priority - overtaken.priority)
                assert taken.arrival - overtaken.arrival <= span + ROUNDING
        self.queue.remove(ticket)  # as a waiting request does in any case

    @rule()
    def the_model_yields(self) -> None:
        self.queue.yielding = True

    @rule()
    def the_model_yields_no_more(self) -> None:
        self.queue.stop_yielding()
        for each in self.waiting:
            each.behind = False

    @invariant()
    def it_tells_who_waits(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.priority == max((each.priority for each in self.waiting), default=None)
        blocked = self.queue.yielding and all(each.behind for each in self.waiting)
        assert self.queue.is_blocked() == blocked


def test_the_served_request_has_the_best_rank_and_no_request_is_overtaken_for_ever() -> None:
    run_state_machine_as_test(LineMachine)

"""On which processor the program runs, and when it moves to another."""

from __future__ import annotations

import os
import threading

import pytest

from manager.affinity import Affinity, choose, idle_shares, read_times

STAT = """\
cpu  30 0 30 340 0 0 0 0 0 0
cpu0 10 0 10 180 0 0 0 0 0 0
cpu3 20 0 20 150 10 0 0 0 5 0
intr 12345
"""
needs_affinity = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="a system that lets nobody choose"
)


def test_times_are_read_by_the_number_of_their_processor() -> None:
    assert read_times(STAT) == {0: (180, 200), 3: (160, 200)}


def test_what_was_idle_between_two_readings() -> None:
    before = {0: (100, 200), 1: (50, 100), 2: (7, 7)}
    after = {0: (150, 300), 1: (50, 200), 2: (7, 7), 9: (1, 1)}
    assert idle_shares(before, after) == {0: 0.5, 1: 0.0}


@pytest.mark.parametrize(
    ("idle", "own", "chosen"),
    [
        ({}, 0.0, 1),  # nothing is known yet
        ({0: 1.0, 1: 0.0}, 1.0, 1),  # all that is used is ours
        ({0: 1.0, 1: 0.9}, 0.0, 1),
        ({0: 1.0, 1: 0.0}, 0.1, 0),  # a model computes beside us
        ({0: 0.1, 1: 0.0}, 0.1, 1),  # and everywhere else, too
        ({0: 0.2, 1: 0.0, 5: 1.0}, 0.0, 1),  # 5 is not for us
    ],
)
def test_it_moves_only_to_where_there_is_much_more_room(
    idle: dict[int, float], own: float, chosen: int
) -> None:
    assert choose(1, {0, 1}, idle, own) == chosen


@needs_affinity
def test_what_is_started_inside_of_free_may_run_everywhere() -> None:
    seen: list[set[int]] = []

    def run() -> None:  # in a thread of its own, since the affinity is a thread's
        affinity = Affinity()
        affinity.bind()
        affinity.tick()
        seen.append(os.sched_getaffinity(0))
        with affinity.free():
            seen.append(os.sched_getaffinity(0))
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    bound, free, after = seen
    assert len(bound) == len(after) == 1
    assert free == os.sched_getaffinity(0)

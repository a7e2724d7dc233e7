"""Whose memory it is that becomes free when several models stop on one device."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from manager.devices import Device, Reading, Snapshot
from manager.placement.ledger import Ledger
from manager.placement.reservation import Reservation

CARD = Reading("Tesla V100", "nvidia", 0, 16000).id


def reading(used: int | None) -> Reading:
    return Reading("Tesla V100", "nvidia", 0, 16000, used)


def snapshot(used: int) -> Snapshot:
    return Snapshot((Device(reading(used), 1.0, stale=False),))


def running(ledger: Ledger, *sizes: int) -> list[Reservation]:
    """Models that take so much of the card, in MB."""
    evictable: Any = SimpleNamespace(name="m")
    found = [Reservation(evictable, {CARD: mb}, ready_at=0.0) for mb in sizes]
    for each in found:
        ledger.add(each, snapshot(0))
    return found


def test_of_two_that_stop_together_each_waits_for_its_own_memory() -> None:
    ledger = Ledger()
    one, two = running(ledger, 6000, 6000)
    for each in (one, two):
        ledger.mark_stopping(each, snapshot(15000), ended=False)
    assert not ledger.take_returned(one, [reading(15000)])
    assert ledger.take_returned(two, [reading(9000)])
    assert not ledger.take_returned(one, [reading(9000)])  # that was the other's
    assert ledger.take_returned(one, [reading(3000)])


def test_of_two_whose_memory_is_free_at_once_none_waits() -> None:
    ledger = Ledger()
    one, two = running(ledger, 6000, 4000)
    for each in (one, two):
        ledger.mark_stopping(each, snapshot(13000), ended=False)
    assert ledger.take_returned(one, [reading(3000)])
    assert ledger.take_returned(two, [reading(3000)])


def test_one_whose_stop_begins_when_the_others_memory_is_free_already_waits_for_its_own() -> None:
    ledger = Ledger()
    one, two = running(ledger, 6000, 6000)
    ledger.mark_stopping(one, snapshot(15000), ended=False)
    ledger.mark_stopping(two, snapshot(9000), ended=False)
    assert ledger.take_returned(one, [reading(9000)])
    assert not ledger.take_returned(two, [reading(9000)])
    assert ledger.take_returned(two, [reading(3000)])


@pytest.mark.parametrize("used", [None, 3000])
def test_where_nothing_is_measured_nothing_is_waited_for(used: int | None) -> None:
    ledger = Ledger()
    (one,) = running(ledger, 6000)
    ledger.mark_stopping(one, snapshot(9000), ended=False)
    assert ledger.take_returned(one, [reading(used)])
    assert ledger.take_returned(one, [])

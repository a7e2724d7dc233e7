"""What a run has taken, by whatever clock it was begun and resumed."""

from __future__ import annotations

from typing import Any

import pytest

from manager.clock import Clock
from manager.models.run_clock import RunClock, is_before_boot
from manager.storage import Run

READY = 1_793_880_000_000


def clock(monotonic: float, wall_ms: int = READY, boot: str | None = "boot") -> Clock:
    return Clock(lambda: monotonic, lambda: wall_ms / 1000, boot)


def run(**known: Any) -> Run:
    fields = {"ready_ms": READY, "boot_id": "boot", "ready_clock_ms": 1000, **known}
    return Run("r", "m", "s", "f", 1, 1, 1.0, READY - 500, **fields)


@pytest.mark.parametrize("set_by_ms", [-3_600_000, 0, 28_800_000])
def test_a_run_counts_the_seconds_that_passed_whatever_is_done_to_the_wall_clock(
    set_by_ms: int,
) -> None:
    begun = RunClock.begin(clock(1))
    assert begun.now_ms(clock(61.5, READY + 60_500 + set_by_ms)) == READY + 60_500


@pytest.mark.parametrize("set_by_ms", [-3_600_000, 0, 28_800_000])
def test_it_is_counted_on_by_the_next_program(set_by_ms: int) -> None:
    found = clock(61.5, READY + set_by_ms)
    assert RunClock.resume(run(), found).now_ms(found) == READY + 60_500


@pytest.mark.parametrize(
    "known",
    [
        {"boot_id": None, "ready_clock_ms": None},  # of an earlier version
        {"boot_id": None},  # of a system without names of boots
        {"ready_clock_ms": 999_000},  # of another clock
    ],
)
def test_one_whose_clock_is_not_known_is_counted_on_from_what_the_wall_clock_says(
    known: dict[str, Any],
) -> None:
    found = clock(61.5, READY + 90_000)
    resumed = RunClock.resume(run(**known), found)
    assert resumed.now_ms(found) == READY + 90_000
    assert resumed.now_ms(clock(62.5, READY)) == READY + 91_000


def test_that_is_never_before_it_was_last_seen() -> None:
    found = clock(61.5, READY - 3_600_000)
    unknown = run(boot_id=None, ready_clock_ms=None)
    assert RunClock.resume(unknown, found).now_ms(found) == READY
    seen = run(boot_id=None, ready_clock_ms=None, heartbeat_ms=READY + 30_000)
    assert RunClock.resume(seen, found).now_ms(found) == READY + 30_000


@pytest.mark.parametrize(
    ("of_run", "now", "expected"),
    [
        ("boot", "boot", False),
        ("boot", "another", True),
        (None, "boot", False),
        ("boot", None, False),
        (None, None, False),
    ],
)
def test_a_run_from_before_the_last_boot_is_known_by_its_boot(
    of_run: str | None, now: str | None, expected: bool
) -> None:
    assert is_before_boot(run(boot_id=of_run), clock(1, boot=now)) is expected

"""The watcher: disconnected clients and dead processes are noticed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from manager.relay.watcher import Watcher

Eventually = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def running() -> Iterator[Watcher]:
    watch = Watcher()
    watch.start()
    yield watch
    watch.stop()


def test_an_action_is_called_once() -> None:
    watch = Watcher()
    called: list[int] = []
    watch.add(lambda: True, lambda: called.append(1))
    watch.poll()
    watch.poll()
    assert called == [1]


def test_a_condition_that_is_false_is_polled_again() -> None:
    watch = Watcher()
    answers = iter([False, False, True])
    called: list[int] = []
    watch.add(lambda: next(answers), lambda: called.append(1))
    watch.poll()
    watch.poll()
    assert called == []
    watch.poll()
    assert called == [1]


def test_a_removed_entry_is_neither_polled_nor_called() -> None:
    watch = Watcher()
    seen: list[str] = []
    token = watch.add(lambda: bool(seen.append("asked")) or True, lambda: seen.append("called"))
    watch.remove(token)
    watch.remove(token)
    watch.poll()
    assert seen == []


def test_an_entry_that_is_removed_while_it_is_polled_is_not_called() -> None:
    watch = Watcher()
    called: list[int] = []
    tokens: list[int] = []

    def happened() -> bool:
        watch.remove(tokens[0])
        return True

    tokens.append(watch.add(happened, lambda: called.append(1)))
    watch.poll()
    assert called == []


@pytest.mark.parametrize("faulty", ["condition", "action"])
def test_a_faulty_entry_is_logged_and_does_not_stop_the_others(
    faulty: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watcher()
    called: list[int] = []

    def fail() -> bool:
        raise RuntimeError("a faulty entry")

    if faulty == "condition":
        watch.add(fail, lambda: called.append(0))
    else:
        watch.add(lambda: True, fail)
    watch.add(lambda: True, lambda: called.append(1))
    with caplog.at_level(logging.ERROR):
        watch.poll()
        watch.poll()
    assert called == [1]
    assert len(caplog.records) == 1
    assert "a faulty entry" in caplog.text


def test_it_polls_by_itself(running: Watcher, eventually: Eventually) -> None:
    happened, called = threading.Event(), threading.Event()
    running.add(happened.is_set, called.set)
    happened.set()
    eventually(called.is_set)


def test_an_action_may_add_and_remove_others() -> None:
    watch = Watcher()
    called: list[str] = []
    other = watch.add(lambda: False, lambda: called.append("other"))

    def action() -> None:
        watch.remove(other)
        watch.add(lambda: True, lambda: called.append("added"))

    watch.add(lambda: True, action)
    watch.poll()
    watch.poll()
    assert called == ["added"]


def test_many_threads_may_add_and_remove_while_it_polls(running: Watcher) -> None:
    called: list[int] = []

    def add_and_remove() -> None:
        for number in range(2000):
            running.remove(running.add(lambda: False, lambda number=number: called.append(number)))

    threads = [threading.Thread(target=add_and_remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        running.poll()
    assert called == []


def test_nothing_is_called_once_it_has_stopped() -> None:
    watch = Watcher()
    watch.start()
    watch.stop()
    called: list[int] = []
    watch.add(lambda: True, lambda: called.append(1))
    assert not any(thread.name == "watch" for thread in threading.enumerate())
    assert called == []

"""The watch: clients that went away and processes that died are noticed."""

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


def test_what_has_happened_is_acted_upon_once() -> None:
    watch = Watcher()
    acted: list[int] = []
    watch.add(lambda: True, lambda: acted.append(1))
    watch.poll()
    watch.poll()
    assert acted == [1]


def test_what_has_not_happened_is_asked_about_again() -> None:
    watch = Watcher()
    answers = iter([False, False, True])
    acted: list[int] = []
    watch.add(lambda: next(answers), lambda: acted.append(1))
    watch.poll()
    watch.poll()
    assert acted == []
    watch.poll()
    assert acted == [1]


def test_what_nobody_wants_to_know_any_more_is_neither_asked_nor_acted_upon() -> None:
    watch = Watcher()
    seen: list[str] = []
    token = watch.add(lambda: bool(seen.append("asked")) or True, lambda: seen.append("acted"))
    watch.remove(token)
    watch.remove(token)
    watch.poll()
    assert seen == []


def test_one_that_is_removed_while_it_is_asked_is_not_acted_upon() -> None:
    watch = Watcher()
    acted: list[int] = []
    tokens: list[int] = []

    def happened() -> bool:
        watch.remove(tokens[0])
        return True

    tokens.append(watch.add(happened, lambda: acted.append(1)))
    watch.poll()
    assert acted == []


@pytest.mark.parametrize("faulty", ["question", "action"])
def test_a_faulty_one_is_logged_and_does_not_end_the_watch_over_the_others(
    faulty: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Watcher()
    acted: list[int] = []

    def fail() -> bool:
        raise RuntimeError("a fault of ours")

    if faulty == "question":
        watch.add(fail, lambda: acted.append(0))
    else:
        watch.add(lambda: True, fail)
    watch.add(lambda: True, lambda: acted.append(1))
    with caplog.at_level(logging.ERROR):
        watch.poll()
        watch.poll()
    assert acted == [1]
    assert len(caplog.records) == 1
    assert "a fault of ours" in caplog.text


def test_it_looks_by_itself(running: Watcher, eventually: Eventually) -> None:
    happened, acted = threading.Event(), threading.Event()
    running.add(happened.is_set, acted.set)
    happened.set()
    eventually(acted.is_set)


def test_an_action_may_add_and_remove_others() -> None:
    watch = Watcher()
    acted: list[str] = []
    other = watch.add(lambda: False, lambda: acted.append("other"))

    def act() -> None:
        watch.remove(other)
        watch.add(lambda: True, lambda: acted.append("added"))

    watch.add(lambda: True, act)
    watch.poll()
    watch.poll()
    assert acted == ["added"]


def test_many_threads_may_come_and_go_while_it_looks(running: Watcher) -> None:
    acted: list[int] = []

    def come_and_go() -> None:
        for number in range(2000):
            running.remove(running.add(lambda: False, lambda number=number: acted.append(number)))

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        running.poll()
    assert acted == []


def test_nothing_is_acted_upon_once_it_has_stopped() -> None:
    watch = Watcher()
    watch.start()
    watch.stop()
    acted: list[int] = []
    watch.add(lambda: True, lambda: acted.append(1))
    assert not any(thread.name == "watch" for thread in threading.enumerate())
    assert acted == []

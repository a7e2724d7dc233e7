"""The monitor: devices are polled while somebody needs them, and hold up nobody."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from manager.clock import Clock
from manager.devices import DeviceError, DevicePlugin, Monitor, Reading, Snapshot, monitor, nvidia
from tests.support.cards import Cards, card
from tests.support.servers import PATIENCE

Eventually = Callable[[Callable[[], Any]], Any]


class Time:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(monotonic=lambda: self.now)


class Plugin(DevicePlugin):
    """Answers with what the test puts into ``answer``, an exception is raised, and only while
    ``gate`` is open. ``begun`` and ``ended`` count its polls."""

    def __init__(self, name: str, *devices: str) -> None:
        self.name = name  # type: ignore[misc]
        self.answer: Any = [Reading(device, "test", 0, 1000, 100) for device in devices or (name,)]
        self.gate = threading.Event()
        self.gate.set()
        self.begun = 0
        self.ended = 0
        self.pids: Collection[int] = ()
        self.threads: set[str] = set()

    def read(self, pids: Collection[int]) -> Sequence[Reading]:
        self.pids = pids
        self.threads.add(threading.current_thread().name)
        self.begun += 1
        assert self.gate.wait(PATIENCE)
        self.ended += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[no-any-return]


class Setting:
    """A monitor with its plugins, its clock, and what became of its ticks."""

    def __init__(self, plugins: Sequence[DevicePlugin], clock: Clock) -> None:
        self.is_watched = False
        self.pids: list[int] = []
        self.ticks: list[str] = []  # "resumed" and "paused", as it happened
        self.on_watched: Callable[[], None] = lambda: None
        self.on_pause: Callable[[], None] = lambda: None
        self.monitor = Monitor(plugins, clock, lambda: list(self.pids), self._watched)
        self.monitor.attach(self._pause, lambda: self.ticks.append("resumed"))
        self.monitor.start()

    def _watched(self) -> bool:
        self.on_watched()
        return self.is_watched

    def _pause(self) -> None:
        self.on_pause()
        self.ticks.append("paused")


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def run(time: Time) -> Iterator[Callable[..., Setting]]:
    settings: list[tuple[Setting, tuple[Plugin, ...]]] = []

    def run(*plugins: Any, clock: Clock = time.clock) -> Setting:
        settings.append((Setting(plugins, clock), plugins))
        return settings[-1][0]

    yield run
    for setting, plugins in settings:
        for plugin in plugins:
            if isinstance(plugin, Plugin):
                plugin.gate.set()
        setting.monitor.stop()


Run = Callable[..., Setting]


def names(snapshot: Snapshot) -> list[str]:
    return [device.reading.name for device in snapshot.devices]


def stale(snapshot: Snapshot) -> list[str]:
    return [device.reading.name for device in snapshot.devices if device.stale]


def polled(setting: Setting, time: Time) -> Snapshot:
    """The snapshot after a further poll of all plugins, at a later moment."""
    time.now += 0.125
    return setting.monitor.wait_for_reading(time.now, PATIENCE)


# --- when it polls ----------------------------------------------------------------------


def test_nothing_is_polled_before_somebody_asks(run: Run, time: Time) -> None:
    plugin = Plugin("card")
    setting = run(plugin)
    assert setting.monitor.snapshot == Snapshot()
    setting.monitor.tick()
    polled(setting, time)
    assert plugin.begun == 1  # that of polled(), and none before it
    assert "resumed" not in setting.ticks


def test_the_first_request_has_the_devices_polled_at_once(
    run: Run, time: Time, eventually: Eventually
) -> None:
    setting = run(Plugin("card"))
    setting.monitor.touch()
    assert setting.ticks == ["resumed"]
    assert eventually(lambda: names(setting.monitor.snapshot)) == ["card"]
    assert setting.monitor.snapshot.devices[0].read_at == time.now


def test_each_second_is_a_poll_until_ten_seconds_after_the_last_request(
    run: Run, time: Time, eventually: Eventually
) -> None:
    plugin = Plugin("card")
    setting = run(plugin)
    setting.monitor.touch()
    eventually(lambda: names(setting.monitor.snapshot))
    for second in range(1, 15):
        time.now += 1
        if second == 5:
            setting.monitor.touch()
        setting.monitor.tick()
        eventually(lambda: plugin.ended == 1 + second)  # noqa: B023
    assert setting.ticks == ["resumed"]
    time.now += 1
    setting.monitor.tick()
    assert setting.ticks == ["resumed", "paused"]
    polled(setting, time)
    assert plugin.begun == 16  # of which the last is that of polled()


def test_a_watching_page_keeps_it_awake_and_a_new_one_wakes_it(
    run: Run, time: Time, eventually: Eventually
) -> None:
    plugin = Plugin("card")
    setting = run(plugin)
    setting.monitor.touch()
    eventually(lambda: plugin.ended == 1)
    setting.is_watched = True
    for polls in range(2, 5):
        time.now += 100
        setting.monitor.tick()
        eventually(lambda: plugin.ended == polls)  # noqa: B023
    setting.is_watched = False
    setting.monitor.tick()
    assert setting.ticks == ["resumed", "paused"]
    setting.monitor.touch()
    assert setting.ticks == ["resumed", "paused", "resumed"]
    eventually(lambda: plugin.ended == 5)


def test_further_requests_begin_no_polls(run: Run, time: Time) -> None:
    plugin = Plugin("card")
    setting = run(plugin)
    for _ in range(100):
        setting.monitor.touch()
    setting.monitor.wait_for_reading(time.now, PATIENCE)
    assert plugin.begun == 1
    assert setting.ticks == ["resumed"]


def test_a_request_while_it_falls_asleep_keeps_it_awake(
    run: Run, time: Time, eventually: Eventually
) -> None:
    plugin = Plugin("card")
    setting = run(plugin)
    setting.monitor.touch()
    eventually(lambda: plugin.ended == 1)
    time.now += 60
    # It comes after the tick has seen that there was none, and before it has fallen asleep.
    setting.on_watched = setting.monitor.touch
    setting.monitor.tick()
    assert setting.ticks == ["resumed"]
    eventually(lambda: plugin.ended == 2)


def test_a_request_while_the_ticks_are_paused_has_them_resumed_afterwards(
    run: Run, time: Time, eventually: Eventually
) -> None:
    plugin = Plugin("card")
    setting = run(plugin)
    setting.monitor.touch()
    eventually(lambda: plugin.ended == 1)
    time.now += 60
    request = threading.Thread(target=setting.monitor.touch)

    def on_pause() -> None:
        request.start()
        request.join(0.1)  # it would be over in this time, were it not waiting for the pause

    setting.on_pause = on_pause
    setting.monitor.tick()
    request.join(PATIENCE)
    assert setting.ticks == ["resumed", "paused", "resumed"]
    eventually(lambda: plugin.ended == 2)


def test_ticks_that_are_attached_after_the_first_request_run(time: Time) -> None:
    ticks: list[str] = []
    monitor = Monitor([], time.clock, tuple, lambda: False)
    monitor.touch()
    monitor.attach(lambda: ticks.append("paused"), lambda: ticks.append("resumed"))
    assert ticks == ["resumed"]


def test_each_plugin_has_a_thread_of_its_own_and_gets_the_models_processes(
    run: Run, time: Time
) -> None:
    first, second = Plugin("first"), Plugin("second")
    setting = run(first, second)
    setting.pids = [10, 11]
    polled(setting, time)
    assert (first.pids, second.pids) == ([10, 11], [10, 11])
    setting.pids = [12]
    polled(setting, time)
    assert (first.pids, second.pids) == ([12], [12])
    assert first.threads == {"device-first"}
    assert second.threads == {"device-second"}


# --- snapshots --------------------------------------------------------------------------


def test_devices_stand_in_the_order_of_the_plugins_with_the_moment_they_were_read(
    run: Run, time: Time, eventually: Eventually
) -> None:
    slow, quick = Plugin("slow", "card 1", "card 2"), Plugin("quick", "cpu")
    slow.gate.clear()
    setting = run(slow, quick)
    began = time.now
    setting.monitor.refresh()
    eventually(lambda: quick.ended)
    eventually(lambda: slow.begun)
    assert setting.monitor.snapshot.taken_at is None  # not all of them are known yet
    time.now += 2
    slow.gate.set()
    eventually(lambda: len(setting.monitor.snapshot.devices) == 3)
    snapshot = setting.monitor.snapshot
    assert names(snapshot) == ["card 1", "card 2", "cpu"]
    assert {device.read_at for device in snapshot.devices} == {began}
    assert (snapshot.faults, snapshot.taken_at) == ({}, began)


def test_a_snapshot_is_as_old_as_the_oldest_of_its_readings(
    run: Run, time: Time, eventually: Eventually
) -> None:
    slow, quick = Plugin("slow"), Plugin("quick")
    setting = run(slow, quick)
    first = polled(setting, time).taken_at
    slow.gate.clear()
    time.now += 1
    setting.monitor.refresh()
    eventually(lambda: setting.monitor.snapshot.devices[1].read_at == time.now)
    assert setting.monitor.snapshot.taken_at == first


def test_a_device_that_is_not_listed_any_more_is_removed(run: Run, time: Time) -> None:
    plugin = Plugin("cards", "one", "two")
    setting = run(plugin)
    assert names(polled(setting, time)) == ["one", "two"]
    plugin.answer = plugin.answer[1:]
    assert names(polled(setting, time)) == ["two"]
    plugin.answer = []
    snapshot = polled(setting, time)
    assert names(snapshot) == []
    assert snapshot.taken_at == time.now


def test_of_two_plugins_that_list_the_same_device_the_later_one_is_right(
    run: Run, time: Time
) -> None:
    shipped, own = Plugin("shipped", "card", "other"), Plugin("own")
    own.answer = [Reading("card", "test", 0, 2000)]
    devices = polled(run(shipped, own), time).devices
    assert [(each.reading.id, each.reading.total_mb) for each in devices] == [
        ("card #0", 2000),
        ("other #0", 1000),
    ]


def test_a_hidden_device_is_no_device_unless_a_later_plugin_shows_it(run: Run, time: Time) -> None:
    shipped, own = Plugin("shipped"), Plugin("own")
    hidden = [Reading(name, "test", 0, hidden_by="A_VARIABLE") for name in ("one", "two")]
    shipped.answer, own.answer = hidden, [Reading("two", "test", 0, 2000)]
    snapshot = polled(run(shipped, own), time)
    assert (names(snapshot), snapshot.hidden) == (["two"], (hidden[0],))


def test_while_a_driver_fails_its_last_reading_stays_and_is_stale(run: Run, time: Time) -> None:
    broken, working = Plugin("broken"), Plugin("working")
    setting = run(broken, working)
    read_at = polled(setting, time).devices[0].read_at
    good, broken.answer = broken.answer, DeviceError("the driver is being repaired")
    snapshot = polled(setting, time)
    assert names(snapshot) == ["broken", "working"]
    assert stale(snapshot) == ["broken"]
    assert snapshot.devices[0].read_at == read_at
    assert snapshot.faults == {"broken": "the driver is being repaired"}
    assert snapshot.taken_at == time.now  # of those that work
    broken.answer = good
    snapshot = polled(setting, time)
    assert (stale(snapshot), snapshot.faults) == ([], {})


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (DeviceError("no driver"), "no driver"),
        (DeviceError(), "cannot be read"),
        (KeyError("vram"), "KeyError: 'vram'"),
        (SystemExit(3), "SystemExit: 3"),
        (None, "TypeError: 'NoneType' object is not iterable"),
        ([{"name": "card"}], "TypeError: read() must return Readings, not a dict"),
        ([Reading("card", "gpu", 0, "8000")], "TypeError: card #0: total_mb must be whole MB"),  # type: ignore[arg-type]
        ([Reading("card", "gpu", 0, -1)], "TypeError: card #0: total_mb must be whole MB"),
        ([Reading("", "gpu", 0)], "TypeError: a Reading's name must be a text"),
        ([Reading("card", "gpu", 0, load=float("nan"))], "TypeError: card #0: load must be"),
        ([Reading("card", "gpu", 0, held_mb={1: None})], "TypeError: card #0: held_mb must be"),  # type: ignore[dict-item]
        ([Reading("card", "gpu", 0, hidden_by=True)], "TypeError: card #0: hidden_by must be"),  # type: ignore[arg-type]
    ],
)
def test_a_plugin_may_fail_in_any_way_and_is_named_in_the_log_once(
    run: Run, time: Time, caplog: pytest.LogCaptureFixture, answer: Any, fault: str
) -> None:
    broken, working = Plugin("broken"), Plugin("working")
    setting = run(broken, working)
    polled(setting, time)
    good, broken.answer = broken.answer, answer
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            snapshot = polled(setting, time)
    assert list(snapshot.faults) == ["broken"]
    assert snapshot.faults["broken"].startswith(fault)
    assert names(snapshot) == ["broken", "working"]
    assert stale(snapshot) == ["broken"]
    [record] = caplog.records
    assert "broken" in record.getMessage()
    assert (record.exc_info is None) == isinstance(answer, DeviceError)
    broken.answer = good
    assert polled(setting, time).faults == {}


def test_a_plugin_whose_message_is_new_each_time_does_not_fill_the_log(
    run: Run, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    plugin = Plugin("card")
    setting = run(plugin)
    with caplog.at_level(logging.WARNING):
        for number in range(150):
            plugin.answer = DeviceError(f"fault {number}")
            polled(setting, time)
    assert len(caplog.records) == 100


# --- a driver that hangs ----------------------------------------------------------------


def test_a_driver_that_hangs_makes_its_devices_stale_and_holds_up_nothing_else(
    run: Run, time: Time, eventually: Eventually
) -> None:
    hanging, working = Plugin("hanging"), Plugin("working")
    setting = run(hanging, working)
    setting.monitor.touch()
    eventually(lambda: len(setting.monitor.snapshot.devices) == 2)
    hanging.gate.clear()
    for second in range(1, 8):
        time.now += 1
        setting.monitor.touch()
        setting.monitor.tick()
        eventually(lambda: setting.monitor.snapshot.devices[1].read_at == time.now)
        eventually(lambda: hanging.begun == 2)
        snapshot = setting.monitor.snapshot
        # Polled again at the first second, it is given three.
        waited = second - 1
        expected = {} if waited < 3 else {"hanging": f"has not answered for {waited} seconds"}
        assert snapshot.faults == expected
        assert stale(snapshot) == list(expected)
        assert names(snapshot) == ["hanging", "working"]
        assert snapshot.taken_at == (time.now - waited - 1 if waited < 3 else time.now)
    hanging.gate.set()
    eventually(lambda: setting.monitor.snapshot.faults == {})
    assert stale(setting.monitor.snapshot) == []
    assert polled(setting, time).devices[0].read_at == time.now


def test_a_page_sees_how_long_it_hangs_though_no_poll_ends(
    run: Run, time: Time, eventually: Eventually
) -> None:
    plugin = Plugin("card")
    setting = run(plugin)
    seen_by_listener: list[Snapshot] = []
    setting.monitor.add_listener(seen_by_listener.append)
    setting.is_watched = True
    plugin.gate.clear()
    setting.monitor.tick()
    eventually(lambda: plugin.begun)
    for _ in range(5):
        time.now += 1
        setting.monitor.tick()
    assert [snapshot.faults for snapshot in seen_by_listener] == [
        {"card": f"has not answered for {seconds} seconds"} for seconds in (3, 4, 5)
    ]


def test_stopping_does_not_wait_for_a_driver_that_hangs(
    run: Run, time: Time, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(monitor, "STOP_SECONDS", 0.2)
    hanging, working = Plugin("hanging"), Plugin("working")
    hanging.gate.clear()
    setting = run(hanging, working)
    setting.monitor.touch()
    eventually(lambda: hanging.begun)

    def threads() -> set[str]:
        return {each.name for each in threading.enumerate() if each.name.startswith("device-")}

    time.now += 60
    setting.monitor.tick()
    assert setting.ticks == ["resumed", "paused"]
    setting.monitor.stop()
    assert threads() == {"device-hanging"}
    # And later requests find it as it was, and wake nothing.
    time.now += 60
    setting.monitor.touch()
    setting.monitor.tick()
    setting.monitor.wait_for_reading(time.now, PATIENCE)
    setting.monitor.set_enabled(False)
    assert setting.ticks == ["resumed", "paused"]
    hanging.gate.set()
    eventually(lambda: threads() == set())
    assert (hanging.begun, working.begun) == (1, 1)


# --- asking for what is now -------------------------------------------------------------


def test_a_refresh_during_a_poll_polls_once_more_afterwards(
    run: Run, time: Time, eventually: Eventually
) -> None:
    plugin = Plugin("card")
    plugin.gate.clear()
    setting = run(plugin)
    setting.monitor.refresh()
    eventually(lambda: plugin.begun == 1)
    for _ in range(3):
        setting.monitor.refresh()
    plugin.gate.set()
    eventually(lambda: plugin.ended == 2)
    polled(setting, time)
    assert plugin.begun == 3  # of which the last is that of polled()


def test_wait_for_reading_waits_for_a_poll_that_began_late_enough(
    run: Run, time: Time, eventually: Eventually
) -> None:
    plugin, other = Plugin("card"), Plugin("other")
    plugin.gate.clear()
    setting = run(plugin, other)
    setting.monitor.refresh()
    eventually(lambda: plugin.begun == 1)
    time.now += 1
    answers: list[Snapshot] = []
    since = time.now
    thread = threading.Thread(
        target=lambda: answers.append(setting.monitor.wait_for_reading(since, PATIENCE))
    )
    thread.start()
    eventually(lambda: other.begun == 2)  # the poll before may have seen an older world
    assert answers == []
    plugin.gate.set()
    thread.join(PATIENCE)
    assert [device.read_at for device in answers[0].devices] == [since, since]
    assert (plugin.begun, other.begun) == (2, 2)


def test_wait_for_reading_answers_at_once_where_the_last_poll_is_late_enough(
    run: Run, time: Time
) -> None:
    plugin = Plugin("card")
    setting = run(plugin)
    since = time.now
    before = setting.monitor.wait_for_reading(since, PATIENCE)
    time.now += 5
    assert setting.monitor.wait_for_reading(since, 0) == before
    assert plugin.begun == 1


def test_wait_for_reading_takes_an_error_for_an_answer(run: Run, time: Time) -> None:
    plugin = Plugin("card")
    plugin.answer = DeviceError("no driver")
    assert polled(run(plugin), time) == Snapshot((), {"card": "no driver"}, None)


def test_wait_for_reading_ends_with_its_timeout_and_the_best_there_is(
    run: Run, time: Time, eventually: Eventually
) -> None:
    slow, quick = Plugin("slow"), Plugin("quick")
    setting = run(slow, quick)
    before = polled(setting, time).devices[0]
    slow.gate.clear()
    time.now += 1
    setting.monitor.refresh()
    eventually(lambda: setting.monitor.snapshot.devices[1].read_at == time.now)
    snapshot = setting.monitor.wait_for_reading(
        time.now, 0.05
    )  # the clock of its polls stands still
    assert snapshot.devices[0] == before
    assert snapshot.devices[1].read_at == time.now


def test_wait_for_reading_does_not_wait_for_a_driver_that_is_known_to_hang(
    run: Run, time: Time, eventually: Eventually
) -> None:
    hanging, working = Plugin("hanging"), Plugin("working")
    setting = run(hanging, working)
    polled(setting, time)
    hanging.gate.clear()
    setting.monitor.refresh()
    eventually(lambda: hanging.begun == 2)
    time.now += 3
    began = Clock().monotonic()
    snapshot = setting.monitor.wait_for_reading(time.now, 10 * PATIENCE)
    assert Clock().monotonic() - began < PATIENCE  # a plugin is held for as long as that
    assert stale(snapshot) == ["hanging"]
    assert snapshot.devices[1].read_at == time.now


def test_wait_for_reading_gives_up_a_driver_that_begins_to_hang_meanwhile(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "HUNG_AFTER_SECONDS", 0.2)
    clock = Clock()
    plugin = Plugin("card")
    plugin.gate.clear()
    setting = run(plugin, clock=clock)
    snapshot = setting.monitor.wait_for_reading(clock.monotonic(), 10 * PATIENCE)
    assert plugin.ended == 0
    assert "has not answered" in snapshot.faults["card"]


def test_many_may_wait_for_the_same_poll(run: Run, time: Time, eventually: Eventually) -> None:
    plugin = Plugin("card")
    plugin.gate.clear()
    setting = run(plugin)
    answers: list[Snapshot] = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(setting.monitor.wait_for_reading(time.now, PATIENCE)),
            daemon=True,
        )
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: plugin.begun)
    plugin.gate.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [names(answer) for answer in answers] == [["card"]] * 20
    assert plugin.begun == 1


# --- listeners --------------------------------------------------------------------------


def test_listeners_are_called_in_the_plugins_thread_with_nothing_locked(
    run: Run, time: Time, eventually: Eventually
) -> None:
    setting = run(Plugin("card"))
    seen_by_listener: list[tuple[str, Snapshot, Snapshot | None]] = []

    def listener(snapshot: Snapshot) -> None:
        seen: list[Snapshot] = []
        reader = threading.Thread(target=lambda: seen.append(setting.monitor.snapshot), daemon=True)
        reader.start()
        reader.join(PATIENCE)
        seen_by_listener.append((threading.current_thread().name, snapshot, *seen))

    setting.monitor.add_listener(listener)
    first = polled(setting, time)
    eventually(lambda: len(seen_by_listener) == 1)
    second = polled(setting, time)
    eventually(lambda: len(seen_by_listener) == 2)
    assert seen_by_listener == [("device-card", first, first), ("device-card", second, second)]


def test_a_slow_listener_gets_the_newest_snapshot(run: Run, eventually: Eventually) -> None:
    first, second, third = Plugin("first"), Plugin("second"), Plugin("third")
    second.gate.clear()
    third.gate.clear()
    setting = run(first, second, third)
    seen_by_listener: list[Snapshot] = []
    is_notifying, goes_on = threading.Event(), threading.Event()

    def listener(snapshot: Snapshot) -> None:
        seen_by_listener.append(snapshot)
        is_notifying.set()
        assert goes_on.wait(PATIENCE)

    setting.monitor.add_listener(listener)
    setting.monitor.refresh()
    assert is_notifying.wait(PATIENCE)
    second.gate.set()
    eventually(lambda: len(setting.monitor.snapshot.devices) == 2)
    third.gate.set()
    eventually(lambda: len(setting.monitor.snapshot.devices) == 3)
    goes_on.set()
    eventually(lambda: len(seen_by_listener) == 3)
    everything = ["first", "second", "third"]
    assert [names(snapshot) for snapshot in seen_by_listener] == [["first"], everything, everything]


def test_a_faulty_listener_ends_nothing(
    run: Run, time: Time, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    setting = run(Plugin("card"))
    seen_by_listener: list[Snapshot] = []

    def listener(_: Snapshot) -> None:
        raise RuntimeError("a fault of ours")

    setting.monitor.add_listener(listener)
    setting.monitor.add_listener(seen_by_listener.append)
    with caplog.at_level(logging.ERROR):
        polled(setting, time)
        polled(setting, time)
        eventually(lambda: len(seen_by_listener) == 2)
    assert "a fault of ours" in caplog.text


# --- off --------------------------------------------------------------------------------


def test_switched_off_nothing_is_polled_and_there_are_no_devices(
    run: Run, time: Time, eventually: Eventually
) -> None:
    plugin = Plugin("card")
    setting = run(plugin)
    setting.monitor.touch()
    eventually(lambda: names(setting.monitor.snapshot))
    setting.monitor.set_enabled(False)
    assert not setting.monitor.enabled
    assert setting.ticks == ["resumed", "paused"]
    setting.is_watched = True
    setting.monitor.touch()
    setting.monitor.tick()
    setting.monitor.refresh()
    assert setting.monitor.snapshot == Snapshot()
    assert setting.monitor.wait_for_reading(time.now, PATIENCE) == Snapshot()
    assert setting.ticks == ["resumed", "paused"]

    setting.monitor.set_enabled(True)
    assert setting.ticks == ["resumed", "paused", "resumed"]
    eventually(lambda: names(setting.monitor.snapshot) == ["card"])
    assert plugin.begun == 2


def test_a_poll_that_ends_after_it_was_switched_off_reports_nothing(
    run: Run, time: Time, eventually: Eventually
) -> None:
    plugin = Plugin("card")
    plugin.gate.clear()
    setting = run(plugin)
    seen_by_listener: list[Snapshot] = []
    setting.monitor.add_listener(seen_by_listener.append)
    setting.monitor.touch()
    eventually(lambda: plugin.begun)
    setting.monitor.set_enabled(False)
    time.now += 5
    assert setting.monitor.snapshot == Snapshot()  # that it hangs is of no interest now
    plugin.gate.set()
    eventually(lambda: plugin.ended)
    setting.monitor.stop()
    assert seen_by_listener == []


def test_who_waits_when_it_is_switched_off_is_answered(run: Run, eventually: Eventually) -> None:
    plugin = Plugin("card")
    plugin.gate.clear()
    clock = Clock()
    setting = run(plugin, clock=clock)
    answers: list[Snapshot] = []
    thread = threading.Thread(
        target=lambda: answers.append(
            setting.monitor.wait_for_reading(clock.monotonic(), 10 * PATIENCE)
        )
    )
    thread.start()
    eventually(lambda: plugin.begun)
    setting.monitor.set_enabled(False)
    thread.join(PATIENCE)
    assert answers == [Snapshot()]


# --- with a real process ----------------------------------------------------------------


def test_cards_of_a_hanging_nvidia_smi_stay_stale_until_it_answers(
    run: Run,
    time: Time,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Eventually,
) -> None:
    cards = Cards(tmp_path / "machine", [card("RTX 4060", 8188), card("Tesla V100", 16384)])
    for name, value in cards.env.items():
        monkeypatch.setenv(name, value)
    setting = run(nvidia.Smi())
    polled(setting, time)
    cards.hang("until changed")
    calls = cards.calls
    setting.monitor.refresh()
    eventually(lambda: cards.calls == calls + 1)
    time.now += 4
    snapshot = setting.monitor.snapshot
    assert stale(snapshot) == names(snapshot) == ["RTX 4060", "Tesla V100"]
    assert snapshot.faults == {"nvidia": "has not answered for 4 seconds"}
    cards.play(hang=None, cards=[card("Tesla V100", 16384)])
    eventually(lambda: names(setting.monitor.snapshot) == ["Tesla V100"])
    assert setting.monitor.snapshot.faults == {}

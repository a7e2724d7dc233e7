"""The config's file: written and applied by one at a time, and applied when it was saved."""

from __future__ import annotations

import logging
import os
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from manager.clock import Clock
from manager.config import Config, ConfigChanged, ConfigError, LiveConfig, NotSaved, edit, loader
from manager.errors import ApiError

ENTRY = {"s": {"command": ["x"]}}
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes of files")


def text_of(*models: str, watch: bool = True) -> str:
    lines = [f"program:\n  watch_config: {str(watch).lower()}\nLocal-Models:\n"]
    return "".join(lines + [f"  {name}: {{s: {{command: [x]}}}}\n" for name in models])


class Desk:
    """A config that is in use, its file, and a clock that the test moves."""

    def __init__(self, folder: Path, text: str) -> None:
        self.path = folder / "config.yaml"
        self.path.write_text(text)
        self.path.chmod(0o600)
        self.now = 1000.0
        self.config = self.load()
        self.applied: list[Config] = []
        self.refusal: ApiError | None = None
        clock = Clock(monotonic=lambda: self.now)
        self.live = LiveConfig(
            lambda: self.config, self.load, self.apply, lambda _: ["Chat"], folder, clock
        )

    def load(self) -> Config:
        return loader.load(self.path, lambda _: ["Chat"])

    def apply(self, config: Config) -> dict[str, Any]:
        if self.refusal:
            raise self.refusal
        self.config = config
        self.applied.append(config)
        return {"models": list(config.models)}

    def pass_seconds(self, seconds: int) -> None:
        for _ in range(seconds):
            self.live.tick()
            self.now += 1.0
        self.live.tick()

    @property
    def models(self) -> list[str]:
        return list(self.config.models)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    tmp_path.chmod(0o700)
    desk = Desk(tmp_path, text_of("A", "B", "C"))
    desk.pass_seconds(2)
    assert desk.applied == []
    return desk


# --- written and applied --------------------------------------------------------------------


def test_models_that_join_at_the_same_time_are_all_in_the_file_and_in_use(desk: Desk) -> None:
    names = [f"m{number}" for number in range(8)]
    start = threading.Barrier(len(names))

    def add(name: str) -> None:
        start.wait(10)
        desk.live.save(lambda text: edit.add_models(text, {name: ENTRY}))

    threads = [threading.Thread(target=add, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert {"A", "B", "C", *names} == set(desk.load().models) == set(desk.models)
    assert [len(config.models) for config in desk.applied] == list(range(4, 12))


def test_a_change_that_is_refused_writes_nothing(desk: Desk) -> None:
    with pytest.raises(edit.EditError):
        desk.live.save(lambda text: edit.remove_model(text, "Other"))
    with pytest.raises(ConfigError, match="has no scheme"):
        desk.live.save(lambda text: edit.add_models(text, {"Neu": {}}))
    assert desk.path.read_text() == text_of("A", "B", "C")
    assert [one.name for one in desk.path.parent.iterdir()] == ["config.yaml"]


def test_what_others_save_while_a_change_is_checked_is_not_lost(desk: Desk) -> None:
    theirs = text_of("A", "B", "C", "D")

    def change(text: str) -> str:
        desk.path.write_text(theirs)
        return edit.remove_model(text, "A")

    with pytest.raises(ConfigChanged) as caught:
        desk.live.save(change)
    assert caught.value.file.text == desk.path.read_text() == theirs
    assert desk.applied == []


def test_a_file_that_is_far_too_large_is_refused_and_not_read_whole(desk: Desk) -> None:
    with desk.path.open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="is over 4 MB"):
        desk.load()


# --- watched --------------------------------------------------------------------------------


def write_in_place(path: Path, text: str) -> None:
    with path.open("r+") as file:
        file.truncate()
        file.write(text)


def rename_over(path: Path, text: str) -> None:
    part = path.with_name("config.yaml~")
    part.write_text(text)
    part.chmod(0o600)
    part.replace(path)


def write_through_a_new_file(path: Path, text: str) -> None:
    path.rename(path.with_name("config.yaml.old"))
    path.write_text(text)
    path.chmod(0o600)


@pytest.mark.parametrize("save", [write_in_place, rename_over, write_through_a_new_file])
def test_a_saved_file_is_applied_once_it_was_the_same_for_a_second(desk: Desk, save: Any) -> None:
    save(desk.path, text_of("A", "B", "D"))
    desk.live.tick()
    desk.now += 0.9
    desk.live.tick()
    assert desk.models == ["A", "B", "C"]
    desk.now += 0.1
    desk.live.tick()
    assert desk.models == ["A", "B", "D"]
    desk.pass_seconds(10)
    assert len(desk.applied) == 1


@on_posix
def test_a_mount_of_kubernetes_is_applied_when_its_link_leads_elsewhere(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for version, models in (("..1", ("A", "B")), ("..2", ("A", "C"))):
        (tmp_path / version).mkdir(mode=0o755)
        (tmp_path / version / "config.yaml").write_text(text_of(*models))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "mount").mkdir(mode=0o755)
    desk = Desk(tmp_path / "mount", text_of("A", "B"))
    desk.path.unlink()
    desk.path.symlink_to("../..data/config.yaml")
    desk.pass_seconds(3)
    assert desk.applied == []
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    desk.pass_seconds(1)
    assert desk.models == ["A", "C"]


def test_a_file_that_is_written_to_again_and_again_is_not_read(desk: Desk) -> None:
    for number in range(5):
        write_in_place(desk.path, text_of("A", "B", "C", f"m{number}" + "x" * number))
        desk.pass_seconds(0)
        desk.now += 0.9
    assert desk.applied == []
    desk.pass_seconds(1)
    assert desk.models == ["A", "B", "C", "m4xxxx"]


def test_without_watch_config_a_saved_file_waits_for_a_reload(tmp_path: Path) -> None:
    desk = Desk(tmp_path, text_of("A", watch=False))
    write_in_place(desk.path, text_of("A", "B"))
    desk.pass_seconds(5)
    assert desk.applied == []
    desk.live.reload()
    assert desk.models == ["A", "B"]


def test_what_the_page_has_written_or_a_reload_has_read_is_not_applied_again(desk: Desk) -> None:
    desk.live.save(lambda text: edit.add_models(text, {"D": ENTRY}))
    desk.pass_seconds(5)
    assert len(desk.applied) == 1
    write_in_place(desk.path, text_of("A", "B"))
    desk.live.tick()
    desk.live.reload()
    desk.pass_seconds(5)
    assert [len(config.models) for config in desk.applied] == [4, 2]


def test_a_file_that_was_saved_while_the_program_started_is_applied(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    desk = Desk(tmp_path, text_of("A", "B"))
    write_in_place(desk.path, text_of("A", "B", "C"))
    desk.pass_seconds(1)
    assert desk.models == ["A", "B", "C"]


def test_a_file_with_a_problem_changes_nothing_and_the_log_says_so_once(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    write_in_place(desk.path, text_of("A", "B", "C") + "  D: {mod: Chat, s: {command: [x]}}\n")
    desk.pass_seconds(20)
    assert desk.models == ["A", "B", "C"]
    assert [problem.line for problem in desk.live.state.problems] == [7]
    messages = [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR]
    assert len(messages) == 1
    assert "config.yaml:7: mod: unknown key; did you mean mode?" in messages[0]
    write_in_place(desk.path, text_of("A", "B", "C"))
    desk.pass_seconds(2)
    assert desk.live.state.problems == ()
    assert desk.applied == []


def test_a_file_that_was_half_written_changes_nothing_until_it_is_whole(desk: Desk) -> None:
    whole = text_of("A", "B", "C", "D")
    write_in_place(desk.path, whole[:-12])
    desk.pass_seconds(3)
    assert desk.applied == []
    assert desk.live.state.problems
    write_in_place(desk.path, whole)
    desk.pass_seconds(2)
    assert desk.models == ["A", "B", "C", "D"]
    assert desk.live.state.problems == ()


def test_a_file_that_was_deleted_is_a_problem(desk: Desk) -> None:
    text = desk.path.read_text()
    desk.path.unlink()
    desk.pass_seconds(3)
    assert "there is no file" in desk.live.state.problems[0].message
    desk.path.write_text(text)
    desk.path.chmod(0o600)
    desk.pass_seconds(2)
    assert desk.live.state.problems == ()


@pytest.mark.parametrize(
    ("before", "after", "waits"),
    [
        ("", "AB", False),
        ("A", "AB", False),
        ("A", "", True),
        ("A", "B", True),  # the one that there is was renamed, or it is another file
        ("AB", "A", False),
        ("AB", "", True),
        ("AB", "CD", True),
        ("ABC", "A", True),
        ("ABC", "AB", False),
        ("ABCD", "AB", False),
        ("ABCD", "A", True),
    ],
)
def test_a_save_that_removes_more_than_half_of_the_models_waits_for_a_reload(
    tmp_path: Path, before: str, after: str, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o700)
    desk = Desk(tmp_path, text_of(*before))
    desk.pass_seconds(1)
    write_in_place(desk.path, text_of(*after))
    desk.pass_seconds(20)
    waiting = desk.live.state.waiting
    assert desk.models == list(before if waits else after)
    assert (waiting is not None and waiting.code == "removes_models") == waits
    assert len(caplog.records) == int(waits)
    desk.live.reload()
    assert desk.models == list(after)
    assert desk.live.state.waiting is None


def test_a_config_that_the_program_refuses_waits(desk: Desk) -> None:
    desk.refusal = ApiError(503, "database_unavailable", "the database is locked")
    write_in_place(desk.path, text_of("A", "B", "D"))
    desk.pass_seconds(5)
    assert desk.live.state.waiting
    assert desk.live.state.waiting.message == "the database is locked"


def test_a_fault_of_the_program_is_not_met_again_each_second(desk: Desk) -> None:
    write_in_place(desk.path, text_of("A", "B", "D"))
    calls = []

    def fail() -> Config:
        calls.append(1)
        raise RuntimeError

    desk.live._load = fail
    desk.live.tick()
    desk.now += 1.0
    with pytest.raises(RuntimeError):
        desk.live.tick()
    desk.pass_seconds(5)
    assert len(calls) == 1


def test_a_file_that_is_written_to_while_it_is_read_is_read_again(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    load = desk.live._load

    def load_half() -> Config:
        desk.live._load = load
        try:
            return desk.load()
        finally:
            write_in_place(desk.path, text_of("A", "B", "D"))

    for half in (text_of("A", "B", "C", "E"), "program: ["):
        write_in_place(desk.path, half)
        desk.live._load = load_half
        desk.pass_seconds(1)
        assert desk.live.state.problems == ()
        desk.pass_seconds(2)
        assert desk.models == ["A", "B", "D"]
    assert caplog.records == []


@on_posix
@pytest.mark.parametrize("what", ["the file", "its folder"])
def test_a_file_that_others_may_write_is_applied_once_they_may_not(desk: Desk, what: str) -> None:
    place = desk.path if what == "the file" else desk.path.parent
    mode = stat.S_IMODE(place.stat().st_mode)
    place.chmod(mode | stat.S_IWOTH)
    write_in_place(desk.path, text_of("A", "B", "D"))
    desk.pass_seconds(5)
    assert desk.applied == []
    waiting = desk.live.state.waiting
    assert waiting
    assert (waiting.code, waiting.message) == (
        "others_may_write",
        f"other users may write to {place}: chmod o-w",
    )
    place.chmod(mode)
    desk.pass_seconds(1)
    assert desk.models == ["A", "B", "D"]
    assert desk.live.state.waiting is None


@on_posix
def test_what_is_no_regular_file_is_not_read(desk: Desk) -> None:
    desk.path.unlink()
    os.mkfifo(desk.path, 0o600)
    desk.pass_seconds(3)
    assert desk.live.state.waiting
    assert "no regular file" in desk.live.state.waiting.message


@on_posix
def test_a_pipe_is_refused_by_a_reload_and_a_save_which_do_not_wait_for_its_writer(
    desk: Desk,
) -> None:
    desk.path.unlink()
    os.mkfifo(desk.path, 0o600)
    with pytest.raises(ConfigError, match="no regular file"):
        desk.live.reload()
    with pytest.raises(NotSaved, match="no regular file"):
        desk.live.save(lambda text: edit.add_models(text, {"D": ENTRY}))
    assert stat.S_ISFIFO(desk.path.stat().st_mode)
    assert desk.models == ["A", "B", "C"]


@on_posix
def test_a_file_of_the_same_size_and_time_is_seen(desk: Desk) -> None:
    before = desk.path.stat()
    write_in_place(desk.path, text_of("A", "B", "D"))
    os.utime(desk.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    while desk.path.stat().st_ctime_ns == before.st_ctime_ns:  # within one tick of the system
        os.utime(desk.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    desk.pass_seconds(2)
    assert desk.models == ["A", "B", "D"]

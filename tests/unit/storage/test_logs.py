"""A model's output: a file for each run, its end, and those who follow it."""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manager.storage import log_cuts
from manager.storage.logs import ModelLogs, folder_name


@pytest.fixture
def logs(tmp_path: Path) -> ModelLogs:
    return ModelLogs(tmp_path / "logs")


def write(logs: ModelLogs, output: bytes | str, model: str = "Qwen", run: str = "a" * 32) -> Path:
    """A run with this output behind its title."""
    path, descriptor = logs.create(model, run, "title")
    os.write(descriptor, output.encode() if isinstance(output, str) else output)
    os.close(descriptor)
    return path


def lines(text: str) -> list[str]:
    return text.split("\n") if text else []


def next_lines(follower: Iterator[str | None], count: int) -> list[str]:
    """The next lines that are followed, over a bounded number of quiet moments."""
    found: list[str] = []
    quiet = 0
    while len(found) < count:
        line = next(follower)
        if line is None:
            quiet += 1
            assert quiet < 20, f"nothing more comes after {found}"
        else:
            found.append(line)
    return found


def is_quiet(follower: Iterator[str | None]) -> bool:
    return next(follower) is None


# --- files ------------------------------------------------------------------------------


def test_each_run_has_a_file_of_its_own_with_a_title(logs: ModelLogs) -> None:
    first = write(logs, "one\n", run="1" * 32)
    second = write(logs, "two\n", run="2" * 32)
    assert first != second
    assert first.parent == second.parent
    assert logs.newest("Qwen") == second
    assert lines(logs.tail("Qwen", 10))[1:] == ["two"]
    assert "title" in first.read_text().splitlines()[0]


def test_the_newest_file_is_that_of_the_last_run_also_where_the_clock_was_set_back(
    logs: ModelLogs,
) -> None:
    first = write(logs, "one\n", run="1" * 32)
    ahead = first.rename(first.with_name("2200" + first.name[4:]))
    second, third = (write(logs, f"{run}\n", run=str(run) * 32) for run in (2, 3))
    assert sorted([third, second, ahead]) == [ahead, second, third]
    assert logs.newest("Qwen") == third
    assert third.name.endswith("-33333333.log")
    assert "title" in third.read_text().splitlines()[0]


def test_a_model_that_has_never_run_has_no_output(logs: ModelLogs) -> None:
    assert logs.newest("Qwen") is None
    assert logs.tail("Qwen", 10) == ""
    assert is_quiet(logs.follow("Qwen", 10, threading.Event()))


def test_output_is_appended_though_others_write_as_well(logs: ModelLogs) -> None:
    path, descriptor = logs.create("Qwen", "a" * 32, "title")
    with path.open("ab", buffering=0) as other:
        for _ in range(3):
            os.write(descriptor, b"one\n")
            other.write(b"other\n")
    os.close(descriptor)
    assert path.read_text().splitlines()[1:] == ["one", "other"] * 3


def test_output_is_not_for_every_user_of_the_machine(logs: ModelLogs) -> None:
    assert write(logs, "").stat().st_mode & 0o007 == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_told_at_once_and_leaves_no_empty_file(
    logs: ModelLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_open = os.open
    made: list[Path] = []

    def open_on_a_full_disk(path: Path, flags: int, mode: int) -> int:
        made.append(path)
        os.close(real_open(path, flags, mode))
        return real_open("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", open_on_a_full_disk)
    with pytest.raises(OSError, match="No space left"):
        logs.create("Qwen", "a" * 32, "title")
    assert made
    assert not [path for path in made if path.exists()]


# --- folders ----------------------------------------------------------------------------

NAMES = st.text(min_size=1, max_size=80) | st.sampled_from(
    [
        "..",
        ".",
        "a/b",
        "a\\b",
        "org/model:7b",
        "a%2Fb",
        "CON",
        "nul",
        "com1.txt",
        " a ",
        "a.",
        "a\n",
    ]
)


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
@example(["a/b", "a%2Fb"])
@example(["é" * 100, "é" * 101])
@example(["x" * 300, "x" * 301])
@example(["CON", "%43ON"])
def test_two_models_never_share_a_folder(names: list[str]) -> None:
    first, second = names
    assert folder_name(first) != folder_name(second)


@given(NAMES)
@example("é" * 1000)
def test_a_folder_is_a_plain_name_on_every_file_system(name: str) -> None:
    folder = folder_name(name)
    assert not set(folder) & set('<>:"/\\|?*')
    assert min(folder) >= " "
    assert not folder.startswith(".")
    assert folder[-1] not in ". "
    assert len(folder.encode()) <= 255
    # Windows keeps these for devices, with any suffix and in any case.
    devices = ["con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))]
    assert folder.lower().partition(".")[0].rstrip(" ") not in devices


@pytest.mark.parametrize("name", ["Qwen-14B-Chat", "gpt-3.5-turbo", "中文模型", "a b_c+d@e"])
def test_a_usual_name_is_its_folder(name: str) -> None:
    assert folder_name(name) == name


def test_a_model_with_a_path_as_its_name_stays_below_the_logs(
    logs: ModelLogs, tmp_path: Path
) -> None:
    for name in ("../../etc/passwd", "/etc/passwd", "..", "C:\\a"):
        write(logs, "line\n", model=name)
        assert lines(logs.tail(name, 1)) == ["line"]
    assert len(list((tmp_path / "logs").iterdir())) == 4
    assert list(tmp_path.iterdir()) == [tmp_path / "logs"]


# --- the end of the output --------------------------------------------------------------

LINES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8)
    | st.sampled_from(["", "é" * 20_000, "x" * 65_000, "y" * 40_000]),
    max_size=12,
)


@example(output=["a "], count=1, end="\r\n", is_ended=True)  # no bar that was overwritten
@given(LINES, st.integers(0, 14), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_the_tail_is_the_last_lines_wherever_the_blocks_end(
    tmp_path: Path, output: list[str], count: int, end: str, is_ended: bool
) -> None:
    logs = ModelLogs(tmp_path)
    path = write(logs, (end.join(output) + end * is_ended).encode())
    title, _, rest = path.read_bytes().decode().partition("\n")
    path.unlink()
    expected = [title, *(line.removesuffix("\r") for line in rest.split("\n"))]
    if not expected[-1]:
        expected.pop()
    path.write_bytes(f"{title}\n{rest}".encode())
    found = logs.tail("Qwen", count)
    path.unlink()
    assert found == "\n".join(expected[len(expected) - min(count, len(expected)) :])


def test_a_log_of_one_endless_line_is_not_read_whole(logs: ModelLogs) -> None:
    write(logs, b"x" * 5_000_000)
    found = logs.tail("Qwen", 3)
    assert set(found) <= {"x", "\n"}
    assert len(found) < 1_000_000


def test_bytes_that_are_no_text_are_shown_as_such(logs: ModelLogs) -> None:
    write(logs, b"caf\xe9 \xff\n")
    assert lines(logs.tail("Qwen", 1)) == ["caf\ufffd \ufffd"]


# --- followers --------------------------------------------------------------------------


def test_a_follower_gets_the_last_lines_and_then_each_line_to_come(logs: ModelLogs) -> None:
    path = write(logs, "1\n2\n3\n")
    follower = logs.follow("Qwen", 2, threading.Event())
    assert next_lines(follower, 2) == ["2", "3"]
    assert is_quiet(follower)
    with path.open("ab") as file:
        file.write(b"4\r\n5\n")
        file.flush()
        assert next_lines(follower, 2) == ["4", "5"]


def test_half_a_line_waits_for_its_end(logs: ModelLogs) -> None:
    path = write(logs, "")
    follower = logs.follow("Qwen", 0, threading.Event())
    assert is_quiet(follower)
    with path.open("ab", buffering=0) as file:
        file.write(b"hal")
        assert is_quiet(follower)
        file.write("f é".encode()[:-1])
        assert is_quiet(follower)
        file.write("é".encode()[-1:] + b"\n")
        assert next_lines(follower, 1) == ["half é"]


def test_a_follower_sees_later_runs_from_their_first_line(logs: ModelLogs) -> None:
    write(logs, "old\n", run="1" * 32)
    follower = logs.follow("Qwen", 1, threading.Event())
    assert next_lines(follower, 1) == ["old"]
    write(logs, "new\n", run="2" * 32)
    title, line = next_lines(follower, 2)
    assert "title" in title
    assert line == "new"


def test_a_follower_may_be_there_before_the_first_run(logs: ModelLogs) -> None:
    follower = logs.follow("Qwen", 10, threading.Event())
    assert is_quiet(follower)
    write(logs, "first\n")
    assert next_lines(follower, 2)[1] == "first"


def test_a_run_that_came_and_went_between_two_looks_is_not_left_out(logs: ModelLogs) -> None:
    """As with a model that crashes at once, again and again."""
    write(logs, "", run="1" * 32)
    follower = logs.follow("Qwen", 0, threading.Event())
    assert is_quiet(follower)
    for number in (2, 3, 4):
        write(logs, f"crash {number}\n", run=f"{number}" * 32)
    assert next_lines(follower, 6)[1::2] == ["crash 2", "crash 3", "crash 4"]


def test_the_last_words_of_a_run_are_heard_though_their_line_has_no_end(logs: ModelLogs) -> None:
    path = write(logs, "", run="1" * 32)
    follower = logs.follow("Qwen", 0, threading.Event())
    assert is_quiet(follower)
    with path.open("ab", buffering=0) as file:
        file.write(b"Segmentation fault")
    assert is_quiet(follower)
    write(logs, "next\n", run="2" * 32)
    assert next_lines(follower, 3)[0] == "Segmentation fault"


def test_a_line_without_end_neither_fills_the_memory_nor_ends_the_following(
    logs: ModelLogs,
) -> None:
    path = write(logs, "")
    follower = logs.follow("Qwen", 0, threading.Event())
    assert is_quiet(follower)
    with path.open("ab") as file:
        file.write(b"x" * 1_000_000 + b"\nnext\n")
    part = ""
    while part != "next":
        assert set(part) <= {"x"}
        assert len(part) <= 200_000
        part = next_lines(follower, 1)[0]


def test_a_follower_ends_when_it_is_told_to(logs: ModelLogs) -> None:
    write(logs, "1\n")
    stopped = threading.Event()
    followed: list[str | None] = []
    thread = threading.Thread(target=lambda: followed.extend(logs.follow("Qwen", 5, stopped)))
    thread.start()
    stopped.set()
    thread.join(20)
    assert not thread.is_alive()


def test_a_follower_outlives_the_files_removal(logs: ModelLogs) -> None:
    path = write(logs, "1\n")
    follower = logs.follow("Qwen", 0, threading.Event())
    assert is_quiet(follower)
    path.unlink()
    assert is_quiet(follower)
    write(logs, "again\n", run="b" * 32)
    assert next_lines(follower, 2)[1] == "again"


# --- cleaning up ------------------------------------------------------------------------


def test_old_files_go_and_each_models_latest_stays(logs: ModelLogs, tmp_path: Path) -> None:
    old = [write(logs, "", model, f"{n}" * 32) for model in ("A", "B") for n in range(3)]
    for path in old:
        os.utime(path, (time.time() - 40 * 86400,) * 2)
    recent = [write(logs, "", "B", f"{n}" * 32) for n in range(2)]
    program_log = tmp_path / "logs" / "llm-manager.log"
    program_log.touch()
    os.utime(program_log, (0, 0))
    assert logs.clean(30) == 5
    assert [path for path in old if path.exists()] == [old[2]]
    assert all(path.exists() for path in recent)
    assert program_log.exists()
    assert logs.clean(30) == 0


def test_an_old_run_that_still_writes_keeps_its_file(logs: ModelLogs) -> None:
    first = write(logs, "", run="1" * 32)
    write(logs, "", run="2" * 32)
    os.utime(first, (time.time() - 40 * 86400,) * 2)
    with first.open("ab") as file:
        file.write(b"still here\n")
    assert logs.clean(30) == 0


def test_there_may_be_nothing_to_clean_up(logs: ModelLogs) -> None:
    assert logs.clean(30) == 0


# --- a limit ------------------------------------------------------------------------------

MB = 1 << 20


@pytest.fixture(params=["in place", "by a copy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """How output is cut off: as ext4 and XFS can, and as others have it done."""
    way: str = request.param
    if way == "by a copy":
        monkeypatch.setattr(log_cuts, "_collapse", lambda *_: False)
    elif not can_cut_in_place(tmp_path / "tried"):
        pytest.skip("needs a file system that takes blocks out of a file, such as ext4 or XFS")
    return way


def can_cut_in_place(path: Path) -> bool:
    with path.open("wb+") as file:
        file.write(bytes(1 << 17))
        file.flush()
        return log_cuts._collapse(file.fileno(), 1 << 16)


def numbered(first: int, last: int) -> bytes:
    return b"".join(b"line %07d\n" % number for number in range(first, last))


def bytes_beside(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.parent.iterdir())


def test_what_is_over_the_limit_goes_by_runs_the_oldest_first(logs: ModelLogs) -> None:
    runs = [write(logs, bytes(MB), run=f"{n}" * 32) for n in range(4)]
    other = write(logs, bytes(MB), model="Other")
    logs.enforce_limit(2 * MB + 1000)
    assert [path.exists() for path in runs] == [False, False, True, True]
    assert other.exists()
    # A run that begins is one more.
    runs.append(write(logs, bytes(MB), run="5" * 32))
    logs.enforce_limit(2 * MB + 1000)
    assert [path.exists() for path in runs] == [False] * 3 + [True] * 2


@pytest.mark.usefixtures("way")
def test_of_a_run_that_is_over_the_limit_the_newest_output_stays_below_its_title(
    logs: ModelLogs,
) -> None:
    path = write(logs, numbered(0, 400_000))
    logs.enforce_limit(2 * MB)
    assert bytes_beside(path) <= 2 * MB
    assert path.stat().st_size > MB // 2
    title, *kept = path.read_text().splitlines()
    assert title.rstrip().endswith("title; earlier output was deleted")
    numbers = [int(line.removeprefix("line ")) for line in kept]
    assert numbers == list(range(numbers[0], 400_000))
    assert lines(logs.tail("Qwen", 1)) == ["line 0399999"]
    # The next time, too, and a program that starts cuts at once.
    with path.open("ab") as file:
        file.write(numbered(400_000, 800_000))
    ModelLogs(path.parents[1]).enforce_limit(2 * MB)
    again = path.read_text().splitlines()
    assert again[0].rstrip() == title.rstrip()
    assert again[-1] == "line 0799999"


def test_nothing_is_lost_that_is_written_while_the_file_is_cut(
    logs: ModelLogs, tmp_path: Path
) -> None:
    if not can_cut_in_place(tmp_path / "tried"):
        pytest.skip("needs a file system that takes blocks out of a file, such as ext4 or XFS")
    path, descriptor = logs.create("Qwen", "a" * 32, "title")
    is_enough = threading.Event()
    written = 0

    def write_on() -> None:
        nonlocal written
        while not is_enough.is_set():
            os.write(descriptor, numbered(written, written + 2000))
            written += 2000

    thread = threading.Thread(target=write_on)
    thread.start()
    cuts = 0
    while cuts < 10:
        before = logs._cut_of(path).removed
        logs.enforce_limit(MB)
        cuts += logs._cut_of(path).removed > before
    is_enough.set()
    thread.join()
    os.close(descriptor)
    kept = [line for line in path.read_bytes().splitlines() if not line.startswith(b"# ")]
    numbers = [int(line.removeprefix(b"line ")) for line in kept]
    assert numbers == list(range(numbers[0], written))


@pytest.mark.usefixtures("way")
def test_a_follower_gets_each_line_once_though_the_file_is_cut(logs: ModelLogs) -> None:
    path = write(logs, "")
    follower = logs.follower("Qwen", 0)
    seen: list[str] = []
    step = 20_000  # a quarter of a MB
    for first in range(0, 40 * step, step):
        with path.open("ab") as file:
            file.write(numbered(first, first + step))
        if first % 3:  # as often before as after what was written is read
            logs.enforce_limit(2 * MB)
        seen += follower.read() or []
        logs.enforce_limit(2 * MB)
    seen += follower.read() or []
    assert logs._cut_of(path).removed > 5 * MB
    assert seen == numbered(0, 40 * step).decode().splitlines()


def test_a_follower_waits_while_the_file_is_cut(
    logs: ModelLogs, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(logs, numbered(0, 100_000))
    follower = logs.follower("Qwen", 1)
    assert follower.read() == ["line 0099999"]
    cut = log_cuts.cut

    def cut_and_look(*arguments: Any) -> Any:
        with path.open("ab") as file:
            file.write(b"written before\n")
        after = cut(*arguments)
        assert follower.read() is None  # what is where is not known yet
        return after

    monkeypatch.setattr(log_cuts, "cut", cut_and_look)
    logs.enforce_limit(MB)
    assert follower.read() == ["written before"]


@pytest.mark.usefixtures("way")
def test_a_follower_that_was_far_behind_is_told_what_it_missed(logs: ModelLogs) -> None:
    path = write(logs, "")
    follower = logs.follower("Qwen", 0)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(numbered(0, 400_000))
    logs.enforce_limit(MB)
    found = follower.read()
    assert found is not None
    assert found[0] == f"# {len(numbered(0, 400_000))} bytes are left out here"
    assert found[-1] == "line 0399999"
    assert size + len(numbered(0, 400_000)) == logs._cut_of(path).removed + path.stat().st_size
    assert follower.read() is None


def test_files_that_cannot_be_cut_are_reported_once_and_keep_no_other_from_it(
    logs: ModelLogs, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, other = (write(logs, numbered(0, 400_000), model) for model in ("A", "B"))
    cut = log_cuts.cut

    def fail(path: Path, *arguments: Any) -> Any:
        if path == stuck:
            raise OSError(errno.EROFS, "Read-only file system")
        return cut(path, *arguments)

    monkeypatch.setattr(log_cuts, "cut", fail)
    for _ in range(3):
        logs.enforce_limit(MB)
    assert other.stat().st_size < MB < stuck.stat().st_size
    assert [r.levelname for r in caplog.records if "Read-only" in r.getMessage()] == ["ERROR"]


def test_a_limit_that_nobody_reaches_deletes_nothing(logs: ModelLogs) -> None:
    files = [write(logs, numbered(0, 1000), run=f"{n}" * 32) for n in range(3)]
    before = [path.read_bytes() for path in files]
    logs.enforce_limit(MB)
    assert [path.read_bytes() for path in files] == before


# --- what people see of it ----------------------------------------------------------------

BAR = b"\x1b[32mloading\x1b[0m\n" + b"\r".join(b"%d%%" % n for n in range(101)) + b"\nready\n"


def test_the_tail_has_a_progress_bars_last_state_and_no_colours(logs: ModelLogs) -> None:
    path = write(logs, BAR)
    assert lines(logs.tail("Qwen", 3)) == ["loading", "100%", "ready"]
    assert path.read_bytes().endswith(BAR)


@given(st.lists(st.integers(0, len(BAR)), max_size=6).map(sorted), st.integers(0, 3))
def test_a_follower_sees_the_same_however_it_was_written(
    tmp_path: Path, cuts: list[int], count: int
) -> None:
    logs = ModelLogs(tmp_path)
    path = write(logs, "")
    follower = logs.follower("Qwen", 0)
    seen: list[str] = []
    for begin, end in zip([0, *cuts], [*cuts, len(BAR)], strict=True):
        with path.open("ab") as file:
            file.write(BAR[begin:end])
        seen += follower.read() or []
        # Nor does one that comes in the middle see half of a sequence.
        middle = logs.follower("Qwen", count)
        for line in middle._first:
            assert not re.search(r"[\x1b\r]|^\[|^3?[12]m", line)
    path.unlink()
    assert seen == ["loading", "100%", "ready"]


def test_a_progress_bar_without_end_is_one_line_once_it_ends(logs: ModelLogs) -> None:
    path = write(logs, "")
    follower = logs.follower("Qwen", 0)
    for number in range(40):
        with path.open("ab") as file:
            file.write(b"".join(b"\r%d of 40, %d" % (number, n) for n in range(2000)))
        assert not follower.read()
    with path.open("ab") as file:
        file.write(b"\r40 of 40\ndone\n")
    assert follower.read() == ["40 of 40", "done"]


# --- the log of a page --------------------------------------------------------------------


def test_a_follower_that_cannot_keep_up_goes_on_with_the_newest_lines(logs: ModelLogs) -> None:
    path = write(logs, "first\n")
    follower = logs.follower("Qwen", 1)
    assert follower.read() == ["first"]
    with path.open("a") as file:
        file.writelines(f"line {number}\n" for number in range(200_000))
    found = follower.read()
    assert found is not None
    assert found[0].endswith("bytes are left out here")
    assert found[-1] == "line 199999"
    assert len(found) == 101
    assert follower.read() is None


def test_the_log_of_an_earlier_run_is_found_by_its_id(logs: ModelLogs) -> None:
    write(logs, "one\n", run="1" * 32)
    write(logs, "two\n", run="2" * 32)
    assert lines(logs.tail("Qwen", 1, "1" * 32)) == ["one"]
    assert logs.tail("Qwen", 1, "3" * 32) == ""
    assert logs.of_run("Qwen", "") is None

"""``/api/config/text`` and ``/check``: config.yaml edited on a page, over a real file."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from manager.errors import ApiError
from routes.api import config as settings
from tests.support.authorization import as_admin
from tests.support.config_desk import TEXT, Desk


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    folder = tmp_path / "config"
    folder.mkdir()
    return Desk(folder, monkeypatch, settings.blueprint)


def test_the_file_is_shown_as_it_is(desk: Desk) -> None:
    found = desk.get()
    assert found["text"] == TEXT
    assert found["path"] == str(desk.path)
    assert found["problems"] == []
    assert found["writable"] is True
    assert found["version"] == desk.get()["version"]


def test_the_file_on_the_disk_is_reported_as_far_as_it_is_watched(desk: Desk) -> None:
    def file(client: Any) -> Any:
        return client.get("/api/config/file").get_json()

    admin, onlooker = as_admin(desk.app.test_client()), desk.app.test_client()
    state = {"watched": False, "problems": [], "waiting": None}
    assert file(admin) == {**state, "version": desk.get()["version"]}
    desk.put(TEXT.replace("max_waiting: 7", "watch_config: true"))
    assert file(admin) == {**state, "watched": True, "version": desk.get()["version"]}
    desk.path.write_text("program:\n  port: s3cr3t\n")
    assert desk.send("POST", "/api/config/reload", {}).status_code == 400
    shown = file(admin)["problems"]
    assert [problem["line"] for problem in shown] == [2]
    assert file(onlooker)["version"] == desk.get()["version"]
    assert "s3cr3t" in shown[0]["message"]
    # Whoever may not read the text is not shown what is in it.
    assert file(onlooker)["problems"] == [{"line": 2, "message": None}]


def test_an_edited_text_is_checked_as_the_program_would_and_nothing_is_written(
    desk: Desk,
) -> None:
    assert desk.check(TEXT) == {"problems": [], "models": ["Qwen", "Gemma"]}
    found = desk.check(TEXT.replace("Gemma:", "Gemma: {mode: Chatt}\n  Other:"))
    assert found["models"] == []
    assert [problem["line"] for problem in found["problems"]] == [9, 9]
    assert "did you mean Chat?" in str(found["problems"])
    (problem,) = desk.check("program: [\n")["problems"]
    assert problem["line"] == 1
    assert desk.path.read_text() == TEXT
    assert desk.files == ["config.yaml"]
    assert desk.told == []


def test_paths_in_a_text_are_relative_to_the_configs_folder(desk: Desk) -> None:
    (desk.path.parent / "serve.sh").touch()
    text = TEXT.replace("{command: [serve]}", "{script_path: serve.sh}")
    assert desk.check(text)["problems"] == []


def test_a_saved_text_is_in_use(desk: Desk) -> None:
    before = desk.get()["version"]
    answer = desk.put(
        TEXT.replace("Gemma", "Phi").replace("max_waiting:", "threads: 99\n  max_waiting:")
    )
    assert answer.status_code == 200, answer.text
    assert answer.get_json() == {
        "models": ["Qwen", "Phi"],
        "restart_needed_for": ["threads"],
        "version": desk.get()["version"],
    }
    assert desk.get()["version"] != before
    expected = TEXT.replace("Gemma", "Phi").replace("max_waiting:", "threads: 99\n  max_waiting:")
    assert desk.path.read_text() == expected
    assert list(desk.fleet.config.models) == ["Qwen", "Phi"]
    assert desk.discarded == ["Gemma"]
    assert desk.fleet.config.models["Qwen"].schemes[0].env == {"HF_TOKEN": "s3cr3t"}
    assert len(desk.told) == 1
    assert desk.files == ["config.yaml", "config.yaml.bak"]
    assert (desk.path.parent / "config.yaml.bak").read_text() == TEXT


def test_a_restart_is_needed_until_the_config_says_what_the_program_runs_with(desk: Desk) -> None:
    changed = TEXT.replace("max_waiting:", "threads: 99\n  max_waiting:")
    for text, needed in ((changed, ["threads"]), (changed + "# more\n", ["threads"]), (TEXT, [])):
        assert desk.put(text).get_json()["restart_needed_for"] == needed


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_saved_file_and_its_backup_have_the_rights_that_it_had(desk: Desk, mode: int) -> None:
    desk.path.chmod(mode)
    assert desk.put(TEXT + "# more\n").status_code == 200
    for path in (desk.path, desk.path.with_name("config.yaml.bak")):
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_link_stays_a_link_and_the_file_that_it_leads_to_is_saved(desk: Desk) -> None:
    real = desk.path.parent / "real" / "real.yaml"
    real.parent.mkdir()
    desk.path.rename(real)
    desk.path.symlink_to(Path("real") / "real.yaml")
    assert desk.put(TEXT + "# more\n").status_code == 200
    assert desk.path.is_symlink()
    assert real.read_text() == TEXT + "# more\n"
    assert sorted(path.name for path in real.parent.iterdir()) == ["real.yaml", "real.yaml.bak"]


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_windows_file_stays_one_though_a_page_has_other_line_ends(
    desk: Desk, start: bytes
) -> None:
    desk.path.write_bytes(start + TEXT.replace("\n", "\r\n").encode())
    found = desk.get()
    assert found["text"] == TEXT.replace("\n", "\r\n")
    assert desk.put(TEXT + "# ä\n").status_code == 200
    assert desk.path.read_bytes() == start + (TEXT + "# ä\n").replace("\n", "\r\n").encode()


def test_who_may_come_in_is_changed_without_a_restart(desk: Desk) -> None:
    keys = [
        "require_key: false",
        "allowed_hosts: [llm.example.org]",
        "cors_origins: ['*']",
        "trusted_proxies: [127.0.0.1]",
        "allow_config_edit: true",
    ]
    answer = desk.put(TEXT.replace("program:\n", "program:\n  " + "\n  ".join(keys) + "\n"))
    assert answer.get_json()["restart_needed_for"] == []
    shown = desk.app.test_client().get("/api/config").get_json()["program"]
    assert [shown["require_key"], shown["allow_config_edit"]] == [False, True]
    assert shown["trusted_proxies"] == ["127.0.0.1/32"]


def test_what_is_odd_in_a_saved_text_is_in_the_log(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    text = TEXT.replace("  max_waiting", "  queue: redis://:hunter2@cache\n  max_waiting")
    assert desk.check(text)["problems"] == []
    assert caplog.messages == []  # it is not in use
    assert desk.put(text).status_code == 200
    (line,) = caplog.messages
    assert line.startswith("config.yaml:3: queue: this key is ignored")
    assert "hunter2" not in line


def test_a_bad_text_changes_nothing_and_its_problems_come_with_their_lines(desk: Desk) -> None:
    answer = desk.put(TEXT.replace("Gemma:", "Gemma: {}\n  Other:").replace("waiting", "waitin"))
    error = desk.refused(answer, 400, "invalid_config")
    assert [problem["line"] for problem in error["problems"]] == [3, 9]
    assert "config.yaml:3: max_waitin: unknown key; did you mean max_waiting?" in error["message"]
    assert desk.path.read_text() == TEXT
    assert desk.files == ["config.yaml"]


def test_who_edited_the_file_meanwhile_is_not_overwritten(desk: Desk) -> None:
    version = desk.get()["version"]
    desk.path.write_text(TEXT.replace("s3cr3t", "other", 1))
    desk.refused(desk.put(TEXT + "# mine\n", version), 409, "config_changed")
    assert desk.path.read_text() == TEXT.replace("s3cr3t", "other", 1)
    assert desk.files == ["config.yaml"]


def test_of_two_who_save_at_once_one_is_told(desk: Desk) -> None:
    version = desk.get()["version"]
    together = threading.Barrier(8)

    def save(number: int) -> int:
        together.wait(20)
        return desk.put(TEXT + f"# {number}\n", version).status_code

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(save, range(8)))
    assert sorted(answers) == [200] + [409] * 7
    assert desk.path.read_text() == TEXT + f"# {answers.index(200)}\n"
    assert desk.files == ["config.yaml", "config.yaml.bak"]


def test_a_full_disk_leaves_the_file_as_it_was(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    version = desk.get()["version"]

    def fsync(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    error = desk.refused(desk.put(TEXT + "# more\n", version), 409, "config_not_writable")
    assert "No space left on device" in error["message"]
    assert desk.path.read_text() == TEXT
    assert desk.files == ["config.yaml"]


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_file_that_may_not_be_written_says_so(desk: Desk) -> None:
    desk.path.chmod(0o444)
    assert desk.get()["writable"] is False
    desk.refused(desk.put(TEXT + "# more\n"), 409, "config_not_writable")
    assert desk.path.read_text() == TEXT
    assert desk.files == ["config.yaml"]


class NotReplaced:
    """What a system answers that gives a file's name to no other: where it makes no new file
    beside it, or only does not rename one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, number: int) -> None:
        self.makes_files = number in (errno.EBUSY, errno.EPERM, errno.EXDEV)
        self.folder, self.number = folder, number
        self.mkstemp, self.replace = tempfile.mkstemp, os.replace
        monkeypatch.setattr(tempfile, "mkstemp", self.make)
        monkeypatch.setattr(os, "replace", self.rename)

    def make(self, **options: Any) -> Any:
        if options["dir"] == self.folder and not self.makes_files:
            raise OSError(self.number, os.strerror(self.number))
        return self.mkstemp(**options)

    def rename(self, source: Path, target: Path) -> None:
        if target == self.folder / "config.yaml":
            raise OSError(self.number, os.strerror(self.number))
        self.replace(source, target)


IN_PLACE = pytest.mark.parametrize(
    "number", [errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV]
)


@IN_PLACE
@pytest.mark.parametrize("text", [TEXT + "# more\n", TEXT.replace("# Two models.\n", "")])
def test_a_file_that_cannot_be_replaced_is_written_in_place_with_a_copy_in_the_data_folder(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    NotReplaced(monkeypatch, desk.path.parent, number)
    desk.path.chmod(0o664)
    inode = desk.path.stat().st_ino
    assert desk.get()["writable"] is True
    answer = desk.put(text)
    assert answer.status_code == 200, answer.text
    assert answer.get_json()["version"] == desk.get()["version"]
    assert desk.path.read_text() == text
    assert (desk.path.stat().st_ino, stat.S_IMODE(desk.path.stat().st_mode)) == (inode, 0o664)
    backup = desk.data / "config.yaml.bak"
    assert backup.read_text() == TEXT
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert [path.name for path in desk.data.iterdir()] == ["config.yaml.bak"]
    assert set(desk.files) <= {"config.yaml", "config.yaml.bak"}


@IN_PLACE
def test_without_a_copy_nothing_is_written_in_place(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    NotReplaced(monkeypatch, desk.path.parent, number)
    desk.data.rmdir()
    desk.refused(desk.put(TEXT + "# more\n"), 409, "config_not_writable")
    assert desk.path.read_text() == TEXT


def test_when_the_program_dies_while_it_writes_in_place_the_copy_is_whole(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    NotReplaced(monkeypatch, desk.path.parent, errno.EBUSY)

    class Died(BaseException):
        pass

    def die(_descriptor: int, _size: int) -> None:
        raise Died

    monkeypatch.setattr(os, "ftruncate", die)
    with pytest.raises(Died):
        desk.put(TEXT.replace("# Two models.\n", ""))
    assert (desk.data / "config.yaml.bak").read_text() == TEXT


@pytest.mark.parametrize("is_full_for_good", [False, True])
def test_a_disk_that_is_full_while_it_writes_in_place_loses_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, is_full_for_good: bool
) -> None:
    NotReplaced(monkeypatch, desk.path.parent, errno.EBUSY)
    write, answers = os.write, [2, None]

    def fill(descriptor: int, data: bytes) -> int:
        """Two bytes, and then nothing more; what was there before is taken, where it is."""
        answer = answers.pop(0) if answers else 0
        if answer is None or (answer == 0 and is_full_for_good):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:2] if answer else data)

    monkeypatch.setattr(os, "write", fill)
    error = desk.refused(desk.put("# x\n" + TEXT), 409, "config_not_writable")
    assert "No space left on device" in error["message"]
    backup = desk.data / "config.yaml.bak"
    assert backup.read_text() == TEXT
    if is_full_for_good:
        assert f"{backup} has what was there before" in error["message"]
    else:
        assert desk.path.read_text() == TEXT


def test_a_folder_in_the_files_place_is_told_and_not_replaced(desk: Desk) -> None:
    desk.path.unlink()
    desk.path.mkdir()
    found = desk.get()
    assert (found["text"], found["version"], found["writable"]) == ("", None, False)
    assert "cannot be read" in found["problems"][0]["message"]
    desk.refused(desk.put(TEXT, None), 409, "config_not_writable")


def test_a_file_that_was_removed_can_be_written_again(desk: Desk) -> None:
    desk.path.unlink()
    found = desk.get()
    assert (found["text"], found["version"], found["writable"]) == ("", None, True)
    assert "there is no file" in found["problems"][0]["message"]
    assert desk.put(TEXT, None).status_code == 200
    assert desk.path.read_text() == TEXT


def test_where_it_is_written_but_cannot_be_applied_both_are_said(desk: Desk) -> None:
    desk.fleet.refusal = ApiError(503, "shutting_down", "The program is shutting down")
    error = desk.refused(desk.put(TEXT + "# more\n"), 503, "shutting_down")
    assert f"{desk.path} was written" in error["message"]
    assert "config.yaml.bak has what was there before" in error["message"]
    assert "The program is shutting down" in error["message"]
    assert error["version"] == desk.get()["version"]
    assert desk.path.read_text() == TEXT + "# more\n"


def test_a_broken_file_can_be_fixed_on_the_page(desk: Desk) -> None:
    broken = TEXT.replace("[serve]}", "[serve}")
    desk.path.write_text(broken)
    found = desk.get()
    assert [problem["line"] for problem in found["problems"]] == [10]
    answer = desk.put(found["text"].replace("[serve}", "[serve]}"))
    assert answer.status_code == 200, answer.text
    assert desk.path.read_text() == TEXT


def test_a_file_that_is_not_utf8_is_shown_with_that_problem(desk: Desk) -> None:
    desk.path.write_bytes(TEXT.replace("Two models", "M\xe4user").encode("latin-1"))
    found = desk.get()
    assert "# M\ufffduser" in found["text"]
    assert "UTF-8" in found["problems"][0]["message"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: b\nc: \0\n", 2),
        ("a: b\nc: \ud800\n", 2),
        ("a:\n " + "[" * 100_000, 2),
        ("a:\n " + "- " * 90_000, 2),
        ("a: b\n" + "? " * 90_000, 2),
        ("Local-Models:\n" + "".join(f"  m{n}: {{}}\n" for n in range(2000)), 2),
    ],
)
def test_a_hostile_text_is_refused_with_its_line(desk: Desk, text: str, line: int) -> None:
    problems = desk.check(text)["problems"]
    assert problems[0]["line"] == line
    assert len(problems) <= 1000
    desk.refused(desk.put(text), 400, "invalid_config")
    assert desk.path.read_text() == TEXT


def test_a_text_that_stands_for_far_more_than_it_is_long_is_refused(desk: Desk) -> None:
    base = "x: &b {" + ", ".join(f"k{n}: {{command: [x]}}" for n in range(1000)) + "}\n"
    merges = "".join(f"  m{n}: {{<<: *b}}\n" for n in range(1000))
    problems = desk.check(base + "Local-Models:\n" + merges)["problems"]
    assert "more than 200000 values" in problems[0]["message"]
    bomb = "a: &a0 [x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 60)
    )
    assert len(desk.check(bomb + "Local-Models: {m: {s: {command: *a59}}}\n")["problems"]) > 60


def test_markup_is_text_as_any_other(desk: Desk) -> None:
    text = TEXT.replace("Gemma", '"<script>alert(1)</script>"')
    assert desk.put(text).status_code == 200
    assert desk.get()["text"] == text


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"text": "x" * 200_001, "version": None}, 413, "body_too_large"),
        ({"text": "x" * 2_000_000, "version": None}, 413, "body_too_large"),
        ({"text": 5, "version": None}, 400, "bad_parameter"),
        ({"version": None}, 400, "bad_parameter"),
        ({"text": "a: b"}, 400, "bad_parameter"),
        ({"text": "a: b", "version": 5}, 400, "bad_parameter"),
        ({"text": "a: b", "version": None, "force": True}, 400, "bad_parameter"),
        ({"text": "a: b", "version": "of yesterday"}, 409, "config_changed"),
    ],
)
def test_a_wrong_body_is_refused(desk: Desk, body: dict[str, Any], status: int, code: str) -> None:
    desk.refused(desk.send("PUT", "/api/config/text", body), status, code)
    assert desk.path.read_text() == TEXT

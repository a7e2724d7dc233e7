"""Who else may write to a file that names programs to run."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from manager.config import trust

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no modes of files")

OTHER = 54_321  # a user, and a group, that is not ours


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ours alone, as far as the system lets a test say so."""
    tmp_path.chmod(0o700)
    return tmp_path


def write(path: Path, mode: int = 0o600) -> Path:
    path.write_text("")
    path.chmod(mode)
    return path


def test_a_file_of_ours_is_trusted(folder: Path) -> None:
    assert trust.find_fault(write(folder / "config.yaml")) is None


@pytest.mark.parametrize("mode", [0o602, 0o666])
def test_a_file_that_everybody_may_write_is_not(folder: Path, mode: int) -> None:
    fault = trust.find_fault(write(folder / "config.yaml", mode))
    assert fault is not None
    assert "chmod" in fault


def test_a_folder_that_everybody_may_write_is_not_unless_it_is_sticky(folder: Path) -> None:
    (folder / "shared").mkdir()
    path = write(folder / "shared" / "config.yaml")
    (folder / "shared").chmod(0o777)
    assert f"{folder / 'shared'}: chmod" in str(trust.find_fault(path))
    (folder / "shared").chmod(0o1777)
    assert trust.find_fault(path) is None


def test_every_folder_above_counts_and_those_that_links_lead_through(folder: Path) -> None:
    for name in ("open", "closed"):
        (folder / name).mkdir()
        (folder / name).chmod(0o700)
    (folder / "open" / "deep").mkdir(mode=0o700)
    path = write(folder / "open" / "deep" / "config.yaml")
    (folder / "open" / "link").symlink_to("deep")
    (folder / "closed" / "config.yaml").symlink_to(folder / "open" / "link" / "config.yaml")
    (folder / "closed" / "relative").symlink_to("../open/link/config.yaml")
    paths = [path, folder / "closed" / "config.yaml", folder / "closed" / "relative"]
    assert [trust.find_fault(each) for each in paths] == [None] * 3
    (folder / "open").chmod(0o777)
    assert all(str(folder / "open") in str(trust.find_fault(each)) for each in paths)


def test_links_in_a_circle_and_files_that_are_not_there_are_faults(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    assert "cannot be examined" in str(trust.find_fault(folder / "a"))
    assert "cannot be examined" in str(trust.find_fault(folder / "none"))
    assert "no regular file" in str(trust.find_fault(folder))


def test_the_group_of_one_user_may_write_and_others_may_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder / "config.yaml", 0o660)
    monkeypatch.setattr("pwd.getpwuid", lambda _uid: SimpleNamespace(pw_name="ada"))
    for name, members, is_trusted in (
        ("ada", [], True),
        ("ada", ["ada"], True),
        ("ada", ["ada", "eve"], False),
        ("staff", [], False),
    ):
        group = SimpleNamespace(gr_name=name, gr_mem=members)
        monkeypatch.setattr("grp.getgrgid", lambda _gid, group=group: group)
        assert (trust.find_fault(path) is None) == is_trusted, (name, members)
    monkeypatch.setattr("grp.getgrgid", lambda _gid: SimpleNamespace(gr_name="ada", gr_mem=[]))
    monkeypatch.setattr(os, "getxattr", lambda *_: b"an ACL", raising=False)
    assert (trust.find_fault(path) is None) == (sys.platform != "linux")


def test_a_group_or_a_user_without_a_name_is_not_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_id: int) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert "chmod g-w" in str(trust.find_fault(write(folder / "config.yaml", 0o620)))


def test_a_file_of_another_user_is_not_trusted_and_one_of_root_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder / "config.yaml")
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    fault = trust.find_fault(path)
    assert fault is None if path.stat().st_uid == 0 else "another user" in str(fault)


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root makes files of another user"
)
def test_what_belongs_to_another_user_is_not_trusted(folder: Path) -> None:
    path = write(folder / "config.yaml")
    os.chown(path, OTHER, -1)
    assert "belongs to another user" in str(trust.find_fault(path))
    os.chown(path, 0, -1)
    os.chown(folder, OTHER, -1)
    assert "belongs to another user" in str(trust.find_fault(path))


def test_nobody_writes_to_what_is_mounted_read_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder / "config.yaml", 0o666)
    folder.chmod(0o777)
    monkeypatch.setattr(os, "statvfs", lambda _place: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert trust.find_fault(path) is None


def test_on_windows_only_the_kind_of_file_is_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder / "config.yaml", 0o666)
    monkeypatch.setattr(sys, "platform", "win32")
    assert trust.find_fault(path) is None
    assert stat.S_ISDIR(folder.stat().st_mode)
    assert "no regular file" in str(trust.find_fault(folder))

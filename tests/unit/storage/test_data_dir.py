"""The data folder: whoever else has an account on the machine does not look into it."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from manager.storage import data_dir, maintenance
from manager.storage.store import Store, StoreError
from tests.support.usage_rows import NOON, a_request, add_request

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such rights")


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def with_rights(path: Path, rights: int) -> Path:
    path.chmod(rights)
    return path


def protected(folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Protects it; what the log says."""
    with caplog.at_level(logging.INFO):
        data_dir.restrict_permissions(folder)
    return caplog.messages


def test_a_new_folder_is_its_owners_alone_and_the_one_above_it_as_ever(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "data"
    data_dir.lock(folder).close()
    assert (mode(folder), mode(folder.parent)) == (0o700, 0o755)
    assert mode(folder) == 0o700


def test_who_runs_on_a_folder_is_known_as_long_as_it_runs(tmp_path: Path) -> None:
    assert data_dir.owner(tmp_path) is None
    with data_dir.lock(tmp_path):
        assert data_dir.owner(tmp_path) == os.getpid()
    assert data_dir.owner(tmp_path) is None


def test_the_database_and_what_sqlite_puts_beside_it_are_its_owners(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "usage.db")) as store:
        add_request(store, a_request(NOON))
        names = ["usage.db", "usage.db-shm", "usage.db-wal"]
        assert sorted(path.name for path in tmp_path.iterdir()) == names
        assert {mode(tmp_path / name) for name in names} == {0o600}


def test_a_copy_of_the_database_is_its_owners_also_where_it_replaces_another(
    tmp_path: Path,
) -> None:
    Store(tmp_path / "usage.db").close()
    with_rights(tmp_path / "usage.db", 0o644)
    target = tmp_path / "copy.db"
    target.touch(0o644)
    maintenance.backup(tmp_path / "usage.db", target)
    assert mode(target) == 0o600


def test_no_moment_of_a_copy_is_for_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Store(tmp_path / "usage.db")) as store:
        add_request(store, a_request(NOON))
    seen = []
    replace = os.replace

    def look(part: Path, target: Path) -> None:
        seen.append(mode(part))
        replace(part, target)

    monkeypatch.setattr(os, "replace", look)
    maintenance.backup(tmp_path / "usage.db", tmp_path / "copy.db")
    assert seen == [0o600]


@pytest.mark.parametrize(
    ("before", "after"),
    [(0o755, 0o750), (0o777, 0o750), (0o770, 0o750), (0o701, 0o700), (0o2775, 0o2750)],
)
def test_a_folder_that_others_may_look_into_is_closed_to_them_and_the_log_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, before: int, after: int
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with_rights(folder, before)
    (message,) = protected(folder, caplog)
    assert mode(folder) == after
    assert f"{folder} (was {before:o})" in message
    caplog.clear()
    assert protected(folder, caplog) == []


@pytest.mark.parametrize("rights", [0o700, 0o750, 0o500])
def test_a_folder_that_is_closed_stays_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rights: int
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    with_rights(folder, rights)
    assert protected(folder, caplog) == []
    assert mode(folder) == rights


def test_files_with_secrets_of_an_earlier_version_become_their_owners_and_no_others_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_rights(tmp_path, 0o750)
    private = ["secret", "usage.db", "usage.db-wal", "usage.db-shm", "backups/usage-1.db"]
    private += ["queue.db"]
    others = ["exports/2026-11.csv", "logs/llm-manager.log"]
    for name in (*private, *others):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
        with_rights(folder / name, 0o644)
    (message,) = protected(folder, caplog)
    assert {mode(folder / name) for name in private} == {0o600}
    assert {mode(folder / name) for name in others} == {0o644}
    assert all(f"{folder / name} (was 644)" in message for name in private)


def test_a_folder_for_everybody_such_as_tmp_is_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_rights(tmp_path, 0o1777)
    with_rights(folder, 0o1777)
    (message,) = protected(folder, caplog)
    assert mode(folder) == 0o1777
    assert "name one of your own" in message


def test_what_cannot_be_changed_is_told_and_does_not_keep_the_program_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chmod(_path: Path, _mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    with_rights(tmp_path, 0o755)
    monkeypatch.setattr(Path, "chmod", chmod)
    (message,) = protected(tmp_path, caplog)
    assert f"others may look into {tmp_path}" in message
    assert "Operation not permitted" in message


def test_a_database_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "nowhere" / "usage.db")


@pytest.mark.parametrize(
    ("file", "folder", "is_for_everybody"),
    [
        (0o644, 0o755, False),
        (0o664, 0o775, False),
        (0o646, 0o755, True),
        (0o644, 0o777, True),
        (0o644, 0o1777, False),
    ],
)
def test_a_config_that_everybody_can_write_to_or_replace_is_found(
    tmp_path: Path, file: int, folder: int, is_for_everybody: bool
) -> None:
    config = tmp_path / "config.yaml"
    config.touch()
    with_rights(config, file)
    with_rights(tmp_path, folder)
    assert data_dir.is_for_everybody(config) is is_for_everybody


# --- files with a secret --------------------------------------------------------------------------


def test_a_private_file_is_read_as_it_was_written_and_nobody_else_could_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    replace = os.replace

    def watched(part: Path, target: Path) -> None:
        seen.append((mode(part), part.read_bytes()))
        replace(part, target)

    monkeypatch.setattr(os, "replace", watched)
    data_dir.write_private(tmp_path / "secret", b"one")
    assert seen == [(0o600, b"one")]
    assert data_dir.read_private(tmp_path / "secret") == b"one"
    assert mode(tmp_path / "secret") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_a_file_that_others_may_read_a_link_a_pipe_and_none_hold_no_secret(tmp_path: Path) -> None:
    private = tmp_path / "private"
    data_dir.write_private(private, b"one")
    (tmp_path / "link").symlink_to(private)
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "open").write_bytes(b"one")
    for name in ("link", "pipe", "open", "missing"):
        assert data_dir.read_private(tmp_path / name) is None, name


def test_a_link_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"theirs")
    link = tmp_path / "secret"
    link.symlink_to(other)
    data_dir.write_private(link, b"ours")
    assert (link.is_symlink(), link.read_bytes(), other.read_bytes()) == (False, b"ours", b"theirs")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user")
def test_what_another_user_has_put_there_signs_no_sessions(tmp_path: Path) -> None:
    planted = tmp_path / "secret"
    data_dir.write_private(planted, b"x" * 32)
    os.chown(planted, 65534, 65534)
    made = data_dir.session_secret(tmp_path)
    assert made != b"x" * 32
    assert planted.stat().st_uid == 0
    assert data_dir.session_secret(tmp_path) == made

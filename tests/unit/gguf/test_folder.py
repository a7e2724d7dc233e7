"""Folders of GGUF files are listed as models, whatever else lies in them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from manager.gguf import Kind, folder, list_models, resolve_inside
from tests.support.gguf_files import write_gguf, write_model


def names(*folders: Path) -> list[str]:
    return [each.path.name for each in list_models(folders).models]


def projector(path: Path) -> Path:
    return write_gguf(path, "clip", {})


def test_models_are_listed_with_what_is_known_of_them(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_model(tmp_path / "sub" / "b.GGUF")
    write_model(tmp_path / "a.gguf", "bert")
    (tmp_path / "notes.txt").write_text("no model")
    listing = list_models([tmp_path])
    assert [(each.path.name, each.model and each.model.kind) for each in listing.models] == [
        ("a.gguf", Kind.EMBEDDING),
        ("b.GGUF", Kind.CHAT),
    ]
    assert listing.notes == ()


def test_pieces_are_listed_once(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        extra = {"split.no": number - 1, "split.count": 3}
        only = range(number - 1, number)
        write_model(tmp_path / f"a-{number:05}-of-00003.gguf", layers=3, only=only, extra=extra)
    assert names(tmp_path) == ["a-00001-of-00003.gguf"]
    (tmp_path / "a-00001-of-00003.gguf").unlink()
    (listed,) = list_models([tmp_path]).models
    assert "a-00001-of-00003.gguf" in (listed.error or "")


def test_a_broken_file_is_listed_with_its_error(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(whole[:-1000])
    (listed,) = list_models([tmp_path]).models
    assert listed.model is None
    assert "is cut off" in (listed.error or "")


def test_a_broken_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_bytes(b"no model")
    before = list_models([tmp_path])
    assert before.models[0].error
    monkeypatch.setattr(folder, "read_model", None)
    assert list_models([tmp_path]) == before


def test_a_file_that_could_not_be_read_is_read_at_the_next_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "a.gguf")

    def refuses(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as locked:
        locked.setattr(os, "open", refuses)
        assert "Permission denied" in (list_models([tmp_path]).models[0].error or "")
    assert list_models([tmp_path]).models[0].model


def test_a_repaired_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert list_models([tmp_path]).models[0].error
    write_model(tmp_path / "a.gguf")
    assert list_models([tmp_path]).models[0].model


def test_links_stay_inside_their_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "models", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    write_model(outside / "secret.gguf")
    write_model(inside / "blob")
    (inside / "link.gguf").symlink_to("blob")
    (inside / "out.gguf").symlink_to(outside / "secret.gguf")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    listing = list_models([inside])
    assert {each.path.name: each.error for each in listing.models} == {
        "link.gguf": None,
        "out.gguf": f"{inside / 'out.gguf'}: is a link to outside of {inside}",
    }
    assert resolve_inside(inside / "link.gguf", [outside, inside]) == inside / "link.gguf"
    for path in (
        inside,
        Path("a\0b"),
        inside / "out.gguf",
        inside / "folder" / "secret.gguf",
        inside / ".." / "x",
    ):
        assert resolve_inside(path, [inside]) is None


def test_a_piece_that_is_a_link_to_outside_is_not_read(tmp_path: Path) -> None:
    inside = tmp_path / "models"
    inside.mkdir()
    only = {"layers": 2, "only": range(1), "extra": {"split.no": 0, "split.count": 2}}
    write_model(inside / "a-00001-of-00002.gguf", **only)
    only = {"layers": 2, "only": range(1, 2), "extra": {"split.no": 1, "split.count": 2}}
    write_model(tmp_path / "a", **only)
    (inside / "a-00002-of-00002.gguf").symlink_to(tmp_path / "a")
    (listed,) = list_models([inside]).models
    assert listed.model is None
    assert "outside" in (listed.error or "")


def test_a_folder_without_rights_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    write_model(tmp_path / "a.gguf")
    scandir = os.scandir

    def refuses(path: Path) -> object:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    listing = list_models([tmp_path])
    assert [each.path.name for each in listing.models] == ["a.gguf"]
    assert "Permission denied" in listing.notes[0]


def test_a_name_that_nothing_can_show_is_a_note(tmp_path: Path) -> None:
    whole = write_model(tmp_path / "模型　ü.gguf").read_bytes()
    (tmp_path / "sub\x1b[31m").mkdir()
    (tmp_path / "other\n.txt").write_bytes(b"")
    bad = ["a\udcff.gguf", "a\n.gguf", "a\u2028.gguf", "sub\x1b[31m/b.gguf"]
    for name in bad:
        (tmp_path / name).write_bytes(whole)
    listing = list_models([tmp_path])
    assert [each.path.name for each in listing.models] == ["模型　ü.gguf"]
    assert sorted(note.partition("'")[2].partition("'")[0] for note in listing.notes) == [
        r"a\n.gguf",
        r"a\u2028.gguf",
        r"a\udcff.gguf",
        r"sub\x1b[31m",
    ]


def test_the_notes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "MAX_NOTES", 3)
    for number in range(5):
        (tmp_path / f"{number}\n.gguf").write_bytes(b"")
    assert len(list_models([tmp_path]).notes) == 3


def test_a_folder_that_is_not_there_is_a_note(tmp_path: Path) -> None:
    assert "No such file" in list_models([tmp_path / "none"]).notes[0]


def test_beyond_a_bound_there_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        write_model(tmp_path / f"{name}.gguf")
    monkeypatch.setattr(folder, "MAX_FILES", 2)
    assert names(tmp_path) == ["a.gguf", "b.gguf"]
    assert "more than 2 GGUFs" in list_models([tmp_path]).notes[0]
    monkeypatch.setattr(folder, "MAX_ENTRIES", 1)
    assert "more than 1 files" in list_models([tmp_path]).notes[0]
    deep = tmp_path / "/".join("1" * 10)
    deep.mkdir(parents=True)
    monkeypatch.undo()
    assert "folders deep" in list_models([tmp_path]).notes[0]


def test_a_file_of_two_folders_is_listed_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_model(tmp_path / "sub" / "a.gguf")
    (tmp_path / "link").symlink_to("sub")
    assert names(tmp_path, tmp_path / "sub", tmp_path / "link") == ["a.gguf"]


def test_a_projector_is_beside_its_model(tmp_path: Path) -> None:
    write_model(tmp_path / "gemma-3-4b-it-Q4_K_M.gguf")
    write_model(tmp_path / "qwen2.5-vl-7b-Q8_0.gguf")
    gemma = projector(tmp_path / "mmproj-gemma-3-4b-it-f16.gguf")
    projector(tmp_path / "mmproj-BF16.gguf")
    listed = {each.path.name: each.projectors for each in list_models([tmp_path]).models}
    assert listed == {"gemma-3-4b-it-Q4_K_M.gguf": (gemma,), "qwen2.5-vl-7b-Q8_0.gguf": ()}


def test_a_projector_without_a_name_belongs_to_the_only_model(tmp_path: Path) -> None:
    write_model(tmp_path / "gemma-3-Q4_K_M.gguf")
    write_model(tmp_path / "gemma-3-Q8_0.gguf")
    nameless = projector(tmp_path / "mmproj-F16.gguf")
    assert [each.projectors for each in list_models([tmp_path]).models] == [(nameless,)] * 2
    write_model(tmp_path / "another-Q4_0.gguf")
    assert [each.projectors for each in list_models([tmp_path]).models] == [()] * 3


def test_a_listing_ends_in_time_and_the_next_one_goes_on(tmp_path: Path) -> None:
    for name in "abc":
        write_model(tmp_path / f"{name}.gguf")
    clock = iter([0.0, 1.0, folder.MAX_SECONDS + 1])
    listing = list_models([tmp_path], clock=lambda: next(clock))
    assert [each.path.name for each in listing.models] == ["a.gguf"]
    assert listing.notes == ("2 more files are not read yet: list them again",)
    assert names(tmp_path) == ["a.gguf", "b.gguf", "c.gguf"]

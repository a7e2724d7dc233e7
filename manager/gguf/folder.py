"""The models in folders of GGUF files: pieces as one, an image projector beside its model."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from manager.gguf.model_file import Kind, ModelFile, read_model
from manager.gguf.reader import GgufError
from manager.gguf.split import pieces, stem

MAX_DEPTH = 8
MAX_FILES = 5000  # GGUFs
MAX_ENTRIES = 200_000  # of any kind

# What a file's name has beside the model's: the quantisation, and that it is a projector.
_NO_NAME = re.compile(
    r"(?<![a-z0-9])(ud|i?q\d(_[a-z0-9]{1,3})*|[bf]?f?p?(16|32)|mxfp4|mmproj|model)(?![a-z0-9])"
)


@dataclass(frozen=True)
class Listed:
    """A model of a folder; ``error`` says why there is nothing known of it. ``projectors`` are the
    mmproj files beside it that belong to it."""

    path: Path
    model: ModelFile | None = None
    error: str | None = None
    projectors: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Listing:
    """``notes`` say, for a person, what was not read and why."""

    models: tuple[Listed, ...]
    notes: tuple[str, ...]


def list_models(folders: Sequence[Path], *, is_deep: bool = True) -> Listing:
    """The models in these folders and, if ``is_deep``, the folders below them, by path.

    Links are followed as long as they stay in their folder; folders that are links are not entered.
    What cannot be read is in the notes, or listed with its error; nothing is raised.
    """
    search = _Search(is_deep)
    for folder in folders:
        search.enter(folder)
    found = [_described(path, folder) for path, folder in sorted(search.files.items())]
    projectors: dict[Path, list[ModelFile]] = defaultdict(list)
    for each in found:
        if each.model and each.model.kind is Kind.MMPROJ:
            projectors[each.path.parent].append(each.model)
    others = [each for each in found if not each.model or each.model.kind is not Kind.MMPROJ]
    return Listing(
        tuple(
            Listed(each.path, each.model, each.error, _projectors_of(each, others, projectors))
            for each in others
        ),
        tuple(search.notes),
    )


def resolve_inside(path: Path, folders: Sequence[Path]) -> Path | None:
    """``path`` as it is, if it lies in one of the folders with all links followed; else None."""
    real = os.path.realpath(path)
    for folder in folders:
        root = os.path.realpath(folder)
        if os.path.commonpath([root, real]) == root and real != root:
            return path
    return None


@dataclass
class _Search:
    """Looks through folders, with one bound for all of them."""

    is_deep: bool
    files: dict[Path, Path] = field(default_factory=dict)  # → the folder that they are in
    notes: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _entries: int = 0

    def enter(self, folder: Path) -> None:
        for path in self._ggufs(folder, 0):
            if resolve_inside(path, [folder]) is None:
                self.notes.append(f"{path}: is a link to outside of {folder}; it is not listed")
                continue
            try:
                first = pieces(path)[0]
            except GgufError as error:
                self.notes.append(str(error))
                continue
            # A piece stands for the model, and a file in two of the folders is listed once.
            real = os.path.realpath(first)
            if real in self._seen:
                continue
            if len(self.files) == MAX_FILES:
                self.notes.append(
                    f"{folder}: more than {MAX_FILES:,} GGUFs; the rest is not listed"
                )
                return
            self._seen.add(real)
            self.files[first] = folder

    def _ggufs(self, folder: Path, depth: int) -> Iterator[Path]:
        if depth > MAX_DEPTH:
            self.notes.append(f"{folder}: is more than {MAX_DEPTH} folders deep; it is not read")
            return
        try:
            with os.scandir(folder) as entries:
                found = sorted(self._counted(folder, entries), key=lambda each: each.name)
        except OSError as error:
            self.notes.append(f"{folder}: cannot be read: {error.strerror}")
            return
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                if self.is_deep:
                    yield from self._ggufs(folder / entry.name, depth + 1)
            elif entry.name.lower().endswith(".gguf"):
                yield folder / entry.name

    def _counted(
        self, folder: Path, entries: Iterator[os.DirEntry[str]]
    ) -> Iterator[os.DirEntry[str]]:
        for entry in entries:
            self._entries += 1
            if self._entries > MAX_ENTRIES:
                self.notes.append(
                    f"{folder}: more than {MAX_ENTRIES:,} files; the rest is not read"
                )
                return
            yield entry


def _described(path: Path, folder: Path) -> Listed:
    try:
        files = pieces(path)
        for each in files:
            if resolve_inside(each, [folder]) is None:
                return Listed(path, error=f"{each}: is a link to outside of {folder}")
        return Listed(path, _read(path, tuple(_identity(each) for each in files)))
    except (GgufError, OSError) as error:
        return Listed(path, error=str(error))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:  # a piece that is missing: reading the model names it
        return None
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=2 * MAX_FILES)  # what was found the last time, unless a file has changed
def _read(path: Path, _identities: tuple[tuple[int, int] | None, ...]) -> ModelFile:
    return read_model(path)


def _projectors_of(
    listed: Listed, others: Sequence[Listed], projectors: dict[Path, list[ModelFile]]
) -> tuple[Path, ...]:
    """The projectors in the model's folder whose name has no word that the model's has not. One
    without a name of its own (``mmproj-F16.gguf``) belongs to the folder's only model."""
    here = projectors.get(listed.path.parent)
    if not here or not listed.model or listed.model.kind not in (Kind.CHAT, Kind.BASE):
        return ()
    beside = {
        frozenset(_words(each.path)) for each in others if each.path.parent == listed.path.parent
    }
    words = _words(listed.path)
    return tuple(
        each.path
        for each in here
        if (_words(each.path) <= words if _words(each.path) else len(beside) == 1)
    )


def _words(path: Path) -> set[str]:
    """The words of a file's name, without those that name a quantisation."""
    return set(re.findall(r"[a-z0-9.]+", _NO_NAME.sub(" ", stem(path).lower())))

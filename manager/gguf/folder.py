"""The models in folders of GGUF files: pieces as one, an image projector beside its model."""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from manager.gguf.model_file import Kind, ModelFile, read_model
from manager.gguf.reader import GgufError
from manager.gguf.split import pieces, stem

MAX_DEPTH = 8
MAX_FILES = 5000  # GGUFs
MAX_ENTRIES = 200_000  # of any kind
MAX_SECONDS = 5.0
MAX_NOTES = 100

# What a file's name has beside the model's: the quantisation, and that it is a projector.
_NO_NAME = re.compile(
    r"(?<![a-z0-9])(ud|i?q\d(_[a-z0-9]{1,3})*|[bf]?f?p?(16|32)|mxfp4|mmproj|model)(?![a-z0-9])"
)

# Unicode's categories: control characters, bytes that are not UTF-8, ends of lines.
_UNUSABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


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


def list_models(
    folders: Sequence[Path],
    *,
    is_deep: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Listing:
    """The models in these folders and, if ``is_deep``, the folders below them, by path.

    Links are followed as long as they stay in their folder; folders that are links are not entered.
    What cannot be read is in the notes, or listed with its error; nothing is raised. After
    MAX_SECONDS no further file is read: the next call goes on from there, since what was read is
    kept until its file changes.
    """
    search = _Search(is_deep)
    for folder in folders:
        search.enter(folder)
    end = clock() + MAX_SECONDS
    found: list[Listed] = []
    for path, folder in sorted(search.files.items()):
        if clock() > end:
            left = len(search.files) - len(found)
            search.notes.append(f"{left:,} more files are not read yet: list them again")
            break
        found.append(_described(path, folder))
    projectors: dict[Path, list[Path]] = defaultdict(list)
    others: dict[Path, list[Listed]] = defaultdict(list)
    for each in found:
        if each.model and each.model.kind is Kind.MMPROJ:
            projectors[each.path.parent].append(each.path)
        else:
            others[each.path.parent].append(each)
    return Listing(
        tuple(
            _with_projectors(each, beside, projectors[parent])
            for parent, beside in others.items()
            for each in beside
        ),
        tuple(search.notes),
    )


def resolve_inside(path: Path, folders: Sequence[Path]) -> Path | None:
    """``path`` as it is, if it lies in one of the folders with all links followed; else None."""
    try:
        real = Path(os.path.realpath(path))
    except ValueError:  # a NUL in it
        return None
    roots = (Path(os.path.realpath(each)) for each in folders)
    return path if any(root in real.parents for root in roots) else None


@dataclass
class _Search:
    """Looks through folders, with one bound for all of them."""

    is_deep: bool
    files: dict[Path, Path] = field(default_factory=dict)  # → the folder that they are in
    notes: list[str] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _entries: int = 0

    def note(self, text: str) -> None:
        if len(self.notes) < MAX_NOTES:
            self.notes.append(text)

    def enter(self, folder: Path) -> None:
        for path, real_folder in self._ggufs(folder, os.path.realpath(folder), 0):
            try:
                first = pieces(path)[0]
            except GgufError as error:
                self.note(str(error))
                continue
            # A piece stands for the model, and what is in two of the folders is listed once.
            real = os.path.join(real_folder, first.name)
            if real in self._seen:
                continue
            if len(self.files) == MAX_FILES:
                self.note(f"{folder}: more than {MAX_FILES:,} GGUFs; the rest is not listed")
                return
            self._seen.add(real)
            self.files[first] = folder

    def _ggufs(self, folder: Path, real: str, depth: int) -> Iterator[tuple[Path, str]]:
        """Each GGUF of the folder, with the real path of the folder that it lies in."""
        if depth > MAX_DEPTH:
            self.note(f"{folder}: is more than {MAX_DEPTH} folders deep; it is not read")
            return
        try:
            with os.scandir(folder) as entries:
                found = sorted(self._counted(folder, entries), key=lambda each: each.name)
        except OSError as error:
            self.note(f"{folder}: cannot be read: {error.strerror}")
            return
        for entry in found:
            is_folder = entry.is_dir(follow_symlinks=False)
            if not (self.is_deep if is_folder else entry.name.lower().endswith(".gguf")):
                continue
            if any(unicodedata.category(each) in _UNUSABLE for each in entry.name):
                # Neither the config nor an answer of the HTTP interface could name it.
                self.note(f"{folder}: {entry.name!a} has control characters, or is not UTF-8")
            elif is_folder:
                real_entry = os.path.join(real, entry.name)
                yield from self._ggufs(folder / entry.name, real_entry, depth + 1)
            else:
                yield folder / entry.name, real

    def _counted(
        self, folder: Path, entries: Iterator[os.DirEntry[str]]
    ) -> Iterator[os.DirEntry[str]]:
        for entry in entries:
            self._entries += 1
            if self._entries > MAX_ENTRIES:
                self.note(f"{folder}: more than {MAX_ENTRIES:,} files; the rest is not read")
                return
            yield entry


def _described(path: Path, folder: Path) -> Listed:
    try:
        files = pieces(path)
        for each in files:  # no folder between was a link: only the files themselves can be
            if os.path.islink(each) and resolve_inside(each, [folder]) is None:
                return Listed(path, error=f"{each}: is a link to outside of {folder}")
        found = _read(path, tuple(_identity(each) for each in files))
        if isinstance(found, ModelFile):
            return Listed(path, found)
        return Listed(path, error=found)
    except (GgufError, OSError) as error:
        return Listed(path, error=str(error))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:  # a piece that is missing: reading the model names it
        return None
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=2 * MAX_FILES)  # what was found the last time, unless a file has changed
def _read(path: Path, _identities: tuple[tuple[int, int] | None, ...]) -> ModelFile | str:
    """The model, or what is wrong with its files. Raises GgufError for what may be right the next
    time though they have not changed."""
    try:
        return read_model(path)
    except GgufError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return str(error)


def _with_projectors(
    listed: Listed, beside: Sequence[Listed], projectors: Sequence[Path]
) -> Listed:
    """The model with the projectors in its folder whose name has no word that its own has not. One
    without a name (``mmproj-F16.gguf``) belongs to the folder's only model."""
    if not projectors or not listed.model or listed.model.kind not in (Kind.CHAT, Kind.BASE):
        return listed
    words = _words(listed.path)
    is_only = all(_words(each.path) == words for each in beside)
    found = (each for each in projectors if (_words(each) <= words if _words(each) else is_only))
    return replace(listed, projectors=tuple(found))


def _words(path: Path) -> set[str]:
    """The words of a file's name, without those that name a quantisation."""
    return set(re.findall(r"[a-z0-9.]+", _NO_NAME.sub(" ", stem(path).lower())))

"""A model in one file, or in pieces as llama.cpp's ``llama-gguf-split`` writes them.

The pieces are called ``NAME-00001-of-00005.gguf`` and lie in one folder. The first has the
metadata; each has some of the tensors, ``split.no`` (from 0) and ``split.count``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from manager.gguf.reader import MAX_TENSORS, GgufError, Tensor, Value, read_header

MAX_PIECES = 512
_PIECE = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class Weights:
    """A whole model: its metadata, and the tensors and sizes (bytes) of all its files together."""

    path: Path
    files: tuple[Path, ...]
    size: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]


def pieces(path: Path) -> tuple[Path, ...]:
    """The files of the model that ``path`` is a piece of, the first first; ``path`` alone where its
    name is not that of a piece. They need not exist.

    Raises GgufError for a name that numbers its pieces wrongly.
    """
    found = _PIECE.fullmatch(path.name)
    if not found:
        return (path,)
    number, count = int(found["number"]), int(found["count"])
    if not 1 <= number <= count <= MAX_PIECES:
        raise GgufError(f"{path}: is numbered {number} of {count}; at most {MAX_PIECES} are read")
    stem = found["stem"]
    return tuple(
        path.with_name(f"{stem}-{each:05}-of-{count:05}.gguf") for each in range(1, count + 1)
    )


def stem(path: Path) -> str:
    """The file's name without ``.gguf`` and without the number of a piece."""
    found = _PIECE.fullmatch(path.name)
    return found["stem"] if found else path.stem


def read_weights(path: Path) -> Weights:
    """The model at ``path``, which may be any of its pieces.

    Raises GgufError, which names the pieces that are missing.
    """
    files = pieces(path)
    missing = [each.name for each in files if not _exists(each)]
    if missing and len(files) > 1:
        raise GgufError(
            f"{files[0]}: {len(missing)} of {len(files)} pieces are missing: {_listed(missing)}."
            " Put all of them into one folder"
        )
    first = read_header(files[0])
    count = first.metadata.get("split.count", 1)
    if isinstance(count, int) and count > 1 and count != len(files):
        raise GgufError(
            f"{path}: is one of {count} pieces, and is not called as llama.cpp looks for them:"
            f" NAME-00001-of-{count:05}.gguf"
        )
    size = 0
    tensors: list[Tensor] = []
    for number, file in enumerate(files):  # one by one: of each only the tensors are kept
        header = read_header(file)
        if len(files) > 1 and header.metadata.get("split.no") != number:
            raise GgufError(f"{file}: is not piece {number + 1} of {len(files)}, as it is called")
        size += header.size
        tensors += header.tensors
        if len(tensors) > MAX_TENSORS:
            raise GgufError(f"{file}: the pieces have more than {MAX_TENSORS:,} tensors together")
    return Weights(first.path, files, size, first.metadata, tuple(tensors))


def _exists(path: Path) -> bool:
    """Also what cannot be looked at: reading it says why."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        return True
    return True


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

"""The header of a GGUF file: its metadata, and which tensors it has.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md: little or big
endian, versions 2 and 3. Tensor data is never read. A file may be hostile: all counts and lengths
are bounded, and nothing is kept or allocated because a length in the file says so.
"""

from __future__ import annotations

import math
import os
import stat
import struct
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from manager.gguf.ggml import TYPES

MAX_HEADER_BYTES = 64 * 2**20  # a vocabulary of 250,000 tokens with its merges takes 15 MB
MAX_ENTRIES = 4096
MAX_TENSORS = 16384
MAX_TENSOR_BYTES = 2**50
MAX_KEY = 1024  # bytes; the longest of llama.cpp's have about 60
MAX_TENSOR_NAME = 256
MAX_DIMENSIONS = 4
MAX_KEPT_TEXT = (
    1024  # characters of a value; a chat template is longer, and only its presence counts
)
MAX_KEPT_ARRAY = 1024  # numbers; one for each layer is the longest that anybody needs
MAX_KEPT_BYTES = 16 * 2**20  # of memory, of a header; one of 2,000 tensors takes 1 MB
MAX_CACHED_BYTES = 32 * 2**20  # of all headers

_PIECE_BYTES = 2**16
# About what Python takes for a number, an entry of the metadata and a tensor, beside their texts.
_NUMBER_BYTES, _ENTRY_BYTES, _TENSOR_BYTES = 40, 200, 400
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

_TENSOR = [f"{dimensions}QIQ" for dimensions in range(MAX_DIMENSIONS + 1)]  # sizes, type, offset
_LITTLE, _BIG = (
    {code: struct.Struct(order + code) for code in (*_SCALARS.values(), *_TENSOR)} for order in "<>"
)


class GgufError(Exception):
    """A file that is no readable GGUF. The message names it and says what is wrong."""


@dataclass(frozen=True)
class Skipped:
    """An array of which only the number of elements is kept."""

    length: int


Scalar = int | float | bool | str
Value = Scalar | tuple[Scalar, ...] | Skipped


class Tensor(NamedTuple):
    """``shape`` begins with a row's length, ``type`` is GGML's number, ``nbytes`` the data's size.
    ``offset`` is in bytes, from the begin of the file's tensor data."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a GGUF file says about itself. ``size`` is the file's, in bytes; ``kept_bytes`` is about
    the memory that the header takes."""

    path: Path
    size: int
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]
    kept_bytes: int


class _Cache:
    """The headers that were read last, at most `MAX_CACHED_BYTES` of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._headers: dict[tuple[Path, int, int], Header] = {}  # the one used last is the last

    def get(self, path: Path, mtime_ns: int, size: int) -> Header:
        """Raises GgufError, OSError. An error is not kept."""
        key = (path, mtime_ns, size)
        with self._lock:
            found = self._headers.pop(key, None)
        if found is None:
            with _open(path) as file:
                found = _Parser(path, file).header()
        with self._lock:
            self._headers[key] = found
            kept = sum(each.kept_bytes for each in self._headers.values())
            while kept > MAX_CACHED_BYTES:
                kept -= self._headers.pop(next(iter(self._headers))).kept_bytes
        return found


def read_header(path: Path) -> Header:
    """The header of the GGUF at ``path``. The last ones are kept until their files change.

    Raises GgufError.
    """
    try:
        status = os.stat(path)
        return _headers.get(path, status.st_mtime_ns, status.st_size)
    except (OSError, ValueError) as error:
        raise GgufError(f"{path}: cannot be read: {_reason(error)}") from error


_headers = _Cache()


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _open(path: Path) -> FileIO:
    # Looked at before it is opened, since opening a device can have effects, and again afterwards.
    # O_NONBLOCK: a FIFO that takes the file's place in between must not make us wait for a writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if stat.S_ISREG(os.stat(path).st_mode):
        file = FileIO(os.open(path, flags))
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    raise GgufError(f"{path}: is not a regular file")


class _Parser:
    """Reads one header, from the first byte on, a piece of the file at a time."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self._path = path
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._end = min(self._size, MAX_HEADER_BYTES)  # no header byte is beyond
        self._structs = _LITTLE
        self._piece = b""
        self._start = 0  # of the piece, in the file
        self._at = 0  # in the piece, or beyond it after a skip
        self._kept = 0  # bytes of memory

    def header(self) -> Header:
        if self._size < 24 or self._take(4) != b"GGUF":
            raise self._error("is not a GGUF file")
        version = self._number("I")
        if version & 0xFFFF == 0:
            self._structs = _BIG
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in (2, 3):
            raise self._error(f"is GGUF version {version}; 2 and 3 can be read: convert it again")
        tensor_count = self._count("tensors", MAX_TENSORS)
        entry_count = self._count("metadata entries", MAX_ENTRIES)
        metadata: dict[str, Value] = {}
        for _ in range(entry_count):
            key = self._text(MAX_KEY, "key")
            self._keep(_ENTRY_BYTES + sys.getsizeof(key))
            metadata[key] = self._value(self._number("I"), key)
        tensors = [self._tensor() for _ in range(tensor_count)]
        sized = self._sized(metadata, tensors)
        return Header(self._path, self._size, version, metadata, sized, self._kept)

    def _error(self, what: str) -> GgufError:
        return GgufError(f"{self._path}: {what}")

    def _keep(self, size: int) -> None:
        """Count what is kept. Raises GgufError where that is too much for one header."""
        self._kept += size
        if self._kept > MAX_KEPT_BYTES:
            raise self._error("has more names and values than any model: is it damaged?")

    def _need(self, length: int) -> None:
        """Raise GgufError unless so many bytes of a header follow."""
        if length > self._end - self._start - self._at:
            if self._end < self._size:
                raise self._error(f"has a header of over {MAX_HEADER_BYTES >> 20} MB")
            raise self._error("is cut off inside its header: download or copy it again")

    def _fill(self, length: int) -> None:
        """Have the next ``length`` bytes in the piece."""
        if self._at + length > len(self._piece):
            self._need(length)
            self._start += self._at
            self._at = 0
            self._file.seek(self._start)
            self._piece = self._file.read(max(length, _PIECE_BYTES))
            if len(self._piece) < length:  # the file has been cut off while it was read
                self._end = self._size = self._start + len(self._piece)
                self._need(length)

    def _take(self, length: int) -> bytes:
        self._fill(length)
        self._at += length
        return self._piece[self._at - length : self._at]

    def _numbers(self, code: str) -> tuple[Any, ...]:
        form = self._structs[code]
        self._fill(form.size)
        self._at += form.size
        return form.unpack_from(self._piece, self._at - form.size)

    def _number(self, code: str) -> Any:
        return self._numbers(code)[0]

    def _count(self, of: str, bound: int) -> int:
        count: int = self._number("Q")
        if count > bound:
            raise self._error(f"claims {count:,} {of}; at most {bound:,} are read: is it damaged?")
        return count

    def _text(self, bound: int, what: str) -> str:
        length = self._number("Q")
        if length > bound:
            raise self._error(f"has a {what} of {length:,} bytes: is it damaged?")
        return self._take(length).decode("utf-8", "replace")

    def _value(self, kind: int, key: str) -> Value:
        if kind in _SCALARS:
            scalar: Scalar = self._number(_SCALARS[kind])
            return scalar
        if kind == _STRING:
            length = self._number("Q")
            self._need(length)
            kept = self._take(min(length, 4 * MAX_KEPT_TEXT))
            self._at += length - len(kept)
            value = kept.decode("utf-8", "replace")[:MAX_KEPT_TEXT]
            self._keep(sys.getsizeof(value))
            return value
        if kind == _ARRAY:
            return self._array(key)
        raise self._error(f"has a value of the unknown type {kind} at {key[:80]!r}: is it damaged?")

    def _array(self, key: str) -> Value:
        kind, length = self._number("I"), self._number("Q")
        if kind in _SCALARS:
            size = length * self._structs[_SCALARS[kind]].size
            self._need(size)
            if length > MAX_KEPT_ARRAY or key.startswith("tokenizer."):
                self._at += size
                return Skipped(length)
            self._keep(_NUMBER_BYTES * length)
            return tuple(self._number(_SCALARS[kind]) for _ in range(length))
        if kind == _STRING:
            self._skip_texts(length)
            return Skipped(length)
        # llama.cpp reads no arrays of arrays either.
        raise self._error(
            f"has an array of the unknown type {kind} at {key[:80]!r}: is it damaged?"
        )

    def _skip_texts(self, count: int) -> None:
        """Pass over ``count`` strings: a vocabulary has hundreds of thousands of them."""
        self._need(8 * count)
        length_at = self._structs["Q"].unpack_from
        while count:
            self._fill(8)
            # The strings that begin in this piece are passed over without a call for each.
            piece, at, last = self._piece, self._at, len(self._piece) - 8
            while count and at <= last:
                at += 8 + length_at(piece, at)[0]
                count -= 1
            passed = at - self._at
            self._need(passed)
            self._at += passed

    def _tensor(self) -> Tensor:
        name = self._text(MAX_TENSOR_NAME, "tensor name")
        self._keep(_TENSOR_BYTES + sys.getsizeof(name))
        dimensions = self._number("I")
        if dimensions > MAX_DIMENSIONS:
            raise self._error(f"has a tensor of {dimensions} dimensions: is it damaged?")
        *sizes, kind, offset = self._numbers(_TENSOR[dimensions])
        shape = tuple(sizes) or (1,)  # a single number, as gguf.cpp reads it
        known = TYPES.get(kind)
        nbytes = known.row_bytes(shape[0]) * math.prod(shape[1:]) if known else 0
        if max(nbytes, offset) > MAX_TENSOR_BYTES or math.prod(shape) > MAX_TENSOR_BYTES:
            raise self._error(f"has a tensor of the size {shape}: is it damaged?")
        return Tensor(name, shape, kind, offset, nbytes)

    def _sized(self, metadata: Mapping[str, Value], tensors: list[Tensor]) -> tuple[Tensor, ...]:
        """The tensors, all with a size. Those of a type that is newer than this program end where
        the next one begins. Raises GgufError where the file is too short for its tensors."""
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise self._error("has an alignment that no reader can use: is it damaged?")
        begin = -(-(self._start + self._at) // alignment) * alignment
        end = max((each.offset + each.nbytes for each in tensors), default=0)
        if tensors and begin + end > self._size:
            raise self._error(
                f"is cut off: {self._size:,} bytes of {begin + end:,}. Download or copy it again"
            )
        if all(each.type in TYPES for each in tensors):
            return tuple(tensors)
        offsets = sorted({each.offset for each in tensors} | {self._size - begin})
        following = dict(pairwise(offsets))
        return tuple(
            each
            if each.type in TYPES
            else Tensor(
                each.name,
                each.shape,
                each.type,
                each.offset,
                following.get(each.offset, each.offset) - each.offset,
            )
            for each in tensors
        )

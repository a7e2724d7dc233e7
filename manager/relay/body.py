"""A request's body as the relay has it: what is known of its fields, and its bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

_PIECE = 1 << 18  # bytes that are in memory at a time


class Spooled:
    """Bytes to send that are in a file, for the most part: ranges of it (from, to) and ``bytes``
    between them. They can be read more than once; ``file`` is open as long."""

    def __init__(self, file: BinaryIO, parts: Sequence[bytes | tuple[int, int]]) -> None:
        self._file = file
        self._parts = parts

    def __len__(self) -> int:
        return sum(
            len(part) if isinstance(part, bytes) else part[1] - part[0] for part in self._parts
        )

    def __iter__(self) -> Iterator[bytes]:
        """Raises OSError where the file is shorter than it was."""
        for part in self._parts:
            if isinstance(part, bytes):
                yield part
                continue
            at, end = part
            self._file.seek(at)
            while at < end:
                piece = self._file.read(min(_PIECE, end - at))
                if not piece:
                    raise OSError("the file with the request's body was cut")
                at += len(piece)
                yield piece


class Body(Protocol):
    """``fields`` are the values of its top level; none where nobody has read it."""

    @property
    def fields(self) -> Mapping[str, Any]: ...
    def changed(
        self, strip: Collection[str], default: Mapping[str, Any], fixed: Mapping[str, Any]
    ) -> Body:
        """Without the fields ``strip``, then with those of ``default`` that it lacks, then with
        those that are ``fixed``."""

    def with_changes(self, changes: dict[str, Any]) -> bytes | Spooled:
        """What is sent, with these fields set and every other byte as it was."""


class RawBody:
    """A body that goes on as it is."""

    fields: Mapping[str, Any] = {}

    def __init__(self, sent: bytes | Spooled) -> None:
        self._sent = sent

    def changed(
        self, _strip: Collection[str], _default: Mapping[str, Any], _fixed: Mapping[str, Any]
    ) -> RawBody:
        return self

    def with_changes(self, _changes: dict[str, Any]) -> bytes | Spooled:
        return self._sent

"""Rows of usage.db, each column declared once: statements, spool lines, JSON and CSV follow them.

Times are epoch milliseconds, money is in billionths of the currency.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import NamedTuple, get_type_hints


class RequestRow(NamedTuple):
    """One request, when it has ended; what cannot be known is empty or None.

    The fields are the columns of ``requests``, without ``seq``. The spool writes and reads them by
    position, so a new one comes last and has a default: rows that a program before an update left
    behind are shorter. A name that ends in ``_ms`` is a moment, which the API shows as ``…_at``; a
    duration has another end.
    """

    id: bytes  # UUIDv7 of the start
    model: str  # '' for a name that is no model's
    asked_for: str
    mode: str
    scheme: str
    key: str  # '' without a key
    endpoint: str
    streamed: bool
    status: int
    started_ms: int
    leased_ms: int | None  # when it got its slot at the model
    first_byte_ms: int | None
    ended_ms: int
    prompt_tokens: int  # cached ones included
    cached_tokens: int
    completion_tokens: int
    estimated: bool
    error: str | None
    price: int | None = None  # id of the version that it was priced by
    tier: int | None = None  # position in that version; None: no tier fits
    cost: int | None = None  # None until it is priced


REQUEST_COLUMNS = ", ".join(RequestRow._fields)
ONE_REQUEST = f"({', '.join('?' * len(RequestRow._fields))})"
# A row that is written again is there once.
INSERT_REQUESTS = f"INSERT OR IGNORE INTO requests ({REQUEST_COLUMNS}) VALUES "

_FLAGS = {name for name, kind in get_type_hints(RequestRow).items() if kind is bool}


def request_of(columns: tuple[object, ...]) -> RequestRow:
    """The row of what a SELECT of REQUEST_COLUMNS has found: SQLite has no booleans."""
    named = zip(RequestRow._fields, columns, strict=True)
    return RequestRow._make(bool(value) if name in _FLAGS else value for name, value in named)


@dataclass(frozen=True)
class Launch:
    """How a run's server is recognised and ended by another run of the program.

    ``stop_command`` is expanded; ``env`` has the variables that it was launched with besides those
    of the program, some of which may be secrets, and is empty where there is no ``stop_command``.
    ``host`` is where it answers; ``listeners`` are names of what listens for a detached one.
    """

    stop_command: tuple[str, ...] = ()
    cwd: str = ""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    detached: bool = False
    host: str = "127.0.0.1"
    listeners: tuple[str, ...] = ()

    def to_json(self) -> str | None:
        """None where all is as usual."""
        return None if self == Launch() else json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> Launch:
        if text is None:
            return cls()
        read = json.loads(text)
        lists = {name: tuple(read[name]) for name in ("stop_command", "listeners")}
        return cls(**{**read, **lists})


@dataclass(frozen=True)
class Run:
    """One life of a model's server, from its launch to its end."""

    id: str
    model: str
    scheme: str
    fingerprint: str
    port: int
    pid: int | None
    pid_created: float | None
    started_ms: int
    ready_ms: int | None
    mode: str = ""
    memory_mb: Mapping[str, int] = field(default_factory=dict)  # by device id
    launch: Launch = Launch()
    heartbeat_ms: int | None = None
    boot_id: str | None = None  # of the boot that ready_clock_ms counts from
    ready_clock_ms: int | None = None  # what the monotonic clock read when it was ready


def uuid7(ms: int) -> bytes:
    """A new UUID of version 7 (RFC 9562): the time in 48 bits, then random ones. It names
    something, and keeps no secret."""
    chance = random.getrandbits(74)  # the system's own would release the GIL
    number = (ms & (1 << 48) - 1) << 80 | 0x7 << 76 | (chance >> 62) << 64
    return (number | 0b10 << 62 | chance & (1 << 62) - 1).to_bytes(16, "big")

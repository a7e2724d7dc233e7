"""Whether a client is still there that says nothing, in TCP."""

from __future__ import annotations

import socket
import struct
import sys

# A client that vanishes without a word is noticed within a minute while nothing is sent to it.
_OPTIONS = {"TCP_KEEPIDLE": 20, "TCP_KEEPALIVE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
# Linux' struct tcp_info: retransmits, unacknowledged segments, milliseconds since the last
# acknowledgement, and how much the client takes.
_TCP_INFO = struct.Struct("=2xB21xI28xI168xI")
_UNACKNOWLEDGED_MS = 50_000
_MIN_RETRANSMITS = 3


def options() -> list[tuple[int, int, int]]:
    """Of each connection, as far as the system has them: level, option, value."""
    found = [
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in _OPTIONS.items()
        if hasattr(socket, name)
    ]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *found]


def has_vanished(connection: socket.socket) -> bool:
    """Whether what was sent has reached nobody for most of a minute: the system does not probe
    then, and sends it again for a quarter of an hour. TCP_USER_TIMEOUT would also cut a client
    that is there and reads nothing. On Linux alone."""
    if sys.platform != "linux":
        return False
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return False  # closed since
    return is_unreachable(info)


def is_unreachable(info: bytes) -> bool:
    """What a ``struct tcp_info`` says; that of Linux before 5.4 is too short."""
    if len(info) < _TCP_INFO.size:
        return False
    retransmits, unacknowledged, since_ms, window = _TCP_INFO.unpack(info[: _TCP_INFO.size])
    # A window of nothing: the client has all of its buffer full, and says so.
    return bool(
        unacknowledged
        and window
        and retransmits >= _MIN_RETRANSMITS
        and since_ms >= _UNACKNOWLEDGED_MS
    )

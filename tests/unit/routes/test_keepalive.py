"""Who has vanished, and who only reads slowly."""

from __future__ import annotations

import socket
import struct
import sys

import pytest

from routes.http.keepalive import has_vanished, is_unreachable


def tcp_info(retransmits: int, unacked: int, last_ack_ms: int, window: int) -> bytes:
    """As in linux/tcp.h: eight bytes, 24 numbers, and 31 more numbers of four bytes each."""
    heads = bytes([1, 0, retransmits, 0, 0, 0, 0, 0])
    numbers = [0, 0, 1448, 1448, unacked, 0, 0, 0, 0, 0, 0, 0, last_ack_ms, *([7] * 11)]
    return heads + struct.pack("=24I31I", *numbers, *([7] * 31)) + struct.pack("=I", window)


@pytest.mark.parametrize(
    ("info", "vanished"),
    [
        (tcp_info(16, 3, 60_228, 64_512), True),
        (tcp_info(16, 3, 20_000, 64_512), False),  # not for long
        (tcp_info(0, 3, 60_228, 64_512), False),  # sent just now, after a long silence
        (tcp_info(0, 0, 83_184, 64_512), False),  # nothing is on its way
        (tcp_info(16, 3, 60_228, 0), False),  # it reads nothing, and says so
        (tcp_info(16, 3, 60_228, 64_512)[:192], False),  # an old kernel's
        (b"", False),
    ],
)
def test_who_confirms_nothing_for_a_minute_has_vanished(info: bytes, vanished: bool) -> None:
    assert is_unreachable(info) is vanished


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how its connections are")
def test_a_client_that_is_there_has_not_vanished() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        connection, _ = listener.accept()
        with client, connection:
            connection.sendall(b"x")
            assert not has_vanished(connection)
        assert not has_vanished(connection)  # closed

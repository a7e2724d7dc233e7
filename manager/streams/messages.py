"""Messages between the program and its relay processes: JSON and bytes, behind their two lengths.

Over a stream socket, which may cut and join them.
"""

from __future__ import annotations

import json
import struct
from typing import Any

Message = dict[str, Any]
"""What JSON can say; under ``data`` are the bytes, where there are any."""

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
_LENGTHS = struct.Struct("!II")


def encode(message: Message, data: bytes = b"") -> bytes:
    body = _ENCODE(message).encode()
    return _LENGTHS.pack(len(body), len(data)) + body + data


class MessageReader:
    """Feed it what arrives; it returns the messages that are whole."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, arrived: bytes) -> list[Message]:
        buffer = self._buffer + arrived if self._buffer else arrived
        at, messages = 0, []
        while len(buffer) - at >= _LENGTHS.size:
            body, data = _LENGTHS.unpack_from(buffer, at)
            start = at + _LENGTHS.size
            end = start + body + data
            if end > len(buffer):
                break
            message = json.loads(buffer[start : start + body])
            message["data"] = buffer[start + body : end]
            messages.append(message)
            at = end
        self._buffer = buffer[at:]
        return messages

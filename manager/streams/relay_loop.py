"""The loop of a relay process: one thread, no lock, many exchanges."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable

from manager.streams.messages import Message, MessageReader, encode
from manager.streams.relayed_exchange import DONT_WAIT, RelayedExchange

_TICK_SECONDS = 0.5  # counts are reported, silence is noticed
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE

Received = tuple[bytes, list[socket.socket]]


class RelayLoop:
    """``receive`` reads the control connection: bytes, b"" at its end, and the sockets that came
    with them, a client's and an upstream's for each message of a new exchange, in order."""

    def __init__(self, control: socket.socket, receive: Callable[[], Received]) -> None:
        self._control = control
        self._receive = receive
        self._selector = selectors.DefaultSelector()
        self._watched: dict[socket.socket, int] = {}
        self._reader = MessageReader()
        self._sockets: list[socket.socket] = []
        self._exchanges: dict[int, RelayedExchange] = {}
        self._outgoing = bytearray()
        self._closed = False

    def run(self) -> None:
        """Until the control connection closes."""
        self.watch(self._control, _READ, self._on_control)
        next_tick = time.monotonic() + _TICK_SECONDS
        try:
            while not self._closed:
                for key, mask in self._selector.select(max(0.0, next_tick - time.monotonic())):
                    key.data(mask)
                if (now := time.monotonic()) >= next_tick:
                    next_tick = now + _TICK_SECONDS
                    self._tick(now)
                if self._outgoing:
                    self._send_control()
        finally:
            for exchange in self._exchanges.values():
                exchange.close()
            self._selector.close()
            self._control.close()

    def post(self, message: Message, data: bytes = b"") -> None:
        """Sends a message to the program, at the end of this round."""
        self._outgoing += encode(message, data)

    def watch(self, sock: socket.socket, mask: int, call: Callable[[int], None]) -> None:
        """Calls with what the socket is ready for, as long as ``mask`` is not 0."""
        before = self._watched.get(sock, 0)
        if mask == before:
            return
        if not mask:
            del self._watched[sock]
            self._selector.unregister(sock)
            return
        self._watched[sock] = mask
        if before:
            self._selector.modify(sock, mask, call)
        else:
            self._selector.register(sock, mask, call)

    def forget(self, number: int) -> None:
        del self._exchanges[number]

    def _on_control(self, mask: int) -> None:
        if mask & _WRITE:
            self._send_control()
        if not mask & _READ:
            return
        try:
            data, sockets = self._receive()
        except BlockingIOError:
            return
        except OSError:
            data, sockets = b"", []
        if not data:
            self._closed = True
            return
        self._sockets += sockets
        for message in self._reader.feed(data):
            number = message["id"]
            if "timeout" in message:
                client, upstream = self._sockets[:2]
                del self._sockets[:2]
                self._exchanges[number] = exchange = RelayedExchange(
                    self, message, client, upstream
                )
                exchange.begin()
            elif (known := self._exchanges.get(number)) is not None:
                known.finish(message["finish"])

    def _send_control(self) -> None:
        try:
            sent = self._control.send(self._outgoing, DONT_WAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._closed = True
            return
        del self._outgoing[:sent]
        self.watch(self._control, _READ | (_WRITE if self._outgoing else 0), self._on_control)

    def _tick(self, now: float) -> None:
        counts = {}
        for exchange in list(self._exchanges.values()):
            exchange.check_time(now)
            if (count := exchange.new_count()) is not None:
                counts[exchange.number] = count
        if counts:
            self.post({"counts": list(counts.items())})

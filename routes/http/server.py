"""waitress, set up for hundreds of streams."""

from __future__ import annotations

import errno
import ipaddress
import json
import logging
import selectors
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, WSGITask
from waitress.utilities import BadRequest

from manager.clock import Clock
from manager.errors import ApiError
from manager.models import ports
from routes.http.request_parser import MOST_HEADERS, RequestParser
from routes.http.thread_pool import ThreadPool

log = logging.getLogger(__name__)

_MAX_HEADERS = 1 << 16
# A client that reads nothing for this long while an answer waits for it is cut off: its
# thread and its place at the model are worth more.
_STALLED_CLIENT = 300.0
_ROOM_POLL = 0.25
# How much of a refused body is read and thrown away, so that the client, which sends before
# it reads, finds the refusal and not a connection reset.
_MAX_DISCARDED = 1 << 30
_ACCEPTED_A_ROUND = 256
_CODES = {
    408: "request_timeout",
    413: "body_too_large",
    431: "headers_too_large",
    500: "internal_error",
}
_CLOCK = Clock()
_TOLD_EVERY = 60.0  # seconds between two lines of the log about addresses that hold too much

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class ClientLimits:
    """What a client may take to send one request, in seconds, and how much of the room for
    connections one address may hold."""

    head: float = 20.0
    # A body has this long and then as long as it takes at the rate, in bytes a second: 64 MB
    # over the slowest line that anybody may still have get through, in hours.
    body: float = 30.0
    least_rate: float = 4096.0
    share: float = 0.25


class ListenError(Exception):
    """The address cannot be had; says who holds it where that is known."""


class _TimedOut(BadRequest):
    code = 408
    reason = "Request Timeout"


class _RefusedRequest(ErrorTask):
    """What waitress refuses by itself, in the shape of all other errors."""

    def execute(self) -> None:
        # Before the loop can come to close what this one sends.
        self.channel.refused = True
        fault = self.request.error
        limit = self.channel.adj.max_request_body_size - 1
        messages = {
            413: f"The request's body is larger than max_body_mb allows ({limit >> 20} MB)",
            431: f"The request's headers are larger than {_MAX_HEADERS >> 10} KB, or more than"
            f" {MOST_HEADERS}",
            408: fault.body,
            500: "An internal error; the program's log has more",
        }
        code = _CODES.get(fault.code, "bad_request")
        error = ApiError(
            fault.code, code, messages.get(fault.code, f"{fault.reason}: {fault.body}")
        )
        body = json.dumps(error.body()).encode()
        self.status = f"{fault.code} {fault.reason}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Answering(WSGITask):
    """waitress's task with fewer, larger writes: with hundreds of threads every system call
    is a turn at the interpreter's lock given away."""

    def write(self, data: bytes) -> None:
        if not data:
            super().write(data)
        elif not self.wrote_header:
            # The head goes out together with the first bytes of the body.
            self.channel.hold()
            try:
                super().write(data)
            finally:
                self.channel.send_held()
        elif self.chunked_response:
            self.channel.write_soon(b"%X\r\n%b\r\n" % (len(data), data))
        else:
            super().write(data)


class _Channel(HTTPChannel):
    """One client's connection. ``service`` and ``write_soon`` run in a worker, the rest in
    waitress's loop."""

    server: _Listener
    task_class = _Answering
    error_task_class = _RefusedRequest
    parser_class = RequestParser
    refused = False
    discarded = 0
    held: list[bytes] | None = None
    # When the first byte came of a request that is not whole yet, when its head was, and when
    # it was refused; monotonic.
    began: float | None = None
    had_head: float | None = None
    was_refused: float | None = None

    def hold(self) -> None:
        self.held = []

    def send_held(self) -> None:
        held, self.held = self.held, None
        if held:
            self.write_soon(b"".join(held))

    def write_soon(self, data: bytes) -> int:
        """Sends straight to the socket and waits while it is full, so that a client that reads
        slowly holds back its own thread and its own model. waitress would buffer, and wake
        its loop for every write.

        Raises ClientDisconnected, also for a client that has taken nothing for minutes.
        """
        size = len(data)
        if self.held is not None:
            self.held.append(data)
            return size
        left = memoryview(data)
        while left:
            # The lock keeps the loop from closing the socket under the call. What the loop
            # itself had to say (100 Continue) has been sent before a task begins.
            with self.outbuf_lock:
                if not self.connected:
                    raise ClientDisconnected
                try:
                    sent = self.socket.send(left)
                except BlockingIOError:
                    sent = 0
                except OSError:
                    raise ClientDisconnected from None
            if sent:
                self.last_activity = time.time()
                left = left[sent:]
            else:
                self.await_room()
        return size

    def await_room(self) -> None:
        """Waits until the client has taken some of what was sent."""
        given_up_at = time.monotonic() + _STALLED_CLIENT
        with selectors.DefaultSelector() as selector:
            try:
                selector.register(self.socket, selectors.EVENT_WRITE)
            except ValueError:
                raise ClientDisconnected from None  # closed since
            # In short waits: when the loop has closed the socket, its number may be another's.
            while not selector.select(_ROOM_POLL):
                if not self.connected or time.monotonic() > given_up_at:
                    raise ClientDisconnected

    def check_client_disconnected(self) -> bool:
        """Whether the client has left: also where the loop reads no more from it, because a
        second request waits behind the one that is served."""
        if not self.connected or len(self.requests) <= self.adj.channel_request_lookahead:
            return not self.connected
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)  # it does not block
        except BlockingIOError:
            return False
        except OSError:
            return True

    def received(self, data: bytes) -> bool:
        if self.refused:
            self.discarded += len(data)
            if self.discarded > _MAX_DISCARDED:
                self.will_close = True
            return False
        before = self.request
        taken: bool = super().received(data)
        if self.request is not before or self.began is None:
            self.began = self.server.clock.monotonic()
            self.had_head = None
        if self.had_head is None and self.is_in_body():
            self.had_head = self.server.clock.monotonic()
        # What follows a refused head is the rest of its body, not a request.
        if any(request.error for request in tuple(self.requests)):
            self.refused = True
        return taken

    def check_time(self) -> None:
        """Ends what has been on its way for too long. waitress only looks at the last byte, so
        that one now and then would keep a connection's place for ever."""
        now, limits = self.server.clock.monotonic(), self.server.limits
        request = self.request
        if self.refused:
            if self.was_refused is None:
                ahead = tuple(self.requests[:1])
                if ahead and not ahead[0].error:
                    return  # the refusal waits behind what is served
                self.was_refused = now
            if now - self.was_refused > limits.body + self.discarded / limits.least_rate:
                self.will_close = True
        elif request is None:
            self.began = self.had_head = None
        elif not request.headers_finished:
            if self.began is not None and now - self.began > limits.head:
                self.time_out(f"The request's head took more than {limits.head:g} seconds")
        elif self.is_in_body():
            if self.had_head is None:
                self.had_head = now  # a worker has sent the go-ahead since
            sent = request.body_bytes_received
            if now - self.had_head > limits.body + sent / limits.least_rate:
                self.time_out(
                    f"The request's body took more than {limits.body:g} seconds and came at"
                    f" fewer than {limits.least_rate:g} bytes a second"
                )

    def is_in_body(self) -> bool:
        """Whether the client is to send a body. One that waits for our go-ahead is not."""
        request = self.request
        return request is not None and request.headers_finished and not request.expect_continue

    def time_out(self, message: str) -> None:
        with self.requests_lock:
            request, self.request = self.request, None
            if request is None or self.will_close or self.close_when_flushed:
                return
            if not request.header_plus.strip() and not request.headers_finished:
                self.will_close = True  # a line end after the last body: nothing was asked
                return
            request.error = _TimedOut(message)
            self.refused = True
            self.requests.append(request)
            if len(self.requests) == 1:  # else it comes after those that are served
                self.server.add_task(self)

    def readable(self) -> bool:
        if self.refused:
            return not self.will_close
        return bool(super().readable())

    def handle_write(self) -> None:
        if not (self.refused and self.close_when_flushed):
            super().handle_write()
            return
        self._flush_exception(self._flush_some)
        if not self.total_outbufs_len and self.connected:
            # The refusal is out. Only our half is closed: to close both while the client
            # still sends would reset the connection and take the refusal from it.
            self.close_when_flushed = False
            try:
                self.socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.will_close = True  # the client has gone

    def del_channel(self, map: dict[int, Any] | None = None) -> None:
        super().del_channel(map)
        self.server.places.release(self)


class _ConnectionSlots:
    """How many connections each address holds. This machine's own programs and the proxies
    that are trusted speak for many, and hold what they like."""

    def __init__(self, most: int, free: tuple[Network, ...], clock: Clock) -> None:
        self._most = most
        self._free = free
        self._clock = clock
        self._lock = threading.Lock()
        self._origins: dict[_Channel, str] = {}
        self._held: Counter[str] = Counter()
        self._told = -_TOLD_EVERY

    def origin(self, address: str) -> str | None:
        """Whom a connection from the address counts for, None where it does not count: of IPv6
        a whole /64, since that is what one machine is given."""
        parsed = ipaddress.ip_address(address.partition("%")[0])
        if parsed.is_loopback or any(parsed in network for network in self._free):
            return None
        if parsed.version == 4:
            return address
        return str(ipaddress.ip_network((parsed, 64), strict=False))

    def is_full(self, origin: str | None) -> bool:
        if origin is None or self._held[origin] < self._most:
            return False
        now = self._clock.monotonic()
        if now - self._told >= _TOLD_EVERY:
            self._told = now
            log.warning(
                "%s holds %d connections, which is all that one address may: further ones are"
                " closed. A proxy that speaks for many belongs into trusted_proxies",
                origin,
                self._most,
            )
        return True

    def acquire(self, channel: _Channel, origin: str | None) -> None:
        if origin is not None:
            with self._lock:
                self._origins[channel] = origin
                self._held[origin] += 1

    def release(self, channel: _Channel) -> None:
        """Also for a channel that has none, or has it no more. A worker may close one too."""
        with self._lock:
            origin = self._origins.pop(channel, None)
            if origin is None:
                return
            self._held[origin] -= 1
            if not self._held[origin]:
                del self._held[origin]


class _Listener(TcpWSGIServer):
    limits: ClientLimits
    clock: Clock
    places: _ConnectionSlots

    def handle_accept(self) -> None:
        """Accepts all that wait: waitress takes one a round, and each round looks at every
        open connection, so that a burst of n would cost n² looks."""
        for _ in range(_ACCEPTED_A_ROUND):
            try:
                accepted = self.accept()
                if accepted is None:
                    return
                connection, address = accepted
                self.set_socket_options(connection)
            except OSError:
                return  # whoever came has gone already
            origin = self.places.origin(address[0])
            if self.places.is_full(origin):
                connection.close()
                continue
            channel = _Channel(self, connection, address, self.adj, map=self._map)
            self.places.acquire(channel, origin)

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        for channel in tuple(self.active_channels.values()):
            channel.check_time()


class HttpServer:
    """Serves the application from a loop thread named ``http`` and ``threads`` workers."""

    def __init__(
        self,
        app: Flask,
        host: str,
        port: int,
        threads: int,
        max_body_mb: int,
        *,
        trusted_proxies: tuple[Network, ...] = (),
        limits: ClientLimits = ClientLimits(),
        clock: Clock = _CLOCK,
    ) -> None:
        """Binds at once, so that a port in use is known before anything is started.

        Raises ListenError.
        """
        # Every open connection counts, idle ones too. The default of 100 stops accepting,
        # health checks included.
        room = 4 * threads + 1000
        settings = Adjustments(
            host=host,
            port=port,
            connection_limit=room,
            # Each second it is seen whose request takes too long.
            cleanup_interval=1,
            # The guard reads them itself: whether to believe X-Forwarded-For depends on who
            # says it, and that a proxy stands before us has to be seen where none is named.
            clear_untrusted_proxy_headers=False,
            # select() cannot watch descriptors above 1023.
            asyncore_use_poll=True,
            # With no look-ahead the socket is not read while a request is served, and a
            # client that leaves is not noticed.
            channel_request_lookahead=1,
            # The limit is inclusive in waitress.
            max_request_body_size=(max_body_mb << 20) + 1,
            max_request_header_size=_MAX_HEADERS,
            # A dead client is no news; answers that break off raise OSError on purpose.
            log_socket_errors=False,
            ident="llm-manager",
        )
        self._map: dict[int, Any] = {}
        # A thread is held for as long as its answer streams or its model starts: waitress's
        # default of 4 would serve four streams and hang the fifth.
        self._workers = ThreadPool(threads)
        try:
            self._listeners = [
                _Listener(
                    app,
                    map=self._map,
                    dispatcher=self._workers,
                    adj=settings,
                    sockinfo=sockinfo,
                )
                for sockinfo in settings.listen
            ]
        except (OSError, ValueError) as error:
            wasyncore.close_all(self._map)
            where = f"{host}:{port}"
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                where += f", which {ports.holder(port)} holds"
            raise ListenError(f"cannot listen on {where}: {error}") from error
        # One count for all addresses that are listened on.
        places = _ConnectionSlots(max(1, int(room * limits.share)), trusted_proxies, clock)
        for listener in self._listeners:
            listener.limits, listener.clock, listener.places = limits, clock, places
        self._thread = threading.Thread(target=self._listeners[0].run, name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port in use, also where port 0 left the choice to the system."""
        return int(self._listeners[0].effective_port)

    def start(self) -> None:
        self._thread.start()

    def close(self, grace: float) -> None:
        """Lets the requests under way finish for up to ``grace`` seconds, then ends."""
        self._workers.shutdown(timeout=grace)
        # Only the loop's own thread may touch its map.
        self._listeners[0].trigger.pull_trigger(self._end_loop)
        self._thread.join()
        for listener in self._listeners:
            listener.close()

    def _end_loop(self) -> None:
        # The listeners' triggers stay open. The loop may be awake and come here before whoever
        # pulls one has written to its pipe: by then that number could be another file's.
        for listener in self._listeners:
            listener.trigger.del_channel()
            listener.del_channel()
        wasyncore.close_all(self._map)

"""One client's connection, in waitress."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from waitress import wasyncore
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.utilities import BadRequest, InternalServerError

from manager.clock import Clock
from manager.relay import HandedOver
from routes.http.request_parser import RequestParser
from routes.http.tasks import Answering, RefusedRequest
from routes.http.thread_pool import Task
from routes.page_passes import without_pass

log = logging.getLogger(__name__)

# A client that reads nothing for this long while an answer waits for it is cut off: its
# thread and its place at the model are worth more.
_STALLED_CLIENT = 300.0
_WRITABLE_POLL = 0.25
# How much of a refused body is read and discarded, so that the client, which sends before it
# reads, gets the refusal and not a connection reset.
_MAX_DISCARDED = 1 << 30


@dataclass(frozen=True)
class ClientLimits:
    """What a client may take to send one request, in seconds, and which share of the
    connections one address may hold."""

    head: float = 20.0
    # A body has this long and then as long as it takes at the rate, in bytes a second: 64 MB
    # on the slowest connection get through, in hours.
    body: float = 30.0
    least_rate: float = 4096.0
    share: float = 0.25


class Listener(Protocol):
    """What a connection needs of the listener that accepted it."""

    limits: ClientLimits
    clock: Clock
    cors_origins: Callable[[], tuple[str, ...]]
    lent: set[Channel]  # the connections that another writes to

    def add_task(self, task: Task) -> None: ...
    def pull_trigger(self) -> None: ...
    def release(self, channel: Channel) -> None: ...


class _TimedOut(BadRequest):
    code = 408
    reason = "Request Timeout"


class Channel(HTTPChannel):
    """One client's connection. ``service`` and ``write_soon`` run in a worker, the rest in
    waitress's loop."""

    server: Listener
    parser_class = RequestParser
    refused = False
    discarded = 0
    held: list[bytes] | None = None
    # waitress's own, which has no types.
    request: Any
    requests: list[Any]
    close_when_flushed: bool
    # When the first byte came of a request that is not whole yet, when its head was, and when
    # it was refused; monotonic.
    began: float | None = None
    had_head: float | None = None
    was_refused: float | None = None

    @property
    def last_activity(self) -> float:
        """When a byte last went either way, monotonic. waitress sets it to the wall clock's time:
        one that is set forward would end all connections on which a request is on its way."""
        return self._active_at

    @last_activity.setter
    def last_activity(self, _wall: float) -> None:
        self._active_at = self.server.clock.monotonic()

    def service(self) -> None:
        """Serves the first request."""
        request = self.requests[0]
        self.serve_by(RefusedRequest(self, request) if request.error else Answering(self, request))

    def serve_by(self, task: Any) -> None:
        """As waitress's ``service``, without its buffers, which are not used here. Where the answer
        is handed over, the request stays the first until ``end_request``, so that nothing behind
        it is served before."""
        try:
            task.service()
            close = task.close_on_finish
        except HandedOver:
            return  # the thread is free
        except ClientDisconnected:
            close = True
        except Exception:
            log.exception("serving %s failed", without_pass(task.request.path))
            close = True
            if not task.wrote_header:
                self._answer_500(task.request)
        self.end_request(close=close)

    def _answer_500(self, failed: Any) -> None:
        request = self.parser_class(self.adj)
        request.error = InternalServerError("")
        request.version, request.headers = failed.version, failed.headers
        with contextlib.suppress(ClientDisconnected):
            RefusedRequest(self, request).service()

    def end_request(self, *, close: bool) -> None:
        """The first request has its answer: goes on with the next one, in any thread."""
        with self.requests_lock:
            # Else the loop watches the connection all the while: to wake it takes longer than all
            # the rest here.
            must_wake = close or len(self.requests) > self.adj.channel_request_lookahead
            if close:
                self.close_when_flushed = True
                ended, self.requests = self.requests, []
            else:
                ended = [self.requests.pop(0)]
                if self.connected and self.requests:
                    self.server.add_task(self)
                elif self._may_continue():
                    self.send_continue()
                    must_wake = True
        for request in ended:
            request.close()
        if must_wake and self.connected:
            self.server.pull_trigger()
        self._active_at = self.server.clock.monotonic()

    def _may_continue(self) -> bool:
        """Whether the client waits for leave to send a body, which came behind the last answer."""
        request = self.request
        return bool(
            self.connected
            and request is not None
            and request.expect_continue
            and request.headers_finished
            and not self.sent_continue
        )

    def leave_loop(self) -> socket.socket:
        """From now on waitress's loop neither reads nor closes it: what it polls it finds by number
        in its map, and ignores one that has left. Returns another descriptor of the socket, for it
        may be closing it at this moment. Raises ClientDisconnected."""
        wasyncore.dispatcher.del_channel(self)
        self.server.lent.add(self)
        sock = self.socket
        try:
            if sock is not None and self.connected:
                other: socket.socket = sock.dup()
                return other
        except OSError:
            pass  # closed meanwhile, or no descriptor is left
        self.enter_loop()
        raise ClientDisconnected

    def enter_loop(self, data: bytes = b"") -> None:
        """``data`` is what the client has sent meanwhile."""
        if data:
            self.received(data)  # before the loop can read what is behind it
        self.server.lent.discard(self)
        sock = self.socket
        if sock is not None and self.connected:
            self._fileno = sock.fileno()
            wasyncore.dispatcher.add_channel(self)
            self.server.pull_trigger()  # it polls what was there when it began

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
                self._active_at = self.server.clock.monotonic()
                left = left[sent:]
            else:
                self.wait_writable()
        return size

    def wait_writable(self) -> None:
        """Waits until the client has taken some of what was sent."""
        deadline = time.monotonic() + _STALLED_CLIENT
        with selectors.DefaultSelector() as selector:
            try:
                selector.register(self.socket, selectors.EVENT_WRITE)
            except ValueError:
                raise ClientDisconnected from None  # closed since
            # In short waits: when the loop has closed the socket, its number may be another's.
            while not selector.select(_WRITABLE_POLL):
                if not self.connected or time.monotonic() > deadline:
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
        """Ends what has been on its way for too long. waitress only checks when the last
        byte came, so that one now and then would hold a connection for ever."""
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
                self.will_close = True  # the client has disconnected

    def del_channel(self, map: dict[int, Any] | None = None) -> None:
        super().del_channel(map)
        self.server.release(self)

"""waitress, set up for hundreds of streams."""

from __future__ import annotations

import errno
import json
import logging
import selectors
import socket
import threading
import time
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask, WSGITask

from manager import ports
from manager.errors import ApiError
from routes.workers import Workers

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
_CODES = {413: "body_too_large", 431: "headers_too_large", 501: "not_implemented"}


class CannotListen(Exception):
    """The address cannot be had; says who holds it where that is known."""


class _RefusedRequest(ErrorTask):
    """What waitress refuses by itself, in the shape of all other errors."""

    def execute(self) -> None:
        fault = self.request.error
        limit = self.channel.adj.max_request_body_size - 1
        messages = {
            413: f"The request's body is larger than max_body_mb allows ({limit >> 20} MB)",
            431: f"The request's headers are larger than {_MAX_HEADERS >> 10} KB",
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

    task_class = _Answering
    error_task_class = _RefusedRequest
    refused = False
    discarded = 0
    held: list[bytes] | None = None

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
        taken: bool = super().received(data)
        # What follows a refused head is the rest of its body, not a request.
        self.refused = any(request.error for request in tuple(self.requests))
        return taken

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


class _Listener(TcpWSGIServer):
    channel_class = _Channel

    def handle_accept(self) -> None:
        """Accepts all that wait: waitress takes one a round, and each round looks at every
        open connection, so that a burst of n would cost n² looks."""
        for _ in range(_ACCEPTED_A_ROUND):
            before = len(self._map)
            super().handle_accept()
            if len(self._map) == before:
                return


class HttpServer:
    """Serves the application from a loop thread named ``http`` and ``threads`` workers."""

    def __init__(self, app: Flask, host: str, port: int, threads: int, max_body_mb: int) -> None:
        """Binds at once, so that a port in use is known before anything is started.

        Raises CannotListen.
        """
        settings = Adjustments(
            host=host,
            port=port,
            # Every open connection counts, idle ones too. The default of 100 stops accepting,
            # health checks included.
            connection_limit=4 * threads + 1000,
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
        self._workers = Workers(threads)
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
            raise CannotListen(f"cannot listen on {where}: {error}") from error
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

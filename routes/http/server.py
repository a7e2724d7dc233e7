"""waitress, set up for hundreds of streams."""

from __future__ import annotations

import errno
import ipaddress
import logging
import threading
from collections import Counter
from typing import Any

from flask import Flask
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer

from manager.clock import Clock
from manager.config import Network
from manager.models import ports
from routes.http.channel import MAX_HEADER_BYTES, Channel, ClientLimits
from routes.http.thread_pool import ThreadPool

log = logging.getLogger(__name__)

_ACCEPTED_A_ROUND = 256
_CLOCK = Clock()
_LIMITS = ClientLimits()
_WARN_EVERY = 60.0  # seconds between two warnings about addresses that hold too many connections


class ListenError(Exception):
    """The address cannot be listened on; the message says who holds it where that is known."""


class _ConnectionSlots:
    """How many connections each address holds. This machine's own programs and the proxies
    that are trusted speak for many, and have no limit."""

    def __init__(self, most: int, free: tuple[Network, ...], clock: Clock) -> None:
        self._most = most
        self._free = free
        self._clock = clock
        self._lock = threading.Lock()
        self._origins: dict[Channel, str] = {}
        self._held: Counter[str] = Counter()
        self._warned_at = -_WARN_EVERY

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
        if now - self._warned_at >= _WARN_EVERY:
            self._warned_at = now
            log.warning(
                "%s holds %d connections, which is all that one address may: further ones are"
                " closed. A proxy that speaks for many belongs into trusted_proxies",
                origin,
                self._most,
            )
        return True

    def acquire(self, channel: Channel, origin: str | None) -> None:
        if origin is not None:
            with self._lock:
                self._origins[channel] = origin
                self._held[origin] += 1

    def release(self, channel: Channel) -> None:
        """Also for a channel that has none. A worker thread may close one too."""
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
    slots: _ConnectionSlots

    def handle_accept(self) -> None:
        """Accepts all that wait: waitress takes one a round, and each round checks every open
        connection, so that a burst of n would cost n² checks."""
        for _ in range(_ACCEPTED_A_ROUND):
            try:
                accepted = self.accept()
                if accepted is None:
                    return
                connection, address = accepted
                self.set_socket_options(connection)
            except OSError:
                return  # the client has disconnected already
            origin = self.slots.origin(address[0])
            if self.slots.is_full(origin):
                connection.close()
                continue
            channel = Channel(self, connection, address, self.adj, map=self._map)
            self.slots.acquire(channel, origin)

    def release(self, channel: Channel) -> None:
        self.slots.release(channel)

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
        limits: ClientLimits = _LIMITS,
        clock: Clock = _CLOCK,
    ) -> None:
        """Binds at once, so that a port in use is known before anything is started.

        Raises ListenError.
        """
        # Every open connection counts, idle ones too. The default of 100 stops accepting,
        # health checks included.
        max_connections = 4 * threads + 1000
        settings = Adjustments(
            host=host,
            port=port,
            connection_limit=max_connections,
            # Each second requests that take too long are ended.
            cleanup_interval=1,
            # routes.http.client reads them: whether to believe X-Forwarded-For depends on who
            # says it, and that a proxy is in front has to be known where none is named.
            clear_untrusted_proxy_headers=False,
            # select() cannot watch descriptors above 1023.
            asyncore_use_poll=True,
            # With no look-ahead the socket is not read while a request is served, and a
            # client that disconnects is not noticed.
            channel_request_lookahead=1,
            # The limit is inclusive in waitress.
            max_request_body_size=(max_body_mb << 20) + 1,
            max_request_header_size=MAX_HEADER_BYTES,
            # A client that disconnects is normal; answers that break off raise OSError on purpose.
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
        slots = _ConnectionSlots(
            max(1, int(max_connections * limits.share)), trusted_proxies, clock
        )
        for listener in self._listeners:
            listener.limits, listener.clock, listener.slots = limits, clock, slots
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

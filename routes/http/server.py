"""waitress, set up for hundreds of streams."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if sys.platform != "win32":
    import resource

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.server import TcpWSGIServer

from manager.clock import Clock
from manager.config import Network
from manager.models import ports
from routes.http import keepalive
from routes.http.channel import Channel, ClientLimits
from routes.http.tasks import MAX_HEADER_BYTES
from routes.http.thread_pool import ThreadPool

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

log = logging.getLogger(__name__)

_ACCEPTED_A_ROUND = 256
_CLOCK = Clock()
_LIMITS = ClientLimits()
_EVERYWHERE = "::"
_IPV4_IN_IPV6 = "::ffff:"
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # on this machine
_WARN_EVERY = 60.0  # seconds between two warnings about too many connections
_NO_MORE_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_ACCEPT_PAUSE = 1.0  # seconds, where the system has no descriptor left
_IDLE_WHEN_FULL = 5.0  # seconds that a connection may be idle while no more are taken
_OWN_FILES = 100  # descriptors for databases, logs and model processes
_MIN_CONNECTIONS = 16
_CARRIED_CONNECTIONS = 6000  # of requests that hold no thread, and idle ones


class ListenError(Exception):
    """The server cannot run here; the message says why, such as who holds its address."""


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
    next_channel_cleanup: float  # waitress's own, which has no types
    cors_origins: Callable[[], tuple[str, ...]]
    lent: set[Channel]
    _paused_until = _warned_at = -_WARN_EVERY

    def bind_server_socket(self) -> None:
        addresses = [address[0] for _, _, _, address in self.adj.listen]
        if addresses == [_EVERYWHERE]:
            # waitress has limited it to IPv6, as some systems do by default.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().bind_server_socket()

    def handle_accept(self) -> None:
        """Accepts all that wait: waitress takes one a round, and each round checks every open
        connection, so that a burst of n would cost n² checks."""
        for _ in range(_ACCEPTED_A_ROUND):
            # What is lent has a connection to its model as well.
            if len(self._map) + 2 * len(self.lent) >= self.adj.connection_limit:
                return
            try:
                accepted = self.accept()
            except OSError as error:
                if error.errno in _NO_MORE_FILES:
                    self._pause(error)
                return  # else the client has disconnected already
            if accepted is None:
                return
            connection, address = accepted
            try:
                self.set_socket_options(connection)
            except OSError:  # the same
                connection.close()
                continue
            address = _plain_address(address)
            origin = self.slots.origin(address[0])
            if self.slots.is_full(origin):
                connection.close()
                continue
            channel = Channel(self, connection, address, self.adj, map=self._map)
            self.slots.acquire(channel, origin)

    def _pause(self, error: OSError) -> None:
        """The client waits in the system's queue, of which the loop would hear again at once."""
        now = self.clock.monotonic()
        self._paused_until = now + _ACCEPT_PAUSE
        if now - self._warned_at >= _WARN_EVERY:
            self._warned_at = now
            log.warning("no further connection is taken for now: %s", error.strerror)

    def release(self, channel: Channel) -> None:
        self.slots.release(channel)

    def readable(self) -> bool:
        # Else, set back, the wall clock would put the next round of maintenance off.
        latest = time.time() + self.adj.cleanup_interval
        self.next_channel_cleanup = min(self.next_channel_cleanup, latest)
        return bool(super().readable()) and self.clock.monotonic() >= self._paused_until

    def maintenance(self, _now: float) -> None:
        now = self.clock.monotonic()  # by which channels keep their last activity
        is_full = self.in_connection_overflow or now < self._paused_until
        # waitress closes what has been idle for so long; while others wait, it is sooner.
        super().maintenance(now + self.adj.channel_timeout - _IDLE_WHEN_FULL if is_full else now)
        channels = tuple(self.active_channels.values())
        for channel in channels:
            channel.check_time()
        for channel in (*channels, *self.lent.copy()):
            if channel.requests and keepalive.has_vanished(channel.socket):
                with contextlib.suppress(OSError):  # it is closed already
                    channel.socket.shutdown(socket.SHUT_RDWR)  # as if the client had closed it


def _plain_address(address: tuple[Any, ...]) -> tuple[Any, ...]:
    """A client's address. That of IPv4 on a socket that takes both is 192.0.2.1 for all who ask,
    not ::ffff:192.0.2.1: it is compared, counted, recorded and logged."""
    host, *rest = address
    if host.startswith(_IPV4_IN_IPV6):
        mapped = ipaddress.IPv6Address(host).ipv4_mapped
        host = host if mapped is None else str(mapped)
    return (host, *rest)


def _connection_limit(threads: int, files: int | None) -> int:
    """How many connections may be open, with that many descriptors for the whole program, None for
    no limit. A request that a thread serves has one more, to its model."""
    wanted = 4 * threads + _CARRIED_CONNECTIONS
    if files is None:
        return wanted
    spare = files - _OWN_FILES
    most = max(_MIN_CONNECTIONS, spare - min(threads, spare // 2))
    if most < wanted:
        log.warning(
            "the system allows this program %d open files, and so at most %d connections: raise"
            " that (ulimit -n, LimitNOFILE= of systemd, --ulimit nofile of docker)",
            files,
            most,
        )
    return min(wanted, most)


def _file_limit() -> int | None:
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _adjustments(host: str, port: int, connections: int, max_body_mb: int) -> Adjustments:
    """Raises ValueError for a host that cannot be resolved."""
    return Adjustments(
        host=host,
        port=port,
        # Every open connection counts, idle ones too. The default of 100 stops accepting,
        # health checks included.
        connection_limit=connections,
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


def _present(addresses: Sequence[Any]) -> Sequence[Any]:
    """Those of a name's addresses that this machine has; all where it has none. ``localhost`` is
    ::1 too, also where there is no IPv6, as in many containers."""
    present = []
    for info in addresses:
        family, kind, protocol, (host, _, *scope) = info
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.bind((host, 0, *scope))
        except OSError as error:
            if error.errno in _NO_SUCH_ADDRESS:
                continue
        present.append(info)
    return present or addresses


def _listen_error(host: str, port: int, error: Exception) -> ListenError:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.EADDRINUSE:
        where += f", which {ports.holder(port)} holds"
    elif number is None:
        where += f". {host!r} is neither an address nor a name of this machine"
    elif number in _NO_SUCH_ADDRESS and host in (_EVERYWHERE, "::1"):
        ipv4 = "0.0.0.0" if host == _EVERYWHERE else "127.0.0.1"
        where += f": there is no IPv6 on this machine. Listen on host {ipv4}, or switch it on"
    return ListenError(f"cannot listen on {where}: {error}")


class HttpServer:
    """Serves the application from a loop thread named ``http`` and ``threads`` workers."""

    def __init__(
        self,
        app: WSGIApplication,
        host: str,
        port: int,
        threads: int,
        max_body_mb: int,
        *,
        also: tuple[tuple[WSGIApplication, int], ...] = (),
        trusted_proxies: tuple[Network, ...] = (),
        cors_origins: Callable[[], tuple[str, ...]] = tuple,
        limits: ClientLimits = _LIMITS,
        clock: Clock = _CLOCK,
    ) -> None:
        """Binds at once, so that a port in use is known before anything is started. ``also`` are
        further applications, each with a port of its own on the same host. ``cors_origins`` returns
        those of the config that is in use.

        Raises ListenError, also where the system has too few threads.
        """
        self._map: dict[int, Any] = {}
        # A thread is held for as long as its answer streams or its model starts: waitress's
        # default of 4 would serve four streams and hang the fifth.
        try:
            self._workers = ThreadPool(threads)
        except RuntimeError as error:
            raise ListenError(
                f"the system does not allow {threads} threads: lower `threads` in the config, or"
                " raise the limit of processes (ulimit -u, TasksMax= of systemd, --pids-limit of"
                f" docker): {error}"
            ) from error
        limit = _connection_limit(threads, _file_limit())
        self._listeners: list[_Listener] = []
        for served, wanted in ((app, port), *also):
            try:
                settings = _adjustments(host, wanted, limit, max_body_mb)
                self._listen(served, settings)
            except (OSError, ValueError) as error:
                wasyncore.close_all(self._map)
                raise _listen_error(host, wanted, error) from error
        # One count for all addresses that are listened on.
        slots = _ConnectionSlots(max(1, int(limit * limits.share)), trusted_proxies, clock)
        lent: set[Channel] = set()
        for listener in self._listeners:
            listener.limits, listener.clock, listener.slots = limits, clock, slots
            listener.cors_origins, listener.lent = cors_origins, lent
        self._thread = threading.Thread(target=self._listeners[0].run, name="http", daemon=True)

    def _listen(self, app: WSGIApplication, settings: Adjustments) -> None:
        """Raises OSError."""
        settings.listen = _present(settings.listen)
        settings.socket_options = [*Adjustments.socket_options, *keepalive.options()]
        chosen: int | None = None
        for family, kind, protocol, (name, number, *scope) in settings.listen:
            listener = _Listener(
                app,
                map=self._map,
                dispatcher=self._workers,
                adj=settings,
                # All on one port, also where the system chooses it.
                sockinfo=(family, kind, protocol, (name, chosen or number, *scope)),
            )
            chosen = int(listener.effective_port)
            self._listeners.append(listener)

    @property
    def port(self) -> int:
        """The application's port in use, also where port 0 left the choice to the system."""
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

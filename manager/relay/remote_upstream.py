"""A server that others start, over HTTP or HTTPS, wherever it is."""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakSet

from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection
from urllib3.util import create_urllib3_context

from manager.relay.response import Response, UpstreamError
from manager.relay.upstream import Address, Exchange, Upstream

_VERSION = re.compile(r"(.*)(/v[0-9]+[a-z0-9]*)")
# What lies between may forget a kept connection that is silent, and say so to nobody: a request on
# it would wait for ``upstream_timeout``.
_KEEP_ALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # seconds; probes


class RemoteUpstream(Upstream):
    """The server at ``url``, as the config has it, which is sent ``api_key`` where it has one.

    A path that ends in a version, as those do that OpenAI's clients call base URLs, has that in
    place of ``/v1``. Redirects are not followed: the key is for this host alone. Raises
    UpstreamError where the certificates that are trusted cannot be read.
    """

    def __init__(self, url: str, api_key: str | None, connections: int) -> None:
        parts = urlsplit(url)
        self._scheme, self._netloc = parts.scheme, parts.netloc
        match = _VERSION.fullmatch(parts.path)
        self._base, self._version = match.groups() if match else (parts.path, "/v1")
        self._options: dict[str, Any] = {"socket_options": _socket_options()}
        if parts.scheme == "https":
            # The state of the encryption is in this process, and cannot be handed over.
            self.can_hand_over = False
            self._options["ssl_context"] = _tls_context()
        self.api_key = api_key
        self._lock = threading.Lock()
        self._exchanges: WeakSet[Exchange] = WeakSet()
        port = parts.port or (443 if parts.scheme == "https" else 80)
        super().__init__(port, connections, parts.hostname or "")

    def use(self, host: str) -> None:
        self.host = host
        key = self.api_key
        headers = (("Authorization", f"Bearer {key}"),) if key else ()
        self.address = Address(self._netloc, self._base, self._version, headers)
        self._pool = self._adapter.poolmanager.connection_from_host(
            host, self.port, self._scheme, self._options
        )

    def cut(self) -> None:
        """Ends the exchanges in flight, as the end of a server of ours does, and has no others."""
        self.close()
        with self._lock:
            exchanges = list(self._exchanges)
        for exchange in exchanges:
            exchange.cut()

    def _connect(self, exchange: Exchange) -> Response:
        with self._lock:
            self._exchanges.add(exchange)
        return super()._connect(exchange)

    @property
    def where(self) -> str:
        return f"at {self._scheme}://{self._netloc}"


def _socket_options() -> list[tuple[int, int, int]]:
    options = [*HTTPConnection.default_socket_options]
    options.append((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1))
    for name, value in _KEEP_ALIVE.items():
        if (option := getattr(socket, name, None)) is not None:
            options.append((socket.IPPROTO_TCP, option, value))
    return options


def _tls_context() -> ssl.SSLContext:
    """One for all connections of a server: to read the certificates takes milliseconds."""
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH
    context = create_urllib3_context()
    try:
        if os.path.isdir(bundle):
            context.load_verify_locations(capath=bundle)
        else:
            context.load_verify_locations(bundle)
    except OSError as error:
        raise UpstreamError(f"the certificates in {bundle} cannot be read: {error}") from None
    return context

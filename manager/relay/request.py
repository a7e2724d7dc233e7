"""A request as the relay takes it, and the answer as it gives it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from manager.interfaces import Endpoint, Interface
from manager.relay.body import Body
from manager.relay.upstream import Upstream
from manager.streams import ClientHead, Headers
from manager.tokens import TokenUsage


class Lease(Protocol):
    """All that the relay needs of the fleet. ``release`` takes what the request came to, where it
    was sent, and may be called more than once; ``produced`` is set with each piece of an answer
    that is no error."""

    produced: bool

    @property
    def interface(self) -> Interface: ...
    @property
    def upstream(self) -> Upstream: ...
    @property
    def served_model_name(self) -> str | None: ...
    @property
    def ask_usage(self) -> bool: ...
    @property
    def upstream_timeout(self) -> float: ...
    def release(self, outcome: Outcome | None = None) -> None: ...


@dataclass(frozen=True)
class RelayRequest:
    """What the client sent, to which endpoint: ``target`` is the path with its query, at the
    model's server. ``base``: the path at which the client has the root of that server, where it
    has; an answer may be a web page then. ``sets_model``: the config has set the model in the body
    already.
    ``hides_limits``: it has limits of ours, so that those of the model's server would mislead."""

    endpoint: Endpoint
    target: str
    headers: Headers
    body: Body
    hides_limits: bool = False
    method: str = "POST"
    base: str = ""
    sets_model: bool = False

    @property
    def is_safe(self) -> bool:
        """Whether it only reads (RFC 9110, 9.2.1): no tokens are computed for it."""
        return self.method in ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True)
class Outcome:
    """What a request came to. ``first_byte_at`` is on the monotonic clock, None if none came;
    ``error`` says why an answer is not whole, and ``status`` is then that of the error, also where
    the client had been sent 200 before."""

    status: int
    usage: TokenUsage | None = None
    streamed: bool = False
    first_byte_at: float | None = None
    error: str | None = None


class TruncatedResponse(OSError):
    """An answer that breaks off in the middle. As an OSError it makes the server close the
    client's connection, so that a truncated answer never looks complete."""


class HandedOver(BaseException):
    """Not an error: another process goes on with the request, and the thread is free. It passes
    through the server's code, which is to leave the connection alone."""


class ClientConnection(Protocol):
    """A client's connection while another watches it and writes the answer to it: ``socket`` is a
    descriptor of it to be closed, ``head`` is what is known of the answer's head."""

    @property
    def socket(self) -> socket.socket: ...
    @property
    def head(self) -> ClientHead: ...
    def take_back(self, goes_on: bool, data: bytes) -> None:
        """The answer was sent; or the connection is to be closed, whether it was or not. ``data``
        is what the client has sent since."""

    def keep(self) -> None:
        """Nobody took it: this thread goes on with the answer."""

    def set_head(self, status: str, headers: Headers) -> None:
        """In place of those that the answer was begun with, before they were known."""

    def go_on(self, make: Callable[[], RelayResponse], data: bytes) -> None:
        """Sends this answer, from a thread of the server; ``data`` as above."""


class RelayResponse:
    """An answer on its way to the client: status, headers and an iterable of bytes; whether it
    ``is_stream``.

    ``close`` releases whatever is still held, however far the answer is. (A generator would
    not do: one that was never started runs none of its clean-up.)
    """

    def __init__(
        self,
        status: str,
        headers: Headers,
        pieces: Iterator[bytes],
        close: Callable[[], None],
    ) -> None:
        self.status = status
        self.headers = headers
        self._pieces = pieces
        self._close: Callable[[], None] | None = close
        self._actions: list[Callable[[], object]] = []
        self.is_stream = False

    def __iter__(self) -> RelayResponse:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._pieces)
        except HandedOver:
            self._close = None  # another does, and perhaps has done so already
            raise

    def when_closed(self, action: Callable[[], object]) -> None:
        """Calls ``action`` once the client has its answer or has disconnected."""
        self._actions.append(action)

    def close(self) -> None:
        close, self._close = self._close, None
        actions, self._actions = self._actions, []
        try:
            if close is not None:
                close()
        finally:
            for action in actions:
                action()

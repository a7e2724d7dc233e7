"""Answers of upstreams, byte by byte, and requests to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from manager.relay.upstream import Exchange, Upstream
from tests.support.servers import PATIENCE, Peer, RawServer

Serve = Callable[[Callable[[Peer], None]], RawServer]
Eventually = Callable[[Callable[[], Any]], Any]

BODY = b'{"choices": [{"message": {"content": "Hello"}}]}'
OK = b"HTTP/1.1 200 OK\r\n"
SHORT = OK + b"Content-Length: 2\r\n\r\nok"


def sized(body: bytes, length: object = None) -> bytes:
    declared = len(body) if length is None else length
    return OK + f"Content-Length: {declared}\r\n\r\n".encode() + body


def chunked(*chunks: bytes) -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def until_close(body: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + body


FRAMED = {"length": sized(BODY), "chunked": chunked(BODY[:9], BODY[9:]), "close": until_close(BODY)}


def post(body: bytes = b"{}", timeout: float = PATIENCE) -> Exchange:
    headers = [("Content-Type", "application/json")]
    return Exchange("POST", "/v1/chat/completions", headers, body, timeout=timeout)


def request_for(*parts: bytes, then: str = "close") -> Exchange:
    """A request to the parrot for these bytes."""
    texts = [part.decode("latin-1") for part in parts]
    return post(json.dumps({"parts": texts, "then": then}).encode())


def read(upstream: Upstream, exchange: Exchange) -> bytes:
    """The body of the answer."""
    return b"".join(upstream.send(exchange).iter_bytes())


Connect = Callable[[RawServer], Upstream]


def answers(*all_answers: bytes) -> Callable[[Peer], None]:
    """A script: one answer for each request, in this order, over any connections."""
    left = iter(all_answers)

    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(next(left))

    return script


def close_unanswered(peer: Peer) -> None:
    peer.request()

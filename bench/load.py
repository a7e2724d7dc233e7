"""Drives an OpenAI-compatible server and prints one line of JSON with what it measured.

    python bench/load.py --url http://127.0.0.1:8080 --model m -c 32 -n 3000
    python bench/load.py --url ... --stream -c 200 -n 200 --tokens 150 --interval-ms 20

One thread on raw sockets that looks at bytes and parses next to nothing, to leave the
processor to what is measured. An answer that is not 200, carries no usage, ends early or
without `[DONE]` counts as failed.
"""

from __future__ import annotations

import argparse
import collections
import gc
import json
import re
import selectors
import socket
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PROMPT = "x" * 200
READ_BYTES = 65536

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
# A proxy may cut HTTP chunks anywhere, inside an event too. The events themselves have no \r,
# so that taking this out leaves them whole.
CHUNK_BORDER = re.compile(rb"\r\n[0-9A-Fa-f]+\r\n")
LAST_BORDER = b"\r\n0\r\n\r\n"
STAMP = re.compile(rb'"t":(\d+)')


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie, without interpolation; 0 of none."""
    if not values:
        return 0.0
    return sorted(values)[int(share * (len(values) - 1))]


@dataclass
class Samples:
    """What a run has seen. Times are in ms, lags behind the upstream's own time stamps."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    longest_gaps: list[float] = field(default_factory=list)
    chunks: int = 0
    errors: collections.Counter[str] = field(default_factory=collections.Counter)

    def report(self, seconds: float) -> dict[str, Any]:
        return {
            "ok": len(self.whole),
            "failed": self.errors.total(),
            "errors": dict(self.errors),
            "seconds": seconds,
            "answers_per_s": len(self.whole) / seconds,
            "first_ms_p50": percentile(self.first, 0.5),
            "first_ms_p99": percentile(self.first, 0.99),
            "whole_ms_p50": percentile(self.whole, 0.5),
            "whole_ms_p99": percentile(self.whole, 0.99),
            "chunks": self.chunks,
            "chunks_per_s": self.chunks / seconds,
            "lag_ms_p50": percentile(self.lags, 0.5),
            "lag_ms_p99": percentile(self.lags, 0.99),
            "longest_gap_ms_p99": percentile(self.longest_gaps, 0.99),
        }


class BadAnswerError(Exception):
    """The answer is not what was asked for; the message is counted in the report."""


class Client:
    """One connection with one request under way at a time."""

    def __init__(self, address: tuple[str, int], request: bytes, stream: bool) -> None:
        self.address = address
        self.request = request
        self.stream = stream
        self.sock: socket.socket | None = None
        self.begin()

    def begin(self) -> None:
        self.started = self.last = time.perf_counter()
        self.got = b""
        self.body_from = -1  # where the body starts in `got`, once its head has arrived
        self.length = -1
        self.chunked = self.closes = self.done = False
        self.first = 0.0
        self.chunks = 0
        self.lags: list[float] = []
        self.longest_gap = 0.0

    def send(self) -> socket.socket:
        """Start a request, on a new connection where the old one is closed. Raises OSError."""
        self.begin()
        if self.sock is None:
            self.sock = socket.create_connection(self.address, timeout=10)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.sendall(self.request)
        self.sock.setblocking(False)
        return self.sock

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def received(self, data: bytes) -> bool:
        """Take in what has arrived; true once the answer is complete. Raises BadAnswerError."""
        self.got += data
        if self.body_from < 0 and not self.read_head():
            return False
        return self.read_events() if self.stream else self.read_whole()

    def read_head(self) -> bool:
        end = self.got.find(b"\r\n\r\n")
        if end < 0:
            return False
        status = self.got[:15].split(b" ")[1:2]
        if status != [b"200"]:
            raise BadAnswerError(" ".join(self.got[:300].decode("latin-1").split()))
        length = CONTENT_LENGTH.search(self.got, 0, end + 2)
        self.length = int(length[1]) if length else -1
        self.chunked = not length and CHUNKED.search(self.got, 0, end + 2) is not None
        self.closes = CLOSES.search(self.got, 0, end + 2) is not None
        self.body_from = end + 4
        if self.stream:  # the line end before the first chunk's size belongs to its border
            self.got = self.got[end + 2 :]
        return True

    def read_whole(self) -> bool:
        if self.length >= 0:
            complete = len(self.got) >= self.body_from + self.length
        else:
            complete = self.chunked and self.got.endswith(LAST_BORDER)
        if complete and b'"usage"' not in self.got:
            raise BadAnswerError("no usage in the answer")
        return complete

    def read_events(self) -> bool:
        complete = self.chunked and self.got.endswith(LAST_BORDER)
        end = len(self.got) - len(LAST_BORDER) if complete else self.got.rfind(b"\n\n") + 2
        if complete or end >= 2:
            events = CHUNK_BORDER.sub(b"", self.got[:end])
            self.got = self.got[end:]  # a part of an event, or the stream's end
            self.count(events)
        return complete

    def count(self, events: bytes) -> None:
        count = events.count(b"data: ")
        if b"data: [DONE]" in events:
            self.done = True
            count -= 1
        if not count:
            return
        now = time.perf_counter()
        if not self.chunks:
            self.first = now
        else:
            self.longest_gap = max(self.longest_gap, now - self.last)
        self.last = now
        self.chunks += count
        clock = time.time_ns()
        self.lags += [(clock - int(stamp)) / 1e6 for stamp in STAMP.findall(events)]

    def closed(self) -> None:
        """The connection's end: that of an answer without a length, else BadAnswerError."""
        if self.body_from < 0:
            raise BadAnswerError("closed without an answer")
        if self.chunked or self.length >= 0:
            raise BadAnswerError("closed before the end of the answer")

    def finish(self, samples: Samples) -> None:
        """Add a complete answer to `samples`. Raises BadAnswerError if it lacks its last event."""
        now = time.perf_counter()
        if self.stream and not self.done:
            raise BadAnswerError("stream ended without [DONE]")
        samples.first.append(((self.first or now) - self.started) * 1e3)
        samples.whole.append((now - self.started) * 1e3)
        samples.lags += self.lags
        samples.longest_gaps.append(self.longest_gap * 1e3)
        samples.chunks += self.chunks


class Run:
    """`total` requests, one for each of `clients` at once, over within `timeout` seconds."""

    def __init__(self, clients: list[Client], total: int, timeout: float) -> None:
        self.clients = clients
        self.to_start = total
        self.timeout = timeout
        self.busy: set[Client] = set()
        self.samples = Samples()
        self.selector = selectors.DefaultSelector()

    def run(self) -> Samples:
        deadline = time.monotonic() + self.timeout
        for client in self.clients:
            self.start(client)
        while self.busy:
            for key, _ in self.selector.select(max(0.0, deadline - time.monotonic())):
                self.read(key.data)
            if time.monotonic() >= deadline:
                self.samples.errors["timed out"] += len(self.busy) + self.to_start
                break
        for client in self.clients:
            self.drop(client)
        self.selector.close()
        return self.samples

    def start(self, client: Client) -> None:
        """Start the client's next request, if there is one left that can be started."""
        while self.to_start:
            self.to_start -= 1
            connected = client.sock is not None
            try:
                sock = client.send()
            except OSError as error:
                self.samples.errors[str(error)] += 1
                self.drop(client)
                continue
            if not connected:
                self.selector.register(sock, selectors.EVENT_READ, client)
            self.busy.add(client)
            return

    def read(self, client: Client) -> None:
        if client.sock is None:
            return
        try:
            data = client.sock.recv(READ_BYTES)
            if client not in self.busy:  # a server that closes what it has no more requests on
                self.drop(client)
                return
            if data:
                if not client.received(data):
                    return
            else:
                client.closed()
            client.finish(self.samples)
        except (OSError, BadAnswerError) as error:
            self.samples.errors[str(error)] += 1
            self.drop(client)
        else:
            if client.closes or not data:
                self.drop(client)
        self.busy.discard(client)
        self.start(client)

    def drop(self, client: Client) -> None:
        if client.sock is not None:
            if client.sock in self.selector.get_map():
                self.selector.unregister(client.sock)
            client.close()


def request_bytes(
    address: tuple[str, int],
    model: str,
    stream: bool,
    tokens: int,
    interval_ms: float,
) -> bytes:
    """The one chat request that a run sends, head and body."""
    content: dict[str, Any] = {
        "model": model,
        "stream": stream,
        "messages": [{"role": "user", "content": PROMPT}],
    }
    if tokens:
        content["max_tokens"] = tokens
    if interval_ms:
        content["interval_us"] = round(interval_ms * 1000)
    body = json.dumps(content).encode()
    host, port = address
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> None:
    parser = argparse.ArgumentParser(description="Drive an OpenAI-compatible server.")
    parser.add_argument("--url", required=True, help="base URL, http only")
    parser.add_argument("--model", default="fake")
    parser.add_argument("-c", type=int, default=1, help="requests under way at once")
    parser.add_argument("-n", type=int, default=100, help="requests in all")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--tokens", type=int, default=0, help="max_tokens")
    parser.add_argument("--interval-ms", type=float, default=0, help="pause between chunks")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for the whole run")
    options = parser.parse_args()
    url = urllib.parse.urlsplit(options.url)
    address = (url.hostname or "127.0.0.1", url.port or 80)
    request = request_bytes(
        address, options.model, options.stream, options.tokens, options.interval_ms
    )
    clients = [Client(address, request, options.stream) for _ in range(options.c)]
    gc.disable()  # a collection would show up as lag
    started = time.perf_counter()
    samples = Run(clients, options.n, options.timeout).run()
    print(json.dumps(samples.report(time.perf_counter() - started)))


if __name__ == "__main__":
    main()

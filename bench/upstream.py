"""A model server that does no inference, so that a proxy in front of it is all that is measured.

    PORT=9001 python bench/upstream.py [--port N] [--tokens 128] [--boot SECONDS]

It serves `/v1/chat/completions`, `/v1/completions`, `/v1/models`, `/health` and `/stats`
(requests open, the peak, served, aborted by the client). A request sets its own number of
chunks with `max_tokens` and the pause between them with `interval_us`. Each event of a stream
is an HTTP chunk of its own and carries the time it was written, `"t"`, in ns since the epoch.

One thread on raw sockets with answers rendered once: a framework here would be slower than
the proxies it is there to measure.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import heapq
import json
import os
import re
import selectors
import signal
import socket
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
PROMPT_TOKENS = 17
# Written together in a stream without pauses. With one a write this process would be the
# bottleneck; with this many it is about as fast as a compiled server that writes them singly.
EVENTS_PER_WRITE = 4
# Waiting in epoll is to the ms; it would send the events of 20 ms in a few bursts.
SELECT_RESOLUTION = 0.001


@dataclass(frozen=True)
class Answer:
    """What one request body gets: `whole`, or a stream of `events` and then its `tail`.

    Each event is an HTTP chunk cut at its time stamp; `after_stamp` is the other side of it.
    """

    whole: bytes = b""
    events: tuple[bytes, ...] = ()
    after_stamp: bytes = b"}\n\n\r\n"
    tail: bytes = b""
    interval: float = 0.0


def http_answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def http_chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def sse(event: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % json.dumps(event, separators=(",", ":")).encode()


@functools.lru_cache(maxsize=64)
def answer_to(body: bytes, tokens: int) -> Answer:
    """Render the answer to a request body; load sends the same few bodies over and over."""
    try:
        request = json.loads(body)
        model, stream = str(request["model"]), bool(request.get("stream"))
        tokens = int(request.get("max_tokens") or tokens)
        interval = int(request.get("interval_us") or 0) / 1e6
        ask_usage = bool((request.get("stream_options") or {}).get("include_usage"))
    except (ValueError, TypeError, KeyError, AttributeError):
        return Answer(whole=http_answer("400 Bad Request", b'{"error":{"message":"bad request"}}'))
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": PROMPT_TOKENS + tokens,
    }
    head: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk" if stream else "chat.completion",
        "created": 1,
        "model": model,
    }
    if not stream:
        message = {"role": "assistant", "content": "hello"}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = json.dumps(head | {"choices": [choice], "usage": usage}).encode()
        return Answer(whole=http_answer("200 OK", whole))

    events = []
    for number in range(tokens):
        choice = {"index": 0, "delta": {"content": f" token{number}"}, "finish_reason": None}
        # Any time will do here: it has as many digits as the one that is written in its place.
        chunk = http_chunk(sse(head | {"choices": [choice], "t": time.time_ns()}))
        events.append(chunk[: chunk.rindex(b'"t":') + 4])
    end = sse(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    tail = http_chunk(end)
    if ask_usage:
        tail += http_chunk(sse(head | {"choices": [], "usage": usage}))
    tail += http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return Answer(events=tuple(events), tail=tail, interval=interval)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


class Connection:
    """One client: what it has sent, what it has still to get."""

    __slots__ = ("answer", "got", "next_event", "pending", "sock", "writing")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.got = b""
        self.pending = b""
        self.answer: Answer | None = None  # the stream under way
        self.next_event = 0
        self.writing = False


class Due(NamedTuple):
    at: float
    order: int
    connection: Connection


class Upstream:
    """The server and its counts. `tokens` is the length of a stream that asks for none."""

    def __init__(self, listener: socket.socket, tokens: int) -> None:
        self.listener = listener
        self.tokens = tokens
        self.selector = selectors.DefaultSelector()
        self.flat_out: set[Connection] = set()
        self.timers: list[Due] = []
        self.timer_order = 0
        self.open = self.peak = self.served = self.aborted = 0

    def serve(self) -> None:
        """Serve until the process ends."""
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ)
        while True:
            wait: float | None = None
            if self.flat_out:
                wait = 0
            elif self.timers:
                wait = max(0.0, self.timers[0].at - time.monotonic())
                if wait < SELECT_RESOLUTION:
                    time.sleep(wait)
                    wait = 0
            for key, mask in self.selector.select(wait):
                if key.data is None:
                    self.accept()
                    continue
                connection: Connection = key.data
                if mask & selectors.EVENT_WRITE:
                    self.send(connection, b"")
                if mask & selectors.EVENT_READ:
                    self.read(connection)
            for connection in list(self.flat_out):
                self.send_events(connection, EVENTS_PER_WRITE)
            now = time.monotonic()
            while self.timers and self.timers[0].at <= now:
                self.tick(heapq.heappop(self.timers))

    def accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(sock, selectors.EVENT_READ, Connection(sock))

    def read(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(connection)
            return
        connection.got += data
        self.answer_next(connection)

    def answer_next(self, connection: Connection) -> None:
        """Answer the next request once it has arrived whole and the one before it is done."""
        got = connection.got
        end = got.find(b"\r\n\r\n")
        if end < 0 or connection.answer is not None:
            return
        length = CONTENT_LENGTH.search(got, 0, end + 2)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(got) < whole:
            return
        connection.got = got[whole:]
        if got.startswith((b"POST /v1/chat/completions ", b"POST /v1/completions ")):
            self.open += 1
            self.peak = max(self.peak, self.open)
            self.begin(connection, answer_to(got[end + 4 : whole], self.tokens))
        else:
            self.send(connection, self.about(got.split(b" ", 2)[1]))

    def about(self, path: bytes) -> bytes:
        if path == b"/health":
            return http_answer("200 OK", b'{"status":"ok"}')
        if path == b"/v1/models":
            return http_answer(
                "200 OK", b'{"object":"list","data":[{"id":"fake","object":"model"}]}'
            )
        if path == b"/stats":
            names = ("open", "peak", "served", "aborted")
            counts = {name: getattr(self, name) for name in names}
            return http_answer("200 OK", json.dumps(counts).encode())
        return http_answer("404 Not Found", b'{"error":{"message":"not found"}}')

    def begin(self, connection: Connection, answer: Answer) -> None:
        if answer.whole:
            self.open -= 1
            self.served += 1
            self.send(connection, answer.whole)
            return
        connection.answer = answer
        connection.next_event = 0
        self.send(connection, STREAM_HEAD)
        if answer.interval:
            self.tick_at(time.monotonic() + answer.interval, connection)
        elif not connection.writing:
            self.flat_out.add(connection)

    def tick_at(self, at: float, connection: Connection) -> None:
        self.timer_order += 1
        heapq.heappush(self.timers, Due(at, self.timer_order, connection))

    def tick(self, due: Due) -> None:
        connection = due.connection
        if connection.answer is None:
            return
        interval = connection.answer.interval
        self.send_events(connection, 1)
        if connection.answer is not None:
            self.tick_at(due.at + interval, connection)

    def send_events(self, connection: Connection, count: int) -> None:
        """Write the stream's next events, stamped now, and its tail after the last of them."""
        answer = connection.answer
        if answer is None:
            return
        batch = answer.events[connection.next_event : connection.next_event + count]
        connection.next_event += len(batch)
        stamp = b"%d%b" % (time.time_ns(), answer.after_stamp)
        data = stamp.join((*batch, b""))
        if connection.next_event < len(answer.events):
            self.send(connection, data)
            return
        connection.answer = None
        self.flat_out.discard(connection)
        self.open -= 1
        self.served += 1
        self.send(connection, data + answer.tail)
        self.answer_next(connection)

    def send(self, connection: Connection, data: bytes) -> None:
        """Send, or keep what the client's buffer cannot take yet."""
        data = connection.pending + data
        try:
            sent = connection.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(connection)
            return
        connection.pending = data[sent:]
        writing = bool(connection.pending)
        if writing != connection.writing:
            connection.writing = writing
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writing else 0)
            self.selector.modify(connection.sock, events, connection)
            if writing:
                self.flat_out.discard(connection)
            elif connection.answer is not None and not connection.answer.interval:
                self.flat_out.add(connection)

    def close(self, connection: Connection) -> None:
        if connection.answer is not None:
            connection.answer = None
            self.open -= 1
            self.aborted += 1
        self.flat_out.discard(connection)
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(connection.sock)
        connection.sock.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A model server that does no inference.")
    parser.add_argument("--port", type=int, default=os.environ.get("PORT"), help="default: $PORT")
    parser.add_argument("--tokens", type=int, default=128, help="chunks in a stream")
    parser.add_argument("--boot", type=float, default=0.0, help="seconds before it listens")
    options = parser.parse_args()
    if options.port is None:
        parser.error("no --port and no PORT in the environment")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback on Ctrl-C
    time.sleep(options.boot)
    # Nothing here makes reference cycles, and a collection would show up as lag.
    gc.disable()
    listener = socket.create_server(("127.0.0.1", options.port), backlog=1024)
    Upstream(listener, options.tokens).serve()


if __name__ == "__main__":
    main()

"""A model server that behaves, or misbehaves, as a test asks for.

    PORT=9001 python tests/support/fake_upstream.py [--mode Chat] [--boot 2] ...

Flags say how it lives. The field `"fake": {...}` of a request's body says how that one request
is answered; its keys are the fields of `Fake`. Without one it answers as a real server does.
`GET /stats` reports what it has seen.
"""

from __future__ import annotations

import argparse
import base64
import collections
import json
import os
import select
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # it runs as a script, too

from tests.support import cards, nvidia_smi

# mode -> its endpoint and the fields without which it answers 400
MODES = {
    "Chat": ("/v1/chat/completions", ("messages",)),
    "Base": ("/v1/completions", ("prompt",)),
    "Embedding": ("/v1/embeddings", ("input",)),
    "Reranker": ("/v1/rerank", ("query", "documents")),
}
PROMPT_TOKENS = 17
VECTOR = (0.5, 0.25, -0.125, 0.0)
KEPT_REQUESTS = 50
KEPT_BYTES = 65536
BOOT_STEPS = 10
CHOICES = {
    "usage": ("asked", "always", "never", "null"),
    "framing": ("", "length", "chunked", "close"),
    "fail": ("", "close", "reset", "exit", "silent"),
    "fail_at": ("head", "between", "inside"),
    "close": ("", "said", "unsaid"),
    "breaks": ("", "errors", "posts", "silent"),
}
GARBAGE = b"\x16\x03\x01 this is not HTTP\r\n\r\n"


@dataclass
class Fake:
    """How one request is answered. A piece is one SSE event, or all of a body that is not SSE."""

    until: str = ""  # a file that has to exist before the head
    delay: float = 0.0  # seconds before the head
    interval: float = 0.0  # seconds before each piece
    chunks: int = 3  # content chunks of a stream, and completion tokens
    text: str = ""  # content, a chunk each word; default: as `chunks` and `chunk_bytes` say
    chunk_bytes: int = 0  # length of each chunk's content; 0: " token0", " token1", ...
    usage: str = "asked"  # null: as asked, and null in each other chunk
    done: bool = True  # a stream ends with [DONE]
    crlf: bool = False  # events end their lines with CRLF
    status: int = 200  # from 400 on with an error as the body
    headers: dict[str, str] = field(default_factory=dict)  # further ones
    echo: bool = False  # the body is the request: method, path, headers, body
    html: bool = False  # the body is a page
    size: int = 0  # the body is JSON of about that many bytes
    gzip: bool = False
    framing: str = ""  # length, chunked, close (HTTP/1.0); default: chunked for a stream
    length: int = 0  # added to a true Content-Length
    garbage: bool = False  # bytes that are not HTTP, then the connection's end
    # How the answer breaks off: close, reset (RST), exit (the whole process), silent (until the
    # client goes away). And where: before its head; between or inside pieces, after `after` of
    # them or before the last one.
    fail: str = ""
    fail_at: str = "head"
    after: int = 1
    code: int = 1  # of exit
    close: str = ""  # the connection's end after the answer, said in a header or unsaid
    log: str = ""  # printed on standard output
    # The server lives on from here, but no longer serves: 500 and an unwell health, only 500
    # (posts), or silence.
    breaks: str = ""

    def __post_init__(self) -> None:
        """Refuse what would otherwise be taken for a default. Raises ValueError."""
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"fake.{name} must be one of {values}")
        if self.text:
            self.chunks = len(self.text.split())


class BrokenOffError(Exception):
    """The answer ends here, and the connection with it."""


def usage_of(mode: str, completion_tokens: int) -> dict[str, int]:
    if mode in ("Embedding", "Reranker"):
        return {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS}
    counts = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": completion_tokens}
    return counts | {"total_tokens": PROMPT_TOKENS + completion_tokens}


def contents_of(fake: Fake) -> list[str]:
    if fake.text:
        first, *rest = fake.text.split()
        return [first, *(f" {word}" for word in rest)]
    return ["x" * fake.chunk_bytes or f" token{number}" for number in range(fake.chunks)]


def body_of(mode: str, request: dict[str, Any], fake: Fake) -> bytes:
    """The whole answer to a request that asks for no stream, in its mode's shape."""
    answer: dict[str, Any] = {"model": request.get("model", "fake")}
    if mode in ("Chat", "Base"):
        text = "".join(contents_of(fake))
        name, part = "text_completion", dict[str, Any](text=text)
        if mode == "Chat":
            name, part = "chat.completion", {"message": {"role": "assistant", "content": text}}
        choice = {"index": 0, **part, "finish_reason": "stop"}
        answer |= {"id": "cmpl-1", "object": name, "created": 1, "choices": [choice]}
    elif mode == "Embedding":
        texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
        vector: str | tuple[float, ...] = VECTOR
        if request.get("encoding_format") == "base64":  # as the official SDK asks
            vector = base64.b64encode(struct.pack(f"<{len(VECTOR)}f", *VECTOR)).decode()
        ones = [{"object": "embedding", "index": n, "embedding": vector} for n in range(len(texts))]
        answer |= {"object": "list", "data": ones}
    else:
        count = len(request["documents"])
        ranks = [{"index": n, "relevance_score": 1 / (n + 1)} for n in range(count)]
        answer |= {"object": "list", "results": ranks[: request.get("top_n")]}
    if fake.usage != "never":
        answer["usage"] = usage_of(mode, fake.chunks)
    return json.dumps(answer).encode()


def events_of(mode: str, request: dict[str, Any], fake: Fake) -> list[bytes]:
    """The events of a streamed answer; usage in one of its own and only when asked, as vLLM."""
    chat = mode == "Chat"
    head = {
        "id": "cmpl-1",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1,
        "model": request.get("model", "fake"),
    }
    nothing = {"usage": None} if fake.usage == "null" else {}
    asked = (request.get("stream_options") or {}).get("include_usage")

    def event(content: str, finish_reason: str | None) -> dict[str, Any]:
        part = {"delta": {"content": content} if content else {}} if chat else {"text": content}
        choice = {"index": 0, **part, "finish_reason": finish_reason}
        return head | {"choices": [choice]} | nothing

    events = [event(content, None) for content in contents_of(fake)] + [event("", "stop")]
    if fake.usage == "always" or (asked and fake.usage != "never"):
        events.append(head | {"choices": [], "usage": usage_of(mode, fake.chunks)})
    end = "\r\n\r\n" if fake.crlf else "\n\n"
    lines = [json.dumps(event) for event in events] + (["[DONE]"] if fake.done else [])
    return [f"data: {line}{end}".encode() for line in lines]


def error_of(message: str, status: int) -> bytes:
    error = {"message": message, "type": "fake_error", "param": None, "code": status}
    return json.dumps({"error": error}).encode()


def compress(pieces: list[bytes]) -> list[bytes]:
    """Gzip over all pieces, each flushed so that it can be read when it has arrived."""
    gzip = zlib.compressobj(wbits=31)
    flushed = [gzip.compress(piece) + gzip.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    return [*flushed[:-1], flushed[-1] + gzip.flush()]


class Server(socketserver.ThreadingTCPServer):
    """The listening side, and what it has seen."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, options: argparse.Namespace, memory: CardMemory | None = None) -> None:
        self.options = options
        self.memory = memory
        self.asleep = False
        self.broken = ""  # as in `Fake.breaks`
        self.busy_slots = 0
        self.started_at = time.time()
        loading = float("inf") if options.never_ready else options.loading
        self.ready_at = time.monotonic() + loading
        self.lock = threading.Lock()
        self.counts = dict.fromkeys(("open", "peak", "served", "aborted", "connections"), 0)
        self.requests: collections.deque[dict[str, Any]] = collections.deque(maxlen=KEPT_REQUESTS)
        self.address_family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        super().__init__((options.host, options.port), Handler)

    def count(self, **changes: int) -> None:
        with self.lock:
            for name, change in changes.items():
                self.counts[name] += change
            self.counts["peak"] = max(self.counts["peak"], self.counts["open"])

    def loading(self) -> bool:
        return time.monotonic() < self.ready_at

    def take_slot(self) -> bool:
        """False where as many requests are computed already as it has slots."""
        with self.lock:
            is_free = not self.options.slots or self.busy_slots < self.options.slots
            self.busy_slots += is_free
        return is_free

    def release_slot(self) -> None:
        with self.lock:
            self.busy_slots -= 1

    def has_slot(self) -> bool:
        return not self.options.slots or self.busy_slots < self.options.slots

    def stats(self) -> dict[str, Any]:
        with self.lock:
            seen = {"requests": list(self.requests), **self.counts}
        return seen | {"started_at": self.started_at, "pid": os.getpid()}

    def shutdown_request(self, request: Any) -> None:
        # Without the FIN that the base class sends first, which would make a reset orderly.
        self.close_request(request)


class Handler(BaseHTTPRequestHandler):
    """One connection, its requests one after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    is_open = False  # whether a POST of it is counted as open

    def handle(self) -> None:
        self.server.count(connections=1)
        try:
            super().handle()
        except ConnectionError:  # between two requests: nobody misses anything
            self.close_connection = True

    def do_GET(self) -> None:
        options = self.server.options
        status, body = 404, error_of(f"no {self.path} here", 404)
        model = {"id": options.served_name or "fake", "object": "model", "max_model_len": 4096}
        known = {"/v1/models": {"object": "list", "data": [model]}}
        if not options.no_health:
            known["/health"] = {"status": "ok"}
        if self.path == "/stats":
            status, body = 200, json.dumps(self.server.stats()).encode()
        elif self.server.broken == "silent":
            self.wait(float("inf"))
        elif self.path in known and self.server.loading():
            status, body = 503, error_of("Loading model", 503)
        elif self.path == "/health" and not self.server.has_slot():
            status, body = 503, error_of("no slot available", 503)
        elif self.server.broken == "errors":
            status, body = 503, error_of("CUDA error", 503)
        elif self.path in known:
            status, body = 200, json.dumps(known[self.path]).encode()
        elif self.path == "/is_sleeping" and options.sleeps is not None:
            status, body = 200, json.dumps({"is_sleeping": self.server.asleep}).encode()
        self.answer(Fake(status=status), [body], "application/json")

    def do_POST(self) -> None:
        print(f"{self.command} {self.path}", flush=True)
        self.server.count(open=1)
        self.is_open = True
        try:
            raw = self.read_body()
            if (
                self.path in ("/sleep?level=1", "/wake_up")
                and self.server.options.sleeps is not None
            ):
                self.fall_asleep(self.path != "/wake_up")
            elif self.server.asleep:
                self.refuse(503, "the engine sleeps")
            else:
                self.answer_post(raw)
        except ConnectionError:
            self.server.count(aborted=1)
            self.close_connection = True
        except BrokenOffError:
            self.close_connection = True
        else:
            self.server.count(served=1)
        finally:
            self.close_request()

    def fall_asleep(self, asleep: bool) -> None:
        """As vLLM does: the cards' memory is free, or taken, when this is answered."""
        server = self.server
        if not asleep and server.options.insomnia:
            self.refuse(500, "CUDA error: out of memory")
            return
        server.asleep = asleep
        if server.memory is not None:
            server.memory.take(server.options.sleeps if asleep else 1.0)
        self.answer(Fake(), [b""], "text/plain")

    def close_request(self) -> None:
        """Before the last byte: who has that may send the next request before we go on."""
        if self.is_open:
            self.is_open = False
            self.server.count(open=-1)

    def read_body(self) -> bytes:
        """The request's body, also kept for `/stats`. Raises ConnectionError if it is cut short."""
        length = int(self.headers.get("Content-Length", 0))
        raw = self.rfile.read(length)
        with self.server.lock:
            self.server.requests.append(self.seen(raw[:KEPT_BYTES]))
        if len(raw) < length:
            raise ConnectionAbortedError("the client disconnected")
        return raw

    def seen(self, raw: bytes) -> dict[str, Any]:
        """The request as text; `.encode("utf-8", "surrogateescape")` makes its bytes again."""
        return {
            "method": self.command,
            "path": self.path,
            "headers": list(self.headers.items()),
            "body": raw.decode("utf-8", "surrogateescape"),
        }

    def answer_post(self, raw: bytes) -> None:
        try:
            request = json.loads(raw)
            fake = Fake(**request.get("fake", {}))
        except (ValueError, TypeError, AttributeError) as error:
            self.refuse(400, str(error))
            return
        if fake.log:
            print(fake.log, flush=True)
        self.server.broken = fake.breaks or self.server.broken
        if self.server.broken == "silent":
            self.wait(float("inf"))
        while not self.server.take_slot():
            self.wait(0.02)
        try:
            self.compute(raw, request, fake)
        finally:
            self.server.release_slot()

    def compute(self, raw: bytes, request: dict[str, Any], fake: Fake) -> None:
        while fake.until and not Path(fake.until).exists():
            self.wait(0.02)
        self.wait(fake.delay)
        if fake.fail and fake.fail_at == "head":
            self.break_off(fake)
        if fake.garbage:
            self.connection.sendall(GARBAGE)
            raise BrokenOffError
        if refusal := self.refusal(request):
            self.refuse(*refusal)
            return
        mode, kind = self.server.options.mode, "application/json"
        if fake.html:
            pieces, kind = [b"<!DOCTYPE html><h1>Bad gateway</h1>"], "text/html"
        elif fake.echo:
            pieces = [json.dumps(self.seen(raw)).encode()]
        elif fake.size:
            pieces = [b'{"padding":"%b"}' % (b"x" * fake.size)]
        elif fake.status >= 400:
            pieces = [error_of("as the test asked", fake.status)]
        elif request.get("stream") and mode in ("Chat", "Base"):
            pieces, kind = events_of(mode, request, fake), "text/event-stream"
        else:
            pieces = [body_of(mode, request, fake)]
        self.answer(fake, pieces, kind)

    def refusal(self, request: dict[str, Any]) -> tuple[int, str] | None:
        """The status and message with which a real server, or this one's flags, would refuse."""
        options = self.server.options
        endpoint, required = MODES[options.mode]
        missing = [name for name in required if name not in request]
        if self.server.loading():
            return 503, "Loading model"
        if self.server.broken:
            return 500, "CUDA error: an illegal memory access was encountered"
        if self.path != endpoint:
            return 404, f"no {self.path} here"
        if options.refuse_probe:
            return options.refuse_probe, "refused"
        if options.served_name and request.get("model") != options.served_name:
            return 404, f"no model {request.get('model')!r}, only {options.served_name!r}"
        if options.no_ask_usage and "stream_options" in request:
            return 400, "unknown field stream_options"
        if missing:
            return 400, f"missing: {', '.join(missing)}"
        return None

    def refuse(self, status: int, message: str) -> None:
        self.answer(Fake(status=status), [error_of(message, status)], "application/json")

    def answer(self, fake: Fake, pieces: list[bytes], kind: str) -> None:
        """Send head and pieces, breaking off where `fake` says so. Raises BrokenOffError."""
        framing = fake.framing or ("chunked" if kind == "text/event-stream" else "length")
        headers = {"Content-Type": kind, **fake.headers}
        if fake.gzip:
            pieces = compress(pieces)
            headers["Content-Encoding"] = "gzip"
        if framing == "length":
            headers["Content-Length"] = str(sum(map(len, pieces)) + fake.length)
        elif framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
            pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
        if fake.close == "said":
            headers["Connection"] = "close"
        version = "1.0" if framing == "close" else "1.1"
        lines = [f"HTTP/{version} {fake.status} Fake"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        fail_before = min(fake.after, len(pieces) - 1) if fake.fail else -1
        for number, piece in enumerate(pieces):
            self.wait(fake.interval)
            if number == fail_before:
                if fake.fail_at == "inside":
                    self.connection.sendall(piece[: len(piece) // 2])
                self.break_off(fake)
            if framing != "chunked" and number == len(pieces) - 1:
                self.close_request()
            self.connection.sendall(piece)
        if framing == "chunked":
            self.close_request()
            self.connection.sendall(b"0\r\n\r\n")
        self.close_connection = self.close_connection or bool(fake.close) or framing == "close"

    def break_off(self, fake: Fake) -> None:
        """End the answer as `fake.fail` says. Raises BrokenOffError, or what `wait` raises."""
        if fake.fail == "exit":
            os._exit(fake.code)
        if fake.fail == "silent":
            self.wait(float("inf"))
        if fake.fail == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise BrokenOffError

    def wait(self, seconds: float) -> None:
        """Wait, unless the client goes away before that: then raises ConnectionError at once."""
        end = time.monotonic() + seconds
        readable = select.poll()
        readable.register(self.connection, select.POLLIN)
        while (left := end - time.monotonic()) > 0:
            if not readable.poll(min(left, 1.0) * 1000):
                continue
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionAbortedError("the client disconnected")
            time.sleep(min(left, 0.02))  # it has sent its next request: poll again now and then


def detach(daemonize: bool) -> None:
    """Go on in a child, whose parent exits with 0; a daemon leaves its session as well."""
    if os.fork():
        os._exit(0)
    if daemonize:
        os.setsid()
        if os.fork():
            os._exit(0)


class CardMemory:
    """The memory of the cards in CUDA_VISIBLE_DEVICES, of those that `cards.Cards` plays."""

    def __init__(self, takes: list[int]) -> None:
        visible = [int(index) for index in os.environ["CUDA_VISIBLE_DEVICES"].split(",")]
        self._takes = dict(zip(visible, takes, strict=True))
        self._file = os.environ["FAKE_NVIDIA_SMI"]

    def take(self, share: float) -> None:
        """Take that share of all of it; ends the process where a card has no more to give."""
        play = nvidia_smi.read(self._file)
        for card, mb in self._takes.items():
            entry = {"pid": os.getpid(), "card": card, "mb": int(mb * share)}
            cards.replace(Path(play["held"], f"{os.getpid()}-{card}.json"), entry)
            # After our own was written: of two who take the last of it, one sees the other.
            held = nvidia_smi.held(play["held"], play.get("linger", 0))[card]
            played = {each.get("index", n): each for n, each in enumerate(play["cards"])}[card]
            total = played.get("real", played["total"])
            if total is not None and held + (played["used"] or 0) > total:
                print(f"fake: CUDA out of memory on card {card}", flush=True)
                sys.exit(1)


def boot(seconds: float, takes: list[int]) -> CardMemory | None:
    """Load for as long, taking the cards' memory bit by bit."""
    memory = CardMemory(takes) if takes else None
    steps = BOOT_STEPS if seconds else 1
    for step in range(steps):
        if memory is not None:
            memory.take((step + 1) / steps)
        time.sleep(seconds / steps)
    return memory


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A model server that does as a test asks.")
    add = parser.add_argument
    add("--port", type=int, default=os.environ.get("PORT"), help="default: $PORT")
    add("--host", default="127.0.0.1")
    add("--mode", choices=MODES, default="Chat")
    add("--boot", type=float, default=0, help="seconds until the port opens")
    add("--loading", type=float, default=0, help="seconds of 503 once it is open")
    add("--never-ready", action="store_true", help="503 for ever")
    add("--no-health", action="store_true", help="404 on /health")
    add("--crash-after-boot", type=int, metavar="CODE", help="exit instead of opening the port")
    add("--refuse-probe", type=int, metavar="STATUS", help="answer every request of the mode so")
    add("--ignore-sigterm", action="store_true", help="its --children too")
    add("--fork", action="store_true", help="go on in a child, exit 0")
    add("--daemonize", action="store_true", help="go on in a session of its own, exit 0")
    add("--children", type=int, default=0, metavar="N", help="start N processes that only sleep")
    add("--no-ask-usage", action="store_true", help="400 when stream_options is present")
    add("--slots", type=int, metavar="N", help="requests computed at once; the others wait")
    add("--served-name", metavar="NAME", help="404 for any other model")
    add("--takes", type=int, nargs="+", default=[], metavar="MB", help="on each visible card")
    add("--sleeps", type=float, metavar="SHARE", help="has vLLM's sleep mode, and keeps so much")
    add("--insomnia", action="store_true", help="cannot be woken")
    options = parser.parse_args()
    if options.port is None:
        parser.error("no --port and no PORT in the environment")
    return options


def main() -> None:
    """Live as the flags say."""
    options = parse_arguments()
    if options.fork or options.daemonize:
        detach(options.daemonize)
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for _ in range(options.children):
        subprocess.Popen(["sleep", "3600"])
    memory = boot(options.boot, options.takes)
    if options.crash_after_boot is not None:
        print("loading model\nfake: out of memory\nfake: giving up", flush=True)
        sys.exit(options.crash_after_boot)
    with Server(options, memory) as server:
        print(f"listening on {options.host}:{options.port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

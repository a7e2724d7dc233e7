"""`python -m bench.fuzz --inputs 100000`: what the program makes of what nobody means to send.

Three kinds of inputs go to a program of the fuzz's own, in a temporary folder, so that calls
which delete or stop things are made as well: those that schemathesis makes from /openapi.json,
as described and not; real routes with headers that hypothesis makes; and bytes on the socket,
made up or from real requests with something changed. It fails on a 5xx that is not one of the
error table's, on a 4xx under /api or /v1 without the shape of errors, on a connection with
neither answer nor end, on a fault in the program's log, and on what has grown at the end.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import logging
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hypothesis
import requests
import schemathesis
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

from bench import servers, soak
from bench.servers import BenchError, Program
from bench.soak import Holdings

ROOT = Path(__file__).resolve().parents[1]
FAKE = ROOT / "tests" / "support" / "fake_upstream.py"
PATIENCE = 10.0  # seconds after which a connection with neither answer nor end hangs
UNFINISHED = 0.3  # seconds without an answer after which a request is taken for half of one
SENDERS = 8
BATCH = 500  # inputs between two looks at the time
SETTLE_SECONDS = 20.0
MOST_SHOWN = 20
# What each kind is of the whole.
SHARES = {"described": 0.15, "not described": 0.1, "headers": 0.25, "changed": 0.4, "bytes": 0.1}
DOCUMENTED = {
    502: {"upstream_error"},
    503: {
        "busy",
        "no_matching_scheme",
        "insufficient_memory",
        "start_failed",
        "start_timeout",
        "queue_timeout",
        "shutting_down",
        "database_unavailable",
    },
    504: {"upstream_timeout"},
}
ALLOWED_THREADS, ALLOWED_FILES, ALLOWED_MEMORY_MB = 4, 16, 30.0
MODELS = {"talker": "Chat", "writer": "Base", "vectors": "Embedding", "judge": "Reranker"}
SETTINGS = {
    "threads": 96,
    "max_body_mb": 1,
    "start_timeout": 5,
    "stop_timeout": 1,
    "queue_timeout": 2,
    "upstream_timeout": 5,
    # Keys are made by the fuzz as well, and the models are to be reached all the same.
    "require_key": False,
}
# Not in the document: for people, or for browsers.
PAGES = ["/", "/models", "/keys", "/settings", "/login", "/setup", "/logout", "/preferences"]

# --- one input and its answer ------------------------------------------------------------


@dataclass
class Tally:
    """What came back. `failures` say what was wrong, with the input."""

    statuses: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, kind: str, status: str, fault: str | None, sent: object) -> None:
        with self.lock:
            self.statuses[kind, status] += 1
            if fault is not None:
                self.failures.append(f"{kind}: {fault}\n    {sent!r:.1500}")

    @property
    def inputs(self) -> int:
        return sum(self.statuses.values())


@dataclass(frozen=True)
class Answer:
    status: int
    mimetype: str
    body: bytes


def fault_of(path: str, answer: Answer) -> str | None:
    """What is wrong with an answer, None where nothing is."""
    is_error = answer.status >= 500 or (
        answer.status >= 400 and path.startswith(("/api/", "/v1/")) and answer.status != 499
    )
    if not is_error:
        return None
    try:
        error = json.loads(answer.body)["error"]
        code = error["code"]
        if not {"message", "type", "param", "code"} <= set(error):
            raise KeyError(str(set(error)))
    except (ValueError, KeyError, TypeError) as fault:
        return f"{answer.status} without the shape of errors ({fault!r}): {answer.body!r:.300}"
    if answer.status >= 500 and code not in DOCUMENTED.get(answer.status, ()):
        return f"{answer.status} {code}: {error['message']:.300}"
    return None


def take_answer(data: bytes, is_head: bool) -> tuple[Answer | None, bytes]:
    """The first answer in what was received, None where it is not whole yet; and the rest."""
    while True:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            return None, data
        status = int(head.split(None, 2)[1])
        if status >= 200:
            break
        data = rest  # of "100 Continue" there is only a head
    headers = dict(re.findall(rb"\r\n([^:\r]+): *([^\r]*)", head))
    mimetype = headers.get(b"Content-Type", b"").decode("latin-1").partition(";")[0]
    if mimetype == "text/event-stream":
        return Answer(status, mimetype, b""), b""  # which goes on
    if is_head or status in (204, 304):
        return Answer(status, mimetype, b""), rest
    if b"Transfer-Encoding" in headers:
        body, end, rest = rest.partition(b"\r\n0\r\n\r\n")
        return (Answer(status, mimetype, body), rest) if end else (None, data)
    length = int(headers[b"Content-Length"])
    if len(rest) < length:
        return None, data
    return Answer(status, mimetype, rest[:length]), rest[length:]


class Sender:
    """Sends inputs from a few threads, and counts what becomes of them."""

    def __init__(self, port: int, tally: Tally) -> None:
        self._port = port
        self._tally = tally
        self._pool = ThreadPoolExecutor(SENDERS)
        self._room = threading.Semaphore(4 * SENDERS)
        self._sessions = threading.local()

    def raw(self, kind: str, data: bytes) -> None:
        self._submit(lambda: self._raw(kind, data))

    def case(self, kind: str, arguments: dict[str, Any]) -> None:
        self._submit(lambda: self._case(kind, arguments))

    def close(self) -> None:
        self._pool.shutdown()

    def _submit(self, send: Callable[[], None]) -> None:
        self._room.acquire()

        def run() -> None:
            try:
                send()
            finally:
                self._room.release()

        future = self._pool.submit(run)
        future.add_done_callback(self._note_crash)

    def _note_crash(self, future: Any) -> None:
        if (error := future.exception()) is not None:
            self._tally.count("the fuzz itself", type(error).__name__, repr(error), "")

    def _raw(self, kind: str, data: bytes) -> None:
        path = data.partition(b" ")[2].partition(b" ")[0].decode("latin-1")
        received, status, fault = b"", "none", None
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE)
        with connection:
            try:
                connection.sendall(data)
                connection.settimeout(UNFINISHED)
                while True:
                    try:
                        piece = connection.recv(65536)
                    except TimeoutError:
                        if connection.gettimeout() == PATIENCE:
                            fault = f"neither answer nor end within {PATIENCE:g} s"
                            break
                        # It may wait for more of the request. There is none.
                        connection.settimeout(PATIENCE)
                        connection.shutdown(socket.SHUT_WR)
                        continue
                    if not piece:
                        break
                    received += piece
                    answer, rest = take_answer(received, data.startswith(b"HEAD "))
                    while answer is not None:
                        status = str(answer.status)
                        fault = fault or fault_of(path, answer)
                        # What comes behind it answers another request, maybe for a page.
                        path, received = "", rest
                        answer, rest = take_answer(received, is_head=False)
                    if status != "none" and not received:
                        break
            except (ConnectionResetError, BrokenPipeError):
                pass  # refused before all of it was sent; what was said may be lost
        self._tally.count(kind, status, fault, data)

    def _case(self, kind: str, arguments: dict[str, Any]) -> None:
        session = getattr(self._sessions, "session", None)
        if session is None:
            session = self._sessions.session = requests.Session()
            session.trust_env = False
        try:
            prepared = session.prepare_request(requests.Request(**arguments))
        except (requests.RequestException, ValueError, UnicodeError):
            self._tally.count(kind, "not to be sent", None, "")
            return
        status, fault = "none", None
        try:
            with session.send(prepared, timeout=PATIENCE, stream=True) as response:
                status = str(response.status_code)
                mimetype = response.headers.get("Content-Type", "").partition(";")[0]
                is_stream = mimetype == "text/event-stream" or prepared.method == "HEAD"
                body = b"" if is_stream else response.content
                if prepared.method != "HEAD":
                    answer = Answer(response.status_code, mimetype, body)
                    fault = fault_of(prepared.path_url, answer)
        except requests.Timeout:
            fault = f"no answer within {PATIENCE:g} s"
        except requests.RequestException as error:
            fault = f"no answer: {error!r}"
        sent = (prepared.method, prepared.url, dict(prepared.headers), prepared.body)
        self._tally.count(kind, status, fault, sent)


# --- what is sent -------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A request that a client could mean."""

    method: str
    path: str
    body: object = None
    secret: str = ""

    def head(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: 127.0.0.1"]
        if self.secret:
            lines.append(f"Authorization: Bearer {self.secret}")
        if self.method != "GET":
            lines.append("Content-Type: application/json")
        return "\r\n".join([*lines, ""]).encode()

    def text(self) -> bytes:
        return b"" if self.body is None else json.dumps(self.body).encode()

    def bytes(self) -> bytes:
        body = self.text()
        return self.head() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def real_calls(
    document: dict[str, Any], get: Callable[[str], Any], secret: Callable[[str], str]
) -> list[Call]:
    """One for each operation, with the names that there are and bodies that are right. ``secret``
    opens a path."""
    config = get("/api/config/text")
    price = {"per_hour": "1", "tiers": [{"input": "0.5", "output": 2}]}
    bodies: dict[str, dict[str, object]] = {
        "/v1/chat/completions": {"model": "talker", "messages": [{"role": "user", "content": "x"}]},
        "/v1/completions": {"model": "writer", "prompt": "x"},
        "/v1/embeddings": {"model": "vectors", "input": "x"},
        "/v1/rerank": {"model": "judge", "query": "x", "documents": ["x", "y"]},
        "/api/models/{name}/price": price,
        "/api/prices/quote": {**price, "prompt_tokens": 9, "completion_tokens": 8},
        "/api/adjustments": {"model": "talker", "amount": "-1", "note": "x"},
        "/api/exports": {"month": "2026-01"},
        "/api/data/reprice": {"model": "talker"},
        "/api/config/text": {"text": config["text"], "version": config["version"]},
        "/api/config/check": {"text": config["text"]},
        "/api/keys": {"name": "bob", "requests_per_minute": 9},
        "/api/keys/{name}": {"owner": "Bob", "budget": {"amount": "1", "period": "day"}},
        "/api/keys/{name}/rotate": {"keep_old_hours": 1},
        "/api/accounts": {"name": "bob", "role": "admin", "password": "long enough"},
        "/api/accounts/{name}": {"role": "viewer"},
        "/api/tokens": {"name": "bob", "role": "viewer"},
    }
    calls = [Call("GET", path, None, secret(path)) for path in PAGES]
    calls += [Call("POST", path, {}, secret(path)) for path in PAGES[-4:]]
    for path, item in document["paths"].items():
        for method in set(item) & {"get", "post", "put", "patch", "delete"}:
            of_models = "{name}" in path and "/models" in path
            for name in MODELS if of_models else ["bob"]:
                filled = path.replace("{name}", name)
                filled = filled.replace("{file}", "bill-2026-01.csv")
                filled = re.sub(r"{\w+}", "00000000-0000-7000-8000-000000000000", filled)
                body = bodies.get(path, {})
                opens = secret(path)
                sent = None if method == "get" else body
                calls.append(Call(method.upper(), filled, sent, opens))
                if path == "/v1/chat/completions":
                    calls.append(Call("POST", path, {**body, "stream": True}, opens))
    return sorted(calls, key=repr)


NAMES = [
    *("Host", "Content-Length", "Transfer-Encoding", "Connection", "Expect", "Content-Type"),
    *("Accept", "Accept-Encoding", "Accept-Language", "Authorization", "x-api-key", "Cookie"),
    *("Origin", "Referer", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"),
    *("Forwarded", "X-CSRFToken", "If-None-Match", "If-Modified-Since", "Range", "Upgrade"),
    *("X-HTTP-Method-Override", "TE", "Trailer", "Via", "X_Forwarded_For", "Sec-Fetch-Site"),
]
VALUES = [
    *("", "0", "-1", "+5", "5_0", "0x5", "99999999999999999999", "chunked", "identity", "close"),
    *("chunked, identity", "keep-alive", "100-continue", "gzip", "*/*", "text/html", "null"),
    *("application/json", "text/plain", "Bearer x", "Bearer ", "Basic Og==", "Basic \xff", "zh"),
    *("http://evil.example", "127.0.0.1", "::1", "for=127.0.0.1", "bytes=0-1", "en;q=x,*;q=-1"),
    *("session=x", "a=b; c", "session=.eJw", "localhost:1", "[::1", "evil.example", "é", "\x00"),
]
TOKENS = [
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\x00", b" ", b"\t", b":", b"\xff\xfe", b"%00", b"%"),
    *(b"../", b"..%2f", b"//", b"?", b"#", b"&wait=1", b"?lines=0", b"?limit=-1", b"?start=1e9"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"),
    *(b'"', b"{", b"[" * 3000, b"null", b"1e999", b"-0", b"\\ud800", b"\xed\xa0\x80", b"9" * 400),
    *(b"NaN", b"0\r\n\r\n", b"5\r\nhello\r\n", b"HTTP/1.0", b"HTTP/2.0", b"A" * 3000, b"=cmd()"),
]


def with_headers(calls: list[Call]) -> st.SearchStrategy[bytes]:
    """A real request with headers that are odd."""
    names = st.sampled_from(NAMES) | st.from_regex(
        r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,20}", fullmatch=True
    )
    spoken = st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f")
    values = st.sampled_from(VALUES) | st.text(spoken, max_size=60)
    headers = st.lists(st.tuples(names, values), min_size=1, max_size=6)

    def build(call: Call, extra: list[tuple[str, str]], keep: bool) -> bytes:
        lines = "".join(f"{name}: {value}\r\n" for name, value in extra).encode("latin-1")
        body = call.text()
        length = b"Content-Length: %d\r\n" % len(body) if keep else b""
        return call.head() + lines + length + b"\r\n" + body

    return st.builds(build, st.sampled_from(calls), headers, st.sampled_from([True, True, False]))


def changed(calls: list[Call]) -> st.SearchStrategy[bytes]:
    """A real request, or two, of which something is missing, doubled, or another."""
    piece = st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=12)
    place = st.floats(0, 1)
    change = st.tuples(
        st.sampled_from(["insert", "replace", "remove", "double"]), place, place, piece
    )

    def apply(changes: list[Any], data: bytes) -> bytes:
        for how, start, length, token in changes:
            at = int(start * len(data))
            to = min(len(data), at + 1 + int(length * 40))
            if how == "insert":
                data = data[:at] + token + data[at:]
            elif how == "replace":
                data = data[:at] + token + data[to:]
            elif how == "remove":
                data = data[:at] + data[to:]
            else:
                data = data[:to] + data[at:]
        return data

    def build(call: Call, then: Call | None, changes: list[Any], where: str) -> bytes:
        body = call.text()
        if where == "body" and body:  # a whole request, whose body is odd
            body = apply(changes, body)
            return call.head() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        if where == "path":
            path = quote(apply(changes, call.path.encode()), safe="/?&=%")
            return replace(call, path=path).bytes()
        if where == "chunks":
            chunk = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            data = call.head() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"
        else:
            data = call.bytes()
        return apply(changes, data) + (b"" if then is None else then.bytes())

    return st.builds(
        build,
        st.sampled_from(calls),
        st.none() | st.sampled_from(calls),
        st.lists(change, min_size=1, max_size=4),
        st.sampled_from(["anywhere", "body", "path", "chunks"]),
    )


def made_up() -> st.SearchStrategy[bytes]:
    """Bytes, of which some look like HTTP."""
    parts = [
        st.binary(max_size=200),
        st.sampled_from(TOKENS),
        st.sampled_from(NAMES).map(str.encode),
    ]
    starts = [b"", b"GET / HTTP/1.1\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"]
    lines = st.lists(st.one_of(parts), min_size=1, max_size=12).map(b"".join)
    return st.tuples(st.sampled_from(starts), lines, st.sampled_from([b"", b"\r\n\r\n"])).map(
        b"".join
    )


class Cases:
    """Each operation of the document in turn, with data as described or not."""

    def __init__(
        self,
        document: dict[str, Any],
        base: str,
        secret: Callable[[str], str],
        mode: GenerationMode,
        planned: int,
    ) -> None:
        schema = schemathesis.openapi.from_dict(document)
        self._operations = [found.ok() for found in schema.get_all_operations()]
        self._base = base
        self._secret = secret
        self._mode = mode
        self._turn = 0
        # Of one operation at a time: to begin with another takes longer than to go on.
        self._each = max(1, min(20, planned // len(self._operations)))

    def send(self, kind: str, sender: Sender, number: int, seed: int) -> None:
        """So many; of an operation without data that is not as described there are none."""
        left = number
        barren = 0
        while left > 0 and barren < len(self._operations):
            operation = self._operations[self._turn % len(self._operations)]
            self._turn += 1
            sent = self._send_some(
                kind, sender, operation, min(self._each, left), seed + self._turn
            )
            left -= sent
            barren = 0 if sent else barren + 1

    def _send_some(self, kind: str, sender: Sender, operation: Any, number: int, seed: int) -> int:
        sent = 0

        def send(drawn: tuple[Any, str, bool]) -> None:
            nonlocal sent
            case, name, is_real = drawn
            if is_real:  # a random name is never that of a model
                if "name" in (case.path_parameters or {}):
                    case.path_parameters["name"] = name
                if isinstance(case.body, dict) and "model" in case.body:
                    case.body["model"] = name
                if case.method != "GET":  # also where there is no body
                    case.headers["Content-Type"] = "application/json"
            case.headers.setdefault("Authorization", f"Bearer {self._secret(case.path)}")
            arguments = case.as_transport_kwargs(base_url=self._base)
            sender.case(kind, {key: arguments[key] for key in _OF_REQUEST if key in arguments})
            sent += 1

        strategy = operation.as_strategy(generation_mode=self._mode)
        drawn = st.tuples(strategy, st.sampled_from(sorted(MODELS)), st.booleans())
        with contextlib.suppress(Unsatisfiable):
            examples(drawn, send, number, seed)
        return sent


_OF_REQUEST = ("method", "url", "headers", "params", "data", "json", "files", "cookies")


def examples(strategy: Any, use: Callable[[Any], None], number: int, seed: int) -> None:
    """Uses so many examples of a strategy, or all where there are fewer."""
    settings = hypothesis.settings(
        max_examples=number,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.seed(seed)(settings(hypothesis.given(strategy)(use)))()


# --- the run ------------------------------------------------------------------------------


def models() -> dict[str, Any]:
    return {
        name: {
            "mode": mode,
            "Default": {"command": [sys.executable, str(FAKE), "--mode", mode]},
        }
        for name, mode in MODELS.items()
    }


class Fuzz:
    def __init__(self, program: Program, folder: Path, inputs: int, seed: int) -> None:
        self.tally = Tally()
        self._seed = seed
        self._base = f"http://127.0.0.1:{program.port}"
        self._config = folder / "config.yaml"
        self._text = self._config.read_bytes()
        self._data = folder / "data"
        self._tokens = itertools.count(1)
        self._token = self._new_token()
        self._key = self._shell("keys", "add", "the-fuzz")
        document = self._get("/openapi.json")
        self._sender = Sender(program.port, self.tally)
        self._cases = {
            kind: Cases(document, self._base, self._secret, mode, round(inputs * SHARES[kind]))
            for kind, mode in (
                ("described", GenerationMode.POSITIVE),
                ("not described", GenerationMode.NEGATIVE),
            )
        }
        self._document = document
        self._bytes: dict[str, st.SearchStrategy[bytes]] = {"bytes": made_up()}
        self._take_calls()

    def run(self, inputs: int, until: float) -> None:
        """In batches, each of all kinds; the config is put right after each."""
        done = 0
        while done < inputs and time.monotonic() < until:
            size = min(BATCH, inputs - done)
            for kind, share in SHARES.items():
                number = max(1, round(size * share))
                self._seed += 10_000
                if kind in self._cases:
                    self._cases[kind].send(kind, self._sender, number, self._seed)
                else:
                    self._send_bytes(kind, number)
            done += size
            self.put_right()

    def _send_bytes(self, kind: str, number: int) -> None:
        examples(self._bytes[kind], lambda data: self._sender.raw(kind, data), number, self._seed)

    def put_right(self) -> None:
        """The config, and the token, which a call may have removed."""
        self._config.write_bytes(self._text)
        answer = self._reload()
        if answer.status_code == 401:
            self._token = self._new_token()
            self._take_calls()
            answer = self._reload()
        if answer.status_code != 200:
            raise BenchError(f"the config cannot be put right: {answer.text}")

    def at_rest(self, program: Program) -> Holdings:
        """What the program holds once its models are stopped and nothing is under way."""
        self.put_right()
        deadline = time.monotonic() + SETTLE_SECONDS
        # First, since what is under way may yet start a model.
        while self._get("/api/activity")["requests"]:
            if time.monotonic() > deadline:
                raise BenchError("requests are still under way, though nobody asks any more")
            time.sleep(0.1)
        stop = f"{self._base}/api/models/stop?wait=1"
        requests.post(stop, json={}, headers=self._headers, timeout=60)
        before = soak.holdings(program)
        while time.monotonic() < deadline:  # threads of models end, connections close
            time.sleep(1.0)
            now = soak.holdings(program)
            if (now.threads, now.sockets, now.children) == (
                before.threads,
                before.sockets,
                before.children,
            ):
                return now
            before = now
        return before

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token}"}

    def _secret(self, path: str) -> str:
        return self._key if path.startswith("/v1") or path == "/api/keys/me" else self._token

    def _take_calls(self) -> None:
        calls = real_calls(self._document, self._get, self._secret)
        self._bytes["headers"] = with_headers(calls)
        self._bytes["changed"] = changed(calls)

    def _reload(self) -> requests.Response:
        url = f"{self._base}/api/config/reload"
        return requests.post(url, json={}, headers=self._headers, timeout=PATIENCE)

    def _new_token(self) -> str:
        """Works once the program has seen it, which it looks for each second."""
        name = f"the-fuzz-{next(self._tokens)}"
        token = self._shell("users", "add-token", name, "--role", "admin")
        deadline = time.monotonic() + PATIENCE
        headers = {"Authorization": f"Bearer {token}"}
        url = f"{self._base}/api/session"
        while requests.get(url, headers=headers, timeout=PATIENCE).status_code != 200:
            if time.monotonic() > deadline:
                raise BenchError("a new token is not known to the program")
            time.sleep(0.1)
        return token

    def _shell(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "commands", *arguments, "--data-dir", str(self._data)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise BenchError(f"{' '.join(arguments)}: {done.stderr}")
        return done.stdout.strip()

    def close(self) -> None:
        self._sender.close()

    def _get(self, path: str) -> Any:
        answer = requests.get(self._base + path, headers=self._headers, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()


def grown(before: Holdings, after: Holdings) -> Iterator[str]:
    for name, allowed in (
        ("threads", ALLOWED_THREADS),
        ("sockets", ALLOWED_FILES),
        ("files", ALLOWED_FILES),
        ("children", 0),
        ("memory_mb", ALLOWED_MEMORY_MB),
    ):
        first, last = asdict(before)[name], asdict(after)[name]
        if last > first + allowed:
            yield f"{name} went from {first:.0f} to {last:.0f}"


def fuzz(wsgi: Path, folder: Path, inputs: int, seed: int, minutes: float) -> Tally:
    """Runs it; the warm-up, a tenth of the inputs, is counted with the rest."""
    # Each refused case would be a line.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    with servers.program(wsgi, folder, models(), SETTINGS) as program:
        run = Fuzz(program, folder, inputs, seed)
        until = time.monotonic() + minutes * 60
        try:
            run.run(max(1, inputs // 10), until)
            before = run.at_rest(program)
            run.run(inputs - max(1, inputs // 10), until)
        finally:
            run.close()
        after = run.at_rest(program)
        print(f"before {asdict(before)}\nafter  {asdict(after)}", file=sys.stderr)
        run.tally.failures += grown(before, after)
    log = (folder / "program.log").read_text(errors="replace")
    for fault in re.findall(r"^.*(?:Traceback|uncaptured).*$(?:\n.*){0,12}", log, re.MULTILINE):
        run.tally.failures.append(f"in the log: {fault}")
    return run.tally


def show(tally: Tally) -> None:
    for kind in dict.fromkeys(kind for kind, _ in sorted(tally.statuses)):
        counts = {status: n for (of, status), n in sorted(tally.statuses.items()) if of == kind}
        each = ", ".join(f"{status}: {number}" for status, number in counts.items())
        print(f"{kind:14} {sum(counts.values()):7}  {each}")
    print(f"{'in all':14} {tally.inputs:7}  {len(tally.failures)} failures")
    for failure in tally.failures[:MOST_SHOWN]:
        print(f"- {failure}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=60.0, help="ends then at the latest")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="llm-manager-fuzz-") as name:
        try:
            wsgi = Path("wsgi.py").resolve()
            tally = fuzz(wsgi, Path(name), arguments.inputs, arguments.seed, arguments.minutes)
        except BenchError as error:
            print(error, file=sys.stderr)
            return 1
    show(tally)
    print(f"{time.monotonic() - began:.0f} s, seed {arguments.seed}")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())

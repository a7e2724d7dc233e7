"""The edge of HTTP: what passes as a request, how long it may take, and who may hold how much."""

from __future__ import annotations

import contextlib
import errno
import io
import ipaddress
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, Response, jsonify, request
from waitress.buffers import TempfileBasedBuffer
from waitress.server import TcpWSGIServer

from manager.clock import Clock
from routes.http import keepalive, server
from routes.http.server import ClientLimits, HttpServer, ListenError

PATIENCE = 20.0
HOST = b"Host: localhost\r\n"
SECOND = b"GET /second HTTP/1.1\r\nHost: localhost\r\n\r\n"
# Time that runs faster, so that nobody waits for a limit of many seconds.
FAST = Clock(monotonic=lambda: time.monotonic() * 100)


class Edge:
    """A server whose application notes what reaches it."""

    def __init__(self, host: str = "127.0.0.1", **options: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        self.held: list[socket.socket] = []
        app = Flask("test")

        @app.route("/", defaults={"path": ""}, methods=["GET", "POST", "OPTIONS"])
        @app.route("/<path:path>", methods=["GET", "POST", "OPTIONS"])
        def note(path: str) -> Any:  # noqa: ARG001
            headers = {key: value for key, value in request.environ.items() if key[:5] == "HTTP_"}
            self.seen.append(
                {
                    "method": request.method,
                    "path": request.environ["PATH_INFO"],
                    "body": request.get_data().decode("latin-1"),
                    "headers": headers,
                    "address": request.environ["REMOTE_ADDR"],
                }
            )
            return jsonify(self.seen[-1])

        @app.route("/stream")
        def stream() -> Response:
            return Response(iter((b"some", b"more")))

        self.server = HttpServer(app, host, 0, threads=4, max_body_mb=1, **options)
        self.server.start()

    def connect(self, address: str = "127.0.0.1") -> socket.socket:
        return socket.create_connection((address, self.server.port), timeout=PATIENCE)

    def tell(self, data: bytes) -> bytes:
        """What comes back for these bytes until the server closes."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_all(connection)


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def read_all(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            answer += piece
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", answer, re.MULTILINE)]


def refusal(answer: bytes) -> dict[str, Any]:
    """The error of the one answer that there is."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nContent-Type: application/json\r\n" in head
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.fixture
def start() -> Iterator[Callable[..., Edge]]:
    with contextlib.ExitStack() as edges:

        def start(**options: Any) -> Edge:
            edge = Edge(**options)
            edges.callback(edge.server.close, 5.0)
            return edge

        yield start


@pytest.fixture(scope="module")
def shared() -> Iterator[Edge]:
    edge = Edge()
    yield edge
    edge.server.close(5.0)


@pytest.fixture
def edge(shared: Edge) -> Edge:
    shared.seen.clear()
    return shared


# --- one request or none ----------------------------------------------------------------


def post(*headers: bytes, version: bytes = b"1.1") -> bytes:
    return b"POST /first HTTP/%b\r\n" % version + b"\r\n".join([HOST[:-2], *headers, b"", b""])


CHUNKED = b"Transfer-Encoding: chunked"
DOUBTFUL = {
    "two lengths that differ": post(b"Content-Length: 0", b"Content-Length: 42"),
    "two lengths that agree": post(b"Content-Length: 0", b"Content-Length: 0"),
    "two lengths in one header": post(b"Content-Length: 0, 42"),
    "a length and chunks": post(b"Content-Length: 5", CHUNKED) + b"0\r\n\r\n",
    "chunks and a length": post(CHUNKED, b"Content-Length: 5") + b"0\r\n\r\n",
    "a negative length": post(b"Content-Length: -1"),
    "a signed length": post(b"Content-Length: +5"),
    "an underscored length": post(b"Content-Length: 1_0"),
    "a length in hex": post(b"Content-Length: 0x5"),
    "a length in other digits": post("Content-Length: ٣".encode()),
    "a length of nothing": post(b"Content-Length: "),
    "a length of thousands of digits": post(b"Content-Length: " + b"9" * 6000),
    "chunked, then identity": post(b"Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
    "identity": post(b"Transfer-Encoding: identity"),
    "a coding of nothing": post(b"Transfer-Encoding:", b"Content-Length: 0"),
    "a coding that is only a comma": post(b"Transfer-Encoding: ,") + b"0\r\n\r\n",
    "xchunked": post(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "chunked twice": post(CHUNKED, CHUNKED) + b"0\r\n\r\n",
    "chunked twice in one": post(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
    "gzip, chunked": post(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "a quoted coding": post(b'Transfer-Encoding: "chunked"') + b"0\r\n\r\n",
    "a coding after a vertical tab": post(b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n",
    "chunks in HTTP/1.0": post(CHUNKED, b"Connection: keep-alive", version=b"1.0") + b"0\r\n\r\n",
    "chunks in HTTP/1.2": post(CHUNKED, b"Connection: keep-alive", version=b"1.2") + b"0\r\n\r\n",
    "HTTP/2.0": post(version=b"2.0"),
    "no version": b"GET /first\r\n" + HOST + b"\r\n",
    "a header that goes on": post(b"X-One: a", b" Transfer-Encoding: chunked"),
    "a first header that goes on": b"GET /first HTTP/1.1\r\n X: y\r\n" + HOST + b"\r\n",
    "a coding that goes on": post(b"Transfer-Encoding:", b" chunked") + b"0\r\n\r\n",
    "a blank before a colon": post(b"Content-Length : 5") + b"hello",
    "a tab before a colon": post(b"Transfer-Encoding\t: chunked") + b"0\r\n\r\n",
    "a header without a name": post(b": 5"),
    "a header without a colon": post(b"Content-Length"),
    "a name in other letters": post("Content-Lengthé: 5".encode()),
    "a bare LF between headers": post(b"X-One: a\nContent-Length: 5") + b"hello",
    "a bare CR in a header": post(b"X-One: a\rContent-Length: 5") + b"hello",
    "a NUL in a header": post(b"X-One: a\x00b"),
    "a NUL in a name": post(b"X-O\x00ne: a"),
    "a delete in a header": post(b"X-One: a\x7fb"),
    "a bare LF after the first line": b"GET /first HTTP/1.1\n" + HOST + b"\r\n",
    "two Hosts": post(b"Host: other"),
    "two Hosts that agree": post(b"Host: localhost"),
    "no Host": b"GET /first HTTP/1.1\r\n\r\n",
    "a Host with a user": b"GET /first HTTP/1.1\r\nHost: a@localhost\r\n\r\n",
    "a Host with a path": b"GET /first HTTP/1.1\r\nHost: localhost/x\r\n\r\n",
    "a Host that is two": b"GET /first HTTP/1.1\r\nHost: localhost, other\r\n\r\n",
    "a Host with a blank": b"GET /first HTTP/1.1\r\nHost: local host\r\n\r\n",
    "another host's URI": b"GET http://other/first HTTP/1.1\r\n" + HOST + b"\r\n",
    "a URI with a user": b"GET http://a@localhost/first HTTP/1.1\r\n" + HOST + b"\r\n",
    "a URI of another kind": b"GET ftp://localhost/first HTTP/1.1\r\n" + HOST + b"\r\n",
    "a URI that is none": b"GET http://[/first HTTP/1.1\r\nHost: [\r\n\r\n",
    "a path that is none": b"GET first HTTP/1.1\r\n" + HOST + b"\r\n",
    "an authority": b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "an asterisk": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tab in the path": b"GET /fi\trst HTTP/1.1\r\n" + HOST + b"\r\n",
    "two blanks in the first line": b"GET  /first HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path in other letters": "GET /é HTTP/1.1\r\n".encode() + HOST + b"\r\n",
    "a method in small letters": b"get /first HTTP/1.1\r\n" + HOST + b"\r\n",
    "only line ends": b"\r\n\r\n",
    "a length that is wrong, with Expect": post(b"Content-Length: x", b"Expect: 100-continue"),
    "a chunk of no size": post(CHUNKED) + b"\r\n",
    "a chunk of no number": post(CHUNKED) + b"xyz\r\n",
    "a chunk of a negative size": post(CHUNKED) + b"-1\r\n",
    "a chunk of a signed size": post(CHUNKED) + b"+5\r\nhello\r\n0\r\n\r\n",
    "a chunk of an underscored size": post(CHUNKED) + b"1_0\r\nhello",
    "a chunk of a size in 0x": post(CHUNKED) + b"0x5\r\nhello\r\n0\r\n\r\n",
    "a chunk of a size beyond all": post(CHUNKED) + b"f" * 17 + b"\r\n",
    "a chunk after a blank": post(CHUNKED) + b" 5\r\nhello\r\n0\r\n\r\n",
    "a chunk with a bare LF": post(CHUNKED) + b"5\nhello\n0\n\n",
    "a chunk whose size ends in LF CR LF": post(CHUNKED) + b"5\n\r\nhello\r\n0\r\n\r\n",
    "a chunk with a LF in what extends it": post(CHUNKED) + b"5;a=b\n\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than its size": post(CHUNKED) + b"2\r\nhello\r\n0\r\n\r\n",
    "a chunk that ends in LF": post(CHUNKED) + b"5\r\nhello\n0\r\n\r\n",
    "a chunk that extends for ever": post(CHUNKED) + b"5;" + b"a" * 9000,
    "a trailer that is none": post(CHUNKED) + b"0\r\n" + SECOND,
    "a trailer of another line": post(CHUNKED) + b"0\r\nX: a\nY: b\r\n\r\n",
    "a thousand trailers": post(CHUNKED) + b"0\r\n" + b"X: a\r\n" * 1000 + b"\r\n",
}


@pytest.mark.parametrize("data", DOUBTFUL.values(), ids=DOUBTFUL)
def test_what_two_servers_could_read_in_two_ways_is_refused_and_so_is_what_follows(
    edge: Edge, data: bytes
) -> None:
    answer = edge.tell(data + SECOND)
    assert statuses(answer) == [400]
    error = refusal(answer)
    assert (error["code"], error["type"]) == ("bad_request", "invalid_request_error")
    assert b"\r\nConnection: close\r\n" in answer
    assert edge.seen == []


@pytest.mark.parametrize("data", DOUBTFUL.values(), ids=DOUBTFUL)
def test_it_is_refused_also_where_it_comes_byte_by_byte(edge: Edge, data: bytes) -> None:
    if len(data) > 1000:
        pytest.skip("as above")
    with edge.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for byte in data + SECOND:
                connection.send(bytes([byte]))
        assert statuses(read_all(connection)) == [400]
    assert edge.seen == []


@pytest.mark.parametrize(
    ("data", "path", "body"),
    [
        (post(b"Content-Length: 5") + b"hello", "/first", "hello"),
        (post(b"Content-Length: 0005") + b"hello", "/first", "hello"),
        (post(b"content-length:5") + b"hello", "/first", "hello"),
        (post(CHUNKED) + b"5\r\nhello\r\n0\r\n\r\n", "/first", "hello"),
        (
            post(b"transfer-encoding:CHUNKED") + b"2\r\nhe\r\n03\r\nllo\r\n0\r\n\r\n",
            "/first",
            "hello",
        ),
        (post(CHUNKED) + b'5 ;a="b c"\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n', "/first", "hello"),
        (b"\r\n" + post(b"Content-Length: 5") + b"hello", "/first", "hello"),
        (b"GET http://LOCALHOST/first?x=http://y HTTP/1.1\r\n" + HOST + b"\r\n", "/first", ""),
        (b"GET //other/first HTTP/1.1\r\n" + HOST + b"\r\n", "/other/first", ""),
        (b"GET /%66irst HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", "/first", ""),
        (post(b"Transfer_Encoding: chunked", b"Content_Length: 42"), "/first", ""),
    ],
)
def test_what_is_clear_is_one_request_and_the_next_is_the_next(
    edge: Edge, data: bytes, path: str, body: str
) -> None:
    last = SECOND.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert statuses(edge.tell(data + last)) == [200, 200]
    assert [(seen["path"], seen["body"]) for seen in edge.seen] == [(path, body), ("/second", "")]


def test_blanks_before_a_value_do_not_hold_up_the_server(edge: Edge) -> None:
    """Which once took the square of their number, twenty seconds for each of these."""
    data = post(b"X-Name:" + b" " * 60000 + b"x", b"Connection: close")
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(edge.connect()) for _ in range(4)]
        for connection in connections:
            connection.sendall(data)
        for connection in connections:
            assert statuses(read_all(connection)) == [200]
    assert edge.seen[0]["headers"]["HTTP_X_NAME"] == "x"


def test_underscores_do_not_pass_for_dashes(edge: Edge) -> None:
    headers = [b"X_Forwarded_For: 10.0.0.1", b"X-Forwarded_For: 10.0.0.2", b"Connection: close"]
    assert statuses(edge.tell(post(*headers))) == [200]
    assert "HTTP_X_FORWARDED_FOR" not in edge.seen[0]["headers"]


def test_what_a_proxy_says_reaches_the_application(edge: Edge) -> None:
    headers = [b"X-Forwarded-For: 10.0.0.1", b"Forwarded: for=10.0.0.1", b"Connection: close"]
    assert statuses(edge.tell(post(*headers))) == [200]
    assert edge.seen[0]["headers"]["HTTP_X_FORWARDED_FOR"] == "10.0.0.1"
    assert edge.seen[0]["headers"]["HTTP_FORWARDED"] == "for=10.0.0.1"


def test_a_request_that_expects_a_go_ahead_and_has_no_body_is_answered(edge: Edge) -> None:
    first = b"GET /first HTTP/1.1\r\nX-Mine: a\r\nExpect: 100-continue\r\n" + HOST + b"\r\n"
    last = SECOND.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    assert statuses(edge.tell(first + last)) == [200, 200]
    assert "HTTP_X_MINE" not in edge.seen[1]["headers"]


def test_nothing_comes_behind_the_head_that_was_asked_for_alone(edge: Edge) -> None:
    """Also where its length is not known; and the connection goes on."""
    last = SECOND.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    for path in (b"/", b"/stream"):
        answer = edge.tell(b"HEAD %b HTTP/1.1\r\n%b\r\n" % (path, HOST) + last)
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert rest.startswith(b"HTTP/1.1 200 OK\r\n")


def test_a_body_that_is_too_large_is_refused_before_it_is_asked_for(edge: Edge) -> None:
    answer = edge.tell(post(b"Content-Length: 9000000", b"Expect: 100-continue"))
    assert statuses(answer) == [413]
    assert refusal(answer)["code"] == "body_too_large"


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /" + b"a" * 70000,
        post(b"X-Long: " + b"a" * 70000),
        post(*[b"a:b"] * 10000),
        post(*[b"X-%d: b" % number for number in range(257)]),
    ],
    ids=["line", "line without end", "header", "tiny headers", "one header too many"],
)
def test_a_head_that_is_too_large_is_refused(edge: Edge, data: bytes) -> None:
    answer = edge.tell(data)
    assert statuses(answer) == [431]
    assert refusal(answer)["code"] == "headers_too_large"
    assert edge.seen == []


# --- time -------------------------------------------------------------------------------


def shared_with(answer: bytes) -> str | None:
    found = re.search(rb"\r\nAccess-Control-Allow-Origin: ([^\r]*)\r\n", answer)
    return found[1].decode() if found else None


PAGE = b"Origin: https://chat.example.org\r\n"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST + PAGE


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + b"Content-Length: 100000000\r\n\r\n", 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nnone\r\n", 400),
        (HEAD + b"A: b\r\n" * 300 + b"\r\n", 431),
        (HEAD + b"A: " + b"b" * (1 << 17) + b"\r\n\r\n", 431),
        (HEAD + b"Content-Length: 10\r\n\r\nabc", 408),
        (HEAD + b"Content-Le", 408),
    ],
)
def test_a_page_that_may_use_the_models_can_read_why_it_was_refused(
    start: Callable[..., Edge], data: bytes, status: int
) -> None:
    allowed = ["https://chat.example.org"]
    edge = start(clock=FAST, cors_origins=lambda: tuple(allowed))
    answer = edge.tell(data)
    assert statuses(answer) == [status]
    assert shared_with(answer) == "https://chat.example.org"
    assert b"\r\nVary: Origin\r\n" in answer
    assert shared_with(edge.tell(data.replace(b"/v1/", b"/api/"))) is None
    assert shared_with(edge.tell(data.replace(b"chat.example", b"other.example"))) is None
    allowed.clear()  # the config was reloaded
    assert shared_with(edge.tell(data)) is None


class FullDisk(io.BytesIO):
    """A temporary file on a disk that becomes full, which its end says once more."""

    def write(self, data: Any) -> int:
        if self.tell() > 600_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)

    def close(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def __del__(self) -> None:
        super().close()


def no_folder() -> Any:
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")


@pytest.mark.parametrize("newfile", [FullDisk, no_folder])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_cannot_be_stored_is_refused_and_others_are_served(
    edge: Edge,
    newfile: Callable[[], Any],
    is_chunked: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(TempfileBasedBuffer, "newfile", lambda _buffer: newfile())
    body = b"x" * 900_000
    if is_chunked:
        data = post(b"Transfer-Encoding: chunked") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        data = post(b"Content-Length: %d" % len(body)) + body
    answer = edge.tell(data + SECOND)
    assert statuses(answer) == [507]
    assert refusal(answer)["code"] == "body_not_stored"
    assert edge.seen == []
    small = post(b"Content-Length: 3", b"Connection: close") + b"abc"
    assert statuses(edge.tell(small)) == [200]
    assert [record.name for record in caplog.records] == ["routes.http.request_parser"]


def trickle(connection: socket.socket, data: bytes) -> bytes:
    """Sends a byte now and then until the server has had enough; what it says."""
    connection.settimeout(0.02)
    deadline = time.monotonic() + PATIENCE
    for byte in data:
        assert time.monotonic() < deadline, "it was let go on"
        try:
            connection.send(bytes([byte]))
            answer = connection.recv(65536)
        except TimeoutError:
            continue
        except (BrokenPipeError, ConnectionResetError):
            return b""
        return answer
    raise AssertionError("all of it was taken")


@pytest.mark.parametrize(
    "head",
    [b"GET / HTTP/1.1\r\nX-Slow: ", post(b"Content-Length: 100000"), post(CHUNKED)],
    ids=["head", "body", "chunks"],
)
def test_who_trickles_is_told_that_it_took_too_long(
    start: Callable[..., Edge], head: bytes
) -> None:
    edge = start(clock=FAST)
    with edge.connect() as connection:
        connection.sendall(head)
        answer = trickle(connection, b"1\r\na\r\n" * 2000)
        assert statuses(answer) == [408]
        connection.settimeout(PATIENCE)
        assert refusal(answer + read_all(connection))["code"] == "request_timeout"
    assert edge.seen == []


def test_who_goes_on_after_the_refusal_is_cut_off(
    start: Callable[..., Edge], eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    edge = start(clock=FAST, limits=ClientLimits(body=100.0))
    with edge.connect() as connection:
        connection.sendall(b"hello\r\n\r\n")
        assert statuses(connection.recv(65536)) == [400]

        def is_cut_off() -> bool:
            try:
                return not connection.send(b"x")
            except (BrokenPipeError, ConnectionResetError):
                return True

        assert eventually(is_cut_off)


def test_a_line_end_after_the_last_body_is_no_request_that_is_late(
    start: Callable[..., Edge],
) -> None:
    edge = start(clock=FAST)
    with edge.connect() as connection:
        connection.sendall(post(b"Content-Length: 5") + b"hello\r\n")
        assert statuses(read_all(connection)) == [200]


def test_a_slow_line_that_keeps_the_rate_gets_its_body_through(start: Callable[..., Edge]) -> None:
    limits = ClientLimits(head=10.0, body=10.0, least_rate=100.0)
    edge = start(clock=FAST, limits=limits)  # of which a fifth of a second is all for the head
    with edge.connect() as connection:
        connection.sendall(post(b"Content-Length: 300000", b"Connection: close"))
        for _ in range(30):
            connection.sendall(b"a" * 10000)
            time.sleep(0.05)
        assert statuses(read_all(connection)) == [200]
    assert len(edge.seen[0]["body"]) == 300000


def test_a_client_that_waits_between_its_requests_is_not_late(start: Callable[..., Edge]) -> None:
    edge = start(clock=FAST, limits=ClientLimits(head=1.0, body=1.0))
    with edge.connect() as connection:
        for _ in range(3):
            connection.sendall(SECOND)
            assert statuses(connection.recv(65536)) == [200]
            time.sleep(0.5)


# --- a clock that is set ------------------------------------------------------------------


@pytest.fixture
def set_by(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How far the wall clock is set, in seconds."""
    ahead, system = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: system() + ahead[0])
    return ahead


def test_who_trickles_is_told_so_also_after_the_clock_was_set_back(
    start: Callable[..., Edge], set_by: list[float]
) -> None:
    edge = start(clock=FAST)
    with edge.connect() as connection:
        connection.sendall(SECOND)
        assert statuses(connection.recv(65536)) == [200]
        set_by[0] = -3600.0
        connection.sendall(b"GET / HTTP/1.1\r\nX-Slow: ")
        assert statuses(trickle(connection, b"a" * 4000)) == [408]


def test_a_body_on_its_way_gets_through_though_the_clock_is_set_forward(
    start: Callable[..., Edge], set_by: list[float]
) -> None:
    edge = start()
    with edge.connect() as connection:
        connection.sendall(post(b"Content-Length: 10", b"Connection: close") + b"hello")
        for ahead in (0.0, 28_800.0, 57_600.0):
            set_by[0] = ahead
            edge.tell(SECOND.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        connection.sendall(b"world")
        assert statuses(read_all(connection)) == [200]
    assert edge.seen[-1]["body"] == "helloworld"


# --- addresses --------------------------------------------------------------------------

needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="needs IPv6")


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "localhost"])
def test_a_host_of_both_families_answers_on_both_by_one_port(
    start: Callable[..., Edge], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _resolve_localhost_to_both(monkeypatch)
    edge = start(host=host)
    for address in ("127.0.0.1", "::1"):
        with edge.connect(address) as connection:
            connection.sendall(SECOND)
            assert statuses(connection.recv(65536)) == [200]
    # Else 127.0.0.1 would not be loopback, nor 10.0.0.1 in trusted_proxies.
    assert [seen["address"] for seen in edge.seen] == ["127.0.0.1", "::1"]


@needs_ipv6
def test_clients_of_ipv4_are_counted_one_by_one_on_a_socket_that_takes_both(
    start: Callable[..., Edge], come_from: list[str]
) -> None:
    proxies = (ipaddress.ip_network("10.1.0.0/16"),)
    edge = start(host="::", limits=ClientLimits(share=1.2 / 6016), trusted_proxies=proxies)
    with contextlib.ExitStack() as connections:
        for address, times in (("192.0.2.1", 1), ("192.0.2.2", 1), ("10.1.2.3", 3)):
            assert holds(edge, come_from, f"::ffff:{address}", times) == [True] * times
        assert holds(edge, come_from, "::ffff:192.0.2.2", 1) == [False]
        for connection in edge.held:
            connections.enter_context(connection)


def test_a_name_is_listened_on_where_one_of_its_addresses_is_there(
    start: Callable[..., Edge], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In many containers localhost is ::1 too, and there is no IPv6."""
    _resolve_localhost_to_both(monkeypatch)
    _take_ipv6_away(monkeypatch)
    assert statuses(start(host="localhost").tell(SECOND[:-2] + b"Connection: close\r\n\r\n")) == [
        200
    ]


@pytest.mark.parametrize(
    ("host", "advice"),
    [
        ("::", "[::]:8080: there is no IPv6 on this machine. Listen on host 0.0.0.0"),
        ("::1", "[::1]:8080: there is no IPv6 on this machine. Listen on host 127.0.0.1"),
        ("no..name", "'no..name' is neither an address nor a name of this machine"),
    ],
)
def test_a_host_that_is_not_there_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, host: str, advice: str
) -> None:
    _take_ipv6_away(monkeypatch)
    with pytest.raises(ListenError) as error:
        HttpServer(Flask("test"), host, 8080, threads=1, max_body_mb=1)
    assert advice in str(error.value)


def test_a_second_application_has_a_port_of_its_own() -> None:
    def second(_environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "6")])
        return [b"second"]

    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]
        with pytest.raises(ListenError, match=f"127.0.0.1:{port}, which "):
            HttpServer(Flask("test"), "127.0.0.1", 0, 1, 1, also=((second, port),))
    server = HttpServer(Flask("test"), "127.0.0.1", 0, 1, 1, also=((second, port),))
    server.start()
    try:
        answers = {}
        for at in (server.port, port):
            with socket.create_connection(("127.0.0.1", at), timeout=PATIENCE) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answers[at] = read_all(connection)
    finally:
        server.close(5.0)
    assert statuses(answers[server.port]) == [404]
    assert answers[port].endswith(b"second")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def _resolve_localhost_to_both(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def both(host: str, *arguments: Any) -> Any:
        if host != "localhost":
            return resolve(host, *arguments)
        return [*resolve("::1", *arguments), *resolve("127.0.0.1", *arguments)]

    monkeypatch.setattr(socket, "getaddrinfo", both)


def _take_ipv6_away(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = socket.socket.bind

    class Socket(socket.socket):
        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            bind(self, address)

    monkeypatch.setattr(socket, "socket", Socket)


# --- places -----------------------------------------------------------------------------


@pytest.fixture
def come_from(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that the next connections seem to come from, else their own."""
    addresses: list[str] = []
    accept = TcpWSGIServer.accept

    def accept_from(listener: TcpWSGIServer) -> Any:
        accepted = accept(listener)
        if accepted and addresses:
            return accepted[0], (addresses.pop(0), 4711)
        return accepted

    monkeypatch.setattr(TcpWSGIServer, "accept", accept_from)
    return addresses


def holds(edge: Edge, come_from: list[str], address: str, times: int) -> list[bool]:
    """Which of the connections from an address are answered; they are left open."""
    answered = []
    for _ in range(times):
        come_from.append(address)
        connection = edge.connect()
        edge.held.append(connection)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(SECOND)
        with contextlib.suppress(ConnectionResetError):
            answered.append(bool(connection.recv(65536)))
            continue
        answered.append(False)
    return answered


@pytest.fixture
def small(start: Callable[..., Edge]) -> Iterator[Edge]:
    """One address may hold three of its 6,016 places."""
    proxies = (ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8"))
    edge = start(limits=ClientLimits(share=3.2 / 6016), trusted_proxies=proxies)
    yield edge
    for connection in edge.held:
        connection.close()


def test_one_address_does_not_take_all_places(small: Edge, come_from: list[str]) -> None:
    assert holds(small, come_from, "192.0.2.1", 5) == [True] * 3 + [False] * 2
    assert holds(small, come_from, "192.0.2.2", 1) == [True]


def test_a_network_of_ipv6_counts_as_one_address(small: Edge, come_from: list[str]) -> None:
    answered = [
        *holds(small, come_from, "2001:db8::1", 2),
        *holds(small, come_from, "2001:db8::ffff:2", 2),
        *holds(small, come_from, "2001:db8:0:1::1", 1),
    ]
    assert answered == [True, True, True, False, True]


def test_this_machine_and_trusted_proxies_hold_what_they_like(
    small: Edge, come_from: list[str]
) -> None:
    for address in ("127.0.0.1", "::1", "10.1.2.3", "fd00::1"):
        assert holds(small, come_from, address, 6) == [True] * 6


def test_a_place_is_given_back_with_its_connection(
    small: Edge, come_from: list[str], eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    assert holds(small, come_from, "192.0.2.1", 4)[-1] is False
    for connection in small.held:
        connection.close()
    assert eventually(lambda: holds(small, come_from, "192.0.2.1", 1) == [True])


# --- descriptors ------------------------------------------------------------------------


def test_idle_connections_leave_descriptors_and_make_way(
    start: Callable[..., Edge], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_file_limit", lambda: 130)
    monkeypatch.setattr(server, "_IDLE_WHEN_FULL", 0.0)
    edge = start()
    (listener,) = edge.server._listeners
    most = 0
    accept = listener.accept

    def counted() -> Any:
        nonlocal most
        most = max(most, len(listener.active_channels))
        return accept()

    monkeypatch.setattr(listener, "accept", counted)
    with contextlib.ExitStack() as held:
        for _ in range(60):
            held.enter_context(edge.connect())
        assert statuses(edge.tell(SECOND.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")))
    assert most < 26


def test_without_descriptors_it_waits_and_then_goes_on(
    start: Callable[..., Edge], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1000.0
    edge = start(clock=Clock(monotonic=lambda: now))
    (listener,) = edge.server._listeners
    accept, is_full, failed = listener.accept, True, threading.Semaphore(0)
    failures: list[float] = []

    def accept_or_fail() -> Any:
        if is_full:
            failures.append(now)
            failed.release()
            raise OSError(errno.EMFILE, "Too many open files")
        return accept()

    with edge.connect() as early, edge.connect() as late:
        early.sendall(SECOND)
        assert early.recv(65536)
        late.sendall(SECOND)
        assert late.recv(65536)
        monkeypatch.setattr(listener, "accept", accept_or_fail)
        with edge.connect() as waiting:
            waiting.sendall(SECOND)
            for _ in range(2):
                assert failed.acquire(timeout=PATIENCE)
                for _ in range(5):  # rounds of the loop
                    early.sendall(SECOND)
                    assert early.recv(65536)
                now += 2.0
            assert failures == [1000.0, 1002.0]
            is_full = False
            now += 2.0
            assert statuses(waiting.recv(65536)) == [200]
    assert len([r for r in caplog.records if "no further connection" in r.message]) == 1


def test_each_client_is_asked_now_and_then_whether_it_is_still_there(edge: Edge) -> None:
    with edge.connect() as connection:
        connection.sendall(SECOND)
        assert connection.recv(65536)
        (channel,) = edge.server._listeners[0].active_channels.values()
        options = [
            channel.socket.getsockopt(level, option)
            for level, option in (
                (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
                (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
                (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
                (socket.IPPROTO_TCP, socket.TCP_NODELAY),
            )
        ]
    assert options == [1, 10, 3, 1]


def test_who_has_vanished_is_disconnected_for_those_who_serve_it(
    monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], Any]], Any]
) -> None:
    app = Flask("test")
    has_begun, has_ended = threading.Event(), threading.Event()

    @app.route("/second")
    def wait() -> str:
        has_begun.set()
        eventually(request.environ["waitress.client_disconnected"])
        has_ended.set()
        return ""

    edge = HttpServer(app, "127.0.0.1", 0, threads=4, max_body_mb=1)
    edge.start()
    try:
        with socket.create_connection(("127.0.0.1", edge.port)) as connection:
            connection.sendall(SECOND)
            assert has_begun.wait(PATIENCE)
            assert not has_ended.is_set()
            monkeypatch.setattr(keepalive, "has_vanished", lambda _connection: True)
            assert has_ended.wait(PATIENCE)
    finally:
        edge.close(5.0)


# --- threads ----------------------------------------------------------------------------


def test_a_system_with_too_few_threads_is_said_and_none_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, before = threading.Thread.start, threading.active_count()

    def limited(thread: threading.Thread) -> None:
        if thread.name == "waitress-40":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(ListenError, match="does not allow 50 threads: lower `threads`"):
        HttpServer(Flask("test"), "127.0.0.1", 0, threads=50, max_body_mb=1)
    assert threading.active_count() == before


# --- the end ----------------------------------------------------------------------------


def test_a_loop_that_ends_before_it_is_woken_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    others = threading.enumerate()
    server = HttpServer(Flask("test"), "127.0.0.1", 0, threads=4, max_body_mb=1)
    server.start()
    ours = [thread for thread in threading.enumerate() if thread not in others]
    (loop,) = (thread for thread in ours if thread.name == "http")
    trigger = server._listeners[0].trigger
    pull = type(trigger)._physical_pull

    def late() -> None:
        pull(trigger)  # as a worker does that has just finished
        loop.join(20)
        assert not loop.is_alive()
        pull(trigger)  # our own

    monkeypatch.setattr(trigger, "_physical_pull", late)
    server.close(1.0)

"""Bytes that are not quite a request: each is answered or ended, and breaks nothing."""

from __future__ import annotations

import http.client
import io
import json
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fixtures import Launch
from tests.support.program import CHAT, PATIENCE, Program, chat, fake, raw_post

UNFINISHED = 0.05  # seconds without an answer after which a request is taken for half of one
CALLS = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /api/models?limit=1 HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n",
    raw_post("/api/config/check", b'{"text": "program: {}"}'),
    raw_post(CHAT, json.dumps(chat("Model")).encode()),
    raw_post(CHAT, json.dumps(chat("Model", stream=True)).encode()),
]
TOKENS = [
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\x00", b" ", b":", b"\xff\xfe", b"%00", b"../", b"?"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n"),
    *(b'"', b"{", b"[" * 3000, b"null", b"1e999", b"\\ud800", b"\xed\xa0\x80", b"9" * 400, b"NaN"),
    *(b"0\r\n\r\n", b"5\r\nhello\r\n", b"HTTP/1.0", b"HTTP/2.0", b"A" * 3000),
]
NAMES = [
    *("Host", "Content-Length", "Transfer-Encoding", "Connection", "Expect", "Content-Type"),
    *("Accept-Language", "Authorization", "Cookie", "Origin", "X-Forwarded-For", "Forwarded"),
    *("X-Forwarded-Proto", "If-None-Match", "Range", "Upgrade", "TE", "X_Forwarded_For"),
]
VALUES = [
    *("", "0", "-1", "+5", "5_0", "0x5", "9" * 20, "chunked", "identity", "chunked, identity"),
    *(
        "close",
        "100-continue",
        "gzip",
        "text/html",
        "Bearer x",
        "Basic \xff",
        "http://evil.example",
    ),
    *("for=127.0.0.1", "bytes=0-1", "en;q=x,*;q=-1", "session=.eJw", "[::1", "é", "\x00"),
]

pieces = st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=12)
changes = st.tuples(
    st.sampled_from(["insert", "replace", "remove", "double"]),
    st.floats(0, 1),
    st.integers(1, 40),
    pieces,
)


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """A real request of which something is missing, doubled or another; maybe one more behind."""
    data = draw(st.sampled_from(CALLS))
    for how, share, length, piece in draw(st.lists(changes, min_size=1, max_size=4)):
        start = int(share * len(data))
        rest = start if how in ("insert", "double") else start + length
        middle = {"remove": b"", "double": data[start : start + length]}.get(how, piece)
        data = data[:start] + middle + data[rest:]
    return data + draw(st.sampled_from([b"", *CALLS]))


@st.composite
def with_odd_headers(draw: st.DrawFn) -> bytes:
    request, end, body = draw(st.sampled_from(CALLS)).partition(b"\r\n\r\n")
    headers = st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES) | st.text(max_size=20))
    for name, value in draw(st.lists(headers, min_size=1, max_size=5)):
        request += f"\r\n{name}: {value}".encode()
    return request + end + body


made_up = st.lists(pieces, min_size=1, max_size=12).map(b"".join)


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    program = launch_once({"Model": fake()})
    assert program.ask("Model").status_code == 200
    return program


class Received:
    """Bytes as http.client reads them from a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        assert mode == "rb"
        return io.BytesIO(self._data)


def send(program: Program, data: bytes) -> bytes:
    """All that comes back until the connection's end. Fails with a time-out where none comes."""
    received = b""
    try:
        with program.raw(data) as connection:
            connection.settimeout(UNFINISHED)
            while True:
                try:
                    piece = connection.recv(65536)
                except TimeoutError:
                    # It may wait for more, of this request or the next. There is none.
                    assert connection.gettimeout() == UNFINISHED, "neither an answer nor an end"
                    connection.settimeout(PATIENCE)
                    connection.shutdown(socket.SHUT_WR)
                    continue
                if not piece:
                    return received
                received += piece
    except ConnectionError:  # refused before all of it was sent; what was said may be lost
        return received


@settings(max_examples=150)
@given(data=changed() | with_odd_headers() | made_up)
def test_each_is_answered_or_ended_and_no_answer_is_a_fault_of_ours(
    program: Program, data: bytes
) -> None:
    received = send(program, data)
    assert b"HTTP/1.1 500" not in received
    if not received or data.startswith(b"HEAD"):
        return
    answer = http.client.HTTPResponse(Received(received), method="POST")
    answer.begin()
    if answer.status >= 400 and answer.headers.get_content_type() == "application/json":
        error = json.loads(answer.read())["error"]
        assert set(error) == {"message", "type", "param", "code"}
    assert program.get("/health").status_code == 200

"""An upstream's answer: what it is, and what is none."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.relay.response import UpstreamError
from manager.relay.upstream import Upstream
from tests.support.servers import PATIENCE, Peer
from tests.support.upstreams import (
    BODY,
    FRAMED,
    OK,
    Connect,
    Serve,
    chunked,
    post,
    read,
    request_for,
    sized,
    until_close,
)

# --- the answer -------------------------------------------------------------------------


@pytest.mark.parametrize("framing", FRAMED)
def test_the_body_comes_whole_in_each_framing(to_parrot: Upstream, framing: str) -> None:
    assert read(to_parrot, request_for(FRAMED[framing])) == BODY


@pytest.mark.parametrize("framing", FRAMED)
def test_a_piece_is_returned_before_the_next_has_arrived(
    serve: Serve, connect: Connect, framing: str
) -> None:
    """The server sends each piece only when the one before has been handed on."""
    texts = [b"one", b"two", b"three"]
    head, *pieces = {
        "length": [OK + b"Content-Length: 11\r\n\r\n", *texts],
        "chunked": [
            OK + b"Transfer-Encoding: chunked\r\n\r\n",
            *(b"%x\r\n%b\r\n" % (len(text), text) for text in texts),
            b"0\r\n\r\n",
        ],
        "close": [b"HTTP/1.0 200 OK\r\n\r\n", *texts],
    }[framing]
    may_send = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(head)
        for piece in pieces:
            assert may_send.acquire(timeout=PATIENCE)
            peer.send(piece)

    body = connect(serve(script)).send(post()).iter_bytes()
    for text in texts:
        may_send.release()
        assert next(body) == text
    may_send.release()
    assert list(body) == []


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(FRAMED)),
    st.lists(st.integers(0, 2**16), max_size=12),
    st.booleans(),
)
def test_however_the_bytes_are_cut_the_answer_is_the_same(
    to_parrot: Upstream, framing: str, places: list[int], has_continue: bool
) -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\n" * has_continue + FRAMED[framing]
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    parts = [data[start:end] for start, end in itertools.pairwise(edges)]
    response = to_parrot.send(request_for(*parts))
    pieces = list(response.iter_bytes())
    assert response.status == 200
    assert b"".join(pieces) == BODY
    assert all(pieces)


def test_status_reason_and_headers_come_as_they_were_sent(to_parrot: Upstream) -> None:
    head = (
        b"HTTP/1.1 429 Slow down, please\r\nX-B: 2\r\nx-a:1\r\nX-B:  3  \r\nX-Empty:\r\n"
        b"X-Latin: caf\xe9\r\nContent-Length: 0\r\n\r\n"
    )
    response = to_parrot.send(request_for(head))
    assert list(response.iter_bytes()) == []
    assert (response.status, response.head.reason) == (429, "Slow down, please")
    assert response.head.headers == [
        ("X-B", "2"),
        ("x-a", "1"),
        ("X-B", "3"),
        ("X-Empty", ""),
        ("X-Latin", "caf\xe9"),
        ("Content-Length", "0"),
    ]
    assert response.head.header("x-b") == "2, 3"
    assert response.head.header("X-None") == ""


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_that_has_no_body_ends_at_once(to_parrot: Upstream, status: str) -> None:
    assert read(to_parrot, request_for(f"HTTP/1.1 {status}\r\n\r\n".encode(), then="wait")) == b""


def test_a_status_line_without_a_reason_will_do(to_parrot: Upstream) -> None:
    response = to_parrot.send(request_for(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"))
    assert (response.status, response.head.reason) == (200, "")
    assert list(response.iter_bytes()) == []


def test_a_large_body_comes_whole(to_parrot: Upstream) -> None:
    body = bytes(range(128)) * 40_000
    assert read(to_parrot, request_for(sized(body))) == body


# --- answers that are none --------------------------------------------------------------


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize(
    "answer",
    [
        sized(BODY)[:-1],
        sized(BODY, 10**12),
        sized(b"", 5),
        chunked(BODY)[:-1],
        chunked(BODY)[:-5],
        chunked(BODY, BODY)[:-20],
        OK + b"Transfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_body_that_is_cut_short_is_never_taken_for_a_whole_one(
    to_parrot: Upstream, answer: bytes, then: str
) -> None:
    response = to_parrot.send(request_for(answer, then=then)) if then == "close" else None
    with pytest.raises(UpstreamError):
        # A reset may overtake the head.
        list((response or to_parrot.send(request_for(answer, then=then))).iter_bytes())


def test_what_came_before_the_cut_has_been_returned(to_parrot: Upstream) -> None:
    response = to_parrot.send(request_for(chunked(b"one", b"two")[:-7]))
    pieces = []
    with pytest.raises(UpstreamError, match="closed the connection"):
        pieces.extend(response.iter_bytes())
    assert b"".join(pieces).startswith(b"onetw")


def test_a_reset_ends_a_body_that_has_no_length(serve: Serve, connect: Connect) -> None:
    may_reset = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(until_close(b"half"))
        assert may_reset.wait(PATIENCE)
        peer.reset()

    body = connect(serve(script)).send(post()).iter_bytes()
    assert next(body) == b"half"
    may_reset.set()
    with pytest.raises(UpstreamError, match="broke"):
        next(body)


NOT_HTTP = [
    b"",
    b"\x16\x03\x01 this is TLS",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"<html>",
    b"HTTP/2 200 OK\r\n\r\n",
    b"HTTP/1.1 OK\r\n\r\n",
    b"HTTP/1.1 2000 OK\r\n\r\n",
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2",
    b"\r\n\r\n",
    OK + b"no colon\r\n\r\n",
    OK + b": no name\r\n\r\n",
    OK + b"Name : space before the colon\r\n\r\n",
    OK + b"X-A: 1\r\n folded: 2\r\n\r\n",
    OK + b"X-A: " + b"a" * 300_000,
]


@pytest.mark.parametrize("answer", NOT_HTTP)
def test_what_is_not_http_is_the_upstreams_fault(to_parrot: Upstream, answer: bytes) -> None:
    with pytest.raises(UpstreamError):
        to_parrot.send(request_for(answer))


@pytest.mark.parametrize(
    "length",
    ["-1", "+5", "0x5", "5 5", "five", "1_0", "5, 6", "²", "9" * 5000],
)
def test_a_length_that_is_no_number_is_the_upstreams_fault(
    to_parrot: Upstream, length: str
) -> None:
    answer = OK + f"Content-Length: {length}\r\n\r\n".encode("latin-1") + BODY
    with pytest.raises(UpstreamError):
        read(to_parrot, request_for(answer))


def test_the_same_length_declared_twice_is_one_length(to_parrot: Upstream) -> None:
    answer = OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"
    assert read(to_parrot, request_for(answer)) == b"ok"


@pytest.mark.parametrize("encoding", ["gzip", "gzip, chunked", "chunked, chunked"])
def test_a_framing_that_is_not_known_is_the_upstreams_fault(
    to_parrot: Upstream, encoding: str
) -> None:
    answer = OK + f"Transfer-Encoding: {encoding}\r\n\r\n".encode() + b"0\r\n\r\n"
    with pytest.raises(UpstreamError):
        read(to_parrot, request_for(answer))


@pytest.mark.parametrize("end", [b"\n", b"\r"])
def test_no_header_can_smuggle_a_line_end_in(to_parrot: Upstream, end: bytes) -> None:
    answer = OK + b"X-A: 1" + end + b"X-B: 2\r\nContent-Length: 0\r\n\r\n"
    headers = []
    with contextlib.suppress(UpstreamError):
        headers = to_parrot.send(request_for(answer)).head.headers
    assert not [text for item in headers for text in item if "\n" in text or "\r" in text]


@settings(max_examples=150)
@given(
    st.lists(
        st.sampled_from(
            [
                OK,
                b"HTTP/1.1 100 \r\n\r\n",
                b"HTTP/1.0 500 No\r\n",
                b"Content-Length: ",
                b"5",
                b"Transfer-Encoding: chunked\r\n",
                b"Connection: keep-alive\r\n",
                b"\r\n",
                b"\n",
                b"5\r\nhello\r\n",
                b"0\r\n\r\n",
                b"hello",
            ]
        )
        | st.binary(max_size=6),
        max_size=8,
    )
)
def test_whatever_is_sent_is_an_answer_or_an_upstream_error(
    to_parrot: Upstream, parts: list[bytes]
) -> None:
    with contextlib.suppress(UpstreamError):
        read(to_parrot, request_for(*parts))


def test_nobody_there_says_which_port_it_was() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    upstream = Upstream(port, 1)
    with pytest.raises(UpstreamError, match=f"nothing answers on port {port}"):
        upstream.send(post())
    upstream.close()

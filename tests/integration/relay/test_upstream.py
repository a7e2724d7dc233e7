"""One model server over HTTP: what comes back, what does not, and who is to blame."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.relay.upstream import Aborted, Exchange, Upstream, UpstreamError, UpstreamTimeout
from tests.support.servers import PATIENCE, Peer, RawServer

Serve = Callable[[Callable[[Peer], None]], RawServer]
Eventually = Callable[[Callable[[], Any]], Any]

BODY = b'{"choices": [{"message": {"content": "Hello"}}]}'
OK = b"HTTP/1.1 200 OK\r\n"
SHORT = OK + b"Content-Length: 2\r\n\r\nok"


def sized(body: bytes, length: object = None) -> bytes:
    told = len(body) if length is None else length
    return OK + f"Content-Length: {told}\r\n\r\n".encode() + body


def chunked(*chunks: bytes) -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n"


def until_close(body: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + body


FRAMED = {"length": sized(BODY), "chunked": chunked(BODY[:9], BODY[9:]), "close": until_close(BODY)}


def post(body: bytes = b"{}", timeout: float = PATIENCE) -> Exchange:
    headers = [("Content-Type", "application/json")]
    return Exchange("POST", "/v1/chat/completions", headers, body, timeout=timeout)


def wish(*parts: bytes, then: str = "close") -> Exchange:
    """A request that has the parrot answer so."""
    texts = [part.decode("latin-1") for part in parts]
    return post(json.dumps({"parts": texts, "then": then}).encode())


def read(upstream: Upstream, exchange: Exchange) -> bytes:
    """The body of the answer."""
    return b"".join(upstream.send(exchange).iter_bytes())


@pytest.fixture
def connect() -> Iterator[Callable[[RawServer], Upstream]]:
    """Upstreams whose kept connections are dropped at the test's end."""
    with contextlib.ExitStack() as stack:

        def connect(server: RawServer) -> Upstream:
            upstream = Upstream(server.port, 20)
            stack.callback(upstream.close)
            return upstream

        yield connect


Connect = Callable[[RawServer], Upstream]


@pytest.fixture
def to_parrot(parrot: RawServer, connect: Connect) -> Upstream:
    return connect(parrot)


def answers(*all_answers: bytes) -> Callable[[Peer], None]:
    """A script: one answer for each request, in this order, over any connections."""
    left = iter(all_answers)

    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(next(left))

    return script


def close_unanswered(peer: Peer) -> None:
    peer.request()


# --- the request ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 10, 70_000, 8 << 20])
def test_the_request_arrives_as_it_was_given(serve: Serve, connect: Connect, size: int) -> None:
    seen = []

    def script(peer: Peer) -> None:
        seen.append(peer.request())
        peer.send(SHORT)

    upstream = connect(serve(script))
    body = random.Random(size).randbytes(size)
    headers = [("X-B", "2"), ("x-a", "1"), ("X-B", "caf\xe9")]
    exchange = Exchange("POST", "/v1/rerank?a=%20b", headers, body, timeout=PATIENCE)
    assert read(upstream, exchange) == b"ok"
    head, _, rest = seen[0].partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    assert lines[0] == "POST /v1/rerank?a=%20b HTTP/1.1"
    assert f"Host: 127.0.0.1:{upstream.port}" in lines
    assert [line for line in lines if line.lower().startswith("x-")] == [
        "X-B: 2",
        "x-a: 1",
        "X-B: caf\xe9",
    ]
    assert ([f"Content-Length: {size}"] if size else []) == [
        line for line in lines if line.startswith("Content-Length")
    ]
    assert rest == body


def test_a_refusal_that_comes_before_the_body_is_read_is_the_answer(
    serve: Serve, connect: Connect
) -> None:
    def script(peer: Peer) -> None:
        peer.sock.recv(100)
        peer.send(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge")
        peer.sock.shutdown(socket.SHUT_WR)
        while peer.sock.recv(1 << 20):
            pass

    response = connect(serve(script)).send(post(b"x" * (8 << 20)))
    assert response.status == 413
    assert b"".join(response.iter_bytes()) == b"large"


# --- the answer -------------------------------------------------------------------------


@pytest.mark.parametrize("framing", FRAMED)
def test_the_body_comes_whole_in_each_framing(to_parrot: Upstream, framing: str) -> None:
    assert read(to_parrot, wish(FRAMED[framing])) == BODY


@pytest.mark.parametrize("framing", FRAMED)
def test_a_piece_is_handed_on_before_the_next_is_there(
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
    response = to_parrot.send(wish(*parts))
    pieces = list(response.iter_bytes())
    assert response.status == 200
    assert b"".join(pieces) == BODY
    assert all(pieces)


def test_status_reason_and_headers_come_as_they_were_sent(to_parrot: Upstream) -> None:
    head = (
        b"HTTP/1.1 429 Slow down, please\r\nX-B: 2\r\nx-a:1\r\nX-B:  3  \r\nX-Empty:\r\n"
        b"X-Latin: caf\xe9\r\nContent-Length: 0\r\n\r\n"
    )
    response = to_parrot.send(wish(head))
    assert list(response.iter_bytes()) == []
    assert (response.status, response.reason) == (429, "Slow down, please")
    assert response.header_items == [
        ("X-B", "2"),
        ("x-a", "1"),
        ("X-B", "3"),
        ("X-Empty", ""),
        ("X-Latin", "caf\xe9"),
        ("Content-Length", "0"),
    ]
    assert response.header("x-b") == "2, 3"
    assert response.header("X-None") == ""


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_that_has_no_body_ends_at_once(to_parrot: Upstream, status: str) -> None:
    assert read(to_parrot, wish(f"HTTP/1.1 {status}\r\n\r\n".encode(), then="wait")) == b""


def test_a_status_line_without_a_reason_will_do(to_parrot: Upstream) -> None:
    response = to_parrot.send(wish(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"))
    assert (response.status, response.reason) == (200, "")
    assert list(response.iter_bytes()) == []


def test_a_large_body_comes_whole(to_parrot: Upstream) -> None:
    body = bytes(range(128)) * 40_000
    assert read(to_parrot, wish(sized(body))) == body


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
    response = to_parrot.send(wish(answer, then=then)) if then == "close" else None
    with pytest.raises(UpstreamError):
        # A reset may overtake the head.
        list((response or to_parrot.send(wish(answer, then=then))).iter_bytes())


def test_what_came_before_the_cut_has_been_handed_on(to_parrot: Upstream) -> None:
    response = to_parrot.send(wish(chunked(b"one", b"two")[:-7]))
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
        to_parrot.send(wish(answer))


@pytest.mark.parametrize(
    "length",
    ["-1", "+5", "0x5", "5 5", "five", "1_0", "5, 6", "²", "9" * 5000],
)
def test_a_length_that_is_no_number_is_the_upstreams_fault(
    to_parrot: Upstream, length: str
) -> None:
    answer = OK + f"Content-Length: {length}\r\n\r\n".encode("latin-1") + BODY
    with pytest.raises(UpstreamError):
        read(to_parrot, wish(answer))


def test_the_same_length_told_twice_is_one_length(to_parrot: Upstream) -> None:
    answer = OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok"
    assert read(to_parrot, wish(answer)) == b"ok"


@pytest.mark.parametrize("encoding", ["gzip", "gzip, chunked", "chunked, chunked"])
def test_a_framing_that_is_not_known_is_the_upstreams_fault(
    to_parrot: Upstream, encoding: str
) -> None:
    answer = OK + f"Transfer-Encoding: {encoding}\r\n\r\n".encode() + b"0\r\n\r\n"
    with pytest.raises(UpstreamError):
        read(to_parrot, wish(answer))


@pytest.mark.parametrize("end", [b"\n", b"\r"])
def test_no_header_can_smuggle_a_line_end_in(to_parrot: Upstream, end: bytes) -> None:
    answer = OK + b"X-A: 1" + end + b"X-B: 2\r\nContent-Length: 0\r\n\r\n"
    headers = []
    with contextlib.suppress(UpstreamError):
        headers = to_parrot.send(wish(answer)).header_items
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
        read(to_parrot, wish(*parts))


def test_nobody_there_says_which_port_it_was() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    upstream = Upstream(port, 1)
    with pytest.raises(UpstreamError, match=f"nothing answers on port {port}"):
        upstream.send(post())
    upstream.close()


# --- kept connections -------------------------------------------------------------------


def test_a_connection_is_used_again(serve: Serve, connect: Connect) -> None:
    server = serve(answers(SHORT, chunked(b"a", b"b"), OK + b"Content-Length: 0\r\n\r\n", SHORT))
    upstream = connect(server)
    assert [read(upstream, post()) for _ in range(4)] == [b"ok", b"ab", b"", b"ok"]
    assert server.connections == 1


@pytest.mark.parametrize(
    ("first", "connections"),
    [
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 2),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 2),
        (b"HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 2\r\n\r\nok", 1),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 1),
        (sized(b"okay, and more than it said", 2), 2),
        (chunked(b"ok") + b"and more", 2),
    ],
)
def test_a_connection_is_kept_where_both_sides_know_that_it_is(
    serve: Serve, connect: Connect, first: bytes, connections: int
) -> None:
    server = serve(answers(first, SHORT))
    upstream = connect(server)
    assert read(upstream, post()) in (b"ok", b"")
    assert read(upstream, post()) == b"ok"
    assert server.connections == connections


def test_what_comes_behind_an_answer_is_not_the_answer_to_the_next(
    serve: Serve, connect: Connect
) -> None:
    """A server that tells a wrong length spoils its own answer, not that of somebody else."""
    has_answered, has_sent_more = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        if peer.number == 1:
            peer.send(sized(b"hello, world"[:5]))
            assert has_answered.wait(PATIENCE)
            peer.send(b", world" + sized(b"wrong"))
            has_sent_more.set()
            peer.request()
        else:
            peer.send(sized(b"right"))

    upstream = connect(serve(script))
    assert read(upstream, post()) == b"hello"
    has_answered.set()
    assert has_sent_more.wait(PATIENCE)
    assert read(upstream, post()) == b"right"


def test_many_at_once_each_get_their_own_answer(serve: Serve, connect: Connect) -> None:
    def script(peer: Peer) -> None:
        while request := peer.request():
            peer.send(sized(request.partition(b"\r\n\r\n")[2]))

    server = serve(script)
    upstream = connect(server)
    bodies = [b"%d" % number * 50 for number in range(200)]
    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda body: read(upstream, post(body)), bodies)) == bodies
    assert server.connections <= 16


def test_more_connections_at_once_than_are_kept_do_no_harm(serve: Serve) -> None:
    everyone = threading.Barrier(6)

    def script(peer: Peer) -> None:
        while peer.request():
            everyone.wait(PATIENCE)
            peer.send(SHORT)

    upstream = Upstream(serve(script).port, 2)
    with ThreadPoolExecutor(6) as threads:
        for _ in range(2):
            assert list(threads.map(lambda _: read(upstream, post()), range(6))) == [b"ok"] * 6
    upstream.close()


def test_closing_it_drops_the_kept_connections(serve: Serve, connect: Connect) -> None:
    saw_close = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(SHORT)
        if peer.sees_close():
            saw_close.set()

    upstream = connect(serve(script))
    read(upstream, post())
    upstream.close()
    assert saw_close.wait(PATIENCE)
    with pytest.raises(UpstreamError):
        upstream.send(post())


def test_closing_it_lets_an_answer_under_way_go_on(serve: Serve, connect: Connect) -> None:
    may_end, saw_close = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK + b"Content-Length: 6\r\n\r\none")
        assert may_end.wait(PATIENCE)
        peer.send(b"two")
        if peer.sees_close():
            saw_close.set()

    upstream = connect(serve(script))
    body = upstream.send(post()).iter_bytes()
    assert next(body) == b"one"
    upstream.close()
    may_end.set()
    assert list(body) == [b"two"]
    assert saw_close.wait(PATIENCE)


def test_an_answer_that_nobody_wants_any_more_is_closed(serve: Serve, connect: Connect) -> None:
    saw_close = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK + b"Content-Length: 600\r\n\r\n")
        if peer.sees_close():
            saw_close.set()

    response = connect(serve(script)).send(post())
    response.discard()
    response.discard()
    assert saw_close.wait(PATIENCE)


def test_an_answer_that_was_read_to_its_end_is_not_closed_by_letting_go_of_it(
    serve: Serve, connect: Connect
) -> None:
    server = serve(answers(SHORT, SHORT))
    upstream = connect(server)
    response = upstream.send(post())
    list(response.iter_bytes())
    response.discard()
    assert read(upstream, post()) == b"ok"
    assert server.connections == 1


# --- a kept connection that the server has closed ----------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("size", [10, 1 << 20])
def test_a_kept_connection_that_closes_just_then_is_tried_once_more_on_a_fresh_one(
    serve: Serve, connect: Connect, how: str, size: int
) -> None:
    seen: list[tuple[int, bytes]] = []

    def script(peer: Peer) -> None:
        while request := peer.request():
            seen.append((peer.number, request.partition(b"\r\n\r\n")[2]))
            if len(seen) == 2:
                if how == "reset":
                    peer.reset()
                return
            peer.send(SHORT)

    upstream = connect(serve(script))
    assert read(upstream, post(b"first")) == b"ok"
    assert read(upstream, post(b"x" * size)) == b"ok"
    assert [number for number, _ in seen] == [1, 1, 2]
    assert seen[1][1] == seen[2][1] == b"x" * size


def test_a_connection_that_the_server_closed_while_it_was_idle_is_not_an_error(
    serve: Serve, connect: Connect
) -> None:
    closed = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(SHORT)
        peer.sock.close()
        closed.set()

    upstream = connect(serve(script))
    for _ in range(3):
        assert read(upstream, post()) == b"ok"
        assert closed.wait(PATIENCE)
        closed.clear()


def test_a_fresh_connection_that_closes_is_not_tried_again(serve: Serve, connect: Connect) -> None:
    server = serve(close_unanswered)
    with pytest.raises(UpstreamError, match="closed the connection without an answer"):
        connect(server).send(post())
    assert server.connections == 1


def test_it_is_tried_once_more_and_not_for_ever(serve: Serve, connect: Connect) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        if peer.number == 1:
            peer.send(SHORT)
            peer.request()

    server = serve(script)
    upstream = connect(server)
    read(upstream, post())
    with pytest.raises(UpstreamError):
        upstream.send(post())
    assert server.connections == 2


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 200 OK\r\n", sized(BODY)[:-1]])
def test_once_a_byte_of_the_answer_has_come_nothing_is_tried_again(
    serve: Serve, connect: Connect, begun: bytes
) -> None:
    """The server has begun to work on it: a second time would be work done twice."""
    seen: list[int] = []

    def script(peer: Peer) -> None:
        while peer.request():
            seen.append(peer.number)
            if len(seen) == 2:
                peer.send(begun)
                return
            peer.send(SHORT)

    upstream = connect(serve(script))
    read(upstream, post())
    with pytest.raises(UpstreamError):
        read(upstream, post())
    assert seen == [1, 1]


# --- silence ----------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 2", sized(BODY)[:-1], chunked(BODY)[:-1]])
def test_a_silent_server_is_given_up_when_its_time_is_over(
    serve: Serve, connect: Connect, begun: bytes
) -> None:
    saw_close = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(begun)
        if peer.sees_close():
            saw_close.set()

    server = serve(script)
    with pytest.raises(UpstreamTimeout, match=r"silent for 0\.2 seconds"):
        read(connect(server), post(timeout=0.2))
    assert saw_close.wait(PATIENCE)
    assert server.connections == 1


def test_a_server_that_does_not_take_the_request_is_given_up_too(
    serve: Serve, connect: Connect
) -> None:
    given_up = threading.Event()

    def script(_: Peer) -> None:
        given_up.wait(PATIENCE)

    upstream = connect(serve(script))
    try:
        with pytest.raises(UpstreamTimeout):
            upstream.send(post(b"x" * (64 << 20), timeout=0.2))
    finally:
        given_up.set()


def test_a_kept_connections_silence_is_not_a_reason_to_ask_twice(
    serve: Serve, connect: Connect
) -> None:
    seen: list[int] = []

    def script(peer: Peer) -> None:
        while peer.request():
            seen.append(peer.number)
            if len(seen) == 1:
                peer.send(SHORT)

    upstream = connect(serve(script))
    read(upstream, post())
    with pytest.raises(UpstreamTimeout):
        upstream.send(post(timeout=0.2))
    assert seen == [1, 1]


def test_each_exchange_has_its_own_patience_on_the_same_connection(
    serve: Serve, connect: Connect
) -> None:
    may_answer = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(SHORT)
        peer.request()
        assert may_answer.wait(PATIENCE)
        peer.send(SHORT)
        peer.request()
        peer.sees_close()

    server = serve(script)
    upstream = connect(server)
    read(upstream, post(timeout=0.2))
    with ThreadPoolExecutor(1) as threads:
        patient = threads.submit(read, upstream, post(timeout=PATIENCE))
        # Longer than the first one's patience: this wait is what is tested.
        assert not may_answer.wait(0.4)
        may_answer.set()
        assert patient.result() == b"ok"
    with pytest.raises(UpstreamTimeout):
        upstream.send(post(timeout=0.2))
    assert server.connections == 1


def test_the_shortest_patience_is_not_taken_for_endless(serve: Serve, connect: Connect) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.sees_close()

    exchange = post(timeout=1e-9)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(connect(serve(script)).send, exchange)
        try:
            assert isinstance(asked.exception(5), UpstreamTimeout)
        finally:
            exchange.abort()


# --- ending it from our side ------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 2"])
def test_a_silent_server_sees_the_close_when_nobody_waits_any_more(
    serve: Serve, connect: Connect, begun: bytes
) -> None:
    has_request, saw_close = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(begun)
        has_request.set()
        if peer.sees_close():
            saw_close.set()

    exchange = post()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(connect(serve(script)).send, exchange)
        assert has_request.wait(PATIENCE)
        exchange.abort()
        assert saw_close.wait(PATIENCE)
        assert isinstance(asked.exception(PATIENCE), Aborted)


@pytest.mark.parametrize(
    "begun",
    [
        OK + b"Content-Length: 600\r\n\r\nhalf",
        OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        until_close(b"half"),
    ],
)
def test_an_answer_can_be_ended_in_its_middle(serve: Serve, connect: Connect, begun: bytes) -> None:
    saw_close = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(begun)
        if peer.sees_close():
            saw_close.set()

    exchange = post()
    body = connect(serve(script)).send(exchange).iter_bytes()
    assert next(body) == b"half"
    with ThreadPoolExecutor(1) as threads:
        rest = threads.submit(list, body)
        exchange.abort()
        assert isinstance(rest.exception(PATIENCE), Aborted)
    assert saw_close.wait(PATIENCE)


def test_what_was_ended_before_it_was_sent_is_never_sent(serve: Serve, connect: Connect) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        while request := peer.request():
            seen.append(request.partition(b"\r\n\r\n")[2])
            peer.send(SHORT)

    upstream = connect(serve(script))
    for is_first in (True, False):  # on a fresh connection, then with a kept one there
        exchange = post(b"unwanted")
        exchange.abort()
        with pytest.raises(Aborted):
            upstream.send(exchange)
        if is_first:
            assert read(upstream, post(b"wanted")) == b"ok"
    assert read(upstream, post(b"wanted")) == b"ok"
    assert seen == [b"wanted", b"wanted"]


def test_ending_what_has_ended_does_not_harm_the_next_user_of_the_connection(
    serve: Serve, connect: Connect
) -> None:
    has_request, may_answer = threading.Event(), threading.Event()
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        while request := peer.request():
            seen.append(request)
            if len(seen) == 2:
                has_request.set()
                assert may_answer.wait(PATIENCE)
            peer.send(SHORT)

    server = serve(script)
    upstream = connect(server)
    first = post()
    assert read(upstream, first) == b"ok"
    with ThreadPoolExecutor(1) as threads:
        second = threads.submit(read, upstream, post())
        assert has_request.wait(PATIENCE)
        first.abort()
        may_answer.set()
        assert second.result(PATIENCE) == b"ok"
    assert server.connections == 1
    assert len(seen) == 2


def test_ending_it_twice_and_after_a_failure_is_no_fault(serve: Serve, connect: Connect) -> None:
    exchange = post()
    with pytest.raises(UpstreamError):
        connect(serve(close_unanswered)).send(exchange)
    exchange.abort()
    exchange.abort()
    assert exchange.aborted


def test_ends_at_any_moment_harm_nobody_else(serve: Serve, connect: Connect) -> None:
    """Some requests are ended at odd moments while others go over the same connections."""

    def script(peer: Peer) -> None:
        while request := peer.request():
            body = request.partition(b"\r\n\r\n")[2]
            peer.send(OK + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(3):
                peer.send(b"%x\r\n%b\r\n" % (len(body), body))
            peer.send(b"0\r\n\r\n")

    upstream = connect(serve(script))

    def wanted(number: int) -> bool:
        body = b"wanted %d " % number
        return read(upstream, post(body)) == body * 3

    def ended(number: int) -> bool:
        exchange = post(b"ended %d " % number)
        ender = threading.Thread(target=exchange.abort)
        try:
            if number % 3 == 0:
                ender.start()
            response = upstream.send(exchange)
            for count, _ in enumerate(response.iter_bytes()):
                if count == number % 2 and not ender.ident:
                    ender.start()
        except Aborted:
            pass
        if not ender.ident:
            ender.start()
        ender.join()
        return True

    with ThreadPoolExecutor(8) as threads:
        jobs = [threads.submit(ended if n % 2 else wanted, n) for n in range(600)]
        assert all(job.result(PATIENCE) for job in jobs)

"""One model server over HTTP: requests and kept connections."""

from __future__ import annotations

import json
import random
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from manager.relay.response import UpstreamError, UpstreamRefused
from manager.relay.upstream import Exchange, Upstream
from tests.support.servers import PATIENCE, FakeModel, Peer
from tests.support.upstreams import (
    BODY,
    OK,
    SHORT,
    Connect,
    Serve,
    answers,
    chunked,
    close_unanswered,
    post,
    read,
    sized,
)

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
    # Of nothing as well, else some servers wait for the end of the connection.
    lengths = [line for line in lines if line.startswith("Content-Length")]
    assert lengths == [f"Content-Length: {size}"]
    assert rest == body


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_a_server_on_ipv6_is_asked_by_its_own_address() -> None:
    model = FakeModel(host="::1")
    upstream = Upstream(model.port, 4)
    try:
        with pytest.raises(UpstreamRefused):
            upstream.send(Exchange("GET", "/health", [], timeout=PATIENCE))
        upstream.use("::1")
        assert upstream.send(Exchange("GET", "/health", [], timeout=PATIENCE)).status == 200
        body = json.dumps({"messages": [], "fake": {"echo": True}}).encode()
        echoed = json.loads(read(upstream, post(body)))
        assert ["Host", f"[::1]:{model.port}"] in [list(pair) for pair in echoed["headers"]]
    finally:
        upstream.close()
        model.close()


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


def test_a_refusal_is_the_answer_also_where_the_server_closes_without_reading_the_body(
    serve: Serve, connect: Connect
) -> None:
    def script(peer: Peer) -> None:
        peer.sock.recv(100)
        peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")  # and resets

    response = connect(serve(script)).send(post(b"x" * (8 << 20)))
    assert response.status == 413
    assert b"".join(response.iter_bytes()) == b"large"
    assert not response.is_reusable


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
    """A server that declares a wrong length spoils its own answer and no other."""
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


def test_closing_it_lets_an_answer_in_progress_finish(serve: Serve, connect: Connect) -> None:
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


def test_an_answer_that_was_read_to_its_end_is_not_closed_by_discarding_it(
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

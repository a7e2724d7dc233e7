"""Exchanges that end early: time-outs and aborts."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from manager.relay.response import Aborted, UpstreamError, UpstreamTimeout
from tests.support.servers import PATIENCE, Peer
from tests.support.upstreams import (
    BODY,
    OK,
    SHORT,
    Connect,
    Serve,
    chunked,
    close_unanswered,
    post,
    read,
    sized,
    until_close,
)

# --- time-outs --------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 2", sized(BODY)[:-1], chunked(BODY)[:-1]])
def test_a_silent_server_is_a_timeout(serve: Serve, connect: Connect, begun: bytes) -> None:
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


def test_a_server_that_does_not_read_the_request_is_a_timeout_too(
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


def test_a_silent_kept_connection_is_not_a_reason_to_send_twice(
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


def test_each_exchange_has_its_own_timeout_on_the_same_connection(
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
        # Longer than the first one's time-out: this wait is what is tested.
        assert not may_answer.wait(0.4)
        may_answer.set()
        assert patient.result() == b"ok"
    with pytest.raises(UpstreamTimeout):
        upstream.send(post(timeout=0.2))
    assert server.connections == 1


def test_the_shortest_timeout_is_not_taken_for_none(serve: Serve, connect: Connect) -> None:
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


# --- aborts -----------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 2"])
def test_a_silent_server_sees_the_close_after_an_abort(
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
def test_an_answer_can_be_aborted_in_its_middle(
    serve: Serve, connect: Connect, begun: bytes
) -> None:
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


def test_what_was_aborted_before_it_was_sent_is_never_sent(serve: Serve, connect: Connect) -> None:
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


def test_aborting_what_has_ended_does_not_harm_the_next_user_of_the_connection(
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


def test_aborting_twice_and_after_a_failure_is_no_error(serve: Serve, connect: Connect) -> None:
    exchange = post()
    with pytest.raises(UpstreamError):
        connect(serve(close_unanswered)).send(exchange)
    exchange.abort()
    exchange.abort()
    assert exchange.aborted


def test_aborts_at_any_moment_harm_no_other_exchange(serve: Serve, connect: Connect) -> None:
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

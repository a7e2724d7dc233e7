"""A client's connection that waitress lends: it is left alone meanwhile, and goes on afterwards.

All that is used of waitress's inside is used here: where a later waitress differs, this fails.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask, Response, request

from manager.relay import ClientHead, HandedOver
from routes.http import HttpServer, keepalive

PATIENCE = 20.0
SECOND = b"GET /second HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Answer:
    """An answer whose first piece is asked for when it has been lent."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.closed = 0

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        self.closed += 1


class Lender:
    """A server that lends its connections at `/lent`, and answers `/second` itself."""

    def __init__(self) -> None:
        self.lent: Any = None
        self.is_lent = threading.Event()
        app = Flask("test")

        @app.route("/lent")
        def lend() -> Response:
            lend_client = request.environ["llm_manager.lend_client"]

            def hand_over() -> Iterator[bytes]:
                self.lent = lend_client()
                self.is_lent.set()
                raise HandedOver
                yield b""

            self.answer = Answer(hand_over())
            return Response(self.answer, content_type="text/plain", direct_passthrough=True)

        @app.route("/second")
        def second() -> Response:
            return Response("second", headers={"Connection-Is": "kept"})

        self.server = HttpServer(app, "127.0.0.1", 0, threads=1, max_body_mb=1)
        self.server.start()

    def ask(self, data: bytes) -> socket.socket:
        self.is_lent.clear()
        connection = socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE)
        connection.sendall(data)
        assert self.is_lent.wait(PATIENCE)
        return connection


@pytest.fixture
def lender() -> Iterator[Lender]:
    lender = Lender()
    yield lender
    lender.server.close(5.0)


def get(*headers: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"GET /lent HTTP/" + version, b"Host: localhost", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def read_until(connection: socket.socket, end: bytes) -> bytes:
    got = b""
    while not got.endswith(end):
        piece = connection.recv(65536)
        assert piece, f"closed after {got!r}"
        got += piece
    return got


def head_of(lent: Any) -> bytes:
    head: ClientHead = lent.head
    return head.write(200, "OK", [], None)


def write(lent: Any, data: bytes) -> None:
    with lent.socket as sock:
        sock.sendall(data)


def test_the_thread_is_free_and_the_next_request_waits_for_its_turn(lender: Lender) -> None:
    with lender.ask(get() + SECOND) as first:
        with socket.create_connection(("127.0.0.1", lender.server.port), PATIENCE) as other:
            other.sendall(SECOND)
            assert read_until(other, b"second").startswith(b"HTTP/1.1 200")
        write(lender.lent, head_of(lender.lent) + b"3\r\none\r\n0\r\n\r\n")
        lender.lent.take_back(True, b"")
        got = read_until(first, b"second")
    statuses = re.findall(rb"^HTTP/1\.1 (\d+)", got, re.MULTILINE)
    assert statuses == [b"200", b"200"]
    assert got.index(b"one") < got.index(b"second")
    assert lender.answer.closed == 1


def test_a_connection_goes_on_with_what_comes_after_the_answer(lender: Lender) -> None:
    with lender.ask(get()) as connection:
        for _ in range(2):
            write(lender.lent, head_of(lender.lent) + b"0\r\n\r\n")
            lender.lent.take_back(True, b"")
            read_until(connection, b"0\r\n\r\n")
            connection.sendall(SECOND)
            read_until(connection, b"second")
            lender.is_lent.clear()
            connection.sendall(get())
            assert lender.is_lent.wait(PATIENCE)
        lender.lent.socket.close()
        lender.lent.take_back(False, b"")
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "asked", [get(b"Connection: close"), get(version=b"1.0")], ids=["close", "1.0"]
)
def test_a_client_that_wants_its_connection_closed_has_that(lender: Lender, asked: bytes) -> None:
    with lender.ask(asked) as connection:
        write(lender.lent, head_of(lender.lent))
        lender.lent.take_back(lender.lent.head.goes_on(None), b"")
        assert b"onnection: close" in read_until(connection, b"\r\n\r\n")
        assert connection.recv(1) == b""


def test_an_answer_that_is_not_whole_ends_its_connection(lender: Lender) -> None:
    with lender.ask(get() + SECOND) as connection:
        write(lender.lent, head_of(lender.lent) + b"3\r\none\r\n")
        lender.lent.take_back(False, b"")
        got = b""
        while piece := connection.recv(65536):
            got += piece
    assert b"second" not in got
    assert not got.endswith(b"0\r\n\r\n")


def make(*pieces: bytes) -> Callable[[], Answer]:
    return lambda: Answer(iter(pieces))


def test_an_answer_that_was_waited_for_has_the_head_that_came_with_it(lender: Lender) -> None:
    with lender.ask(get() + SECOND) as connection:
        lender.lent.set_head("418 Teapot", [("Content-Type", "a/b"), ("Content-Length", "3")])
        lender.lent.go_on(make(b"one"), b"")
        got = read_until(connection, b"second")
    head, _, rest = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 418 Teapot\r\n")
    assert head.count(b"Content-Type") == 1
    assert b"Content-Type: a/b" in head
    assert rest.startswith(b"oneHTTP/1.1 200")


def test_one_that_nobody_took_goes_on_as_before(lender: Lender) -> None:
    with lender.ask(get()) as connection:
        lender.lent.keep()
        lender.lent.go_on(make(b"one", b"two"), b"")
        got = read_until(connection, b"0\r\n\r\n")
        assert got.endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        connection.sendall(SECOND)
        read_until(connection, b"second")


def test_what_goes_on_when_the_server_ends_is_closed(lender: Lender) -> None:
    with lender.ask(get()):
        answer = Answer(iter(()))
        lender.server._workers.shutdown(timeout=5.0)
        lender.lent.go_on(lambda: answer, b"")
    assert answer.closed == 1


def test_what_goes_on_for_a_client_that_has_left_is_closed(lender: Lender) -> None:
    is_closed = threading.Event()
    answer = Answer(iter((b"one", b"two")))
    with lender.ask(get()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    lender.lent._channel.handle_close()  # as the loop does that sees the reset
    answer.close = is_closed.set  # type: ignore[method-assign]
    lender.lent.go_on(lambda: answer, b"")
    assert is_closed.wait(PATIENCE)


def test_a_client_that_vanishes_meanwhile_is_disconnected(
    lender: Lender, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lender.ask(get()), lender.lent.socket as sock:
        monkeypatch.setattr(keepalive, "has_vanished", lambda _connection: True)
        sock.settimeout(PATIENCE)
        assert sock.recv(1) == b""
        lender.lent.take_back(False, b"")


def test_a_connection_that_is_lent_counts_with_the_one_to_its_model(lender: Lender) -> None:
    listener = lender.server._listeners[0]
    with lender.ask(get()):
        listener.adj.connection_limit = len(listener._map) + 2
        with socket.create_connection(("127.0.0.1", lender.server.port), PATIENCE) as other:
            other.sendall(SECOND)
            other.settimeout(0.3)
            with pytest.raises(TimeoutError):
                other.recv(1)
            lender.lent.socket.close()
            lender.lent.take_back(False, b"")
            other.settimeout(PATIENCE)
            assert other.recv(8) == b"HTTP/1.1"


@pytest.mark.parametrize("at", [1, len(SECOND) // 2, len(SECOND)])
def test_what_the_other_has_read_of_the_next_request_is_its_beginning(
    lender: Lender, at: int
) -> None:
    with lender.ask(get()) as connection:
        write(lender.lent, head_of(lender.lent) + b"0\r\n\r\n")
        lender.lent.take_back(True, SECOND[:at])
        connection.sendall(SECOND[at:])
        got = read_until(connection, b"second")  # the first answer too, in one piece or in two
    assert re.findall(rb"^HTTP/1\.1 (\d+)", got, re.MULTILINE) == [b"200", b"200"]

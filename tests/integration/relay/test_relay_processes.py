"""Streams that a relay process carries: what its client, its server and its record see."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from manager.errors import CLIENT_CLOSED_REQUEST, ApiError
from manager.interfaces import ENDPOINTS, Chat, Endpoint, StreamProtocol
from manager.relay import relay_processes
from manager.relay.forward import Carriers
from manager.relay.relay_processes import RelayProcesses
from manager.relay.request import HandedOver, RelayResponse
from manager.streams import ClientHead
from manager.tokens import TokenUsage
from tests.support.relayed import (
    CHAT,
    DONE,
    EVENT_HEAD,
    FIRST,
    LARGE,
    SECOND,
    USAGE,
    Relay,
    Relayed,
    chat,
    chunk,
    lockstep,
    streamed,
)
from tests.support.servers import PATIENCE, Peer
from tests.support.upstreams import OK, SHORT, Eventually, Serve

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n"
    b"Connection-Is: ours\r\nTransfer-Encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"


def is_process(kind: str) -> bool:
    return kind == "process"


@pytest.fixture(params=["process", "thread"])
def relays(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One relay process, or the thread that stands in for it where there are none."""
    if not is_process(request.param):
        monkeypatch.setattr(relay_processes, "_Process", lambda: relay_processes._Thread("relay-0"))
    relays = RelayProcesses(1)
    relays.start()
    yield relays
    relays.stop(0.0)


class Client:
    """A client's connection that is lent, and the client at its other end."""

    head = ClientHead(1, True, [("Connection-Is", "ours")])

    def __init__(self) -> None:
        self.end, self._ours = socket.socketpair()
        self.end.settimeout(PATIENCE)
        self.taken_back: list[bool] = []
        self.is_kept = False
        self.back = threading.Event()
        self.may_go_on = threading.Event()

    def speak_tcp(self) -> None:
        self.close()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.end = socket.create_connection(listener.getsockname(), PATIENCE)
            self._ours, _ = listener.accept()

    @property
    def socket(self) -> socket.socket:
        return self._ours.dup()

    def take_back(self, goes_on: bool, data: bytes) -> None:
        self.taken_back.append(goes_on)
        self.next = data
        if not goes_on:
            self._ours.close()
        self.back.set()

    def keep(self) -> None:
        self.is_kept = True

    def set_head(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.status, self.headers = status, headers

    def go_on(self, make: Callable[[], RelayResponse], data: bytes) -> None:
        self.resumed, self.next = make, data
        self.may_go_on.set()

    def answered(self) -> bytes:
        """What a thread of the server sends when it goes on."""
        assert self.may_go_on.wait(PATIENCE)
        answer = self.resumed()
        try:
            return b"".join(answer)
        finally:
            answer.close()

    def reads(self, expected: bytes) -> None:
        got = b""
        while len(got) < len(expected):
            piece = self.end.recv(1 << 16)
            assert piece, f"closed after {got!r}"
            got += piece
        assert got == expected

    def has_its_answer(self) -> None:
        assert self.back.wait(PATIENCE)
        assert self.taken_back == [True]

    def close(self) -> None:
        self.end.close()
        self._ours.close()


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


def carriers(
    relays: RelayProcesses, client: Client, hold: Callable[[], Callable[[], None]] | None = None
) -> Carriers:
    return Carriers(relays, lambda: client, lambda: False, hold or (lambda: lambda: None))


def hand_over(
    one: Relayed,
    relays: RelayProcesses,
    client: Client,
    body: dict[str, Any] | None = None,
    hold: Callable[[], Callable[[], None]] | None = None,
    target: str = CHAT,
) -> None:
    lent = carriers(relays, client, hold)
    answer = one.send(body or streamed(), target=target, carriers=lent)
    with pytest.raises(HandedOver):
        next(answer)
    answer.close()  # as the server does, whatever was raised


def framed(*pieces: bytes) -> bytes:
    return b"".join(b"%X\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def whole(peer: Peer) -> None:
    while peer.request():
        peer.send(EVENT_HEAD + chunk(FIRST) + chunk(SECOND) + chunk(USAGE + DONE) + END)


# --- how it ends --------------------------------------------------------------------------


def test_a_stream_comes_whole_and_its_connections_go_on(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client, eventually: Eventually
) -> None:
    one = relay(serve(whole))
    for _ in range(3):
        hand_over(one, relays, client)
        client.reads(HEAD + framed(FIRST + SECOND + DONE) + END)
        client.has_its_answer()
        eventually(lambda: one.lease.releases == 1)
        assert one.outcome.usage == TokenUsage(5, 0, 2)
        assert (one.outcome.status, one.outcome.streamed, one.outcome.error) == (200, True, None)
        one.outcomes.clear()
        client.taken_back.clear()
        client.back.clear()
        one.lease.releases = 0


def test_each_piece_is_sent_on_at_once_and_the_last_only_when_the_row_is_on_the_disk(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    script, go_on = lockstep(FIRST, SECOND, USAGE + DONE)
    one = relay(serve(script))
    may_end, is_asked = threading.Event(), threading.Event()

    def record(_outcome: object) -> None:
        is_asked.set()
        assert may_end.wait(PATIENCE)

    one.on_end = record
    hand_over(one, relays, client)
    go_on()
    client.reads(HEAD + framed(FIRST))
    go_on()
    client.reads(framed(SECOND))
    go_on()
    assert is_asked.wait(PATIENCE)
    client.end.setblocking(False)
    with pytest.raises(BlockingIOError):
        client.end.recv(1)
    client.end.settimeout(PATIENCE)
    may_end.set()
    client.reads(framed(DONE) + END)
    client.has_its_answer()


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_a_stream_of_another_api_is_carried_and_ends_in_an_error_of_that(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client, path: str
) -> None:
    begun = b'event: begun\ndata: {"type": "begun"}\n\n'
    script, may_answer = patient(EVENT_HEAD + chunk(begun) + END)
    one = relay(serve(script))
    hand_over(one, relays, client, target=path)
    may_answer.set()
    fault = one.lease.interface.endpoint(path).stream.truncated
    assert fault is not None
    error = ENDPOINTS[path].stream.error_event(ApiError(502, "upstream_error", fault))
    client.reads(HEAD + framed(begun) + framed(error) + END)
    client.has_its_answer()
    assert one.outcome.status == 502
    assert one.is_over()


def test_an_answer_whose_record_no_disk_takes_does_not_get_its_end(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client, eventually: Eventually
) -> None:
    one = relay(serve(whole))

    def full(_outcome: object) -> None:
        raise OSError("no space left")

    one.on_end = full
    hand_over(one, relays, client)
    assert client.back.wait(PATIENCE)
    assert client.taken_back == [False]
    got = b""
    while piece := client.end.recv(1 << 16):
        got += piece
    assert DONE not in got
    eventually(lambda: one.lease.releases == 1)


@pytest.mark.parametrize("end", ["close", "reset", "nonsense"])
def test_a_server_that_dies_in_the_middle_ends_the_stream_with_an_error(
    serve: Serve,
    relay: Relay,
    relays: RelayProcesses,
    client: Client,
    end: str,
    eventually: Eventually,
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST) + (b"no size\r\n" if end == "nonsense" else b""))
        if end == "reset":
            peer.reset()

    one = relay(serve(script))
    hand_over(one, relays, client)
    got = b""
    while not got.endswith(END):
        got += client.end.recv(1 << 16)
    assert b'"code": "upstream_error"' in got
    client.has_its_answer()
    eventually(lambda: one.lease.releases == 1)
    assert one.outcome.status == 502
    assert one.outcome.error is not None


def test_a_server_that_falls_silent_ends_the_stream_with_a_time_out(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    script, go_on = lockstep(FIRST)
    one = relay(serve(script), upstream_timeout=0.1)
    hand_over(one, relays, client)
    go_on()
    got = b""
    while not got.endswith(END):
        got += client.end.recv(1 << 16)
    assert b'"code": "upstream_timeout"' in got
    client.has_its_answer()
    assert one.outcome.status == 504


def test_a_client_that_disconnects_ends_the_servers_work(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client, eventually: Eventually
) -> None:
    is_aborted = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST))
        assert peer.sees_close()
        is_aborted.set()

    one = relay(serve(script))
    hand_over(one, relays, client)
    client.reads(HEAD + framed(FIRST))
    client.end.close()
    assert is_aborted.wait(PATIENCE)
    eventually(lambda: one.lease.releases == 1)
    assert client.back.wait(PATIENCE)
    assert client.taken_back == [False]
    assert one.outcome.status == CLIENT_CLOSED_REQUEST
    assert one.outcome.usage == TokenUsage(completion_tokens=1, estimated=True)


def test_a_client_that_reads_slowly_holds_back_its_own_server_and_nobody_else(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    event = b"data: " + b"x" * 60_000 + b"\n\n"
    sent = 0

    def endless(peer: Peer) -> None:
        nonlocal sent
        peer.request()
        peer.send(EVENT_HEAD)
        for _ in range(300):
            peer.send(chunk(event))
            sent += 1
        peer.send(chunk(DONE) + END)

    slow = relay(serve(endless))
    hand_over(slow, relays, client)
    quick, other = relay(serve(whole)), Client()
    hand_over(quick, relays, other)
    other.reads(HEAD + framed(FIRST + SECOND + DONE) + END)
    other.has_its_answer()
    other.close()
    assert sent < 300
    got = b""
    while not got.endswith(END):
        got += client.end.recv(1 << 20)
    assert got.count(b"data: ") == 301
    client.has_its_answer()


# --- before anything is sent ------------------------------------------------------------


Script = Callable[[Peer], None]


def silent() -> tuple[Script, threading.Event]:
    """A server that never answers, and what says that its connection was closed."""
    is_aborted = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        assert peer.sees_close()
        is_aborted.set()

    return script, is_aborted


def patient(*answers: bytes) -> tuple[Script, threading.Event]:
    """A server that sends these answers when it may, one a request, and closes at their end."""
    may_answer = threading.Event()

    def script(peer: Peer) -> None:
        for answer in answers:
            if not peer.request():
                return
            assert may_answer.wait(PATIENCE)
            peer.send(answer)

    return script, may_answer


def answer(body: bytes, status: bytes = b"200 OK", head: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status, len(body), head, body)


def test_a_stream_that_is_long_in_coming_holds_no_thread(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    script, may_answer = patient(EVENT_HEAD + chunk(FIRST + DONE) + END)
    one = relay(serve(script))
    hand_over(one, relays, client)  # returns while the server is silent
    assert one.outcomes == []
    may_answer.set()
    client.reads(HEAD + framed(FIRST + DONE) + END)
    client.has_its_answer()
    assert one.outcome.status == 200


WHOLE = b'{"usage": {"prompt_tokens": 3, "completion_tokens": 4}}'


def test_an_answer_that_comes_whole_is_carried_too_and_metered(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client, eventually: Eventually
) -> None:
    script, may_answer = patient(answer(WHOLE, head=b"Set-Cookie: no\r\nX-Its: own\r\n"))
    one = relay(serve(script))
    hand_over(one, relays, client, chat())
    may_answer.set()
    client.reads(
        b"HTTP/1.1 200 OK\r\nX-Its: own\r\nContent-Length: 55\r\nConnection-Is: ours\r\n\r\n"
        + WHOLE
    )
    client.has_its_answer()
    assert one.outcome.usage == TokenUsage(3, 0, 4)
    assert (one.outcome.status, one.outcome.streamed) == (200, False)
    assert one.lease.produced
    eventually(one.is_over)


def test_an_error_in_a_whole_answer_is_a_failed_request(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    script, may_answer = patient(answer(b'{"error": {"code": 507, "message": "out of memory"}}'))
    one = relay(serve(script))
    hand_over(one, relays, client, chat())
    may_answer.set()
    client.has_its_answer()
    assert (one.outcome.status, one.outcome.error) == (507, "out of memory")


def test_an_interim_answer_is_not_the_answer(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    script, may_answer = patient(b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"no", b"429 Later"))
    one = relay(serve(script))
    hand_over(one, relays, client, chat())
    may_answer.set()
    client.has_its_answer()
    assert client.end.recv(1 << 16).startswith(b"HTTP/1.1 429 Later\r\n")
    assert one.outcome.status == 429
    assert not one.lease.produced


@pytest.mark.parametrize("is_large", [True, False], ids=["large", "of unknown length"])
def test_an_answer_that_no_process_carries_is_sent_by_a_thread(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client, is_large: bool
) -> None:
    body = b"x" * LARGE
    script, may_answer = patient(answer(body) if is_large else OK + b"\r\n" + body)
    one = relay(serve(script))
    held = []

    def hold() -> Callable[[], None]:
        held.append("held")
        return lambda: held.append("released")

    hand_over(one, relays, client, chat(), hold)
    may_answer.set()
    assert client.answered() == body
    assert client.status == "200 OK"
    assert (("Content-Length", str(LARGE)) in client.headers) == is_large
    assert held == ["held", "released"]
    assert one.is_over()


def test_a_plugins_own_stream_is_sent_by_a_thread(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    endpoint = replace(ENDPOINTS[CHAT], stream=StreamProtocol(ends=(b"THE END",)))

    class Plugin(Chat):
        def endpoint(self, _path: str) -> Endpoint:
            return endpoint

    last = b"data: THE END\n\n"
    script, may_answer = patient(EVENT_HEAD + chunk(FIRST + last) + END)
    one = relay(serve(script), interface=Plugin())
    hand_over(one, relays, client)
    may_answer.set()
    assert client.answered() == FIRST + last
    assert (one.outcome.status, one.outcome.streamed) == (200, True)
    assert one.is_over()


def test_a_plugin_that_reads_usage_itself_sees_the_answer(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    class Plugin(Chat):
        def usage(self, body: bytes) -> TokenUsage | None:
            return TokenUsage(completion_tokens=len(body))

    script, may_answer = patient(answer(b"four"))
    one = relay(serve(script), interface=Plugin())
    hand_over(one, relays, client, chat())
    may_answer.set()
    assert client.answered() == b"four"
    assert one.outcome.usage == TokenUsage(completion_tokens=4)


def test_a_server_that_stays_silent_is_a_time_out(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    script, may_answer = patient(SHORT)
    one = relay(serve(script), upstream_timeout=0.1)
    hand_over(one, relays, client)
    body = client.answered()
    assert client.status == "504 Gateway Timeout"
    assert b'"code": "upstream_timeout"' in body
    assert one.outcome.status == 504
    assert one.is_over()
    may_answer.set()


@pytest.mark.parametrize(
    "last", [b"", b"HTTP/1.1 200 O", b"SSH-2.0\r\n\r\n", answer(b"whole")[:-1]],
    ids=["nothing", "half a head", "not HTTP", "half a body"],
)  # fmt: skip
def test_a_server_that_closes_instead_of_answering_is_an_error(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client, last: bytes
) -> None:
    script, may_answer = patient(last)
    one = relay(serve(script))
    hand_over(one, relays, client, chat())
    may_answer.set()
    assert b'"code": "upstream_error"' in client.answered()
    assert (client.status, one.outcome.status) == ("502 Bad Gateway", 502)
    assert one.is_over()


def test_a_kept_connection_that_the_server_closes_as_it_is_used_is_replaced(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    peers = []

    def closes_second(peer: Peer) -> None:
        peers.append(peer)
        peer.request()
        peer.send(answer(b"{}"))
        peer.request()  # and closes

    one = relay(serve(closes_second))
    hand_over(one, relays, client)
    client.has_its_answer()
    one.outcomes.clear()
    hand_over(one, relays, client)
    assert client.answered() == b"{}"
    assert one.outcome.status == 200
    assert len(peers) == 2


def test_a_large_request_is_sent_whole(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    def length(peer: Peer) -> None:
        peer.send(answer(b"%d" % len(peer.request() or b"")))

    one = relay(serve(length))
    hand_over(one, relays, client, streamed(messages="x" * LARGE))
    client.has_its_answer()
    got = client.end.recv(1 << 16)
    assert int(got.rpartition(b"\n")[2]) > LARGE


@pytest.mark.parametrize(
    ("events", "status", "error"),
    [
        (FIRST + USAGE + DONE, 200, None),
        (FIRST, 502, "the answer is not well formed: a chunk's size is not a number: b'ZZ\\r\\n'"),
    ],
    ids=["ended", "cut"],
)
def test_events_that_came_whole_with_a_malformed_chunk_are_sent_and_counted(
    serve: Serve,
    relay: Relay,
    relays: RelayProcesses,
    client: Client,
    events: bytes,
    status: int,
    error: str | None,
) -> None:
    script, may_answer = patient(EVENT_HEAD + chunk(events) + b"ZZ\r\n")
    one = relay(serve(script))
    hand_over(one, relays, client)
    may_answer.set()
    client.has_its_answer()
    assert FIRST in client.end.recv(1 << 16)
    assert one.outcome.usage is not None
    assert one.outcome.usage.completion_tokens > 0
    assert (one.outcome.status, one.outcome.error) == (status, error)


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells")
def test_who_leaves_behind_more_than_is_kept_is_noticed(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client, eventually: Eventually
) -> None:
    script, is_aborted = silent()
    client.speak_tcp()
    one = relay(serve(script))
    hand_over(one, relays, client)
    client.end.sendall(bytes(100_000))
    client.end.close()
    assert is_aborted.wait(PATIENCE)
    eventually(one.is_over)
    assert one.outcome.status == CLIENT_CLOSED_REQUEST


def test_a_client_that_disconnects_before_the_answer_ends_the_servers_work(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client, eventually: Eventually
) -> None:
    script, is_aborted = silent()
    one = relay(serve(script))
    hand_over(one, relays, client)
    client.end.close()
    assert is_aborted.wait(PATIENCE)
    assert client.back.wait(PATIENCE)
    assert client.taken_back == [False]
    eventually(one.is_over)
    assert one.outcome.status == CLIENT_CLOSED_REQUEST


def test_the_next_request_is_kept_and_who_leaves_behind_it_is_noticed(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client, eventually: Eventually
) -> None:
    script, is_aborted = silent()
    one = relay(serve(script))
    hand_over(one, relays, client)
    client.end.sendall(b"GET /next")
    client.end.close()
    assert is_aborted.wait(PATIENCE)
    eventually(one.is_over)
    assert client.next == b"GET /next"
    assert one.outcome.status == CLIENT_CLOSED_REQUEST


def test_the_next_request_is_the_programs_when_the_answer_was_sent(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    script, may_answer = patient(EVENT_HEAD + chunk(FIRST + DONE) + END)
    one = relay(serve(script))
    client.end.sendall(b"GET /next")
    hand_over(one, relays, client)
    may_answer.set()
    client.reads(HEAD + framed(FIRST + DONE) + END)
    client.has_its_answer()
    assert client.next == b"GET /next"


def test_a_server_that_goes_on_behind_the_end_does_not_hold_its_lease(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client, eventually: Eventually
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST + DONE))
        with contextlib.suppress(OSError):
            while not has_ended.wait(0.05):
                peer.send(chunk(b": still here\n\n"))

    has_ended = threading.Event()
    one = relay(serve(script))
    hand_over(one, relays, client)
    client.has_its_answer()
    try:
        eventually(lambda: one.lease.releases == 1)
    finally:
        has_ended.set()


def test_without_a_thread_left_an_answer_that_needs_one_is_rejected(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    def none_left() -> Callable[[], None]:
        raise ApiError(503, "busy", "All slots are taken", retry_after=1)

    script, may_answer = patient(OK + b"\r\n" + b"of unknown length")
    one = relay(serve(script))
    hand_over(one, relays, client, chat(), none_left)
    may_answer.set()
    assert b'"code": "busy"' in client.answered()
    assert client.status == "503 Service Unavailable"
    assert ("Retry-After", "1") in client.headers
    assert one.outcome.status == 503
    assert one.is_over()


def test_an_answer_without_a_body_says_no_length(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    script, may_answer = patient(b"HTTP/1.1 204 No Content\r\n\r\n")
    one = relay(serve(script))
    hand_over(one, relays, client, chat())
    may_answer.set()
    client.reads(b"HTTP/1.1 204 No Content\r\nConnection-Is: ours\r\n\r\n")
    client.has_its_answer()
    assert one.outcome.status == 204


# --- the process itself -----------------------------------------------------------------


def test_streams_of_a_process_that_is_killed_are_recorded_and_another_process_starts(
    serve: Serve, relay: Relay, client: Client, eventually: Eventually
) -> None:
    relays = RelayProcesses(1)
    relays.start()
    try:
        script, go_on = lockstep(FIRST, SECOND)
        one = relay(serve(script))
        hand_over(one, relays, client)
        go_on()
        client.reads(HEAD + framed(FIRST))
        eventually(lambda: one.counted() == 1)  # reported twice a second
        (pid,) = relays.pids()
        os.kill(pid, signal.SIGKILL)
        assert client.back.wait(PATIENCE)
        assert client.taken_back == [False]
        assert client.end.recv(1) == b""  # and no end that would look like one
        eventually(lambda: one.lease.releases == 1)
        assert one.outcome.status == 502
        assert one.outcome.usage == TokenUsage(completion_tokens=1, estimated=True)
        eventually(lambda: [new for new in relays.pids() if new != pid])
        next_client = Client()
        second = relay(serve(whole))
        hand_over(second, relays, next_client)
        next_client.has_its_answer()
        next_client.close()
    finally:
        relays.stop(0.0)


def test_while_one_process_is_replaced_the_others_take_the_requests(
    serve: Serve,
    relay: Relay,
    client: Client,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_processes, "_FIRST_PAUSE_SECONDS", PATIENCE)
    relays = RelayProcesses(2)
    relays.start()
    try:
        script, go_on = lockstep(FIRST, DONE)
        one = relay(serve(script))
        hand_over(one, relays, client)
        go_on()
        client.reads(HEAD + framed(FIRST))
        idle = relays.pids()[1]
        os.kill(idle, signal.SIGKILL)
        eventually(lambda: len(relays.pids()) == 1)
        next_client = Client()
        hand_over(relay(serve(whole)), relays, next_client)
        next_client.has_its_answer()
        next_client.close()
        go_on()
        client.has_its_answer()
    finally:
        relays.stop(0.0)


def test_a_connection_that_was_given_back_is_not_closed_with_the_process(
    serve: Serve, relay: Relay, client: Client, eventually: Eventually
) -> None:
    relays = RelayProcesses(1)
    relays.start()
    try:
        script, go_on = lockstep(FIRST + DONE)  # and it keeps its connection open
        one = relay(serve(script))
        hand_over(one, relays, client)
        go_on()
        client.has_its_answer()
        (pid,) = relays.pids()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: one.lease.releases == 1)
        eventually(lambda: [new for new in relays.pids() if new != pid])
        assert client.taken_back == [True]
    finally:
        relays.stop(0.0)


def test_without_a_process_the_answer_goes_on_in_its_own_thread(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    relays.stop(0.0)
    one = relay(serve(whole))
    answer = one.send(streamed(), carriers=carriers(relays, client))
    assert b"".join(answer) == FIRST + SECOND + DONE
    answer.close()
    assert client.is_kept
    assert one.is_over()


def test_a_stop_waits_for_streams_that_still_come(
    serve: Serve, relay: Relay, relays: RelayProcesses, client: Client
) -> None:
    script, go_on = lockstep(FIRST, DONE)
    one = relay(serve(script))
    hand_over(one, relays, client)
    go_on()
    client.reads(HEAD + framed(FIRST))
    stopping = threading.Thread(target=relays.stop, args=(PATIENCE,))
    stopping.start()
    go_on()
    client.reads(framed(DONE) + END)
    stopping.join(PATIENCE)
    assert not stopping.is_alive()
    client.has_its_answer()
    assert one.outcome.status == 200

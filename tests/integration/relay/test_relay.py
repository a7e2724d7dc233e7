"""One request to one upstream and back: bytes as they are, and an honest end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from manager.errors import ApiError, ClientDisconnected
from manager.interfaces import Base, Chat, Embedding, Interface
from manager.relay.forward import (
    CLIENT_CLOSED_REQUEST,
    Outcome,
    RelayRequest,
    RelayResponse,
    TruncatedResponse,
    forward,
)
from manager.relay.payload import Payload
from manager.relay.upstream import Upstream
from manager.relay.watcher import Watcher
from manager.tokens import TokenUsage
from tests.support.servers import PATIENCE, FakeModel, Peer, RawServer

Serve = Callable[[Callable[[Peer], None]], RawServer]
Eventually = Callable[[Callable[[], Any]], Any]
CHAT = "/v1/chat/completions"
EVENT_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
LARGE = 5_000_000


@dataclass
class FakeLease:
    """The relay's whole view of the fleet."""

    upstream: Upstream
    interface: Interface = field(default_factory=Chat)
    served_model_name: str | None = None
    ask_usage: bool = True
    upstream_timeout: float = PATIENCE
    releases: int = 0

    def release(self) -> None:
        self.releases += 1


class Ride:
    """One request through the relay, and all that the relay does with it."""

    def __init__(self, port: int, **lease: Any) -> None:
        self.upstream = Upstream(port, 4)
        self.lease = FakeLease(self.upstream, **lease)
        self.watch = Watcher()
        self.outcomes: list[Outcome] = []
        self.asked_gone = 0
        self.is_gone = False
        self.on_end: Callable[[Outcome], None] = lambda _: None

    def send(
        self, body: dict[str, Any] | bytes, *headers: tuple[str, str], target: str = CHAT
    ) -> RelayResponse:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = RelayRequest(target, list(headers), Payload(raw))
        return forward(self.lease, request, watch=self.watch, gone=self._gone, on_end=self._on_end)

    def client_leaves(self) -> None:
        self.is_gone = True
        self.watch.poll()

    @property
    def outcome(self) -> Outcome:
        """The one outcome of it."""
        assert len(self.outcomes) == 1
        return self.outcomes[0]

    def is_over(self) -> bool:
        """Told once, given back once, and watched no longer."""
        before = self.asked_gone
        self.watch.poll()
        assert self.asked_gone == before
        return len(self.outcomes) == self.lease.releases == 1

    def _gone(self) -> bool:
        self.asked_gone += 1
        return self.is_gone

    def _on_end(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.on_end(outcome)


@pytest.fixture
def ride() -> Iterator[Callable[..., Ride]]:
    rides: list[Ride] = []

    def ride(server: FakeModel | RawServer, **lease: Any) -> Ride:
        rides.append(Ride(server.port, **lease))
        return rides[-1]

    yield ride
    for one in rides:
        one.upstream.close()


@pytest.fixture(scope="module")
def model(fake_model: Callable[..., FakeModel]) -> FakeModel:
    return fake_model()


@pytest.fixture
def to_model(ride: Callable[..., Ride], model: FakeModel, eventually: Eventually) -> Ride:
    """A ride to the fake upstream in its mode Chat, which has nothing else to do."""
    eventually(lambda: model.stats()["open"] == 0)
    return ride(model)


Take = Callable[..., Ride]


def chat(fake: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"model": "mine", "messages": [], "fake": fake or {}, **fields}


def streamed(fake: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return chat(fake, stream=True, **fields)


def read(answer: RelayResponse) -> bytes:
    """All of the answer, as the server takes it: piece by piece, and closed at the end."""
    try:
        return b"".join(answer)
    finally:
        answer.close()


def header(answer: RelayResponse, name: str) -> list[str]:
    return [value for key, value in answer.headers if key.lower() == name.lower()]


def events(body: bytes) -> list[Any]:
    """The data of each event; every one of them is whole."""
    assert body.endswith(b"\n\n")
    lines = [event.removeprefix(b"data: ") for event in body.split(b"\n\n")[:-1]]
    return ["[DONE]" if line == b"[DONE]" else json.loads(line) for line in lines]


def seen_by(model: FakeModel) -> dict[str, Any]:
    """The latest request that reached the fake upstream."""
    latest: dict[str, Any] = model.stats()["requests"][-1]
    return latest


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


# --- an answer of one piece -------------------------------------------------------------


def test_an_answer_comes_back_with_its_status_and_its_tokens(to_model: Ride) -> None:
    answer = to_model.send(chat())
    assert answer.status == "200 Fake"
    body = read(answer)
    assert json.loads(body)["choices"][0]["message"]["content"] == " token0 token1 token2"
    assert header(answer, "Content-Length") == [str(len(body))]
    outcome = to_model.outcome
    assert (outcome.status, outcome.usage) == (200, TokenUsage(17, 0, 3))
    assert (outcome.streamed, outcome.error) == (False, None)
    assert outcome.first_byte_at is not None
    assert to_model.is_over()


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
@pytest.mark.parametrize("size", [0, LARGE])
def test_an_answer_of_any_size_and_framing_comes_whole_with_its_tokens(
    to_model: Ride, framing: str, size: int
) -> None:
    fake = {"framing": framing, "size": size} if size else {"framing": framing}
    body = json.loads(read(to_model.send(chat(fake))))
    if size:
        assert len(body["padding"]) == size
    else:
        assert to_model.outcome.usage == TokenUsage(17, 0, 3)
    assert to_model.outcome.status == 200
    assert to_model.is_over()


def test_the_tokens_at_the_end_of_a_very_large_answer_are_found(serve: Serve, ride: Take) -> None:
    usage = {"prompt_tokens": 9000, "total_tokens": 9000}
    body = json.dumps({"data": [0.123456] * 400_000, "usage": usage}).encode()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    one = ride(serve(script), interface=Embedding())
    assert read(one.send(chat())) == body
    assert one.outcome.usage == TokenUsage(9000, 0, 0)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_an_error_of_the_upstream_is_the_clients_as_it_is(to_model: Ride, status: int) -> None:
    answer = to_model.send(chat({"status": status, "headers": {"Retry-After": "7"}}))
    assert answer.status == f"{status} Fake"
    assert header(answer, "Retry-After") == ["7"]
    assert json.loads(read(answer))["error"]["type"] == "fake_error"
    assert (to_model.outcome.status, to_model.outcome.usage) == (status, None)
    assert to_model.is_over()


def test_the_lease_is_given_back_before_the_client_has_read_the_answer(to_model: Ride) -> None:
    answer = to_model.send(chat())
    next(answer)
    assert to_model.is_over()
    answer.close()
    assert to_model.is_over()


# --- what goes to the upstream ----------------------------------------------------------

ODD = b'{ "model":"mine",\n\t"temperature":1e-1, "seed" : 0.10, "n":1, "x":"\\u00e9\xc3\xa9",'
ODD += b'"messages":[], "unknown": {"a":[1,2 ,3]}, "fake":{"echo":true}, "n":2 }'


def test_a_body_goes_on_byte_for_byte(to_model: Ride) -> None:
    echoed = json.loads(read(to_model.send(ODD)))
    assert echoed["body"].encode("utf-8", "surrogateescape") == ODD


def test_the_path_goes_on_with_its_query(to_model: Ride, model: FakeModel) -> None:
    read(to_model.send(chat(), target=f"{CHAT}?a=1&b=%20"))
    assert seen_by(model)["path"] == f"{CHAT}?a=1&b=%20"


def test_the_name_that_the_upstream_goes_by_replaces_the_clients(
    ride: Take, model: FakeModel
) -> None:
    one = ride(model, served_model_name='the "real" one')
    echoed = json.loads(read(one.send(ODD)))
    expected = ODD.replace(b'"mine"', b'"the \\"real\\" one"')
    assert echoed["body"].encode("utf-8", "surrogateescape") == expected


def sent_headers(one: Ride, *headers: tuple[str, str]) -> dict[str, list[str]]:
    """The headers that reach the upstream, by their names in lower case."""
    found: dict[str, list[str]] = {}
    for name, value in json.loads(read(one.send(chat({"echo": True}), *headers)))["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def test_end_to_end_headers_go_on(to_model: Ride) -> None:
    headers = sent_headers(
        to_model,
        ("Content-Type", "application/json; charset=utf-8"),
        ("X-Request-Id", "7"),
        ("OpenAI-Organization", "org"),
        ("User-Agent", "sdk/1"),
    )
    assert headers["content-type"] == ["application/json; charset=utf-8"]
    assert headers["x-request-id"] == ["7"]
    assert headers["openai-organization"] == ["org"]
    assert headers["user-agent"] == ["sdk/1"]


def test_the_clients_credentials_stay_here(to_model: Ride) -> None:
    headers = sent_headers(
        to_model,
        ("Authorization", "Bearer s3cr3t"),
        ("X-Api-Key", "s3cr3t"),
        ("COOKIE", "session=s3cr3t"),
        ("Proxy-Authorization", "Basic s3cr3t"),
    )
    assert "s3cr3t" not in str(headers)


def test_headers_of_the_clients_own_connection_stay_here(to_model: Ride) -> None:
    headers = sent_headers(
        to_model,
        ("Host", "manager.example"),
        ("Connection", "keep-alive, X-Hop"),
        ("Keep-Alive", "timeout=5"),
        ("X-Hop", "1"),
        ("TE", "trailers"),
        ("Trailer", "X-Sum"),
        ("Transfer-Encoding", "chunked"),
        ("Upgrade", "h2c"),
        ("Proxy-Connection", "keep-alive"),
        ("Expect", "100-continue"),
        ("Content-Length", "999"),
    )
    gone = {"keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection"}
    assert not (gone | {"expect", "x-hop"}) & set(headers)
    assert headers["host"] == [f"127.0.0.1:{to_model.upstream.port}"]
    assert len(headers["content-length"]) == 1
    assert headers["content-length"] != ["999"]


def test_a_compressed_answer_is_not_asked_for_as_it_could_not_be_metered(to_model: Ride) -> None:
    headers = sent_headers(to_model, ("Accept-Encoding", "gzip, br"))
    assert headers["accept-encoding"] == ["identity"]


# --- what comes back to the client ------------------------------------------------------


def test_headers_of_the_upstreams_own_connection_stay_there(serve: Serve, ride: Take) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(
            b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n"
            b"Proxy-Authenticate: Basic\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\nX-Own: a\r\n"
            b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2\r\n\r\n{}"
        )

    answer = ride(serve(script)).send(chat())
    assert answer.headers == [
        ("X-Own", "a"),  # and no cookie: in a browser it would be one of our pages'
        ("Content-Type", "application/json"),
        ("Content-Length", "2"),
    ]
    assert read(answer) == b"{}"


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_streams_length_and_framing_are_our_own(to_model: Ride, framing: str) -> None:
    answer = to_model.send(streamed({"framing": framing}))
    assert header(answer, "Content-Type") == ["text/event-stream"]
    assert header(answer, "Content-Length") == header(answer, "Transfer-Encoding") == []
    assert events(read(answer))[-1] == "[DONE]"
    assert to_model.outcome.error is None


# --- streams ----------------------------------------------------------------------------


@pytest.mark.parametrize("crlf", [False, True])
def test_a_stream_comes_whole_without_the_usage_that_only_we_asked_for(
    to_model: Ride, model: FakeModel, crlf: bool
) -> None:
    body = read(to_model.send(streamed({"crlf": crlf}))).replace(b"\r\n", b"\n")
    *chunks, done = events(body)
    assert done == "[DONE]"
    said = [one["choices"][0]["delta"].get("content", "") for one in chunks]
    assert "".join(said) == " token0 token1 token2"
    assert b"usage" not in body
    asked = json.loads(seen_by(model)["body"])
    assert asked["stream_options"] == {"include_usage": True}
    outcome = to_model.outcome
    assert (outcome.status, outcome.usage) == (200, TokenUsage(17, 0, 3))
    assert (outcome.streamed, outcome.error) == (True, None)
    assert to_model.is_over()


def test_the_usage_that_the_client_asked_for_stays(to_model: Ride, model: FakeModel) -> None:
    body = streamed(stream_options={"include_usage": True})
    *_, last, done = events(read(to_model.send(body)))
    assert (last["choices"], last["usage"]["prompt_tokens"], done) == ([], 17, "[DONE]")
    assert json.loads(seen_by(model)["body"]) == body
    assert to_model.outcome.usage == TokenUsage(17, 0, 3)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (None, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ({"include_usage": False}, {"include_usage": True}),
        ({"include_usage": None, "other": 1}, {"include_usage": True, "other": 1}),
        ({"other": [1]}, {"include_usage": True, "other": [1]}),
    ],
)
def test_a_clients_other_wishes_for_its_stream_are_kept(
    to_model: Ride, model: FakeModel, given: Any, sent: Any
) -> None:
    answer = read(to_model.send(streamed(stream_options=given)))
    assert json.loads(seen_by(model)["body"])["stream_options"] == sent
    assert b"usage" not in answer
    assert to_model.outcome.usage == TokenUsage(17, 0, 3)


@pytest.mark.parametrize(
    ("fields", "lease"),
    [
        ({"stream": True}, {"ask_usage": False}),
        ({"stream": True}, {"interface": Embedding()}),
        ({"stream": False}, {}),
        ({"stream": "yes"}, {}),
        ({"stream": None}, {}),
        ({}, {}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {}),
        ({"stream": False, "stream_options": {"include_usage": False}}, {}),
    ],
)
def test_usage_is_not_asked_for_where_it_would_be_refused_or_makes_no_sense(
    ride: Take, model: FakeModel, fields: dict[str, Any], lease: dict[str, Any]
) -> None:
    body = json.dumps(chat(**fields)).encode()
    read(ride(model, **lease).send(body))
    assert seen_by(model)["body"].encode() == body


@pytest.mark.parametrize("options", [[], "usage", 3])
def test_options_that_are_none_are_the_upstreams_to_refuse(
    ride: Take, fake_model: Callable[..., FakeModel], options: Any
) -> None:
    strict = fake_model(no_ask_usage=True)
    body = json.dumps(streamed(stream_options=options)).encode()
    answer = ride(strict).send(body)
    read(answer)
    assert answer.status == "400 Fake"
    assert seen_by(strict)["body"].encode() == body


def test_base_models_streams_are_asked_for_usage_too(
    ride: Take, fake_model: Callable[..., FakeModel]
) -> None:
    one = ride(fake_model(mode="Base"), interface=Base())
    body = {"model": "mine", "prompt": "Hi", "stream": True}
    assert b"usage" not in read(one.send(body, target="/v1/completions"))
    assert one.outcome.usage == TokenUsage(17, 0, 3)


def test_without_any_usage_the_chunks_are_counted_and_that_is_said(to_model: Ride) -> None:
    read(to_model.send(streamed({"usage": "never", "chunks": 9})))
    assert to_model.outcome.usage == TokenUsage(
        0, 0, 10, estimated=True
    )  # the last only says "stop"


def lockstep(*pieces: bytes) -> tuple[Callable[[Peer], None], Callable[[], None]]:
    """A script that sends each piece as a chunk of a stream when it is told to."""
    may_send = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD)
        for piece in pieces:
            assert may_send.acquire(timeout=PATIENCE)
            peer.send(chunk(piece))
        peer.sees_close()

    return script, may_send.release


FIRST = b'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n'
SECOND = b'data: {"choices": [{"delta": {"content": "lo"}}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n'
DONE = b"data: [DONE]\n\n"


def test_each_event_is_handed_on_at_once_and_all_is_told_before_the_last(
    serve: Serve, ride: Take
) -> None:
    """To most clients [DONE] is the last byte: what they have had must be on record by then,
    also where the server then keeps its connection open."""
    script, go_on = lockstep(FIRST, SECOND, USAGE + DONE)
    one = ride(serve(script))
    answer = one.send(streamed())
    for expected in (FIRST, SECOND):
        go_on()
        assert next(answer) == expected
        assert one.outcomes == []
        assert one.lease.releases == 0
    go_on()
    assert next(answer) == DONE
    assert one.outcome.usage == TokenUsage(5, 0, 2)
    assert one.outcome.error is None
    answer.close()
    assert one.is_over()


def test_half_an_event_waits_for_its_other_half(serve: Serve, ride: Take) -> None:
    script, go_on = lockstep(FIRST + SECOND[:10], SECOND[10:])
    answer = ride(serve(script)).send(streamed())
    go_on()
    assert next(answer) == FIRST
    go_on()
    assert next(answer) == SECOND
    answer.close()


def test_a_last_event_without_its_blank_line_is_a_whole_end(serve: Serve, ride: Take) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST + DONE[:-1]) + b"0\r\n\r\n")

    one = ride(serve(script))
    answer = one.send(streamed())
    pieces = []
    for piece in answer:
        if b"[DONE]" in piece:
            assert one.outcome.error is None
        pieces.append(piece)
    answer.close()
    assert b"".join(pieces) == FIRST + DONE[:-1]
    assert one.is_over()


def test_a_mode_whose_streams_do_not_end_with_done_ends_well_without(
    serve: Serve, ride: Take
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST) + b"0\r\n\r\n")

    one = ride(serve(script), interface=Embedding())
    assert read(one.send(streamed())) == FIRST
    assert one.outcome.error is None
    assert one.is_over()


# --- the upstream fails before its answer -----------------------------------------------


def fails(one: Ride, body: dict[str, Any], status: int = 502, code: str = "upstream_error") -> None:
    """The request is refused with this, told so once, and frees all."""
    with pytest.raises(ApiError) as caught:
        one.send(body)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert (one.outcome.status, one.outcome.usage) == (status, None)
    assert one.outcome.error == caught.value.message
    assert one.is_over()


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    "fake", [{"fail": "close"}, {"fail": "reset"}, {"garbage": True}, {"html": True}]
)
def test_an_upstream_that_gives_no_answer_is_a_plain_error(
    to_model: Ride, fake: dict[str, Any], is_stream: bool
) -> None:
    fails(to_model, chat(fake, stream=is_stream))


@pytest.mark.parametrize(
    "fake",
    [
        {"length": 5, "close": "unsaid"},
        {"fail": "close", "fail_at": "inside"},
        {"fail": "reset", "fail_at": "inside"},
        {"fail": "close", "fail_at": "between"},
    ],
)
def test_a_short_answer_that_breaks_off_is_a_plain_error_too(
    to_model: Ride, fake: dict[str, Any]
) -> None:
    """None of it has gone to the client yet."""
    fails(to_model, chat(fake))


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_silent_upstream_is_a_plain_time_out(
    ride: Take, model: FakeModel, is_stream: bool
) -> None:
    one = ride(model, upstream_timeout=0.2)
    fails(one, chat({"fail": "silent"}, stream=is_stream), 504, "upstream_timeout")


def test_a_short_answer_that_stops_in_its_middle_is_a_plain_time_out_too(
    ride: Take, model: FakeModel
) -> None:
    one = ride(model, upstream_timeout=0.2)
    fails(one, chat({"fail": "silent", "fail_at": "inside"}), 504, "upstream_timeout")


def test_nobody_at_the_port_is_a_plain_error(ride: Take) -> None:
    server = RawServer(lambda _: None)
    server.close()
    fails(ride(server), chat())


def test_a_page_that_says_it_is_an_error_is_passed_on(to_model: Ride) -> None:
    answer = to_model.send(chat({"html": True, "status": 404}))
    assert answer.status == "404 Fake"
    assert b"<h1>" in read(answer)
    assert to_model.is_over()


# --- the upstream fails in the middle ---------------------------------------------------


@pytest.mark.parametrize("fail", ["close", "reset"])
@pytest.mark.parametrize("fail_at", ["between", "inside"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_stream_whose_upstream_dies_ends_with_an_error_and_no_half_event(
    to_model: Ride, fail: str, fail_at: str, after: int
) -> None:
    fake = {"fail": fail, "fail_at": fail_at, "after": after, "chunks": 6, "interval": 0.01}
    *chunks, last = events(read(to_model.send(streamed(fake))))
    assert len(chunks) == after
    assert last["error"]["code"] == "upstream_error"
    assert "[DONE]" not in chunks
    outcome = to_model.outcome
    assert outcome.error == last["error"]["message"]
    assert outcome.usage == TokenUsage(0, 0, after, estimated=True)
    assert to_model.is_over()


def test_a_stream_that_falls_silent_ends_with_an_error(ride: Take, model: FakeModel) -> None:
    one = ride(model, upstream_timeout=0.2)
    fake = {"fail": "silent", "fail_at": "between", "after": 2}
    *chunks, last = events(read(one.send(streamed(fake))))
    assert len(chunks) == 2
    assert last["error"]["code"] == "upstream_timeout"
    assert one.is_over()


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_a_stream_without_its_done_is_not_taken_for_a_whole_one(
    to_model: Ride, framing: str
) -> None:
    *_, last = events(read(to_model.send(streamed({"done": False, "framing": framing}))))
    assert last["error"]["code"] == "upstream_error"
    assert "[DONE]" in last["error"]["message"]
    assert to_model.outcome.error
    assert to_model.outcome.usage == TokenUsage(17, 0, 3)
    assert to_model.is_over()


def test_a_death_behind_done_is_nobodys_business(serve: Serve, ride: Take) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST + DONE))

    one = ride(serve(script))
    assert read(one.send(streamed())) == FIRST + DONE
    assert one.outcome.error is None
    assert one.is_over()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_large_answer_that_breaks_off_breaks_the_clients_connection_off_too(
    to_model: Ride, framing: str
) -> None:
    fake = {"size": LARGE, "framing": framing, "fail": "close", "fail_at": "inside"}
    answer = to_model.send(chat(fake))
    with pytest.raises(TruncatedResponse):
        read(answer)
    assert issubclass(TruncatedResponse, OSError)
    assert to_model.outcome.error
    assert to_model.is_over()


# --- the client leaves ------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_leaves_a_silent_prompt_frees_the_upstream(
    to_model: Ride, model: FakeModel, eventually: Eventually, is_stream: bool
) -> None:
    aborted = model.stats()["aborted"]
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(to_model.send, chat({"fail": "silent"}, stream=is_stream))
        eventually(lambda: model.stats()["open"] == 1)
        to_model.client_leaves()
        assert isinstance(asked.exception(PATIENCE), ClientDisconnected)
    eventually(lambda: model.stats()["aborted"] == aborted + 1)
    assert to_model.outcome.status == CLIENT_CLOSED_REQUEST
    assert to_model.is_over()


def test_a_client_that_leaves_between_chunks_frees_the_upstream(
    to_model: Ride, model: FakeModel, eventually: Eventually
) -> None:
    aborted = model.stats()["aborted"]
    answer = to_model.send(streamed({"fail": "silent", "fail_at": "between", "after": 1}))
    assert b"token0" in next(answer)
    with ThreadPoolExecutor(1) as threads:
        rest = threads.submit(lambda: list(answer))
        to_model.client_leaves()
        assert rest.result(PATIENCE) == []
    answer.close()
    eventually(lambda: model.stats()["aborted"] == aborted + 1)
    assert to_model.outcome.status == CLIENT_CLOSED_REQUEST
    assert to_model.outcome.usage == TokenUsage(0, 0, 1, estimated=True)
    assert to_model.is_over()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_client_that_leaves_a_large_answer_is_the_one_who_ended_it(
    to_model: Ride, model: FakeModel, eventually: Eventually, framing: str
) -> None:
    aborted = model.stats()["aborted"]
    fake = {"size": LARGE, "framing": framing, "fail": "silent", "fail_at": "inside"}
    answer = to_model.send(chat(fake))
    assert next(answer)
    with ThreadPoolExecutor(1) as threads:
        rest = threads.submit(lambda: [len(piece) for piece in answer])
        to_model.client_leaves()
        rest.exception(PATIENCE)
    answer.close()
    eventually(lambda: model.stats()["aborted"] == aborted + 1)
    assert to_model.outcome.status == CLIENT_CLOSED_REQUEST
    assert to_model.is_over()


@pytest.mark.parametrize("pieces", [0, 1])
@pytest.mark.parametrize(
    "body",
    [
        streamed({"fail": "silent", "fail_at": "between", "after": 1}),
        chat({"size": LARGE, "fail": "silent", "fail_at": "inside"}),
    ],
)
def test_an_answer_that_is_closed_where_it_stands_frees_all(
    to_model: Ride,
    model: FakeModel,
    eventually: Eventually,
    body: dict[str, Any],
    pieces: int,
) -> None:
    """As when the server finds that it cannot write to the client."""
    aborted = model.stats()["aborted"]
    answer = to_model.send(body)
    for _ in range(pieces):
        next(answer)
    answer.close()
    answer.close()
    eventually(lambda: model.stats()["aborted"] == aborted + 1)
    assert to_model.outcome.status == CLIENT_CLOSED_REQUEST
    assert to_model.is_over()


def test_a_client_that_leaves_when_it_has_done_had_all(to_model: Ride) -> None:
    answer = to_model.send(streamed())
    for piece in answer:
        if b"[DONE]" in piece:
            break
    to_model.client_leaves()
    answer.close()
    assert to_model.outcome.status == 200
    assert to_model.outcome.error is None
    assert to_model.is_over()


# --- faults of ours ---------------------------------------------------------------------


def full_disk(_: Outcome) -> None:
    raise RuntimeError("the disk is full")


@pytest.mark.parametrize(
    "body",
    [
        chat(),
        chat({"size": LARGE}),
        streamed(),
        streamed({"fail": "close", "fail_at": "between"}),
        chat({"fail": "close"}),
    ],
)
def test_a_record_that_cannot_be_made_is_not_made_twice_and_keeps_no_place(
    to_model: Ride, body: dict[str, Any]
) -> None:
    to_model.on_end = full_disk
    with pytest.raises(RuntimeError, match="the disk is full"):
        read(to_model.send(body))
    assert to_model.is_over()


def test_a_record_that_cannot_be_made_of_a_client_that_left_keeps_no_place(
    to_model: Ride,
) -> None:
    to_model.on_end = full_disk
    answer = to_model.send(streamed())
    with pytest.raises(RuntimeError, match="the disk is full"):
        answer.close()
    answer.close()
    assert to_model.is_over()


def test_what_is_to_be_done_when_the_client_is_served_is_done_once(to_model: Ride) -> None:
    done = []
    answer = to_model.send(chat())
    answer.when_closed(lambda: done.append(1))
    b"".join(answer)
    assert done == []
    answer.close()
    answer.close()
    assert done == [1]

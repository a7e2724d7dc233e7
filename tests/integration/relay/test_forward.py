"""One request to one upstream and back: bytes as they are."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from manager.interfaces import Chat, Embedding
from manager.tokens import TokenUsage
from tests.support.relayed import (
    CHAT,
    LARGE,
    Relay,
    Relayed,
    chat,
    events,
    header,
    lockstep,
    read,
    seen_by,
    streamed,
)
from tests.support.servers import PATIENCE, FakeModel, Peer
from tests.support.upstreams import OK, SHORT, Serve, sized

# --- an answer of one piece -------------------------------------------------------------


def test_an_answer_comes_back_with_its_status_and_its_tokens(to_model: Relayed) -> None:
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
    to_model: Relayed, framing: str, size: int
) -> None:
    fake = {"framing": framing, "size": size} if size else {"framing": framing}
    body = json.loads(read(to_model.send(chat(fake))))
    if size:
        assert len(body["padding"]) == size
    else:
        assert to_model.outcome.usage == TokenUsage(17, 0, 3)
    assert to_model.outcome.status == 200
    assert to_model.is_over()


def test_the_tokens_at_the_start_of_a_very_large_answer_are_found(
    serve: Serve, relay: Relay
) -> None:
    """llama.cpp's of a batch of embeddings: its usage stands before the vectors."""
    body = b'{"object": "list", "usage": {"prompt_tokens": 1640, "total_tokens": 1640}, "data": ['
    body += b"0.5, " * (LARGE // 5) + b"1]}"

    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(sized(body))

    one = relay(serve(script))
    assert read(one.send(chat())) == body
    assert one.outcome.usage == TokenUsage(1640, 0, 0)


def test_a_plugin_is_asked_once_for_the_tokens_of_an_answer_that_reports_none(
    serve: Serve, relay: Relay
) -> None:
    class Strict(Chat):
        def usage(self, body: bytes) -> None:
            json.loads(body)

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(sized(b'{"choices": []}'))

    one = relay(serve(script), interface=Strict())
    assert read(one.send(chat())) == b'{"choices": []}'
    assert (one.outcome.status, one.outcome.usage) == (200, None)


def test_the_tokens_at_the_end_of_a_very_large_answer_are_found(serve: Serve, relay: Relay) -> None:
    usage = {"prompt_tokens": 9000, "total_tokens": 9000}
    body = json.dumps({"data": [0.123456] * 400_000, "usage": usage}).encode()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    one = relay(serve(script), interface=Embedding())
    assert read(one.send(chat())) == body
    assert one.outcome.usage == TokenUsage(9000, 0, 0)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_an_error_of_the_upstream_is_the_clients_as_it_is(to_model: Relayed, status: int) -> None:
    answer = to_model.send(chat({"status": status, "headers": {"Retry-After": "7"}}))
    assert answer.status == f"{status} Fake"
    assert header(answer, "Retry-After") == ["7"]
    assert json.loads(read(answer))["error"]["type"] == "fake_error"
    assert (to_model.outcome.status, to_model.outcome.usage) == (status, None)
    assert to_model.is_over()


def test_the_lease_is_released_before_the_client_has_read_the_answer(to_model: Relayed) -> None:
    answer = to_model.send(chat())
    next(answer)
    assert to_model.is_over()
    answer.close()
    assert to_model.is_over()


# --- what goes to the upstream ----------------------------------------------------------

ODD = b'{ "model":"mine",\n\t"temperature":1e-1, "seed" : 0.10, "n":1, "x":"\\u00e9\xc3\xa9",'
ODD += b'"messages":[], "unknown": {"a":[1,2 ,3]}, "fake":{"echo":true}, "n":2 }'


def test_a_body_is_forwarded_byte_for_byte(to_model: Relayed) -> None:
    echoed = json.loads(read(to_model.send(ODD)))
    assert echoed["body"].encode("utf-8", "surrogateescape") == ODD


def test_the_path_is_forwarded_with_its_query(to_model: Relayed, model: FakeModel) -> None:
    read(to_model.send(chat(), target=f"{CHAT}?a=1&b=%20"))
    assert seen_by(model)["path"] == f"{CHAT}?a=1&b=%20"


def test_the_name_that_the_upstream_goes_by_replaces_the_clients(
    relay: Relay, model: FakeModel
) -> None:
    one = relay(model, served_model_name='the "real" one')
    echoed = json.loads(read(one.send(ODD)))
    expected = ODD.replace(b'"mine"', b'"the \\"real\\" one"')
    assert echoed["body"].encode("utf-8", "surrogateescape") == expected


def sent_headers(one: Relayed, *headers: tuple[str, str]) -> dict[str, list[str]]:
    """The headers that reach the upstream, by their names in lower case."""
    found: dict[str, list[str]] = {}
    for name, value in json.loads(read(one.send(chat({"echo": True}), *headers)))["headers"]:
        found.setdefault(name.lower(), []).append(value)
    return found


def test_end_to_end_headers_are_forwarded(to_model: Relayed) -> None:
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


def test_the_clients_credentials_are_not_forwarded(to_model: Relayed) -> None:
    headers = sent_headers(
        to_model,
        ("Authorization", "Bearer s3cr3t"),
        ("X-Api-Key", "s3cr3t"),
        ("COOKIE", "session=s3cr3t"),
        ("Proxy-Authorization", "Basic s3cr3t"),
    )
    assert "s3cr3t" not in str(headers)


def test_headers_of_the_clients_connection_are_not_forwarded(to_model: Relayed) -> None:
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
        ("Content-Encoding", "gzip"),  # of a body that is decoded
    )
    dropped = {"keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "proxy-connection"}
    assert not (dropped | {"expect", "x-hop", "content-encoding"}) & set(headers)
    assert headers["host"] == [f"127.0.0.1:{to_model.upstream.port}"]
    assert len(headers["content-length"]) == 1
    assert headers["content-length"] != ["999"]


def test_a_compressed_answer_is_not_asked_for_as_it_could_not_be_metered(to_model: Relayed) -> None:
    headers = sent_headers(to_model, ("Accept-Encoding", "gzip, br"))
    assert headers["accept-encoding"] == ["identity"]


# --- what comes back to the client ------------------------------------------------------


def test_headers_of_the_upstreams_connection_are_not_returned(serve: Serve, relay: Relay) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(
            b"HTTP/1.1 200 OK\r\nConnection: close, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\n"
            b"Proxy-Authenticate: Basic\r\nTrailer: X-Sum\r\nUpgrade: h2c\r\nX-Own: a\r\n"
            b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Type: application/json\r\n"
            b'Strict-Transport-Security: max-age=1; preload\r\nAlt-Svc: h3=":443"\r\n'
            b"Content-Length: 2\r\n\r\n{}"
        )

    answer = relay(serve(script)).send(chat())
    assert answer.headers == [
        # And no cookie, in a browser it would be one of our pages', nor what holds for its origin.
        ("X-Own", "a"),
        ("Content-Type", "application/json"),
        ("Content-Length", "2"),
    ]
    assert read(answer) == b"{}"


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_a_streams_length_and_framing_are_the_managers(to_model: Relayed, framing: str) -> None:
    answer = to_model.send(streamed({"framing": framing}))
    assert header(answer, "Content-Type") == ["text/event-stream"]
    assert header(answer, "Content-Length") == header(answer, "Transfer-Encoding") == []
    assert events(read(answer))[-1] == "[DONE]"
    assert to_model.outcome.error is None


# --- what is asked for in another way than by POST --------------------------------------


def answer_with(*lines: bytes, body: bytes = b"") -> Callable[[Peer], None]:
    """A script: an answer to each request of a connection."""

    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(b"\r\n".join([*lines, b"", body]))

    return script


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 5000000", b"Transfer-Encoding: chunked", b"X-Other: 1"]
)
def test_an_answer_to_head_is_not_waited_for_any_further(
    serve: Serve, relay: Relay, framing: bytes
) -> None:
    head = (OK[:-2], b"Content-Type: text/event-stream", framing)
    one = relay(serve(answer_with(*head)), upstream_timeout=PATIENCE)
    assert read(one.get(method="HEAD")) == b""
    length = header(one.answer, "Content-Length")
    assert length == (["5000000"] if b"Length" in framing else [])
    assert (one.outcome.status, one.outcome.streamed) == (200, False)
    assert one.is_over()


def test_the_connection_goes_on_after_an_answer_to_head(serve: Serve, relay: Relay) -> None:
    server = serve(answer_with(OK[:-2], b"Content-Length: 7"))
    one = relay(server)
    for _ in range(3):
        read(one.get(method="HEAD"))
    assert server.connections == 1


def test_what_only_reads_lacks_no_tokens(serve: Serve, relay: Relay) -> None:
    """Neither a page nor a stream of events is billed by an estimate."""
    page = answer_with(OK[:-2], b"Content-Type: text/html", b"Content-Length: 2", body=b"<p")
    one = relay(serve(page))
    assert read(one.get()) == b"<p"
    assert one.outcome.usage == TokenUsage()
    events = answer_with(
        b"HTTP/1.1 200 OK",
        b"Content-Type: text/event-stream",
        b"Content-Length: 30",
        body=b"data: a\n\ndata: b\n\ndata: c\n\n\n\n\n",
    )
    other = relay(serve(events))
    read(other.get())
    assert other.outcome.usage == TokenUsage()


def test_a_stream_that_is_only_read_goes_on_piece_by_piece_as_it_comes(
    serve: Serve, relay: Relay
) -> None:
    """It may be compressed: no event's end is waited for."""
    script, may_send = lockstep(b"\x1f\x8b", b"half an", b" event")
    pieces = relay(serve(script)).get(target="/events")
    for expected in (b"\x1f\x8b", b"half an", b" event"):
        may_send()
        assert next(pieces) == expected
    assert header(pieces, "X-Accel-Buffering") == ["no"]
    pieces.close()


def test_what_only_reads_and_reports_tokens_is_metered(serve: Serve, relay: Relay) -> None:
    body = b'{"usage": {"prompt_tokens": 5, "completion_tokens": 2}}'
    one = relay(serve(answer_with(OK[:-2], b"Content-Length: %d" % len(body), body=body)))
    assert read(one.get()) == body
    assert one.outcome.usage == TokenUsage(5, 0, 2)


@pytest.mark.parametrize(
    ("method", "sent"), [("GET", "gzip, br"), ("POST", "identity"), ("DELETE", "identity")]
)
def test_a_page_may_come_compressed_and_what_is_metered_may_not(
    serve: Serve, relay: Relay, method: str, sent: str
) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        seen.append(peer.request())
        peer.send(SHORT)

    read(relay(serve(script)).get(("Accept-Encoding", "gzip, br"), method=method))
    assert b"\r\nAccept-Encoding: %b\r\n" % sent.encode() in seen[0]


def test_a_post_without_a_body_says_so(serve: Serve, relay: Relay) -> None:
    """Else some servers wait for the end of the connection."""
    seen: list[bytes] = []

    def script(peer: Peer) -> None:
        while data := peer.request():
            seen.append(data)
            peer.send(SHORT)

    one = relay(serve(script))
    read(one.get(method="POST"))
    read(one.get(method="GET"))
    assert [b"Content-Length: 0" in data for data in seen] == [True, False]

"""Requests whose upstream fails or whose client disconnects."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from manager.errors import CLIENT_CLOSED_REQUEST, ApiError, ClientDisconnected
from manager.relay.forward import Outcome, TruncatedResponse
from manager.tokens import TokenUsage
from tests.support.relayed import (
    DONE,
    EVENT_HEAD,
    FIRST,
    LARGE,
    SECOND,
    Relay,
    Relayed,
    chat,
    chunk,
    events,
    read,
    streamed,
)
from tests.support.servers import PATIENCE, FakeModel, Peer, RawServer
from tests.support.upstreams import Eventually, Serve, chunked, sized, until_close

# --- the upstream fails before its answer -----------------------------------------------


def fails(
    one: Relayed, body: dict[str, Any], status: int = 502, code: str = "upstream_error"
) -> None:
    """The request is refused with this, reported once, and releases all."""
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
    to_model: Relayed, fake: dict[str, Any], is_stream: bool
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
    to_model: Relayed, fake: dict[str, Any]
) -> None:
    """None of it was sent to the client yet."""
    fails(to_model, chat(fake))


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_silent_upstream_is_a_plain_time_out(
    relay: Relay, model: FakeModel, is_stream: bool
) -> None:
    one = relay(model, upstream_timeout=0.2)
    fails(one, chat({"fail": "silent"}, stream=is_stream), 504, "upstream_timeout")


def test_a_short_answer_that_stops_in_its_middle_is_a_plain_time_out_too(
    relay: Relay, model: FakeModel
) -> None:
    one = relay(model, upstream_timeout=0.2)
    fails(one, chat({"fail": "silent", "fail_at": "inside"}), 504, "upstream_timeout")


@pytest.mark.parametrize(
    ("body", "produced"),
    [
        (chat({"framing": "chunked"}), True),
        (chat({"framing": "chunked", "status": 500}), False),
        (streamed(), True),
        (streamed({"fail": "reset", "fail_at": "between"}), True),
    ],
)
def test_a_lease_learns_what_its_request_came_to_and_whether_bytes_of_an_answer_came(
    to_model: Relayed, body: dict[str, Any], produced: bool
) -> None:
    read(to_model.send(body))
    assert to_model.lease.outcome is to_model.outcome
    assert to_model.lease.produced is produced


def test_nobody_at_the_port_is_a_plain_error(relay: Relay) -> None:
    server = RawServer(lambda _: None)
    server.close()
    fails(relay(server), chat())


def test_a_page_that_says_it_is_an_error_is_passed_on(to_model: Relayed) -> None:
    answer = to_model.send(chat({"html": True, "status": 404}))
    assert answer.status == "404 Fake"
    assert b"<h1>" in read(answer)
    assert to_model.is_over()


BEGUN = b'event: begun\ndata: {"type": "begun"}\n\n'


def until_cut(peer: Peer) -> None:
    peer.request()
    peer.send(EVENT_HEAD + chunk(BEGUN) + b"0\r\n\r\n")


# --- the upstream fails in the middle ---------------------------------------------------


@pytest.mark.parametrize("fail", ["close", "reset"])
@pytest.mark.parametrize("fail_at", ["between", "inside"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_stream_whose_upstream_dies_ends_with_an_error_and_no_half_event(
    to_model: Relayed, fail: str, fail_at: str, after: int
) -> None:
    fake = {"fail": fail, "fail_at": fail_at, "after": after, "chunks": 6, "interval": 0.01}
    *chunks, last = events(read(to_model.send(streamed(fake))))
    assert len(chunks) == after
    assert last["error"]["code"] == "upstream_error"
    assert "[DONE]" not in chunks
    outcome = to_model.outcome
    assert (outcome.status, outcome.error) == (502, last["error"]["message"])
    assert outcome.usage == TokenUsage(0, 0, after, estimated=True)
    assert to_model.is_over()


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/messages", {"type": "error", "error": {"type": "api_error"}}),
        ("/v1/responses", {"type": "error", "error": {"code": "upstream_error"}}),
    ],
)
def test_an_error_in_a_stream_is_one_of_the_clients_own_api(
    serve: Serve, relay: Relay, path: str, shape: dict[str, Any]
) -> None:
    one = relay(serve(until_cut))
    body = read(one.send(streamed(), target=path))
    assert body.startswith(BEGUN + b"event: error\ndata: ")
    error = json.loads(body.removeprefix(BEGUN + b"event: error\ndata: "))
    assert error["type"] == shape["type"]
    assert shape["error"].items() <= error["error"].items()
    assert (one.outcome.status, one.outcome.error) == (502, error["error"]["message"])
    assert one.is_over()


def test_a_stream_that_falls_silent_ends_with_an_error(relay: Relay, model: FakeModel) -> None:
    one = relay(model, upstream_timeout=0.2)
    fake = {"fail": "silent", "fail_at": "between", "after": 2}
    *chunks, last = events(read(one.send(streamed(fake))))
    assert len(chunks) == 2
    assert last["error"]["code"] == "upstream_timeout"
    assert one.outcome.status == 504
    assert one.is_over()


@pytest.mark.parametrize("framing", ["chunked", "close"])
def test_an_answer_that_has_ended_is_whole_without_done(to_model: Relayed, framing: str) -> None:
    """Some servers leave it out: what has had its finish_reason was not cut short."""
    body = read(to_model.send(streamed({"done": False, "framing": framing})))
    *_, last = events(body)
    assert last["choices"][0]["finish_reason"] == "stop"
    outcome = to_model.outcome
    assert (outcome.status, outcome.error) == (200, None)
    assert outcome.usage == TokenUsage(17, 0, 3)
    assert to_model.is_over()


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b""], ids=["clean", "broken"])
def test_a_stream_that_ends_without_finish_reason_and_done_was_cut_short(
    serve: Serve, relay: Relay, end: bytes
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST) + end)

    one = relay(serve(script))
    _, last = events(read(one.send(streamed())))
    assert last["error"]["code"] == "upstream_error"
    assert (one.outcome.status, one.outcome.error) == (502, last["error"]["message"])
    assert one.outcome.usage == TokenUsage(0, 0, 1, estimated=True)
    assert one.is_over()


OUT_OF_MEMORY = {"error": {"code": 500, "message": "out of memory", "type": "server_error"}}


@pytest.mark.parametrize("end", [DONE, b""])
def test_an_error_inside_of_a_stream_is_a_failed_request(
    serve: Serve, relay: Relay, end: bytes
) -> None:
    """It reaches the client as it came, with none of ours behind it, and what was produced before
    it is metered."""
    error = b"data: " + json.dumps(OUT_OF_MEMORY).encode() + b"\n\n"

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST) + chunk(SECOND) + chunk(error + end) + b"0\r\n\r\n")

    one = relay(serve(script))
    assert read(one.send(streamed())) == FIRST + SECOND + error + end
    assert (one.outcome.status, one.outcome.error) == (500, "out of memory")
    assert one.outcome.usage == TokenUsage(0, 0, 2, estimated=True)
    assert one.is_over()


def test_an_event_that_is_called_an_error_is_a_failed_request(serve: Serve, relay: Relay) -> None:
    error = b'event: error\ndata: {"message": "too long", "code": "400"}\n\n'

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST) + chunk(error) + b"0\r\n\r\n")

    one = relay(serve(script))
    assert read(one.send(streamed())) == FIRST + error
    assert (one.outcome.status, one.outcome.error) == (400, "too long")
    assert one.outcome.usage == TokenUsage(0, 0, 1, estimated=True)


@pytest.mark.parametrize("body", [b'{"error": "no"}', b'data: {"error": "no"}\n\n'])
def test_a_refusal_with_the_type_of_a_stream_is_passed_on_as_it_is(
    serve: Serve, relay: Relay, body: bytes
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        head = EVENT_HEAD.replace(b"200 OK", b"400 Bad Request")
        peer.send(head + chunk(body) + b"0\r\n\r\n")

    one = relay(serve(script))
    answer = one.send(streamed())
    assert answer.status == "400 Bad Request"
    assert read(answer) == body
    assert (one.outcome.status, one.outcome.streamed, one.outcome.usage) == (400, False, None)
    assert one.is_over()


def test_a_stream_that_is_nothing_but_an_error_has_no_tokens(serve: Serve, relay: Relay) -> None:
    error = b"data: " + json.dumps(OUT_OF_MEMORY).encode() + b"\n\n"

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(error) + b"0\r\n\r\n")

    one = relay(serve(script))
    assert read(one.send(streamed())) == error
    assert (one.outcome.status, one.outcome.usage) == (500, None)


@pytest.mark.parametrize("framed", [sized, chunked, until_close])
def test_a_whole_answer_of_status_200_that_is_an_error_is_a_failed_request(
    serve: Serve, relay: Relay, framed: Callable[[bytes], bytes]
) -> None:
    body = json.dumps(OUT_OF_MEMORY).encode()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(framed(body))

    one = relay(serve(script))
    answer = one.send(chat())
    assert answer.status.startswith("200")
    assert read(answer) == body
    assert (one.outcome.status, one.outcome.error) == (500, "out of memory")
    assert one.outcome.usage is None


def test_a_failure_after_done_changes_nothing(serve: Serve, relay: Relay) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST + DONE))

    one = relay(serve(script))
    assert read(one.send(streamed())) == FIRST + DONE
    assert one.outcome.error is None
    assert one.is_over()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_large_answer_that_breaks_off_breaks_the_clients_connection_too(
    to_model: Relayed, framing: str
) -> None:
    fake = {"size": LARGE, "framing": framing, "fail": "close", "fail_at": "inside"}
    answer = to_model.send(chat(fake))
    with pytest.raises(TruncatedResponse):
        read(answer)
    assert issubclass(TruncatedResponse, OSError)
    assert to_model.outcome.error
    assert to_model.is_over()


# --- the client disconnects -------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_disconnects_during_a_silent_prompt_releases_the_upstream(
    to_model: Relayed, model: FakeModel, eventually: Eventually, is_stream: bool
) -> None:
    aborted = model.stats()["aborted"]
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(to_model.send, chat({"fail": "silent"}, stream=is_stream))
        eventually(lambda: model.stats()["open"] == 1)
        to_model.disconnect_client()
        assert isinstance(asked.exception(PATIENCE), ClientDisconnected)
    eventually(lambda: model.stats()["aborted"] == aborted + 1)
    assert to_model.outcome.status == CLIENT_CLOSED_REQUEST
    assert to_model.is_over()


def test_a_client_that_disconnects_between_chunks_releases_the_upstream(
    to_model: Relayed, model: FakeModel, eventually: Eventually
) -> None:
    aborted = model.stats()["aborted"]
    answer = to_model.send(streamed({"fail": "silent", "fail_at": "between", "after": 1}))
    assert b"token0" in next(answer)
    with ThreadPoolExecutor(1) as threads:
        rest = threads.submit(lambda: list(answer))
        to_model.disconnect_client()
        assert rest.result(PATIENCE) == []
    answer.close()
    eventually(lambda: model.stats()["aborted"] == aborted + 1)
    assert to_model.outcome.status == CLIENT_CLOSED_REQUEST
    assert to_model.outcome.usage == TokenUsage(0, 0, 1, estimated=True)
    assert to_model.is_over()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_client_that_disconnects_from_a_large_answer_is_what_ended_it(
    to_model: Relayed, model: FakeModel, eventually: Eventually, framing: str
) -> None:
    aborted = model.stats()["aborted"]
    fake = {"size": LARGE, "framing": framing, "fail": "silent", "fail_at": "inside"}
    answer = to_model.send(chat(fake))
    assert next(answer)
    with ThreadPoolExecutor(1) as threads:
        rest = threads.submit(lambda: [len(piece) for piece in answer])
        to_model.disconnect_client()
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
def test_an_answer_that_is_closed_at_any_point_releases_all(
    to_model: Relayed,
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


def test_a_client_that_disconnects_after_done_had_all(to_model: Relayed) -> None:
    answer = to_model.send(streamed())
    for piece in answer:
        if b"[DONE]" in piece:
            break
    to_model.disconnect_client()
    answer.close()
    assert to_model.outcome.status == 200
    assert to_model.outcome.error is None
    assert to_model.is_over()


# --- the record fails -------------------------------------------------------------------


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
def test_a_record_that_fails_is_not_tried_twice_and_holds_nothing(
    to_model: Relayed, body: dict[str, Any]
) -> None:
    to_model.on_end = full_disk
    with pytest.raises(RuntimeError, match="the disk is full"):
        read(to_model.send(body))
    assert to_model.is_over()


def test_a_record_that_fails_for_a_disconnected_client_holds_nothing(
    to_model: Relayed,
) -> None:
    to_model.on_end = full_disk
    answer = to_model.send(streamed())
    with pytest.raises(RuntimeError, match="the disk is full"):
        answer.close()
    answer.close()
    assert to_model.is_over()


def test_what_is_registered_for_the_close_is_called_once(to_model: Relayed) -> None:
    done = []
    answer = to_model.send(chat())
    answer.when_closed(lambda: done.append(1))
    b"".join(answer)
    assert done == []
    answer.close()
    answer.close()
    assert done == [1]

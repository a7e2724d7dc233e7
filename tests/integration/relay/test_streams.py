"""Streams through the relay: events as they come, usage read on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from manager.interfaces import Base, Embedding
from manager.tokens import TokenUsage
from tests.support.relayed import (
    DONE,
    EVENT_HEAD,
    FIRST,
    SECOND,
    USAGE,
    Relay,
    Relayed,
    chat,
    chunk,
    events,
    header,
    lockstep,
    read,
    seen_by,
    streamed,
)
from tests.support.servers import FakeModel, Peer
from tests.support.upstreams import Serve

# --- streams ----------------------------------------------------------------------------


@pytest.mark.parametrize("crlf", [False, True])
def test_a_stream_comes_whole_without_the_usage_that_only_the_manager_asked_for(
    to_model: Relayed, model: FakeModel, crlf: bool
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


def test_a_usage_chunk_whose_choices_are_null_does_not_reach_a_client_that_did_not_ask(
    serve: Serve, relay: Relay
) -> None:
    usage = b'data: {"choices": null, "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n'

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST) + chunk(usage + DONE) + b"0\r\n\r\n")

    one = relay(serve(script))
    assert read(one.send(streamed())) == FIRST + DONE
    assert one.outcome.usage == TokenUsage(5, 0, 2)


def test_a_stream_that_its_server_calls_plain_text_is_one(serve: Serve, relay: Relay) -> None:
    head = EVENT_HEAD.replace(b"text/event-stream", b"text/plain; charset=utf-8")

    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(head + chunk(FIRST) + chunk(USAGE + DONE) + b"0\r\n\r\n")

    server = serve(script)
    one = relay(server)
    answer = one.send(streamed())
    assert read(answer) == FIRST + DONE
    assert header(answer, "Content-Type") == ["text/plain; charset=utf-8"]
    assert (one.outcome.streamed, one.outcome.usage) == (True, TokenUsage(5, 0, 2))
    whole = relay(server)
    read(whole.send(chat()))
    assert not whole.outcome.streamed


def test_a_proxy_in_front_is_asked_not_to_collect_a_stream(
    to_model: Relayed, relay: Relay, model: FakeModel
) -> None:
    answer = to_model.send(streamed())
    read(answer)
    assert header(answer, "X-Accel-Buffering") == ["no"]
    whole = relay(model).send(chat())
    read(whole)
    assert header(whole, "X-Accel-Buffering") == []


def test_the_usage_that_the_client_asked_for_stays(to_model: Relayed, model: FakeModel) -> None:
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
        (
            {"continuous_usage_stats": True},
            {"include_usage": True, "continuous_usage_stats": False},
        ),
    ],
)
def test_a_clients_other_stream_options_are_kept(
    to_model: Relayed, model: FakeModel, given: Any, sent: Any
) -> None:
    answer = read(to_model.send(streamed(stream_options=given)))
    assert json.loads(seen_by(model)["body"])["stream_options"] == sent
    assert b"usage" not in answer
    assert to_model.outcome.usage == TokenUsage(17, 0, 3)


@pytest.mark.parametrize(
    ("fields", "lease"),
    [
        ({"stream": True}, {"ask_usage": False}),
        ({"stream": False}, {}),
        ({"stream": "no"}, {}),
        ({"stream": None}, {}),
        ({}, {}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {}),
        ({"stream": False, "stream_options": {"include_usage": False}}, {}),
    ],
)
def test_usage_is_not_asked_for_where_it_would_be_refused_or_makes_no_sense(
    relay: Relay, model: FakeModel, fields: dict[str, Any], lease: dict[str, Any]
) -> None:
    body = json.dumps(chat(**fields)).encode()
    read(relay(model, **lease).send(body))
    assert seen_by(model)["body"].encode() == body


@pytest.mark.parametrize("value", ["true", "True", 1, "1"])
def test_usage_is_asked_for_where_a_server_may_take_the_value_for_true(
    to_model: Relayed, model: FakeModel, value: Any
) -> None:
    read(to_model.send(chat(stream=value)))
    asked = json.loads(seen_by(model)["body"])
    assert asked["stream_options"] == {"include_usage": True}
    assert asked["stream"] == value


def test_usage_is_not_asked_for_at_an_endpoint_that_has_no_such_field(
    relay: Relay, model: FakeModel
) -> None:
    body = json.dumps(chat(stream=True)).encode()
    read(relay(model, interface=Embedding()).send(body, target="/v1/embeddings"))
    assert seen_by(model)["body"].encode() == body


@pytest.mark.parametrize("options", [[], "usage", 3])
def test_options_that_are_none_are_the_upstreams_to_refuse(
    relay: Relay, fake_model: Callable[..., FakeModel], options: Any
) -> None:
    strict = fake_model(no_ask_usage=True)
    body = json.dumps(streamed(stream_options=options)).encode()
    answer = relay(strict).send(body)
    read(answer)
    assert answer.status == "400 Fake"
    assert seen_by(strict)["body"].encode() == body


def test_base_models_streams_are_asked_for_usage_too(
    relay: Relay, fake_model: Callable[..., FakeModel]
) -> None:
    one = relay(fake_model(mode="Base"), interface=Base())
    body = {"model": "mine", "prompt": "Hi", "stream": True}
    assert b"usage" not in read(one.send(body, target="/v1/completions"))
    assert one.outcome.usage == TokenUsage(17, 0, 3)


def test_without_any_usage_the_chunks_are_counted_as_an_estimate(to_model: Relayed) -> None:
    read(to_model.send(streamed({"usage": "never", "chunks": 9})))
    assert to_model.outcome.usage == TokenUsage(
        0, 0, 10, estimated=True
    )  # the last only says "stop"


def test_each_event_is_sent_at_once_and_the_outcome_reported_before_the_last(
    serve: Serve, relay: Relay
) -> None:
    """To most clients [DONE] is the last byte: what they have had must be on record by then,
    also where the server then keeps its connection open."""
    script, go_on = lockstep(FIRST, SECOND, USAGE + DONE)
    one = relay(serve(script))
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


def test_events_whose_lines_end_in_cr_are_sent_at_once_and_metered(
    serve: Serve, relay: Relay
) -> None:
    first, second, usage, done = (one.replace(b"\n", b"\r") for one in (FIRST, SECOND, USAGE, DONE))
    script, go_on = lockstep(first, second, usage + done)
    one = relay(serve(script))
    answer = one.send(streamed())
    for expected in (first, second, done):
        go_on()
        assert next(answer) == expected
    assert (one.outcome.status, one.outcome.usage) == (200, TokenUsage(5, 0, 2))
    answer.close()


def test_half_an_event_waits_for_its_other_half(serve: Serve, relay: Relay) -> None:
    script, go_on = lockstep(FIRST + SECOND[:10], SECOND[10:])
    answer = relay(serve(script)).send(streamed())
    go_on()
    assert next(answer) == FIRST
    go_on()
    assert next(answer) == SECOND
    answer.close()


def test_a_last_event_without_its_blank_line_is_a_whole_end(serve: Serve, relay: Relay) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST + DONE[:-1]) + b"0\r\n\r\n")

    one = relay(serve(script))
    answer = one.send(streamed())
    pieces = []
    for piece in answer:
        if b"[DONE]" in piece:
            assert one.outcome.error is None
        pieces.append(piece)
    answer.close()
    assert b"".join(pieces) == FIRST + DONE[:-1]
    assert one.is_over()


def test_a_stream_at_an_endpoint_where_none_ends_with_done_ends_well_without(
    serve: Serve, relay: Relay
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(EVENT_HEAD + chunk(FIRST) + b"0\r\n\r\n")

    one = relay(serve(script), interface=Embedding())
    assert read(one.send(streamed(), target="/v1/embeddings")) == FIRST
    assert one.outcome.error is None
    assert one.is_over()

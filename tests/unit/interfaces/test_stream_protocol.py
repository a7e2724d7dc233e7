"""How streams of a protocol end, and what an error in an answer looks like."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.errors import ApiError
from manager.interfaces import (
    ENDPOINTS,
    OPENAI_STREAM,
    PROTOCOLS,
    AnswerError,
    Interface,
    error_of,
)
from manager.interfaces.error_shapes import anthropic_error, openai_error, openai_event
from manager.streams import EventStream


@given(st.text(), st.sampled_from(sorted(PROTOCOLS)))
def test_an_error_is_one_event_whatever_its_message_says(message: str, name: str) -> None:
    protocol = PROTOCOLS[name]
    error = ApiError(502, "upstream_error", message)
    sent = protocol.error_event(error)
    (*names, data), end = sent.split(b"\n")[:-2], sent[-2:]
    assert names == ([b"event: error"] if name in ("anthropic", "responses") else [])
    assert data.startswith(b"data: ")
    assert end == b"\n\n"
    assert b"\r" not in sent
    stream = EventStream(protocol)
    assert stream.feed(sent) == sent
    assert stream.error is not None
    assert stream.error.message == (message or json.dumps(protocol.error(error)["error"])[:200])


def test_an_error_of_ours_in_each_apis_own_shape() -> None:
    error = ApiError(429, "budget_exceeded", "spent", param="model", details={"limit": 5})
    assert openai_error(error)["error"] == {
        "message": "spent",
        "type": "rate_limit_error",
        "param": "model",
        "code": "budget_exceeded",
        "limit": 5,
    }
    assert anthropic_error(error) == {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "message": "spent",
            "param": "model",
            "code": "budget_exceeded",
            "limit": 5,
        },
    }
    event = openai_event(error)
    assert (event["type"], event["code"], event["message"]) == ("error", "budget_exceeded", "spent")
    assert event["error"] == openai_error(error)["error"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"error": {"code": 400, "message": "too long"}}, AnswerError(400, "too long")),
        ({"error": {"code": 503, "message": "loading"}}, AnswerError(503, "loading")),
        ({"error": {"code": "400", "message": "too long"}}, AnswerError(400, "too long")),
        ({"error": {"code": "503", "message": "m"}}, AnswerError(503, "m")),
        ({"error": {"code": "200", "message": "m"}}, AnswerError(502, "m")),
        ({"error": {"code": "1e2", "message": "m"}}, AnswerError(502, "m")),
        ({"error": {"code": "4" * 5000, "message": "m"}}, AnswerError(502, "m")),
        ({"error": {"code": "context", "message": "m"}}, AnswerError(502, "m")),
        ({"error": {"code": 200, "message": "m"}}, AnswerError(502, "m")),
        ({"error": {"code": True, "message": "m"}}, AnswerError(502, "m")),
        ({"error": {"type": "odd"}}, AnswerError(502, '{"type": "odd"}')),
        ({"error": "text"}, AnswerError(502, "text")),
        ({"error": "text", "code": "429"}, AnswerError(429, "text")),
        ({"type": "error", "code": "x", "message": "m"}, AnswerError(502, "m")),
        ({"object": "error", "code": 400, "message": "m"}, AnswerError(400, "m")),
        (
            {"type": "error", "error": {"type": "overloaded_error", "message": "later"}},
            AnswerError(502, "later"),
        ),
        (
            {"type": "response.failed", "response": {"error": {"code": "x", "message": "m"}}},
            AnswerError(502, "m"),
        ),
        ({"type": "response.completed", "response": {"error": None}}, None),
        ({"error": None, "choices": [1]}, None),
        ({"error": []}, None),
        ([], None),
        (None, None),
    ],
)
def test_errors_are_read_in_every_shape_that_servers_give_them(
    answer: Any, error: AnswerError | None
) -> None:
    assert error_of(answer) == error


class Poems(Interface):
    mode = "Poems"
    endpoints = ("/v1/poems", "/v1/chat/completions")
    streams_end_with_done = True


def test_what_a_path_is_like_does_not_hang_on_the_mode_that_has_it() -> None:
    poems = Poems()
    assert poems.endpoint("/v1/chat/completions") is ENDPOINTS["/v1/chat/completions"]
    assert poems.endpoint("/v1/poems").stream is OPENAI_STREAM
    assert not poems.endpoint("/v1/poems").asks_for_usage

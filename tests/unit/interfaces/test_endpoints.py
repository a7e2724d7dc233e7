"""Paths that mean an endpoint, and how the streams of each end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.errors import ApiError
from manager.interfaces import ENDPOINTS, canonical, error_body, is_for_models, is_ollamas
from manager.streams import EventStream
from manager.streams.event_stream import MAX_BUFFERED
from manager.tokens import TokenUsage

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("path", sorted(ENDPOINTS))
@pytest.mark.parametrize("base", ["", "/v1", "/v1/v1", "/v1/v1/v1"])
@pytest.mark.parametrize("end", ["", "/", "//"])
def test_each_is_reached_with_any_base_and_a_slash_behind_it(
    path: str, base: str, end: str
) -> None:
    assert canonical(base + path.removeprefix("/v1") + end) == path


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/rerank", "/v1/rerank"),
        ("/reranking", "/v1/rerank"),
        ("/v1/reranking", "/v1/rerank"),
        ("/v2/rerank", "/v1/rerank"),
        ("/v2/rerank/", "/v1/rerank"),
        ("/v1/v1/models", "/v1/models"),
        ("/v1/models/", "/v1/models"),
        ("/v1/v1/models/a/", "/v1/models/a/"),
        ("/v1/models/a/", "/v1/models/a/"),
        ("/models", "/models"),
        ("/api/chat", "/api/chat"),
        ("/v1/api/models/x/stop", "/v1/api/models/x/stop"),
        ("/v1", "/v1"),
        ("/", "/"),
        ("", ""),
    ],
)
def test_what_is_meant_by_a_path(path: str, meant: str) -> None:
    assert canonical(path) == meant


@pytest.mark.parametrize("path", ["/api/chat", "/api/tags", "/api/delete", "/api/blobs/sha256:0"])
def test_ollamas_paths_are_for_models_and_have_errors_of_their_own(path: str) -> None:
    assert is_ollamas(path)
    assert is_for_models(path)
    error = ApiError(404, "model_not_found", "there is none")
    assert error_body(path, error) == {"error": "there is none"}
    assert path not in ENDPOINTS


@pytest.mark.parametrize(
    "path", ["/api/models", "/api/chat/", "/api/chats", "/api/blobs", "/api", "/v1/api/chat", "/"]
)
def test_no_other_path_is_ollamas(path: str) -> None:
    assert not is_ollamas(path)
    assert is_for_models(path) == path.startswith("/v1/")


@given(st.text("/v1abc.", max_size=30))
def test_a_path_becomes_an_endpoint_or_stays_below_the_same_base(path: str) -> None:
    found = canonical(path)
    assert canonical(found) == found
    assert found in ENDPOINTS or found.startswith("/v1/") == path.startswith("/v1/")


def event(data: Any, name: str = "") -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data)}\n\n".encode()


MESSAGE = [
    event(
        {"type": "message_start", "message": {"usage": {"input_tokens": 20, "output_tokens": 1}}},
        "message_start",
    ),
    event({"type": "content_block_start", "index": 0}, "content_block_start"),
    *(
        event({"type": "content_block_delta", "delta": {"text": f"event: message_stop {at}"}})
        for at in range(5)
    ),
    event({"type": "content_block_stop"}, "content_block_stop"),
    event({"type": "message_delta", "usage": {"output_tokens": 7}}, "message_delta"),
    event({"type": "message_stop"}, "message_stop"),
]
RESPONSE = [
    event({"type": "response.created", "response": {"usage": None}}, "response.created"),
    event({"type": "response.in_progress"}, "response.in_progress"),
    event({"type": "response.output_item.added"}, "response.output_item.added"),
    event({"type": "response.content_part.added"}, "response.content_part.added"),
    *(
        event({"type": "response.output_text.delta", "delta": "response.completed"})
        for _ in range(5)
    ),
    event(
        {
            "type": "response.completed",
            "response": {"usage": {"input_tokens": 20, "output_tokens": 7}},
        },
        "response.completed",
    ),
]
COMPLETION = [
    *(event({"content": '"stop":true', "stop": False}) for _ in range(5)),
    event({"content": "", "stop": True, "timings": {"prompt_n": 20, "predicted_n": 7}}),
]
USAGE = {"usage": {"input_tokens": 20, "output_tokens": 7}}
TRANSCRIPT = [
    *(event({"type": "transcript.text.delta", "delta": '"transcript.text.done"'}) for _ in "12345"),
    event({"type": "transcript.text.done", "text": "five", **USAGE}),
]
SPEECH = [
    *(event({"type": "speech.audio.delta", "audio": "x"}) for _ in "12345"),
    event({"type": "speech.audio.done", **USAGE}),
]
PICTURE = [
    *(event({"type": "image_edit.partial_image", "b64_json": "x"}) for _ in "12345"),
    event({"type": "image_edit.completed", "b64_json": "x", **USAGE}),
]
STREAMS = {
    "/v1/messages": MESSAGE,
    "/v1/responses": RESPONSE,
    "/v1/completion": COMPLETION,
    "/v1/audio/transcriptions": TRANSCRIPT,
    "/v1/audio/speech": SPEECH,
    "/v1/images/edits": PICTURE,
}


@pytest.mark.parametrize("path", STREAMS)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_has_ended_with_its_last_event_and_not_before(path: str, size: int) -> None:
    *before, last = STREAMS[path]
    stream = EventStream(ENDPOINTS[path].stream)
    whole = b"".join(before)
    sent = b"".join(stream.feed(whole[at : at + size]) for at in range(0, len(whole), size))
    assert not stream.has_ended
    sent += stream.feed(last)
    assert stream.has_ended
    assert sent == whole + last
    assert stream.result(200, None) == (200, None, TokenUsage(20, 0, 7))


@pytest.mark.parametrize(
    ("path", "metered"),
    [
        ("/v1/messages", TokenUsage(20, 0, 5, estimated=True)),
        ("/v1/responses", TokenUsage(0, 0, 5, estimated=True)),
        ("/v1/completion", TokenUsage(0, 0, 5, estimated=True)),
        ("/v1/audio/transcriptions", TokenUsage(0, 0, 5, estimated=True)),
    ],
)
def test_of_a_stream_that_is_cut_short_the_tokens_that_came_are_metered(
    path: str, metered: TokenUsage
) -> None:
    at = 7 if path == "/v1/messages" else -1
    stream = EventStream(ENDPOINTS[path].stream)
    stream.feed(b"".join(STREAMS[path][:at]))
    assert not stream.has_ended
    assert stream.truncated
    assert stream.result(502, "cut") == (502, "cut", metered)


def test_a_message_that_ends_without_names_of_events_is_whole() -> None:
    stream = EventStream(ENDPOINTS["/v1/messages"].stream)
    stream.feed(event({"type": "message_delta", "usage": {"output_tokens": 7}}))
    stream.feed(event({"type": "message_stop"}))
    assert stream.has_ended


def test_a_transcript_in_the_events_of_vllm_ends_as_a_chat_does() -> None:
    def chunk(word: str, finish_reason: str | None = None) -> bytes:
        choice = {"delta": {"content": word}, "finish_reason": finish_reason}
        return event({"object": "transcription.chunk", "choices": [choice]})

    stream = EventStream(ENDPOINTS["/v1/audio/transcriptions"].stream)
    stream.feed(chunk("one") + chunk(" two"))
    assert stream.truncated
    stream.feed(chunk("", "stop"))
    assert stream.truncated is None
    stream.feed(b"data: [DONE]\n\n")
    assert stream.done


def test_a_transcript_in_events_that_nobody_knows_ends_with_its_connection() -> None:
    stream = EventStream(ENDPOINTS["/v1/audio/transcriptions"].stream)
    stream.feed(event({"text": "one two"}))
    assert not stream.has_ended  # a connection that breaks is a fault all the same
    assert stream.truncated is None


def test_a_picture_that_is_too_long_to_be_kept_may_be_the_last() -> None:
    stream = EventStream(ENDPOINTS["/v1/images/edits"].stream)
    last = event({"type": "image_edit.completed", "b64_json": "x" * 2 * MAX_BUFFERED, **USAGE})
    data = PICTURE[0] + last
    sent = b"".join(stream.feed(data[at : at + 65536]) for at in range(0, len(data), 65536))
    assert sent == data
    assert stream.truncated is None
    assert stream.result(200, None) == (200, None, TokenUsage(20, 0, 7))

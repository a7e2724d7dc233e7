"""Tokens out of an answer's bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manager import tokens
from manager.tokens import MAX_TOKENS, TokenUsage

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
FIELDS = (
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "input_tokens",
    "output_tokens",
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
    "prompt_n",
    "predicted_n",
    "cache_n",
    "cached_tokens",
    "prompt_cache_hit_tokens",
)
COUNTS = st.integers(-5, 2**62) | st.integers(0, 50) | ANY_JSON
REPORT = st.dictionaries(st.sampled_from(FIELDS), COUNTS, max_size=6) | ANY_JSON
REPORT_WITH_DETAILS = st.tuples(REPORT, REPORT).map(
    lambda pair: (
        {**pair[0], "prompt_tokens_details": pair[1], "input_tokens_details": pair[1]}
        if isinstance(pair[0], dict)
        else pair[0]
    )
)
# Answers whose fields have the right names, and anything at all as their values.
ANSWER = ANY_JSON | st.fixed_dictionaries(
    {},
    optional={
        "usage": REPORT_WITH_DETAILS,
        "timings": REPORT,
        "message": st.fixed_dictionaries({}, optional={"usage": REPORT_WITH_DETAILS}) | ANY_JSON,
        "response": st.fixed_dictionaries({}, optional={"usage": REPORT_WITH_DETAILS}) | ANY_JSON,
        "choices": ANY_JSON
        | st.lists(st.fixed_dictionaries({}, optional={"usage": REPORT_WITH_DETAILS})),
    },
)


def is_sound(found: TokenUsage | None) -> bool:
    return found is None or (
        0 <= found.cached_tokens <= found.prompt_tokens
        and found.completion_tokens >= 0
        and all(
            type(count) is int
            for count in (found.prompt_tokens, found.cached_tokens, found.completion_tokens)
        )
    )


# --- what is understood -----------------------------------------------------------------


def test_openai_usage_is_read_with_its_cached_tokens_inside_of_the_prompt() -> None:
    answer = {
        "usage": {
            "prompt_tokens": 100,
            "completion_tokens": 7,
            "total_tokens": 107,
            "prompt_tokens_details": {"cached_tokens": 64},
        }
    }
    assert tokens.from_answer(answer) == TokenUsage(100, 64, 7)


def test_the_usage_of_an_embedding_has_no_completion() -> None:
    assert tokens.from_answer({"usage": {"prompt_tokens": 9, "total_tokens": 9}}) == TokenUsage(
        9, 0, 0
    )


def test_a_reranker_that_only_reports_a_total_has_taken_that_as_its_prompt() -> None:
    assert tokens.from_answer({"usage": {"total_tokens": 31}}) == TokenUsage(31, 0, 0)


def test_llama_cpp_timings_count_the_cache_beside_what_was_computed() -> None:
    answer = {"timings": {"prompt_n": 10, "cache_n": 90, "predicted_n": 5}}
    assert tokens.from_answer(answer) == TokenUsage(100, 90, 5)


def test_llama_cpp_timings_add_the_cached_tokens_that_its_usage_does_not_report() -> None:
    answer = {
        "usage": {"prompt_tokens": 100, "completion_tokens": 5},
        "timings": {"prompt_n": 10, "cache_n": 90, "predicted_n": 5},
    }
    assert tokens.from_answer(answer) == TokenUsage(100, 90, 5)


def test_anthropic_usage_counts_its_caches_beside_the_input() -> None:
    answer = {
        "usage": {
            "input_tokens": 10,
            "cache_read_input_tokens": 60,
            "cache_creation_input_tokens": 30,
            "output_tokens": 4,
        }
    }
    assert tokens.from_answer(answer) == TokenUsage(100, 60, 4)


def test_responses_count_their_cached_tokens_inside_of_the_input() -> None:
    usage = {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 64},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 107,
    }
    assert tokens.from_answer({"object": "response", "usage": usage}) == TokenUsage(100, 64, 7)
    event = {"type": "response.completed", "response": {"usage": usage, "status": "completed"}}
    assert tokens.from_answer(event) == TokenUsage(100, 64, 7)
    assert tokens.from_body(json.dumps(event).encode()) == TokenUsage(100, 64, 7)


def test_a_transcripts_tokens_are_read_and_its_seconds_are_none() -> None:
    usage = {"type": "tokens", "input_tokens": 14, "output_tokens": 3, "total_tokens": 17}
    details = {"input_token_details": {"audio_tokens": 14, "text_tokens": 0}}
    assert tokens.from_answer({"usage": usage | details}) == TokenUsage(14, 0, 3)
    assert tokens.from_answer({"text": "Hi", "usage": {"type": "duration", "seconds": 9}}) is None


def test_deepseeks_cache_hits_are_cached_tokens() -> None:
    usage = {
        "prompt_tokens": 100,
        "completion_tokens": 7,
        "prompt_cache_hit_tokens": 64,
        "prompt_cache_miss_tokens": 36,
    }
    assert tokens.from_answer({"usage": usage}) == TokenUsage(100, 64, 7)


def test_moonshot_reports_in_the_last_choice() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "cached_tokens": 64}
    chunk = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage}]}
    assert tokens.from_answer(chunk) == TokenUsage(100, 64, 7)


def test_groq_reports_in_a_field_of_its_own() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "queue_time": 0.1}
    chunk = {"choices": [], "x_groq": {"id": "req_1", "usage": usage}}
    assert tokens.from_answer(chunk) == TokenUsage(100, 0, 7)


@pytest.mark.parametrize(
    ("counts", "more", "expected"),
    [
        ({"input_tokens": 9, "output_tokens": 4}, {}, TokenUsage(9, 0, 4)),
        (
            {"input_tokens": 9, "output_tokens": 4, "cache_read_input_tokens": 20},
            {},
            TokenUsage(29, 20, 4),
        ),
        (
            {
                "input_tokens": 9,
                "output_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 0},
                "input_tokens_details": {"cached_tokens": 5},
            },
            {},
            TokenUsage(9, 5, 4),
        ),
        (
            {"prompt_tokens": 9, "prompt_cache_hit_tokens": 0, "cached_tokens": 5},
            {},
            TokenUsage(9, 5, 0),
        ),
        ({}, {"timings": {"prompt_n": 9, "cache_n": 5, "predicted_n": 4}}, TokenUsage(14, 5, 4)),
        ({"total_tokens": 31}, {}, TokenUsage(31, 0, 0)),
        (
            {"total_tokens": 13},
            {"timings": {"prompt_n": 9, "predicted_n": 4}},
            TokenUsage(9, 0, 4),
        ),
        ({"input_tokens": 0, "output_tokens": 0}, {}, TokenUsage(0, 0, 0)),
        ({}, {}, TokenUsage(0, 0, 0)),
    ],
)
def test_zeros_in_one_apis_names_do_not_hide_the_counts_in_anothers(
    counts: dict[str, Any], more: dict[str, Any], expected: TokenUsage
) -> None:
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, **counts}
    assert tokens.from_answer({"usage": usage, **more}) == expected


def test_counts_may_be_written_as_floats() -> None:
    answer = {"usage": {"prompt_tokens": 12.0, "completion_tokens": 3.0}}
    assert tokens.from_answer(answer) == TokenUsage(12, 0, 3)


def test_what_a_client_has_sent_and_the_server_repeats_is_no_usage() -> None:
    echoed = {"usage": {"input_tokens": 0, "output_tokens": 0}}
    answer = {"tools": [{"parameters": echoed}], "metadata": echoed}
    assert tokens.from_answer(answer) is None
    assert tokens.from_answer(
        {"response": {**answer, "usage": {"input_tokens": 5, "output_tokens": 2}}}
    ) == TokenUsage(5, 0, 2)


def test_the_first_event_of_an_anthropic_stream_has_its_usage_in_the_message() -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 12}}}
    assert tokens.from_answer(start) == TokenUsage(12, 0, 0)


def test_an_anthropic_stream_reports_its_prompt_first_and_its_completion_last() -> None:
    first, last = TokenUsage(100, 60, 1), TokenUsage(0, 0, 25)
    assert tokens.merge(first, last) == TokenUsage(100, 60, 25)


def test_one_report_is_all_there_is_where_the_other_is_missing() -> None:
    assert tokens.merge(None, TokenUsage(1, 0, 2)) == TokenUsage(1, 0, 2)
    assert tokens.merge(TokenUsage(1, 0, 2), None) == TokenUsage(1, 0, 2)
    assert tokens.merge(None, None) is None


# --- what is not believed ---------------------------------------------------------------


@pytest.mark.parametrize("count", [-1, 1.5, "12", True, None, MAX_TOKENS + 1, 10**400, []])
def test_a_count_that_cannot_be_one_is_ignored(count: object) -> None:
    assert tokens.from_answer({"usage": {"prompt_tokens": count}}) is None
    assert tokens.from_answer(
        {"usage": {"prompt_tokens": count, "completion_tokens": 3}}
    ) == TokenUsage(0, 0, 3)


def test_more_cached_tokens_than_the_prompt_has_are_not_believed() -> None:
    details = {"cached_tokens": 500}
    answer = {"usage": {"prompt_tokens": 100, "prompt_tokens_details": details}}
    assert tokens.from_answer(answer) == TokenUsage(100, 100, 0)


@pytest.mark.parametrize("answer", [None, [], "usage", 3, {}, {"usage": None}, {"usage": {}}])
def test_an_answer_that_reports_no_tokens_has_no_usage(answer: object) -> None:
    assert tokens.from_answer(answer) is None


@given(ANSWER)
def test_no_answer_is_so_odd_that_it_raises_or_gives_unsound_counts(answer: Any) -> None:
    assert is_sound(tokens.from_answer(answer))


@given(ANSWER, ANSWER)
def test_what_is_merged_is_sound_as_well(first: Any, last: Any) -> None:
    assert is_sound(tokens.merge(tokens.from_answer(first), tokens.from_answer(last)))


# --- bodies -----------------------------------------------------------------------------


@given(ANSWER)
def test_a_whole_body_says_what_its_answer_says(answer: Any) -> None:
    body = json.dumps(answer).encode()
    assert tokens.from_body(body) == tokens.from_answer(json.loads(body))


@given(st.binary(max_size=200))
@example(b'{"usage": {')
@example(b'"usage":{"prompt_tokens":' + b"9" * 5000 + b"}}")
@example(b'"usage":' + b'{"a":' * 100_000)
@example(b'\xff\xfe"usage": {"prompt_tokens": 1}')
def test_no_bytes_are_so_odd_that_they_raise(body: bytes) -> None:
    assert is_sound(tokens.from_body(body))
    assert is_sound(tokens.from_body(b'{"usage": {' + body))


@given(
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.text(max_size=30),
    st.integers(0, 60),
)
def test_the_end_of_a_large_answer_is_enough(
    prompt: int, completion: int, text: str, cut: int
) -> None:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion}
    start = json.dumps({"data": text + "x" * 60})[:-1].encode()
    end = b', "usage": ' + json.dumps(counts).encode() + b', "id": "1"}'
    assert tokens.from_body((start + end)[cut:]) == TokenUsage(prompt, 0, completion)


def test_the_last_usage_of_an_answers_end_counts() -> None:
    end = b'..."usage": {"prompt_tokens": 1}}, "usage": {"prompt_tokens": 2}}'
    assert tokens.from_body(end) == TokenUsage(2, 0, 0)


@pytest.mark.parametrize("cut_off", ['"usage": {"prompt_tok', '"usage": {"type": "object"}'])
def test_a_report_that_is_cut_off_or_is_none_does_not_hide_the_one_before(cut_off: str) -> None:
    part = '..."usage": {"prompt_tokens": 2}}, ' + cut_off
    assert tokens.from_part(part.encode()) == TokenUsage(2, 0, 0)


def test_a_text_that_talks_of_usage_is_not_one() -> None:
    said = json.dumps({"text": 'send {"usage": {"prompt_tokens": 5}}'}).encode()
    assert tokens.from_body(said) is None
    assert tokens.from_body(said[5:]) is None


def test_the_space_in_it_does_not_matter() -> None:
    assert tokens.from_body(b'...,"usage" :\n { "prompt_tokens" : 5 } }') == TokenUsage(5, 0, 0)
    assert tokens.from_body(b'...,"timings":{"prompt_n":5}}') == TokenUsage(5, 0, 0)

"""The shipped config.yaml with its real models, through the official SDK."""

from __future__ import annotations

import math
from collections.abc import Iterator

import anthropic
import openai
import pytest
import requests

from tests.support.program import Program

pytestmark = pytest.mark.demo

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
COLD_START = 300.0  # seconds, on a machine that is busy


@pytest.fixture(scope="module")
def client(demo: Program) -> Iterator[openai.OpenAI]:
    http = openai.DefaultHttpxClient(trust_env=False, timeout=COLD_START)
    with openai.OpenAI(
        base_url=f"{demo.url}/v1", api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


@pytest.fixture(scope="module")
def names(demo: Program) -> dict[str, str]:
    """The shipped model of each mode."""
    return {entry["mode"]: entry["id"] for entry in demo.get("/v1/models").json()["data"]}


def test_a_real_model_chats(client: openai.OpenAI, names: dict[str, str]) -> None:
    answer = client.chat.completions.create(model=names["Chat"], messages=QUESTION, max_tokens=32)
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.prompt_tokens > 0
    assert 0 < answer.usage.completion_tokens <= 32


def test_a_real_model_streams_the_same_chat(client: openai.OpenAI, names: dict[str, str]) -> None:
    stream = client.chat.completions.create(
        model=names["Chat"], messages=QUESTION, max_tokens=32, stream=True
    )
    chunks = [chunk.choices[0] for chunk in stream]
    assert "Paris" in "".join(choice.delta.content or "" for choice in chunks)
    assert len(chunks) > 3
    assert chunks[-1].finish_reason in ("stop", "length")


def test_a_real_model_answers_in_openais_newer_api(
    client: openai.OpenAI, names: dict[str, str]
) -> None:
    asked = {"model": names["Chat"], "input": QUESTION[0]["content"], "max_output_tokens": 32}
    answer = client.responses.create(**asked)
    assert "Paris" in answer.output_text
    assert answer.usage.input_tokens > 0
    *_, last = client.responses.create(**asked, stream=True)
    assert last.type == "response.completed"
    assert "Paris" in last.response.output_text


def test_a_real_model_answers_in_anthropics_api(demo: Program, names: dict[str, str]) -> None:
    http = anthropic.DefaultHttpxClient(trust_env=False, timeout=COLD_START)
    with anthropic.Anthropic(
        base_url=demo.url, api_key="none", max_retries=0, http_client=http
    ) as client:
        asked = {"model": names["Chat"], "messages": QUESTION}
        answer = client.messages.create(**asked, max_tokens=32)
        assert "Paris" in answer.content[0].text
        assert answer.usage.output_tokens > 0
        with client.messages.stream(**asked, max_tokens=32) as stream:
            assert "Paris" in "".join(stream.text_stream)
        assert client.messages.count_tokens(**asked).input_tokens > 0
    (row, *_) = [
        row
        for row in demo.get("/api/usage/requests").json()["requests"]
        if row["endpoint"] == "/v1/messages" and row["streamed"]
    ]
    assert row["status"] == 200
    assert row["completion_tokens"] > 0
    assert not row["estimated"]


def test_a_real_model_goes_on_with_a_text(client: openai.OpenAI, names: dict[str, str]) -> None:
    prompt = "One, two, three, four,"
    answer = client.completions.create(
        model=names["Base"], prompt=prompt, max_tokens=8, temperature=0
    )
    assert "five" in answer.choices[0].text


def test_real_embeddings_tell_near_texts_from_far_ones(
    client: openai.OpenAI, names: dict[str, str]
) -> None:
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "x = y ** 2 / 7;"]
    data = client.embeddings.create(model=names["Embedding"], input=texts).data
    cat, kitten, code = (entry.embedding for entry in data)
    assert math.isclose(similarity(cat, cat), 1, rel_tol=1e-6)
    assert similarity(cat, kitten) > similarity(cat, code)


def similarity(one: list[float], other: list[float]) -> float:
    """The cosine of two vectors."""
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


def test_a_real_reranker_scores_every_document(demo: Program, names: dict[str, str]) -> None:
    documents = ["Paris is in France.", "Cats sleep.", "Berlin is in Germany."]
    body = {"model": names["Reranker"], "query": "Where is Paris?", "documents": documents}
    answer = demo.post("/v1/rerank", body, timeout=COLD_START)
    assert answer.status_code == requests.codes.ok, answer.text
    results = answer.json()["results"]
    assert sorted(result["index"] for result in results) == [0, 1, 2]
    assert all(math.isfinite(result["relevance_score"]) for result in results)


def test_the_models_are_ready_now_and_say_what_they_took(demo: Program) -> None:
    views = demo.get("/api/models").json()["models"]
    assert {view["state"] for view in views} == {"ready"}
    assert all(view["start_seconds"] > 0 for view in views)

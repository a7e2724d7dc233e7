"""A model that is proposed for the demo's llama.cpp runs, in each mode that it can have."""

from __future__ import annotations

import pytest

from manager.engines import BY_ID, propose
from manager.gguf import read_model
from scripts.demo_server import MODEL
from tests.support.fixtures import Launch
from tests.support.program import needs_demo_model

pytestmark = pytest.mark.demo


@pytest.mark.parametrize(
    ("mode", "path", "body"),
    [
        ("Chat", "/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("Base", "/v1/completions", {"prompt": "Once"}),
        ("Embedding", "/v1/embeddings", {"input": "a text"}),
        ("Reranker", "/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
    ],
)
def test_what_is_proposed_for_the_demos_engine_answers(
    launch: Launch, mode: str, path: str, body: dict[str, object]
) -> None:
    needs_demo_model()
    proposal = propose(read_model(MODEL), BY_ID["demo"], context=2048, mode=mode)
    program = launch({proposal.name: proposal.entry})
    answer = program.post(path, {"model": proposal.name, "max_tokens": 4, **body})
    assert answer.status_code == 200, answer.text

"""What a model's server says of its model is understood as each kind of server says it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.config.settings import Model as Settings
from manager.models.facts import ServerFacts, learn, read_facts
from tests.support.played_machine import played_server

VLLM = {"object": "list", "data": [{"id": "Qwen/Qwen2.5-7B", "max_model_len": 32768}]}
LLAMA = {"data": [{"id": "q", "owned_by": "llamacpp", "meta": {"n_ctx_train": 8192}}]}
PROPS = {
    "default_generation_settings": {"n_ctx": 2048},
    "modalities": {"vision": True, "audio": False},
    "chat_template": "{{ '<think>' }}",
    "chat_template_caps": {"supports_tools": True},
}
OURS = {
    "data": [
        {"id": "a", "context_length": 10, "capabilities": ["chat", "vision"]},
        {"id": "b", "context_length": 20, "capabilities": ["chat", "tools"]},
    ]
}


def test_vllm_says_how_long_a_context_is() -> None:
    assert read_facts(VLLM, None, "other-name") == ServerFacts(32768)


def test_llama_cpp_says_the_context_of_one_request_and_what_the_model_can_do() -> None:
    assert read_facts(LLAMA, PROPS, "q") == ServerFacts(2048, ("vision", "tools", "reasoning"))


def test_of_several_models_the_one_that_is_served_counts() -> None:
    assert read_facts(OURS, None, "b") == ServerFacts(20, ("tools",))
    assert read_facts(OURS, None, "c") == ServerFacts()


@pytest.mark.parametrize("length", [0, -1, True, "2048", 1 << 41, 1.5, None])
def test_a_length_that_is_none_is_not_taken(length: Any) -> None:
    assert read_facts({"data": [{"id": "m", "max_model_len": length}]}, None, "m") == ServerFacts()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["data", "id", "meta", "n_ctx", "capabilities", "modalities", "vision"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_whatever_a_server_answers_is_read(models: Any, props: Any) -> None:
    facts = read_facts(models, props, "m")
    assert ServerFacts.from_json(facts.to_json()) == facts


def test_a_fault_while_a_server_is_asked_leaves_its_model_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    known = ServerFacts(2048)
    server = played_server(Settings("M"))  # without an upstream that could be asked
    shared: Any = None
    assert learn(server, shared, known, lambda: False) is known
    assert "asking the server of M failed" in caplog.text

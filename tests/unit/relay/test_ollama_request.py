"""What Ollama's clients ask for, as OpenAI's API has it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.errors import ApiError
from manager.relay import ollama

HI = [{"role": "user", "content": "Hi"}]
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
PNG, JPEG = "iVBORw0KGgo=", "/9j/4AAQSkZJRg=="
WEATHER = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}


def chat(**fields: Any) -> dict[str, Any]:
    """The body for a chat that asks for this."""
    body = ollama.from_chat({"messages": HI, **fields}).body
    assert body is not None
    return body


def generate(*, has_chat: bool = True, **fields: Any) -> ollama.OpenAIRequest:
    return ollama.from_generate({"prompt": "Hi", **fields}, has_chat=has_chat)


def message(**fields: Any) -> dict[str, Any]:
    one: dict[str, Any] = chat(messages=[{"role": "user", "content": "Hi", **fields}])["messages"][
        0
    ]
    return one


# --- chats --------------------------------------------------------------------------------


def test_a_chat_is_one_of_openais_and_streams_unless_it_says_no() -> None:
    asked = {"model": "m", "messages": HI, "keep_alive": "5m", "unknown": 1}
    assert ollama.from_chat(asked) == ollama.OpenAIRequest(CHAT, {"messages": HI, "stream": True})
    assert chat(stream=False) == {"messages": HI, "stream": False}
    assert chat(stream=None)["stream"] is True


def test_without_messages_nothing_is_asked_but_to_load_the_model() -> None:
    for asked in ({}, {"messages": []}, {"messages": None}):
        assert ollama.from_chat(asked) == ollama.OpenAIRequest(CHAT, None)


def test_options_have_the_names_that_servers_know() -> None:
    options = {
        "temperature": 0.0,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.1,
        "seed": 42,
        "stop": ["\n"],
        "repeat_penalty": 1.2,
        "presence_penalty": 1.5,
        "frequency_penalty": 1.0,
        "num_predict": 100,
    }
    named = {name: value for name, value in options.items() if name != "num_predict"}
    asked = {"messages": HI, "stream": True, "max_tokens": 100, "repetition_penalty": 1.2}
    assert chat(options=options) == asked | named


def test_options_for_a_launch_and_those_without_a_value_are_left_out() -> None:
    options = {"num_ctx": 8192, "num_gpu": 1, "num_thread": 8, "seed": None, "stop": []}
    assert chat(options=options) == {"messages": HI, "stream": True}
    assert chat(options=None) == {"messages": HI, "stream": True}


@pytest.mark.parametrize("most", [-1, -2, 0, None])
def test_as_many_tokens_as_there_are_is_no_limit(most: int | None) -> None:
    assert "max_tokens" not in chat(options={"num_predict": most})


def test_the_format_is_any_json_or_json_by_a_schema() -> None:
    assert chat(format="json")["response_format"] == {"type": "json_object"}
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    wanted = chat(format=schema)["response_format"]
    assert wanted == {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    assert "response_format" not in chat(format="")


def test_thinking_is_switched_by_the_template_and_its_effort_by_openais_name() -> None:
    assert chat(think=False)["chat_template_kwargs"] == {"enable_thinking": False}
    assert chat(think=True)["chat_template_kwargs"] == {"enable_thinking": True}
    asked = chat(think="high")
    assert asked["reasoning_effort"] == "high"
    assert asked["chat_template_kwargs"] == {"enable_thinking": True, "reasoning_effort": "high"}
    assert set(chat(think=None)) == {"messages", "stream"}
    assert ollama.hides_thinking({"think": False})
    assert not ollama.hides_thinking({"think": None})


def test_images_are_parts_of_the_message_by_their_own_type() -> None:
    assert message(images=[PNG, JPEG])["content"] == [
        {"type": "text", "text": "Hi"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{JPEG}"}},
    ]
    assert len(message(content="", images=[PNG])["content"]) == 1
    assert message(images=[])["content"] == "Hi"


def test_what_the_model_thought_goes_back_to_it() -> None:
    assert message(role="assistant", thinking="Hm")["reasoning_content"] == "Hm"


def test_tools_are_passed_on_as_they_are() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    assert chat(tools=tools)["tools"] == tools


def test_a_call_has_an_id_by_which_its_result_names_it() -> None:
    asked = chat(
        messages=[
            *HI,
            {"role": "assistant", "content": "", "tool_calls": [WEATHER]},
            {"role": "tool", "tool_name": "weather", "content": "sunny"},
        ]
    )
    call, result = asked["messages"][1:]
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert call["tool_calls"] == [{"id": "call_0", "type": "function", "function": function}]
    assert result == {"role": "tool", "content": "sunny", "tool_call_id": "call_0"}


def test_results_are_of_the_calls_that_they_name_else_of_the_first_without_one() -> None:
    names = ("weather", "time", "weather")
    calls = [{"function": {"name": name, "arguments": {}}} for name in names]
    results = [{"role": "tool", "content": "", "tool_name": name} for name in ("time", "weather")]
    asked = chat(
        messages=[
            {"role": "assistant", "tool_calls": calls},
            *results,
            {"role": "tool", "content": ""},
        ]
    )
    ids = [one["tool_call_id"] for one in asked["messages"][1:]]
    assert ids == ["call_1", "call_0", "call_2"]


def test_an_id_that_the_client_gives_is_kept() -> None:
    asked = chat(
        messages=[
            {"role": "assistant", "tool_calls": [{"id": "mine", **WEATHER}]},
            {"role": "tool", "content": "", "tool_call_id": "mine"},
        ]
    )
    assert asked["messages"][0]["tool_calls"][0]["id"] == "mine"
    assert asked["messages"][1]["tool_call_id"] == "mine"


# --- texts --------------------------------------------------------------------------------


def test_a_prompt_is_a_users_message_behind_the_systems() -> None:
    asked = generate(system="Be brief", images=[PNG], stream=False)
    assert asked.path == CHAT
    assert asked.body is not None
    system, user = asked.body["messages"]
    assert system == {"role": "system", "content": "Be brief"}
    assert [part["type"] for part in user["content"]] == ["text", "image_url"]
    assert generate().body == {"messages": HI, "stream": True}


def test_a_raw_prompt_and_one_for_a_base_model_go_as_they_are() -> None:
    asked = ollama.OpenAIRequest(COMPLETIONS, {"prompt": "Hi", "stream": True})
    assert generate(raw=True) == asked
    assert generate(has_chat=False) == asked


def test_a_base_model_gets_the_systems_text_in_front_and_what_is_to_follow() -> None:
    asked = generate(has_chat=False, system="Be brief", suffix="return", options={"seed": 1})
    assert asked.body == {
        "prompt": "Be brief\n\nHi",
        "suffix": "return",
        "seed": 1,
        "stream": True,
    }


def test_without_a_prompt_nothing_is_asked_but_to_load_the_model() -> None:
    assert generate(prompt="") == ollama.OpenAIRequest(CHAT, None)
    assert generate(prompt=None, has_chat=False) == ollama.OpenAIRequest(COMPLETIONS, None)


# --- vectors ------------------------------------------------------------------------------


def test_texts_to_embed_are_passed_on() -> None:
    for given_input in ("a", ["a", "b"]):
        asked = ollama.from_embed({"model": "m", "input": given_input, "truncate": True})
        assert asked == ollama.OpenAIRequest(EMBEDDINGS, {"input": given_input})
    assert ollama.from_embed({"input": "a", "dimensions": 8}).body == {
        "input": "a",
        "dimensions": 8,
    }
    assert ollama.from_embeddings({"prompt": "a"}).body == {"input": "a"}


def test_without_a_text_to_embed_the_model_is_only_loaded() -> None:
    for given_input in ("", [], None):
        assert ollama.from_embed({"input": given_input}).body is None
    assert ollama.from_embeddings({"prompt": ""}).body is None


# --- keep_alive ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, 0.0, "0", "0s", "0m", "0h0m0s", "0.0s", "-0"])
def test_no_time_to_keep_it_alive_asks_to_unload(value: object) -> None:
    assert ollama.asks_to_unload({"keep_alive": value})


@pytest.mark.parametrize("value", [None, -1, 1, 0.5, "5m", "-1", "10s", "0s5ms", "", "s", False])
def test_any_other_time_does_not(value: object) -> None:
    assert not ollama.asks_to_unload({"keep_alive": value})


# --- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "images": [1]}]}, "messages[0].images"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"tools": {}}, "tools"),
        ({"stream": "no"}, "stream"),
        ({"format": 1}, "format"),
        ({"think": 1}, "think"),
        ({"options": []}, "options"),
        ({"options": {"num_predict": "many"}}, "options"),
        ({"options": {"num_predict": True}}, "options"),
    ],
)
def test_what_is_of_another_kind_is_refused_by_its_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ApiError) as refused:
        chat(**fields)
    assert (refused.value.status, refused.value.param) == (400, name)
    assert name in refused.value.message


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"suffix": "return"}, "suffix"),
        ({"template": "{{ .Prompt }}"}, "template"),
        ({"context": [1, 2]}, "context"),
        ({"raw": True, "system": "Be brief"}, "system"),
        ({"raw": True, "images": [PNG]}, "images"),
        ({"has_chat": False, "images": [PNG]}, "images"),
        ({"raw": 1}, "raw"),
    ],
)
def test_what_would_change_the_text_and_cannot_be_passed_on_is_refused(
    fields: dict[str, Any], name: str
) -> None:
    with pytest.raises(ApiError) as refused:
        generate(**fields)
    assert (refused.value.status, refused.value.param) == (400, name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "images", "tool_calls", "function", "name", "seed"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["messages", "prompt", "input", "options", "format", "think", "tools", "keep_alive", "raw"]
    ),
    JSON,
)


@given(FIELDS, st.booleans())
def test_whatever_is_asked_is_translated_or_refused(asked: dict[str, Any], has_chat: bool) -> None:
    def generate(fields: dict[str, Any]) -> ollama.OpenAIRequest:
        return ollama.from_generate(fields, has_chat=has_chat)

    ollama.asks_to_unload(asked)
    for translate in (ollama.from_chat, generate, ollama.from_embed, ollama.from_embeddings):
        with contextlib.suppress(ApiError):
            json.dumps(translate(asked).body)

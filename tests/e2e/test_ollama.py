"""Ollama's API with its official client: on the program's port, and alone on a second one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import ollama
import pytest
import requests

from tests.support.fixtures import Launch
from tests.support.program import PATIENCE, Program, eventually, fake, free_port, plain
from tests.support.usage_rows import query

HI = [{"role": "user", "content": "Hi"}]
SAYS = " token0 token1 token2"
PIXEL = bytes.fromhex("89504e470d0a1a0a")
VECTOR = [0.5, 0.25, -0.125, 0.0]  # of the fake upstream
BREAKS = {"fail": "close", "fail_at": "inside", "after": 2, "chunks": 5}
FAILS = {"status": 500}
ENDLESS = {"chunks": 5000, "interval": 0.05}
LONG_STREAM = {"chunks": 40, "interval": 0.02}


def answers_as(behaviour: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A model whose server answers each request like that."""
    return fake(request={"set": {"fake": behaviour}}, **settings)


def says(*events: dict[str, Any]) -> dict[str, Any]:
    """A model whose server says this in each stream."""
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return plain(request={"set": {"say": text, "kind": "text/event-stream"}})


def delta(finish_reason: str | None = None, **said: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": said, "finish_reason": finish_reason}]}


def call(arguments: str, **named: str) -> dict[str, Any]:
    function = {**named, "arguments": arguments}
    return delta(tool_calls=[{"index": 0, "id": "call_1", "function": function}])


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    called = (call('{"city"', name="weather"), call(': "Paris"}'), delta("tool_calls"))
    models = {
        "Calls": says(delta(reasoning_content="Hm"), delta(content="Wait"), *called),
        "Chat": fake(aliases=["talk"]),
        "Base": fake(mode="Base"),
        "Embedding": fake(mode="Embedding"),
        "Reranker": fake(mode="Reranker"),
        "Silent on usage": fake("--no-ask-usage", ask_usage=False),
        "Breaks": answers_as(BREAKS),
        "Fails": answers_as(FAILS),
        "Endless": answers_as(ENDLESS),
        "Unloaded": answers_as(LONG_STREAM),
        "Hidden": fake(unlisted=True),
        "Told": fake(context_length=4096, capabilities=["chat", "tools", "reasoning"]),
    }
    return launch_once(models, ollama_port=free_port())


@pytest.fixture(scope="module")
def guarded(launch_once: Launch) -> Program:
    """One that asks for a key."""
    price = {"tiers": [{"input": "1", "output": "2"}]}
    endless = answers_as(ENDLESS, price=price)
    models = {"Chat": fake(price=price), "Other": fake(), "Own": fake(), "Endless": endless}
    return launch_once(models, require_key=True, ollama_port=free_port())


def alone(program: Program) -> str:
    """The address of the port that is for Ollama's clients alone."""
    line = next(line for line in program.output.splitlines() if line.startswith("Ollama's API"))
    return line.split()[-1]


def client_of(address: str, key: str | None = None) -> ollama.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else None
    return ollama.Client(address, headers=headers, timeout=PATIENCE, trust_env=False)


@pytest.fixture(params=["the program's port", "a port of its own"])
def client(program: Program, request: pytest.FixtureRequest) -> Iterator[ollama.Client]:
    address = alone(program) if request.param == "a port of its own" else program.url
    with client_of(address) as client:
        yield client


@pytest.fixture
def one(program: Program) -> Iterator[ollama.Client]:
    """A client on the program's port."""
    with client_of(program.url) as client:
        yield client


def refused(call: Any, *arguments: Any, **named: Any) -> ollama.ResponseError:
    """The error that the client raises, of a call or of the stream that it returns."""
    with pytest.raises(ollama.ResponseError) as caught:
        list(call(*arguments, **named))
    return caught.value


def has_row(program: Program, model: str, **wanted: object) -> bool:
    """Whether the model's last row says that; it waits for one that does."""
    names = ", ".join(wanted)
    last = f"SELECT {names} FROM requests WHERE model = '{model}' ORDER BY id DESC LIMIT 1"
    return eventually(lambda: query(program.usage_db, last) == [tuple(wanted.values())])


def last_asked(program: Program, model: str) -> dict[str, Any]:
    """The body that the model's server has got last."""
    asked: dict[str, Any] = json.loads(program.stats(model)["requests"][-1]["body"])
    return asked


# --- what the official client does --------------------------------------------------------


def test_a_chat_streams_and_ends_with_its_tokens(program: Program, client: ollama.Client) -> None:
    *pieces, end = client.chat("Chat", HI, stream=True)
    assert "".join(piece.message.content or "" for piece in pieces) == SAYS
    assert [piece.done for piece in pieces] == [False] * 3
    assert (end.done, end.done_reason) == (True, "stop")
    assert (end.prompt_eval_count, end.eval_count) == (17, 3)
    assert (end.model, end.message.content) == ("Chat", "")
    assert min(end.total_duration or 0, end.eval_duration or 0) > 0
    assert has_row(
        program,
        "Chat",
        endpoint="/api/chat",
        asked_for="Chat",
        streamed=1,
        status=200,
        prompt_tokens=17,
        completion_tokens=3,
        estimated=0,
    )


def test_a_chat_that_is_no_stream_is_one_answer(program: Program, client: ollama.Client) -> None:
    answer = client.chat("talk", HI)
    assert (answer.model, answer.message.content, answer.done) == ("talk", SAYS, True)
    assert (answer.prompt_eval_count, answer.eval_count) == (17, 3)
    assert has_row(program, "Chat", asked_for="talk", streamed=0, completion_tokens=3)


def test_a_name_with_the_tag_latest_is_the_one_without_it(client: ollama.Client) -> None:
    assert client.chat("Chat:latest", HI).model == "Chat:latest"
    assert client.show("Chat:latest").capabilities == ["completion"]
    assert refused(client.chat, "Chat:7b", HI).status_code == 404


def test_a_text_comes_of_a_chat_model_and_of_a_base_model(client: ollama.Client) -> None:
    for model in ("Chat", "Base"):
        assert client.generate(model, "Hi").response == SAYS
        *pieces, end = client.generate(model, "Hi", stream=True)
        assert "".join(piece.response or "" for piece in pieces) == SAYS
        assert (end.done_reason, end.eval_count) == ("stop", 3)


def test_vectors_come_of_texts(program: Program, client: ollama.Client) -> None:
    answer = client.embed("Embedding", ["a", "b"])
    assert [list(vector) for vector in answer.embeddings] == [VECTOR, VECTOR]
    assert answer.prompt_eval_count == 17
    assert has_row(program, "Embedding", endpoint="/api/embed", prompt_tokens=17)
    assert list(client.embeddings("Embedding", "a").embedding) == VECTOR
    assert has_row(program, "Embedding", endpoint="/api/embeddings", prompt_tokens=17)


def test_tools_images_formats_and_options_reach_the_models_server(
    program: Program, one: ollama.Client
) -> None:
    tool = {"type": "function", "function": {"name": "weather", "description": "of a city"}}
    messages = [
        {"role": "user", "content": "What is this?", "images": [PIXEL]},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Paris"}}}],
        },
        {"role": "tool", "tool_name": "weather", "content": "sunny"},
    ]
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    options = {"num_predict": 9, "num_ctx": 512, "stop": ["x"]}
    one.chat("Chat", messages, tools=[tool], format=schema, options=options, think=True)
    asked = last_asked(program, "Chat")
    user, assistant, result = asked["messages"]
    assert user["content"][1]["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="
    assert assistant["tool_calls"][0]["id"] == result["tool_call_id"]
    assert asked["tools"][0]["function"]["name"] == "weather"
    assert asked["response_format"]["json_schema"]["schema"] == schema
    assert (asked["max_tokens"], asked["stop"], asked["model"]) == (9, ["x"], "Chat")
    assert asked["chat_template_kwargs"] == {"enable_thinking": True}
    assert "num_ctx" not in asked


def test_what_the_model_thinks_and_which_tools_it_calls_is_told_apart(one: ollama.Client) -> None:
    *pieces, end = one.chat("Calls", HI, stream=True)
    thought, said, called = (piece.message for piece in pieces)
    assert (thought.thinking, thought.content, said.content) == ("Hm", "", "Wait")
    (made,) = called.tool_calls or ()
    assert (made.function.name, made.function.arguments) == ("weather", {"city": "Paris"})
    assert end.done_reason == "stop"
    quiet = one.chat("Calls", HI, stream=True, think=False)
    assert [piece.message.thinking for piece in quiet] == [None] * 3


def test_a_server_that_is_not_asked_for_usage_is_not_asked_for_it(
    program: Program, one: ollama.Client
) -> None:
    *_, end = one.chat("Silent on usage", HI, stream=True)
    assert (end.done, end.eval_count) == (True, None)
    assert has_row(program, "Silent on usage", estimated=1)


# --- lists --------------------------------------------------------------------------------


def test_the_list_has_what_ollamas_clients_can_use(client: ollama.Client) -> None:
    models = {model.model: model for model in client.list().models}
    assert {"Chat", "Base", "Embedding"} < models.keys()
    assert not {"talk", "Hidden", "Reranker"} & models.keys()
    digests = [model.digest or "" for model in models.values()]
    assert len(set(digests)) == len(models)
    assert {len(digest) for digest in digests} == {64}
    assert client.show("Embedding").capabilities == ["embedding"]
    assert client.show("Hidden").capabilities == ["completion"]


def test_what_is_known_of_a_model_is_shown_by_ollamas_names(client: ollama.Client) -> None:
    shown = client.show("Told")
    assert shown.capabilities == ["completion", "tools", "thinking"]
    information = shown.modelinfo or {}
    architecture = information["general.architecture"]
    assert information[f"{architecture}.context_length"] == 4096


def test_what_runs_is_listed_until_when_it_will(program: Program, client: ollama.Client) -> None:
    program.command("Base", "start")
    running = {model.model: model for model in client.ps().models}
    assert running["Base"].expires_at is not None
    program.command("Base", "stop")
    assert "Base" not in {model.model for model in client.ps().models}


def test_there_is_a_version_and_somebody(program: Program) -> None:
    for address in (program.url, alone(program)):
        assert requests.get(f"{address}/api/version", timeout=PATIENCE).json() == {
            "version": "0.12.0"
        }
    there = requests.get(f"{alone(program)}/", timeout=PATIENCE)
    assert (there.status_code, there.text) == (200, "Ollama is running")
    assert requests.head(f"{alone(program)}/", timeout=PATIENCE).status_code == 200


def test_curl_needs_no_content_type(program: Program) -> None:
    body = json.dumps({"model": "Chat", "messages": HI})
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for address in (program.url, alone(program)):
        answer = requests.post(f"{address}/api/chat", body, headers=form, timeout=PATIENCE)
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["done"] for line in lines] == [False] * 3 + [True]
    headers = dict(program.stats("Chat")["requests"][-1]["headers"])
    assert headers["Content-Type"] == "application/json"


# --- errors -------------------------------------------------------------------------------


def test_an_unknown_model_and_a_wrong_endpoint_are_errors_of_the_client(
    client: ollama.Client,
) -> None:
    for stream in (False, True):
        error = refused(client.chat, "Chta", HI, stream=stream)
        assert error.status_code == 404
        assert "Did you mean Chat" in error.error
    assert refused(client.show, "Chta").status_code == 404
    assert refused(client.embed, "Chat", "a").status_code == 400
    assert refused(client.generate, "Chat", "Hi", suffix="ho").status_code == 400


def test_models_are_neither_fetched_nor_made_nor_deleted(client: ollama.Client) -> None:
    for error in (
        refused(client.pull, "llama3.2"),
        refused(client.pull, "llama3.2", stream=True),
        refused(client.push, "llama3.2"),
        refused(client.create, "mine", from_="llama3.2"),
        refused(client.copy, "Chat", "Copy"),
        refused(client.delete, "Chat"),
        refused(client.create_blob, __file__),
    ):
        assert error.status_code == 501
        assert "config.yaml" in error.error


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_of_the_models_server_says_why(one: ollama.Client, stream: bool) -> None:
    error = refused(one.chat, "Fails", HI, stream=stream)
    assert (error.status_code, error.error) == (500, "as the test asked")


def test_a_server_that_dies_in_the_middle_ends_the_stream_with_an_error(
    program: Program, one: ollama.Client
) -> None:
    stream = one.chat("Breaks", HI, stream=True)
    assert [next(stream).message.content for _ in range(2)] == [" token0", " token1"]
    assert "in mid-answer" in refused(lambda: stream).error
    assert has_row(program, "Breaks", endpoint="/api/chat", status=502, streamed=1)


def test_a_client_that_disconnects_releases_the_model(program: Program, one: ollama.Client) -> None:
    stream = one.chat("Endless", HI, stream=True)
    next(stream)
    program.becomes("Endless", in_flight=1)
    stream.close()
    program.becomes("Endless", in_flight=0)
    eventually(lambda: program.stats("Endless")["open"] == 0)
    assert has_row(program, "Endless", endpoint="/api/chat", status=499)


# --- keep_alive ---------------------------------------------------------------------------


def test_nothing_but_a_model_is_asked_and_it_is_loaded(
    program: Program, one: ollama.Client
) -> None:
    program.command("Chat", "stop")
    assert one.chat("Chat").done_reason == "load"
    program.becomes("Chat", state="ready", in_flight=0)
    answer = one.generate("Chat", keep_alive=0)
    assert (answer.done_reason, answer.response) == ("unload", "")
    program.becomes("Chat", state="stopped")
    assert one.generate("Chat", keep_alive=0).done_reason == "unload"
    assert program.model("Chat")["state"] == "stopped"
    assert has_row(program, "Chat", endpoint="/api/generate", status=200, estimated=0)


def test_a_model_is_unloaded_behind_the_answer_that_asks_for_it(
    program: Program, one: ollama.Client
) -> None:
    *_, end = one.chat("Unloaded", HI, stream=True, keep_alive="0s")
    assert end.done
    program.becomes("Unloaded", state="stopped")
    one.chat("Unloaded", HI, keep_alive="5m")
    assert program.model("Unloaded")["state"] == "ready"


def test_who_shares_a_model_does_not_unload_it_and_who_does_not_does(guarded: Program) -> None:
    with (
        client_of(guarded.url, guarded.add_key("ann")) as ann,
        client_of(guarded.url, guarded.add_key("eve")) as eve,
    ):
        eve.chat("Other", HI)
        ann.chat("Other", HI, keep_alive=0)
        assert ann.generate("Other", keep_alive=0).done_reason == "load"
        assert guarded.becomes("Other", in_flight=0)["state"] == "ready"
        ann.chat("Own", HI, keep_alive=0)
        guarded.becomes("Own", state="stopped")


# --- keys ---------------------------------------------------------------------------------


def test_without_a_key_neither_port_answers_while_keys_are_asked_for(guarded: Program) -> None:
    for address in (guarded.url, alone(guarded)):
        for key in (None, "sk-llm-" + "A" * 43):
            with client_of(address, key) as client:
                for error in (
                    refused(client.list),
                    refused(client.ps),
                    refused(client.show, "Chat"),
                    refused(client.chat, "Chat", HI),
                    refused(client.chat, "Chat", HI, stream=True),
                    refused(client.generate, "Chat", keep_alive=0),
                    refused(client.pull, "llama3.2"),
                ):
                    assert error.status_code == 401
                    assert "API key" in error.error


def test_the_port_of_its_own_has_nothing_else(guarded: Program) -> None:
    headers = {"Authorization": f"Bearer {guarded.local_token}"}
    for path in (
        *("/v1/models", "/models", "/health", "/login", "/metrics", "/api/models", "/api/keys"),
        *(
            "/api/config/text",
            "/api/tags/",
            "/api/chat/../keys",
            "/static/x",
            "/openapi.json",
        ),
    ):
        for method in ("GET", "POST", "OPTIONS"):
            answer = requests.request(
                method, alone(guarded) + path, headers=headers, timeout=PATIENCE
            )
            assert answer.status_code == 404, path
            assert list(answer.json()) == ["error"]


def test_a_key_uses_and_sees_the_models_that_it_is_for(guarded: Program) -> None:
    with client_of(alone(guarded), guarded.add_key("narrow", models=["Chat"])) as client:
        assert [model.model for model in client.list().models] == ["Chat"]
        assert client.chat("Chat", HI).message.content == SAYS
        error = refused(client.chat, "Other", HI)
        assert (error.status_code, "may not use" in error.error) == (403, True)
        assert refused(client.show, "Other").status_code == 403


def test_a_budget_that_runs_out_is_an_error_of_the_client(guarded: Program) -> None:
    budget = {"amount": "0.00003", "period": "month"}  # more than one answer, less than two
    with client_of(alone(guarded), guarded.add_key("poor", budget=budget)) as client:
        for _ in range(2):
            assert client.chat("Chat", HI).message.content == SAYS
        for stream in (False, True):
            error = refused(client.chat, "Chat", HI, stream=stream)
            assert error.status_code == 429
            assert "is used up until" in error.error


def test_what_an_answer_may_take_of_a_budget_is_as_much_as_num_predict(guarded: Program) -> None:
    budget = {"amount": "0.001", "period": "month"}
    with client_of(alone(guarded), guarded.add_key("thrifty", budget=budget)) as client:
        for most, is_refused in ((1, False), (1000, True)):
            stream = client.chat("Endless", HI, stream=True, options={"num_predict": most})
            next(stream)
            if is_refused:
                assert refused(client.chat, "Chat", HI).status_code == 429
            else:
                assert client.chat("Chat", HI).message.content == SAYS
            stream.close()

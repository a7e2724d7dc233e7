"""Each endpoint of a model's server, by every path that means it, with the errors of its API."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.support.fixtures import Launch
from tests.support.program import (
    CHAT,
    PATIENCE,
    ROOT,
    Program,
    chat,
    error_of,
    eventually,
    fake,
    plain,
)

MESSAGES = "/v1/messages"
ASKED = {"model": "Model", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}
CHANGES = {"strip": ["seed"], "default": {"max_tokens": 7}, "set": {"top_k": 1}}


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    models = {
        "Model": plain(mode="Chat"),
        "Both": plain(mode="Chat", endpoints=["/v1/embeddings"]),
        "Vectors": plain(mode="Embedding"),
        "Said": plain(mode="Chat", context_length=8192, capabilities=["chat", "vision"]),
        "Changed": plain(
            mode="Chat",
            aliases={"other": None, "strict": {"set": {"top_k": 0, "model": "an-adapter"}}},
            request=CHANGES,
            served_model_name="theirs",
        ),
    }
    return launch_once(models, max_body_mb=1)


@pytest.fixture(scope="module")
def guarded(launch_once: Launch) -> Program:
    price = {"tiers": [{"input": "1", "output": "2"}]}
    models = {"Model": plain(mode="Chat"), "Costly": fake(price=price)}
    return launch_once(models, require_key=True)


@pytest.fixture
def claude(program: Program) -> Iterator[anthropic.Anthropic]:
    http = anthropic.DefaultHttpxClient(trust_env=False, timeout=PATIENCE)
    with anthropic.Anthropic(
        base_url=program.url, api_key="none", max_retries=0, http_client=http
    ) as client:
        yield client


@pytest.mark.parametrize(
    ("asked", "reached"),
    [
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/completions", "/v1/completions"),
        ("/v1/responses", "/v1/responses"),
        ("/responses/input_tokens", "/v1/responses/input_tokens"),
        ("/v1/messages?beta=true", "/v1/messages?beta=true"),
        ("/messages/count_tokens", "/v1/messages/count_tokens"),
        ("/completion", "/completion"),
        ("/v1/infill", "/infill"),
        ("/tokenize/", "/tokenize"),
        ("/v1/detokenize", "/detokenize"),
        ("/apply-template", "/apply-template"),
    ],
)
def test_a_chat_model_answers_all_that_its_server_does(
    program: Program, asked: str, reached: str
) -> None:
    body = {"model": "Model", "content": "Hi", "unknown": [1, {"a": None}]}
    answer = program.post(asked, body)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"path": reached, "asked": body}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/slots?action=erase", 404),
        ("/props", 405),  # it can be read
        ("/lora-adapters", 404),
        ("/v1/load_lora_adapter", 404),
        ("/sleep", 404),
    ],
)
@pytest.mark.parametrize("base", ["", "/v1", "/v1/v1"])
def test_what_steers_a_server_is_not_reached(
    program: Program, path: str, status: int, base: str
) -> None:
    before = program.log("Model").count("asked at")
    answer = program.post(base + path.removeprefix("/v1"), {"model": "Model"})
    assert answer.status_code == status
    assert program.log("Model").count("asked at") == before


def test_a_models_own_endpoints_are_added_to_those_of_its_mode(program: Program) -> None:
    body = {"model": "Both", "input": "Hi"}
    assert program.post("/v1/embeddings", body).json() == {"path": "/v1/embeddings", "asked": body}
    refused = program.post("/v1/embeddings", {**body, "model": "Model"})
    assert error_of(refused)["code"] == "endpoint_not_supported"
    listed = {one["id"]: one["endpoints"] for one in program.get("/v1/models/").json()["data"]}
    assert listed["Model"][0] == CHAT
    assert MESSAGES in listed["Model"]
    assert listed["Both"] == [*listed["Model"], "/v1/embeddings"]


def test_clients_learn_what_a_model_can_do(program: Program) -> None:
    listed = {one["id"]: one for one in program.get("/v1/models").json()["data"]}
    assert listed["Both"]["capabilities"] == ["chat", "completion", "embedding"]
    assert listed["Vectors"]["capabilities"] == ["embedding"]
    assert listed["Said"]["capabilities"] == ["chat", "vision"]
    assert listed["Said"]["context_length"] == listed["Said"]["max_model_len"] == 8192


def test_open_webui_offers_no_chat_with_a_model_that_has_none(program: Program) -> None:
    # As its model selector filters what a provider lists.
    listed = program.get("/v1/models").json()["data"]
    offered = [
        one["id"] for one in listed if not one.get("info", {}).get("meta", {}).get("hidden", False)
    ]
    assert offered == ["Model", "Both", "Said", "Changed"]


def test_requests_are_changed_as_the_config_says(program: Program) -> None:
    def reaches(**fields: Any) -> dict[str, Any]:
        asked: dict[str, Any] = program.post(CHAT, chat("other", **fields)).json()["asked"]
        assert asked.pop("model") == "theirs"
        return {name: value for name, value in asked.items() if name not in ("messages", "fake")}

    assert reaches() == {"max_tokens": 7, "top_k": 1}
    assert reaches(seed=3, max_tokens=1, top_k=9, x=2) == {"max_tokens": 1, "top_k": 1, "x": 2}


def test_a_name_of_a_model_may_stand_for_a_request_of_its_own(program: Program) -> None:
    asked = program.post(CHAT, chat("strict", seed=3, top_k=9)).json()["asked"]
    assert (asked["model"], asked["top_k"], asked["max_tokens"]) == ("an-adapter", 0, 7)
    assert "seed" not in asked


def test_anthropics_sdk_lists_the_models(claude: anthropic.Anthropic) -> None:
    page = claude.models.list(limit=1)
    assert [model.id for model in page] == ["Model", "Both", "Vectors", "Said", "Changed"]
    assert (page.has_more, page.first_id, page.last_id) == (False, "Model", "Changed")
    one = claude.models.retrieve("other")
    assert (one.type, one.id, one.display_name) == ("model", "other", "other")
    assert one.created_at.tzinfo is not None


def test_anthropics_sdk_raises_its_own_errors(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        claude.messages.create(**{**ASKED, "model": "Modl"})
    assert unknown.value.body["error"]["type"] == "not_found_error"
    assert "Model" in unknown.value.body["error"]["message"]
    with pytest.raises(anthropic.APIStatusError) as large:
        claude.messages.create(**{**ASKED, "system": "x" * (2 << 20)})
    assert large.value.status_code == 413
    assert large.value.body["error"]["type"] == "request_too_large"


def test_each_api_says_in_its_own_shape_that_a_key_is_needed(guarded: Program) -> None:
    for path in (MESSAGES, "/messages/count_tokens"):
        refused = guarded.post(path, ASKED)
        assert refused.status_code == 401
        assert refused.json()["type"] == "error"
        assert refused.json()["error"]["type"] == "authentication_error"
    for path in ("/v1/responses", "/tokenize", CHAT):
        refused = guarded.post(path, ASKED)
        assert refused.status_code == 401
        assert error_of(refused)["code"] == "invalid_api_key"


def test_each_api_says_in_its_own_shape_that_a_budget_is_spent(guarded: Program) -> None:
    budget = {"amount": "0.000000001", "period": "day"}
    headers = {"Authorization": f"Bearer {guarded.add_key('poor', budget=budget)}"}
    assert guarded.post(CHAT, chat("Costly"), headers=headers).status_code == 200

    def refusal(path: str) -> dict[str, Any]:
        refused = guarded.post(path, {**ASKED, "model": "Costly"}, headers=headers)
        assert (refused.status_code, "Retry-After" in refused.headers) == (429, True)
        found: dict[str, Any] = refused.json()
        return found

    for path in (CHAT, "/v1/completions", "/v1/responses", "/completion"):
        assert refusal(path)["error"]["code"] == "budget_exceeded"
    said = refusal(MESSAGES)
    assert (said["type"], said["error"]["type"]) == ("error", "rate_limit_error")
    assert "budget" in refusal("/api/chat")["error"]


def test_a_key_is_taken_as_each_api_sends_it(guarded: Program) -> None:
    command = [sys.executable, "-m", "commands", "keys", "add", "one", "--data-dir", guarded.data]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (secret,) = [word for word in done.stdout.split() if "k-llm-" in word]

    def is_let_in(headers: dict[str, str]) -> bool:
        return guarded.post(MESSAGES, ASKED, headers=headers).status_code == 200

    for headers in ({"x-api-key": secret}, {"Authorization": f"Bearer {secret}"}):
        eventually(lambda headers=headers: is_let_in(headers))
    assert not is_let_in({"x-api-key": secret + "x"})


def test_openais_sdk_raises_its_own_errors_of_responses(program: Program) -> None:
    http = openai.DefaultHttpxClient(trust_env=False, timeout=PATIENCE)
    with (
        openai.OpenAI(
            base_url=program.url, api_key="none", max_retries=0, http_client=http
        ) as client,
        pytest.raises(openai.NotFoundError) as unknown,
    ):
        client.responses.create(model="Modl", input="Hi")
    assert unknown.value.code == "model_not_found"

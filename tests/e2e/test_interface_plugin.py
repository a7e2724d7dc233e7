"""The plugin that docs/interface-plugin.md shows works as it says in the running program."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.fixtures import Launch
from tests.support.program import CHAT, ROOT, Program, error_of, needs_demo_model, plain

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"


@pytest.fixture(scope="module")
def program(launch_once: Launch) -> Program:
    demo = {"CPU": {"script_path": str(ROOT / "scripts" / "demo_chat.py")}}
    models = {"Model": plain(mode="Messages"), "Real": {"mode": "Messages", **demo}}
    return launch_once(models, interface_plugin_dir=str(ROOT / "docs"))


def body(model: str = "Model", **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    return {"model": model, "max_tokens": 20, "messages": messages, **fields}


def test_a_model_of_the_examples_mode_is_started_probed_and_served(program: Program) -> None:
    for path in (MESSAGES, COUNT):
        answer = program.post(path, body())
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"path": path, "asked": body()}
    assert program.log("Model").count(f"asked at {MESSAGES}\n") == 2  # the first is the probe


def test_a_chat_with_a_model_of_the_examples_mode_names_its_endpoints(program: Program) -> None:
    answer = program.post(CHAT, body())
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["code"] == "endpoint_not_supported"
    assert MESSAGES in error["message"]


@pytest.mark.demo
def test_a_real_model_speaks_through_the_example(program: Program) -> None:
    needs_demo_model()
    whole = program.post(MESSAGES, body("Real"), timeout=300)
    assert whole.status_code == 200, whole.text
    assert "Paris" in whole.json()["content"][0]["text"]
    assert whole.json()["usage"]["output_tokens"] > 0

    assert program.post(COUNT, body("Real")).json()["input_tokens"] > 0

    with program.post(MESSAGES, body("Real", stream=True), stream=True) as streamed:
        lines = streamed.text.splitlines()
    assert "event: message_start" in lines
    assert json.loads(lines[-2].removeprefix("data: ")) == {"type": "message_stop"}

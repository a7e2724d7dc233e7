"""The plugin that docs/interface-plugin.md shows works as it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manager.config import plugins
from manager.tokens import TokenUsage
from tests.support.program import ROOT, Program, error_of, needs_demo_model, plain

DOCS = ROOT / "docs"
MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"

Serve = Callable[[dict[str, Any]], Program]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Runs the program with the example plugin and one model of its mode."""
    programs: list[Program] = []

    def serve(model: dict[str, Any]) -> Program:
        models = {"Model": {"mode": "Messages", **model}}
        programs.append(Program(tmp_path, models, interface_plugin_dir=str(DOCS)))
        return programs[-1].start()

    yield serve
    for program in programs:
        program.finish()


def body(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    return {"model": "Model", "max_tokens": 20, "messages": messages, **fields}


def test_the_example_adds_a_mode_to_the_shipped_ones() -> None:
    modes = plugins.interfaces(DOCS)
    assert list(modes) == ["Chat", "Base", "Embedding", "Reranker", "Messages"]
    assert modes["Messages"].endpoints == (MESSAGES, COUNT)


def test_the_example_reads_anthropics_usage() -> None:
    counts = {"input_tokens": 5, "cache_read_input_tokens": 8, "output_tokens": 10}
    answer = json.dumps({"type": "message", "usage": counts}).encode()
    assert plugins.interfaces(DOCS)["Messages"].usage(answer) == TokenUsage(13, 8, 10)


def test_a_model_of_the_examples_mode_is_started_probed_and_served(serve: Serve) -> None:
    program = serve(plain())
    for path in (MESSAGES, COUNT):
        answer = program.post(path, body())
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"path": path, "asked": body()}
    assert program.log("Model").count(f"asked at {MESSAGES}\n") == 2  # the first is the probe


def test_a_chat_with_a_model_of_the_examples_mode_names_its_endpoints(serve: Serve) -> None:
    answer = serve(plain()).post("/v1/chat/completions", body())
    assert answer.status_code == 400
    error = error_of(answer)
    assert error["code"] == "endpoint_not_supported"
    assert MESSAGES in error["message"]


@pytest.mark.demo
def test_a_real_model_speaks_through_the_example(serve: Serve) -> None:
    needs_demo_model()
    script = str(ROOT / "scripts" / "demo_chat.py")
    program = serve({"CPU": {"script_path": script}})

    whole = program.post(MESSAGES, body(), timeout=300)
    assert whole.status_code == 200, whole.text
    assert "Paris" in whole.json()["content"][0]["text"]
    assert whole.json()["usage"]["output_tokens"] > 0

    assert program.post(COUNT, body()).json()["input_tokens"] > 0

    with program.post(MESSAGES, body(stream=True), stream=True) as streamed:
        lines = streamed.text.splitlines()
    assert "event: message_start" in lines
    assert json.loads(lines[-2].removeprefix("data: ")) == {"type": "message_stop"}

"""The plugin that docs/interface-plugin.md shows is one."""

from __future__ import annotations

import json
from pathlib import Path

from manager.config import plugins
from manager.tokens import TokenUsage

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_example_adds_a_mode_to_the_shipped_ones() -> None:
    modes = plugins.interfaces(DOCS)
    assert list(modes) == [*plugins.interfaces(None), "Messages"]
    assert modes["Messages"].endpoints == ("/v1/messages", "/v1/messages/count_tokens")


def test_the_example_reads_anthropics_usage() -> None:
    counts = {"input_tokens": 5, "cache_read_input_tokens": 8, "output_tokens": 10}
    answer = json.dumps({"type": "message", "usage": counts}).encode()
    assert plugins.interfaces(DOCS)["Messages"].usage(answer) == TokenUsage(13, 8, 10)

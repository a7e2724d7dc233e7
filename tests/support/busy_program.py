"""A program with models in all states, answers in flight and a history, for tests of the pages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.cards import Cards, card
from tests.support.program import Program, env_of, eventually, fake, on

RTX_4060 = "NVIDIA GeForce RTX 4060"
V100 = "Tesla V100-SXM2-16GB"
LONG = "an-organisation/a-model-whose-name-goes-on-and-on-70B-Instruct-Q4_K_M-imatrix.gguf"
PRICE = {"tiers": [{"input": 1, "output": 2}], "per_hour": 0.5}


@contextlib.contextmanager
def busy_program(launch: Callable[..., Program], folder: Path) -> Iterator[Program]:
    cards = Cards(folder, [card(RTX_4060, 8188, 300, util=25, temp=51), card(V100, 16384)])
    program = launch(
        {
            "Busy": on("rtx 4060", 6000, aliases=["qwen", "org/qwen:8b"], price=PRICE),
            "Queued": on("rtx 4060", 5000),
            LONG: on("v100", 9000, "--mode", "Chat", aliases=[f"{LONG}:alias"]),
            "Broken": fake("--crash-after-boot", 4),
            "Vectors": fake(mode="Embedding"),
            "Ranks": fake(mode="Reranker"),
            "Texts": fake(mode="Base"),
        },
        env=env_of(cards),
    )
    for model in ("Busy", LONG):
        assert program.ask(model, {"log": f"{model} warns\nan ERROR of {model}"}).ok
        assert not program.ask(model, {"status": 500}).ok
    assert program.post("/v1/embeddings", {"model": "Vectors", "input": "Hi"}).ok
    assert program.ask(f"no-{LONG}").status_code == 404
    assert program.command("Broken", "start")["state"] == "failed"
    with program.held("Busy"):
        program.post("/api/models/Queued/start")
        program.becomes("Queued", state="queued")
        eventually(lambda: program.get("/api/usage/summary").json()["requests"] >= 5)
        limits = {"requests_per_minute": 60, "tokens_per_minute": 10**9, "max_concurrency": 4}
        budget = {"amount": "1234.5", "period": "month"}
        program.add_key(
            LONG[:100], owner=LONG[:100], models=[LONG, "Busy"], budget=budget, **limits
        )
        assert program.post("/api/tokens", {"name": "a-" + "token-" * 10, "role": "viewer"}).ok
        program.add_key("ends", expires_at="2001-01-01")
        yield program

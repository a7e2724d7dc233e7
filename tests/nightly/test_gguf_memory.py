"""Estimates beside what llama.cpp reports in its own log, and damaged files by the thousand."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from manager.gguf import GgufError, estimate, read_model
from scripts.demo_server import MODEL
from tests.support.gguf_files import Type, write_model
from tests.support.gguf_forms import write_deepseek2, write_mamba2
from tests.support.program import ROOT, needs_demo_model

# Loads a model as llama-server does without options but these, and ends.
SERVER = """
import json, os, sys
import xllamacpp as llama
path, context, cache_type = sys.argv[1], int(sys.argv[2]), sys.argv[3]
params = llama.CommonParams()
params.model.path = path
params.hostnames, params.port = ["127.0.0.1"], 0
params.n_ctx, params.n_parallel, params.kv_unified = context, 4, True
params.cache_type_k = params.cache_type_v = getattr(llama.ggml_type, "GGML_TYPE_" + cache_type)
params.fit_params = params.warmup = False
params.verbosity = 4  # below it the sizes are not reported
server = llama.Server(params)  # its end could wait for ever
os._exit(0)
"""
FORMS = {
    "llama": {
        "architecture": "llama", "layers": 32, "width": 2048, "heads": 32, "kv_heads": 8,
        "head": 64, "feed_forward": 8192, "tokens": 128_256, "kind": Type.Q4_K,
    },
    "gemma3": {
        "architecture": "gemma3", "layers": 34, "width": 2560, "heads": 8, "kv_heads": 4,
        "head": 256, "feed_forward": 10_240, "tokens": 32_000, "kind": Type.Q5_K, "tied": True,
        "extra": {"gemma3.attention.sliding_window": 1024},
    },
    "qwen3moe": {
        "architecture": "qwen3moe", "layers": 24, "width": 2048, "heads": 32, "kv_heads": 4,
        "head": 128, "feed_forward": 768, "tokens": 32_000, "kind": Type.Q5_K, "experts": 64,
        "extra": {
            "qwen3moe.expert_feed_forward_length": 768, "qwen3moe.expert_used_count": 8,
        },
    },
}  # fmt: skip

OTHERS = {"mamba2": write_mamba2, "deepseek2": write_deepseek2}


def reported_mb(path: Path, context: int, cache_type: str) -> float:
    """The sum of all buffers in llama.cpp's log."""
    command = [sys.executable, "-c", SERVER, str(path), str(context), cache_type.upper()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    output = ended.stdout + ended.stderr
    sizes = re.findall(r"(?:model|KV|RS|compute|output) buffer size = +([\d.]+) MiB", output)
    assert len(sizes) >= 4, output[-2000:]
    return sum(map(float, sizes))


@pytest.mark.demo
@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
@pytest.mark.parametrize("form", ["demo", *FORMS, *OTHERS])
def test_an_estimate_is_close_to_what_llama_cpp_reports(
    form: str, cache_type: str, tmp_path: Path
) -> None:
    needs_demo_model()
    path = MODEL if form == "demo" else tmp_path / f"{form}.gguf"
    if form in FORMS:
        write_model(path, **FORMS[form])
    elif form in OTHERS:
        OTHERS[form](path)
    found = {}
    for context in (2048, 8192, 16_384, 32_768):
        command = ["llama-server", "-m", str(path), "-c", str(context)]
        guess = estimate([*command, "-ctk", cache_type, "-ctv", cache_type], tmp_path)
        assert guess is not None
        reported = reported_mb(path, context, cache_type)
        estimated = guess.on(()).host_mb
        found[context] = (round(reported), estimated, f"{estimated / reported - 1:+.1%}")
    print(form, cache_type, json.dumps(found))
    for context, (reported, estimated, _) in found.items():
        assert 0.97 <= estimated / reported <= 1.10, (context, found)


def test_ten_thousand_damaged_files_are_errors_or_models(tmp_path: Path) -> None:
    good = write_model(tmp_path / "good.gguf", layers=2).read_bytes()
    header = good.index(b"ffn_down.weight", good.index(b"blk.1.ffn_up")) + 60
    path = tmp_path / "damaged.gguf"
    rng = random.Random(18)
    errors = 0
    for _ in range(10_000):
        content = bytearray(good)
        for _ in range(rng.choice([1, 1, 2, 8])):
            at = rng.randrange(header)
            piece = rng.choice([rng.randbytes(1), rng.randbytes(8), b"\xff" * 8, bytes(8)])
            content[at : at + len(piece)] = piece
        if rng.random() < 0.1:
            del content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        try:
            read_model(path)
            estimate(["llama-server", "-m", str(path)], tmp_path)
        except GgufError:
            errors += 1
    assert 1000 < errors < 10_000

"""A GGUF says what it is for, and its pieces are one model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manager.gguf import GgufError, Kind, read_model
from tests.support.gguf_files import Type, vocabulary, write_gguf, write_model


def test_a_model_is_described(tmp_path: Path) -> None:
    path = write_model(
        tmp_path / "tiny-Q8_0.gguf", extra={"general.name": "Tiny", "general.file_type": 15}
    )
    model = read_model(path)
    assert (model.name, model.architecture, model.quantisation) == ("Tiny", "llama", "Q4_K_M")
    assert (model.kind, model.context, model.layers) == (Kind.CHAT, 4096, 2)
    assert model.size == path.stat().st_size
    layer = 64 + 64 * 128 * 2 + 64 * 64 * 2 + 64 + 3 * 64 * 128
    assert model.parameters == 2 * layer + 2 * 64 * 300 + 64


def test_a_model_without_a_name_has_its_files(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path / "tiny.gguf", kind=Type.Q4_K, width=256))
    assert (model.name, model.quantisation) == ("tiny", "Q4_K")


NO_TEMPLATE = {**vocabulary(10), "bert.block_count": 1, "llama.block_count": 1}
del NO_TEMPLATE["tokenizer.chat_template"]
CHAT = {**NO_TEMPLATE, "tokenizer.chat_template": "{{ messages }}"}
TENSOR = ("blk.0.attn_q.weight", (32, 32), Type.F32)


@pytest.mark.parametrize(
    ("kind", "architecture", "metadata", "tensor", "name"),
    [
        ("chat", "llama", CHAT, TENSOR, "a"),
        ("base", "llama", NO_TEMPLATE, TENSOR, "a"),
        ("embedding", "bert", NO_TEMPLATE, TENSOR, "a"),
        ("embedding", "llama", CHAT | {"llama.pooling_type": 3}, TENSOR, "a"),
        ("embedding", "llama", CHAT, TENSOR, "Qwen3-Embedding-4B"),
        ("reranker", "llama", CHAT | {"llama.pooling_type": 4}, TENSOR, "a"),
        ("reranker", "bert", NO_TEMPLATE, ("cls.weight", (32, 1), Type.F32), "a"),
        ("reranker", "bert", NO_TEMPLATE, TENSOR, "bge-reranker-v2-m3"),
        ("chat", "llama", CHAT | {"llama.pooling_type": 0}, TENSOR, "a"),
        ("mmproj", "clip", {}, TENSOR, "a"),
        ("mmproj", "llama", {"general.type": "mmproj"}, TENSOR, "a"),
        ("adapter", "llama", {"adapter.type": "lora"}, TENSOR, "a"),
        ("other", "llama", {"general.type": "imatrix"}, TENSOR, "a"),
        ("other", "llama", {"llama.block_count": 1}, TENSOR, "without a vocabulary"),
        ("other", "llama", vocabulary(10), TENSOR, "without layers"),
    ],
)
def test_what_a_model_is_for(
    tmp_path: Path,
    kind: str,
    architecture: str,
    metadata: dict[str, Any],
    tensor: tuple[str, tuple[int, ...], Type],
    name: str,
) -> None:
    path = write_gguf(tmp_path / f"{name}.gguf", architecture, metadata, [tensor])
    assert read_model(path).kind == Kind(kind)


def pieces(folder: Path, *numbers: int, of: int = 3) -> list[Path]:
    return [
        write_model(
            folder / f"big-{number:05}-of-{of:05}.gguf",
            layers=of,
            only=range(number - 1, number),
            extra={"split.no": number - 1, "split.count": of},
        )
        for number in numbers
    ]


def test_pieces_are_one_model(tmp_path: Path) -> None:
    files = pieces(tmp_path, 1, 2, 3)
    whole = read_model(write_model(tmp_path / "whole.gguf", layers=3))
    for piece in files:
        model = read_model(piece)
        assert (model.path, model.files, model.name) == (files[0], tuple(files), "big")
        assert model.parameters == whole.parameters
        assert model.size == sum(each.stat().st_size for each in files)


def test_missing_pieces_are_named(tmp_path: Path) -> None:
    pieces(tmp_path, 1, 3, 4, of=5)
    with pytest.raises(GgufError, match=r"2 of 5 pieces are missing: big-00002.*big-00005"):
        read_model(tmp_path / "big-00003-of-00005.gguf")


def test_a_piece_under_another_name_is_refused(tmp_path: Path) -> None:
    (piece,) = pieces(tmp_path, 1)
    with pytest.raises(GgufError, match="one of 3 pieces"):
        read_model(piece.rename(tmp_path / "renamed.gguf"))
    first, second = pieces(tmp_path, 1, 2, of=2)
    first.rename(tmp_path / "first")
    second.rename(first)
    (tmp_path / "first").rename(second)
    with pytest.raises(GgufError, match="is not piece 1 of 2"):
        read_model(first)


@pytest.mark.parametrize("name", ["a-00007-of-00005.gguf", "a-00001-of-99999.gguf"])
def test_a_number_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GgufError, match="is numbered"):
        read_model(tmp_path / name)

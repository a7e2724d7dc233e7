"""GGUF files of any form and size, made with the `gguf` package; their weights are holes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

Shape = tuple[int, ...]
TOKENS = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581")


def write_gguf(
    path: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, Shape, Type]] = (),
    *,
    big_endian: bool = False,
) -> Path:
    """A GGUF with these entries and tensors (name, shape with the row first, type)."""
    endian = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, architecture, endianess=endian)
    for key, value in metadata.items():
        _add(writer, key, value)
    size = 0
    for name, shape, kind in tensors:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        nbytes = -(-shape[0] // block) * block_bytes * math.prod(shape[1:])
        writer.add_tensor_info(name, shape[::-1], _DTYPE, nbytes, kind)
        size += -(-nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    if size:
        os.truncate(path, -(-path.stat().st_size // 32) * 32 + size)
    return path


_DTYPE = np.dtype("float32")  # of a tensor whose real type is given


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    else:
        kinds[type(value)](key, value)


def vocabulary(size: int) -> dict[str, Any]:
    """The entries of a vocabulary of so many tokens that llama.cpp can load."""
    tokens = [*TOKENS, *(f"tok{each}" for each in range(size - len(TOKENS)))][:size]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * size,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * size][:size],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }


def write_model(
    path: Path,
    architecture: str = "llama",
    *,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head: int = 32,
    feed_forward: int = 128,
    tokens: int = 300,
    experts: int = 0,
    kind: Type = Type.Q8_0,
    tied: bool = False,
    extra: Mapping[str, Any] | None = None,
    only: range | None = None,
) -> Path:
    """A decoder of this form; with ``only``, a piece of it that has these layers."""
    own = f"{architecture}."
    metadata: dict[str, Any] = {
        f"{own}context_length": 4096,
        f"{own}embedding_length": width,
        f"{own}block_count": layers,
        f"{own}feed_forward_length": feed_forward,
        f"{own}attention.head_count": heads,
        f"{own}attention.head_count_kv": kv_heads,
        f"{own}attention.key_length": head,
        f"{own}attention.value_length": head,
        f"{own}attention.layer_norm_rms_epsilon": 1e-5,
        f"{own}rope.dimension_count": head,
        f"{own}vocab_size": tokens,
        **vocabulary(tokens),
    }
    if experts:
        metadata |= {f"{own}expert_count": experts, f"{own}expert_used_count": 2}
    metadata |= extra or {}
    tensors: list[tuple[str, Shape, Type]] = []
    if only is None or 0 in only:
        tensors += [("token_embd.weight", (width, tokens), kind)]
        tensors += [] if tied else [("output.weight", (width, tokens), kind)]
        tensors += [("output_norm.weight", (width,), Type.F32)]
    for layer in only or range(layers):
        tensors += [
            (f"blk.{layer}.{name}.weight", shape, Type.F32 if name.endswith("norm") else kind)
            for name, shape in _layer(
                architecture, width, heads, kv_heads, head, feed_forward, experts
            )
        ]
    return write_gguf(path, architecture, metadata, tensors)


def _layer(
    architecture: str,
    width: int,
    heads: int,
    kv_heads: int,
    head: int,
    feed_forward: int,
    experts: int,
) -> Iterable[tuple[str, Shape]]:
    yield "attn_norm", (width,)
    yield "attn_q", (width, heads * head)
    yield "attn_k", (width, kv_heads * head)
    yield "attn_v", (width, kv_heads * head)
    yield "attn_output", (heads * head, width)
    yield "ffn_norm", (width,)
    if architecture in ("qwen3", "qwen3moe", "gemma3"):
        yield "attn_q_norm", (head,)
        yield "attn_k_norm", (head,)
    if architecture == "gemma3":
        yield "post_attention_norm", (width,)
        yield "post_ffw_norm", (width,)
    if experts:
        yield "ffn_gate_inp", (width, experts)
    more, suffix = ((experts,), "_exps") if experts else ((), "")
    yield f"ffn_gate{suffix}", (width, feed_forward, *more)
    yield f"ffn_up{suffix}", (width, feed_forward, *more)
    yield f"ffn_down{suffix}", (feed_forward, width, *more)

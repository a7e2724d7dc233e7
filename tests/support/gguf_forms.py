"""GGUFs whose layers have another form than a llama's, with weights that are holes."""

from __future__ import annotations

from pathlib import Path

from tests.support.gguf_files import Shape, Type, vocabulary, write_gguf

TOKENS = 32_000


def write_mamba2(path: Path) -> Path:
    """Recurrent layers, as Mamba 2 of 2.7 billion parameters has them."""
    width, inner, state, heads = 2560, 5120, 128, 80
    moved = inner + 2 * state
    own = {
        "context_length": 32_768, "embedding_length": width, "block_count": 16,
        "feed_forward_length": 0, "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": 1e-5, "ssm.conv_kernel": 4, "ssm.inner_size": inner,
        "ssm.state_size": state, "ssm.time_step_rank": heads, "ssm.group_count": 1,
    }  # fmt: skip
    layer: dict[str, tuple[Shape, Type]] = {
        "attn_norm.weight": ((width,), Type.F32),
        "ssm_in.weight": ((width, inner + moved + heads), Type.Q5_K),
        "ssm_conv1d.weight": ((4, moved), Type.F32),
        "ssm_conv1d.bias": ((moved,), Type.F32),
        "ssm_dt.bias": ((heads,), Type.F32),
        "ssm_a": ((1, heads), Type.F32),
        "ssm_d": ((1, heads), Type.F32),
        "ssm_norm.weight": ((inner, 1), Type.F32),
        "ssm_out.weight": ((inner, width), Type.Q5_K),
    }
    return _write(path, "mamba2", own, [layer] * 16)


def write_deepseek2(path: Path) -> Path:
    """Latent attention and shared experts, as DeepSeek V2 Lite has them, with fewer layers."""
    width, heads, latent, rope, queries = 2048, 16, 512, 64, 1536
    dense, size, experts = 10_944, 1408, 64
    own = {
        "context_length": 163_840, "embedding_length": width, "block_count": 6,
        "feed_forward_length": dense, "leading_dense_block_count": 1,
        "attention.head_count": heads, "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": 1e-6, "attention.q_lora_rank": queries,
        "attention.kv_lora_rank": latent, "attention.key_length": latent + rope,
        "attention.value_length": latent, "attention.key_length_mla": 192,
        "attention.value_length_mla": 128, "rope.dimension_count": rope,
        "expert_count": experts, "expert_used_count": 6, "expert_shared_count": 2,
        "expert_feed_forward_length": size, "expert_weights_scale": 1.0,
    }  # fmt: skip
    every: dict[str, tuple[Shape, Type]] = {
        "attn_norm.weight": ((width,), Type.F32),
        "attn_q_a.weight": ((width, queries), Type.Q8_0),
        "attn_q_a_norm.weight": ((queries,), Type.F32),
        "attn_q_b.weight": ((queries, heads * 192), Type.Q8_0),
        "attn_kv_a_mqa.weight": ((width, latent + rope), Type.Q8_0),
        "attn_kv_a_norm.weight": ((latent,), Type.F32),
        "attn_k_b.weight": ((128, latent, heads), Type.F16),
        "attn_v_b.weight": ((latent, 128, heads), Type.F16),
        "attn_output.weight": ((heads * 128, width), Type.Q8_0),
        "ffn_norm.weight": ((width,), Type.F32),
    }
    first = every | _network("", width, dense)
    others = every | _network("_shexp", width, 2 * size) | _network("_exps", width, size, experts)
    others["ffn_gate_inp.weight"] = ((width, experts), Type.F32)
    return _write(path, "deepseek2", own, [first, *[others] * 5])


def _network(suffix: str, width: int, size: int, *experts: int) -> dict[str, tuple[Shape, Type]]:
    return {
        f"ffn_gate{suffix}.weight": ((width, size, *experts), Type.Q8_0),
        f"ffn_up{suffix}.weight": ((width, size, *experts), Type.Q8_0),
        f"ffn_down{suffix}.weight": ((size, width, *experts), Type.Q8_0),
    }


def _write(
    path: Path,
    architecture: str,
    own: dict[str, float],
    layers: list[dict[str, tuple[Shape, Type]]],
) -> Path:
    width = int(own["embedding_length"])
    metadata = {f"{architecture}.{key}": value for key, value in own.items()}
    tensors = [
        ("token_embd.weight", (width, TOKENS), Type.Q8_0),
        ("output.weight", (width, TOKENS), Type.Q8_0),
        ("output_norm.weight", (width,), Type.F32),
        *(
            (f"blk.{number}.{name}", shape, kind)
            for number, layer in enumerate(layers)
            for name, (shape, kind) in layer.items()
        ),
    ]
    metadata |= vocabulary(TOKENS) | {f"{architecture}.vocab_size": TOKENS}
    return write_gguf(path, architecture, metadata, tensors)

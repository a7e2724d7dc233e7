"""How large llama.cpp's cache of keys and values is in each layer, and a recurrent model's state.

Sources, in llama.cpp's ``src/``: ``llama_kv_cache::llama_kv_cache`` and ``llama_kv_cache_iswa``
(cells and rows), ``llama_hparams::n_embd_k_gqa``, ``n_embd_r``, ``n_embd_s`` and
``set_swa_pattern`` (a row's size), ``llama_context::llama_context`` (the slots' shares).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from manager.gguf.ggml import GgmlType
from manager.gguf.model_file import ENCODERS, number, text
from manager.gguf.reader import GgufError
from manager.gguf.split import Weights

MAX_LAYERS = 4096
_PAD = 256  # cells: `n_pad` of llama_kv_cache
_F32 = 4  # bytes of a number of a recurrent state

# Every how many layers one sees the whole context, where the file does not say: the calls of
# `set_swa_pattern` in llama-model.cpp. Other architectures ignore `sliding_window`.
_SWA_PERIOD = {
    "afmoe": 4, "cohere2": 4, "exaone-moe": 4, "exaone4": 4, "gemma-embedding": 6, "gemma2": 2,
    "gemma3": 6, "gemma3n": 5, "gemma4": 6, "gpt-oss": 2, "llama4": 4, "mimo2": 6, "olmo2": 4,
    "plamo3": 8, "smallthinker": 4, "step35": 4,
}  # fmt: skip
_LLAMA4_CHUNK = 8192  # tokens; `n_swa` of llama4
# Every how many layers one has attention and no recurrent state, where the file does not say.
_INTERVALS = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4}


@dataclass(frozen=True)
class Slots:
    """How a context of ``context`` tokens is shared out among ``count`` requests at a time."""

    context: int
    count: int
    unified: bool
    ubatch: int
    swa_full: bool = False

    @property
    def streams(self) -> int:
        return 1 if self.unified else self.count

    @property
    def cells(self) -> int:
        """Cells of one stream, of a layer that sees the whole context."""
        return _padded(-(-self.context // self.streams))

    def window_cells(self, window: int) -> int:
        """Cells of one stream, of a layer that sees a window of so many tokens."""
        if self.swa_full:
            return self.cells
        sequences = self.count if self.unified else 1
        return min(self.cells, _padded(window * sequences + self.ubatch))


@dataclass(frozen=True)
class Attention:
    """What the layers of a model keep of each token. ``heads`` and ``kv_heads`` have one number a
    layer; ``window`` is in tokens, 0 where no layer has one; ``state_bytes`` are of one recurrent
    layer and one slot."""

    layers: int
    width: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    windowed: tuple[bool, ...]
    window: int
    recurrent: tuple[bool, ...]
    state_bytes: int

    def cache_bytes(self, slots: Slots, keys: GgmlType, values: GgmlType) -> tuple[int, ...]:
        """Bytes of the cache and the state of each layer, for all slots."""
        return tuple(self._layer_bytes(each, slots, keys, values) for each in range(self.layers))

    def _layer_bytes(self, layer: int, slots: Slots, keys: GgmlType, values: GgmlType) -> int:
        state = self.state_bytes * slots.count if self.recurrent[layer] else 0
        heads = self.kv_heads[layer]
        cells = slots.window_cells(self.window) if self.windowed[layer] else slots.cells
        row = keys.row_bytes(heads * self.key_length) + values.row_bytes(heads * self.value_length)
        return state + row * cells * slots.streams


def attention(weights: Weights) -> Attention:
    """What this model keeps of each token. Raises GgufError where the file does not say."""
    name = text(weights, "general.architecture")

    def get(key: str, default: int = 0) -> int:
        found = number(weights, f"{name}.{key}")
        return default if found is None else found

    layers, width = get("block_count"), get("embedding_length")
    if not 0 < layers <= MAX_LAYERS or not width:
        raise GgufError(
            f"{weights.path}: does not say how many layers it has, or how wide they are"
        )
    heads = _each_layer(weights, f"{name}.attention.head_count", layers, 0)
    kv_heads = _each_layer(weights, f"{name}.attention.head_count_kv", layers, None) or heads
    length = width // max(heads) if any(heads) else 0
    state = _state_numbers(width, get)
    interval = get("full_attention_interval", _INTERVALS.get(name, 0))
    recurrent = _is_recurrent(name, kv_heads, interval) if state else (False,) * layers
    cached = layers - get("attention.shared_kv_layers") - get("nextn_predict_layers")
    if name in ENCODERS:
        cached = 0
    is_mla = bool(get("attention.key_length_mla"))
    return Attention(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=tuple(
            count if layer < cached and (name == "falcon-h1" or not recurrent[layer]) else 0
            for layer, count in enumerate(kv_heads)
        ),
        key_length=get("attention.key_length", length),
        # With multi-head latent attention the values are a part of the keys.
        value_length=0 if is_mla else get("attention.value_length", length),
        windowed=_windowed(weights, name, layers),
        window=_window(weights, name),
        recurrent=recurrent,
        state_bytes=_F32 * state,
    )


def _padded(cells: int) -> int:
    return -(-cells // _PAD) * _PAD


def _each_layer(weights: Weights, key: str, layers: int, default: int | None) -> tuple[int, ...]:
    """One number for each layer, of a number or an array of them; empty without a default."""
    value = weights.metadata.get(key, default)
    if isinstance(value, int) and value >= 0:
        return (int(value),) * layers
    if isinstance(value, tuple):
        found = tuple(each for each in value if isinstance(each, int) and each >= 0)
        if len(found) >= layers:
            return found[:layers]
    if value is None:
        return ()
    raise GgufError(f"{weights.path}: {key} is neither a number nor one for each layer")


def _window(weights: Weights, name: str) -> int:
    if name == "llama4":
        return number(weights, f"{name}.attention.chunk_size") or _LLAMA4_CHUNK
    return number(weights, f"{name}.attention.sliding_window") or 0


def _windowed(weights: Weights, name: str, layers: int) -> tuple[bool, ...]:
    """Which layers see a window of the context only."""
    pattern = weights.metadata.get(f"{name}.attention.sliding_window_pattern")
    if not _window(weights, name):
        return (False,) * layers
    if isinstance(pattern, tuple) and len(pattern) >= layers:
        return tuple(bool(each) for each in pattern[:layers])
    period = _SWA_PERIOD.get(name, 1)
    if name in _SWA_PERIOD and isinstance(pattern, int) and pattern > 0:
        period = pattern
    if name == "smallthinker":  # the first of each period sees everything, in all others the last
        return tuple(layer % period != 0 for layer in range(layers))
    return tuple(layer % period < period - 1 for layer in range(layers))


def _is_recurrent(name: str, kv_heads: tuple[int, ...], interval: int) -> tuple[bool, ...]:
    """Which layers of a model with a recurrent state keep one."""
    if name == "falcon-h1":
        return (True,) * len(kv_heads)
    if interval:
        return tuple((layer + 1) % interval != 0 for layer in range(len(kv_heads)))
    return tuple(count == 0 for count in kv_heads)


def _state_numbers(width: int, get: Callable[[str], int]) -> int:
    """Numbers that a recurrent layer keeps for each slot; 0 where the model has no such layers."""
    inner, state = get("ssm.inner_size"), get("ssm.state_size")
    if inner:
        moved = max(0, get("ssm.conv_kernel") - 1) * (inner + 2 * get("ssm.group_count") * state)
        return moved + state * inner
    if get("wkv.head_size"):
        return width * (2 + get("wkv.head_size"))
    return width * max(0, get("shortconv.l_cache") - 1)

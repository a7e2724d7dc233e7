"""How much memory llama.cpp's server takes for a model, before it is started.

On each device

    weights of its layers + their cache + compute buffer + the driver's own

- Weights: the tensors' bytes. Layer ``i`` of ``n`` is on a device from ``n + 1 - ngl`` on, the
  output is layer ``n``, the token embedding stays on the host; where it is the output as well, the
  device has a copy (``llama_model::load_tensors`` in llama-model.cpp). Without a device, types that
  llama.cpp repacks for the processor are there twice, once mapped from the file
  (ggml-cpu/repack.cpp).
- Cache: manager.gguf.kv_cache.
- Compute buffer: the largest sum of what is alive at one moment of the graph for one ``ubatch``
  (``llama_context::sched_reserve``, ggml-alloc.c). Per token that is five times the width, and the
  largest of the feed-forward network (gate, up and their product, with experts for each one
  used), of attention (queries, their result, keys, values; without flash attention the scores of
  all heads) and of a recurrent layer, in 4 bytes each; beside it the attention masks. Found by
  measuring llama.cpp (xllamacpp 2026.10.11549); tests/nightly/test_gguf_memory.py does so again.
- The driver's own: DEVICE_CONTEXT_MB, not measured here.

Not in it, since it comes later and on the host: finished prompts (``--cache-ram``, 8 GiB at most)
and checkpoints of contexts. Without ``-c`` the whole context counts that the model was trained for:
llama-server takes less where that does not fit.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from manager.gguf.command import Invocation, read_command
from manager.gguf.ggml import TYPES, GgmlType
from manager.gguf.kv_cache import Attention, Slots, attention
from manager.gguf.model_file import ENCODERS, number, text
from manager.gguf.options import Options
from manager.gguf.patterns import searches
from manager.gguf.reader import GgufError, Tensor
from manager.gguf.split import Weights, read_weights

DEVICE_CONTEXT_MB = 400  # a CUDA context with cuBLAS; llama.cpp reports 200 to 450 "unaccounted"

_MB = 2**20
_FLOAT = 4  # bytes
_QWEN_PATCHES = 92 * 92  # images of any size are taken; it warms up with one of 1288 x 1288
_PADDED_CONTEXT = 256
# On an x86 processor with AVX2.
_REPACKED = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
_LAYER = re.compile(r"blk\.(\d+)\.")
_BY_TYPE_NAME = {each.name.lower(): each for each in TYPES.values()}


@dataclass(frozen=True)
class Split:
    """MB (2**20 bytes, rounded up) on each device, in the order of the shares, and on the host."""

    device_mb: tuple[int, ...]
    host_mb: int


@dataclass(frozen=True)
class _Loaded:
    """One model in memory, in bytes. ``weights`` and ``caches`` are by layer, the output the last;
    ``host`` are weights that never leave the host, ``tied`` the part of them that a device copies
    as its output; ``inputs`` the part of ``compute`` that the host fills in."""

    weights: tuple[int, ...]
    caches: tuple[int, ...]
    host: int
    tied: int
    repacked: int
    compute: int
    inputs: int
    largest_tensor: int
    outputs: int
    gpu_layers: int
    keeps_layers: bool  # some tensors of layers that are on a device stay on the host


@dataclass(frozen=True)
class Estimate:
    """What a command's model takes, wherever it is put. ``context`` is in tokens, of all slots."""

    model: Path
    context: int
    options: Options
    loaded: tuple[_Loaded, ...]
    projector: int

    def on(self, shares: Sequence[float]) -> Split:
        """The memory on devices that get these shares of the layers (they sum to 1; a
        ``--tensor-split`` of the command goes before them). None: all is on the host."""
        if not shares or self.options.devices == "none":
            whole = sum(sum(each.weights) + sum(each.caches) + each.host for each in self.loaded)
            more = sum(each.repacked + each.compute + each.outputs for each in self.loaded)
            return Split((0,) * len(shares), _mb(whole + more + self.projector))
        devices = [0] * len(shares)
        host = 0
        cumulative = self._cumulative(shares)
        for each in self.loaded:
            host += self._add(each, cumulative, devices)
        if self.options.mmproj_on_device:
            devices[self._first(cumulative)] += self.projector
        else:
            host += self.projector
        return Split(
            tuple(_mb(each) + DEVICE_CONTEXT_MB if each else 0 for each in devices), _mb(host)
        )

    def _cumulative(self, shares: Sequence[float]) -> list[float]:
        """Where each device's part of the layers ends, from 0 to 1."""
        count = len(shares)
        if self.options.split_mode == "none":
            main = min(self.options.main_gpu, count - 1)
            parts = [float(each == main) for each in range(count)]
        else:
            parts = [*self.options.tensor_split[:count], *[0.0] * count][:count]
        if not sum(parts):
            parts = list(shares) if sum(shares) > 0 else [1.0] * count
        total = sum(parts)
        return list(accumulate(each / total for each in parts))

    @staticmethod
    def _first(cumulative: list[float]) -> int:
        return min(bisect_right(cumulative, 0.0), len(cumulative) - 1)

    def _add(self, each: _Loaded, cumulative: list[float], devices: list[int]) -> int:
        """Add what one model takes to the devices; return what it takes on the host."""
        units = len(each.weights)
        offloaded = min(each.gpu_layers, units)
        first = units - offloaded
        host = each.host + sum(each.weights[:first]) + sum(each.caches[:first]) + each.outputs
        used = {self._first(cumulative)}  # long prompts are computed there for the host's layers
        for layer in range(first, units):
            share = (layer - first) / offloaded
            on = min(bisect_right(cumulative, share), len(cumulative) - 1)
            used.add(on)
            devices[on] += each.weights[layer]
            if self.options.cache_on_device:
                devices[on] += each.caches[layer]
            else:
                host += each.caches[layer]
            if layer == units - 1:
                devices[on] += each.tied
        shared = first > 0 or each.keeps_layers or not self.options.cache_on_device
        host += each.compute if shared else each.inputs
        # With several devices that hold all layers, four batches are under way at once
        # (`pipeline_parallel` in llama_context::llama_context), each with its inputs.
        copies = 3 * each.inputs if len(used) > 1 and not shared else 0
        for on in used:
            devices[on] += each.compute + copies + (each.largest_tensor if shared else 0)
        return host


def estimate(
    command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None
) -> Estimate | None:
    """What the llama.cpp server of a command takes; None where it starts none, or names no file.

    ``command`` has its variables expanded, relative paths are below ``cwd``, ``env`` is what the
    scheme sets. Raises GgufError where a file that it names is bad.
    """
    found = read_command(command, cwd, env or {})
    if found is None or not found.options.model:
        return None
    return estimate_options(found)


def estimate_options(invocation: Invocation) -> Estimate:
    """What a llama.cpp server with these options takes. Raises GgufError."""
    options = invocation.options
    path = invocation.path(options.model)
    weights = read_weights(path)
    slots = _slots(
        options, number(weights, f"{text(weights, 'general.architecture')}.context_length")
    )
    loaded = [_load(weights, slots, options, options.gpu_layers, options.cache_k, options.cache_v)]
    if options.draft:
        loaded.append(
            _load(
                read_weights(invocation.path(options.draft)),
                slots,
                options,
                options.draft_gpu_layers,
                options.draft_cache_k,
                options.draft_cache_v,
            )
        )
    projector = _projector_bytes(invocation.path(options.mmproj)) if options.mmproj else 0
    return Estimate(path, slots.cells * slots.streams, options, tuple(loaded), projector)


def _mb(size: int) -> int:
    return -(-size // _MB)


def _slots(options: Options, trained: int | None) -> Slots:
    context = options.context or options.slots * options.slot_context or trained or 4096
    context = -(-context // _PADDED_CONTEXT) * _PADDED_CONTEXT
    ubatch = max(1, min(options.ubatch or options.batch, options.batch, context))
    return Slots(context, options.slots, options.shares_cache, ubatch, options.swa_full)


def _cache_type(name: str) -> GgmlType:
    return _BY_TYPE_NAME.get(name, TYPES[1])


def _load(
    weights: Weights, slots: Slots, options: Options, gpu_layers: int, keys: str, values: str
) -> _Loaded:
    kept = attention(weights)
    by_layer = [0] * (kept.layers + 1)
    host = tied = repacked = largest = 0
    keeps_layers = False
    stay = searches(options.host_tensors)
    has_output = any(each.name == "output.weight" for each in weights.tensors)
    for tensor in weights.tensors:
        found = _LAYER.match(tensor.name)
        embeds = tensor.name.startswith(("token_", "position_embd", "per_layer_token_embd"))
        largest = max(largest, 0 if embeds else tensor.nbytes)
        ties = tensor.name == "token_embd.weight" and not has_output
        if _is_repacked(tensor) and (ties or not embeds) and options.repack:
            repacked += tensor.nbytes
        if ties and text(weights, "general.architecture") not in ENCODERS:
            tied = tensor.nbytes
        if embeds or any(search(tensor.name) for search in stay):
            host += tensor.nbytes
            keeps_layers = keeps_layers or not embeds
        else:
            by_layer[min(int(found[1]), kept.layers) if found else kept.layers] += tensor.nbytes
    cache = kept.cache_bytes(slots, _cache_type(keys), _cache_type(values))
    compute, inputs = _compute_bytes(weights, kept, slots, options)
    return _Loaded(
        weights=tuple(by_layer),
        caches=(*cache, 0),
        host=host,
        tied=tied,
        repacked=repacked,
        compute=compute,
        inputs=inputs,
        largest_tensor=largest,
        outputs=_FLOAT * slots.count * _vocabulary(weights),
        gpu_layers=gpu_layers,
        keeps_layers=keeps_layers,
    )


def _is_repacked(tensor: Tensor) -> bool:
    known = TYPES.get(tensor.type)
    return (
        known is not None
        and known.name in _REPACKED
        and len(tensor.shape) > 1
        and tensor.shape[1] % 8 == 0
    )


def _vocabulary(weights: Weights) -> int:
    """Rows of the output: how many numbers the model gives for a token."""
    if text(weights, "general.architecture") in ENCODERS:
        return 0
    for each in weights.tensors:
        if each.name == "token_embd.weight" and len(each.shape) > 1:
            return each.shape[1]
    return 0


def _compute_bytes(
    weights: Weights, kept: Attention, slots: Slots, options: Options
) -> tuple[int, int]:
    """Bytes of the compute buffer, and of its part that the host fills in."""
    queries = max(kept.heads) * kept.key_length
    keys = max(kept.kv_heads) * (kept.key_length + kept.value_length)
    cells = 0
    if any(kept.kv_heads):
        sees_all = not all(kept.windowed)
        cells = (slots.cells if sees_all else 0) + (
            slots.window_cells(kept.window) if any(kept.windowed) else 0
        )
        largest = slots.cells if sees_all else slots.window_cells(kept.window)
    else:  # an encoder sees its own batch only
        cells = largest = slots.ubatch
    scores = 0 if options.flash_attention else largest * max(kept.heads)
    mask = cells * (2 if options.flash_attention else _FLOAT)
    per_token = max(
        _feed_forward(weights, kept.width), 2 * queries + keys + scores, _state_space(weights)
    )
    if options.embedding:  # a result of each token, not only of the last
        per_token = max(per_token, _vocabulary(weights))
    per_token += 5 * kept.width
    inputs = slots.ubatch * (mask + _FLOAT * kept.width)
    states = slots.count * kept.state_bytes  # those of one layer, as they were and as they become
    return slots.ubatch * (mask + _FLOAT * per_token) + states, inputs


def _state_space(weights: Weights) -> int:
    """Numbers for each token that are alive at once inside a recurrent layer of Mamba's kind: its
    projection, the convolution's input and output, and its result."""
    name = text(weights, "general.architecture")
    inner, groups, state, heads = (
        number(weights, f"{name}.ssm.{key}") or 0
        for key in ("inner_size", "group_count", "state_size", "time_step_rank")
    )
    return 5 * inner + 6 * groups * state + heads


def _feed_forward(weights: Weights, width: int) -> int:
    """Numbers for each token that are alive at once inside the widest feed-forward network."""
    name = text(weights, "general.architecture")
    declared = weights.metadata.get(f"{name}.feed_forward_length", 0)
    sizes = declared if isinstance(declared, tuple) else (declared,)
    dense = max((each for each in sizes if isinstance(each, int)), default=0)
    up = next((each for each in weights.tensors if each.name.endswith(".ffn_up.weight")), None)
    has_gate = any(".ffn_gate." in each.name for each in weights.tensors)
    if up and not has_gate and up.shape[-1] <= dense:
        return dense  # the activation is put where its input was
    experts = number(weights, f"{name}.expert_used_count") or 0
    if not experts or not number(weights, f"{name}.expert_count"):
        return 3 * dense
    size = number(weights, f"{name}.expert_feed_forward_length") or dense
    # What the experts give goes where gate and up were, if it fits there.
    mixed = experts * (3 * size + (width if width > 2 * size else 0))
    return max(mixed, 3 * dense if up else 0)


def _projector_bytes(path: Path) -> int:
    """An image projector with the compute buffer for one image: that of a transformer over the
    image's patches, as llama.cpp's tools/mtmd/clip.cpp reserves it when it warms up. Measured for
    Gemma 3's."""
    weights = read_weights(path)
    if text(weights, "general.architecture") != "clip":
        raise GgufError(f"{path}: is no mmproj file (its architecture is not clip)")

    def get(key: str) -> int:
        return number(weights, f"clip.vision.{key}") or 0

    patches = min((get("image_size") // max(1, get("patch_size"))) ** 2, 2**14)
    if text(weights, "clip.projector_type").startswith("qwen"):
        patches = max(patches, _QWEN_PATCHES)
    networks = 3 if any(".ffn_gate." in each.name for each in weights.tensors) else 1
    width = get("embedding_length")
    per_patch = max(networks * get("feed_forward_length") + 3 * width, 6 * width)
    return sum(each.nbytes for each in weights.tensors) + _FLOAT * patches * per_patch

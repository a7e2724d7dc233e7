"""Which options of llama.cpp's server say how much memory it takes, and their defaults.

Source: llama.cpp's ``common/arg.cpp`` (names, environment) and ``common/common.h`` (defaults).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

_ALL_LAYERS = 2**31
_EXPERTS = r"\.ffn_(up|down|gate|gate_up)_(ch|)exps"  # LLM_FFN_EXPS_REGEX
_DENSE = r"\.ffn_(up|down|gate|gate_up)\."
_ON = frozenset({"on", "enabled", "true", "1", "auto"})
_OFF = frozenset({"off", "disabled", "false", "0"})
_MAX_TOKENS = 2**31 - 1  # llama.cpp's int


@dataclass(frozen=True)
class Options:
    """What a command says. ``model``, ``mmproj`` and ``draft`` are paths as written.

    ``context`` 0 is what the model was trained for, or with ``slot_context`` so much for each slot.
    ``parallel`` None is llama-server's own choice: 4 slots that share one cache. ``host_tensors``
    are patterns of names that stay on the host.
    """

    model: str = ""
    mmproj: str = ""
    draft: str = ""
    context: int = 0
    slot_context: int = 0
    parallel: int | None = None
    unified: bool = False
    batch: int = 2048
    ubatch: int = 512
    cache_k: str = "f16"
    cache_v: str = "f16"
    draft_cache_k: str = "f16"
    draft_cache_v: str = "f16"
    gpu_layers: int = _ALL_LAYERS
    draft_gpu_layers: int = _ALL_LAYERS
    tensor_split: tuple[float, ...] = ()
    split_mode: str = "layer"
    main_gpu: int = 0
    devices: str = ""
    flash_attention: bool = True
    swa_full: bool = False
    cache_on_device: bool = True
    repack: bool = True
    mmproj_on_device: bool = True
    embedding: bool = False
    host_tensors: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        return self.parallel or 4

    @property
    def shares_cache(self) -> bool:
        return self.unified or self.parallel is None or self.slot_context > 0


def _count(written: str) -> int:
    return max(0, min(int(written), _MAX_TOKENS))


def _layers(written: str) -> int:
    return _ALL_LAYERS if written in ("auto", "all", "-1") else _count(written)


def _parallel(written: str) -> int | None:
    return None if int(written) < 1 else min(int(written), 256)


def _shares(written: str) -> tuple[float, ...]:
    return tuple(max(0.0, float(each)) for each in re.split(r"[,/]+", written) if each)


def _text(written: str) -> str:
    return written


def _lower(written: str) -> str:
    return written.lower()


def _switch(written: str) -> bool:
    if written.lower() in _ON | _OFF:
        return written.lower() in _ON
    raise ValueError(written)


def _overrides(written: str) -> tuple[str, ...]:
    """``PATTERN=BUFFER,…``: the patterns of what stays in the host's memory."""
    pairs = (each.rpartition("=") for each in written.split(","))
    return tuple(pattern for pattern, _, buffer in pairs if buffer.upper().startswith("CPU"))


def _of_first_layers(tensors: str) -> Callable[[str], tuple[str, ...]]:
    def read(written: str) -> tuple[str, ...]:
        return tuple(rf"blk\.{layer}{tensors}" for layer in range(min(_count(written), 1024)))

    return read


@dataclass(frozen=True)
class _Option:
    """``field`` of Options is what ``read`` makes of the value. A flag sets ``value`` instead.

    ``names`` and ``env`` (after ``LLAMA_ARG_``) have a space between two; the present one is first.
    """

    names: str
    field: str
    read: Callable[[str], Any] = _text
    env: str = ""
    value: Any = None


_DECLARED = (
    _Option("-m --model", "model", env="MODEL"),
    _Option("-mm --mmproj", "mmproj", env="MMPROJ"),
    _Option("-md --model-draft --spec-draft-model", "draft", env="SPEC_DRAFT_MODEL MODEL_DRAFT"),
    _Option("-c --ctx-size", "context", _count, "CTX_SIZE"),
    _Option("--kv-unified-per-slot", "slot_context", _count, "KV_UNIFIED_PER_SLOT"),
    _Option("-np --parallel", "parallel", _parallel, "N_PARALLEL"),
    _Option("-kvu --kv-unified", "unified", _switch, "KV_UNIFIED", True),
    _Option("-no-kvu --no-kv-unified", "unified", value=False),
    _Option("-b --batch-size", "batch", _count, "BATCH"),
    _Option("-ub --ubatch-size", "ubatch", _count, "UBATCH"),
    _Option("-ctk --cache-type-k", "cache_k", _lower, "CACHE_TYPE_K"),
    _Option("-ctv --cache-type-v", "cache_v", _lower, "CACHE_TYPE_V"),
    _Option(
        "-ctkd --cache-type-k-draft --spec-draft-type-k",
        "draft_cache_k",
        _lower,
        "SPEC_DRAFT_CACHE_TYPE_K CACHE_TYPE_K_DRAFT",
    ),
    _Option(
        "-ctvd --cache-type-v-draft --spec-draft-type-v",
        "draft_cache_v",
        _lower,
        "SPEC_DRAFT_CACHE_TYPE_V CACHE_TYPE_V_DRAFT",
    ),
    _Option("-ngl --gpu-layers --n-gpu-layers", "gpu_layers", _layers, "N_GPU_LAYERS"),
    _Option(
        "-ngld --gpu-layers-draft --n-gpu-layers-draft --spec-draft-ngl",
        "draft_gpu_layers",
        _layers,
        "N_GPU_LAYERS_DRAFT",
    ),
    _Option("-ts --tensor-split", "tensor_split", _shares, "TENSOR_SPLIT"),
    _Option("-sm --split-mode", "split_mode", _lower, "SPLIT_MODE"),
    _Option("-mg --main-gpu", "main_gpu", _count, "MAIN_GPU"),
    _Option("-dev --device", "devices", _lower, "DEVICE"),
    _Option("-fa --flash-attn", "flash_attention", _switch, "FLASH_ATTN"),
    _Option("--swa-full", "swa_full", _switch, "SWA_FULL", True),
    _Option("-kvo --kv-offload", "cache_on_device", _switch, "KV_OFFLOAD", True),
    _Option("-nkvo --no-kv-offload", "cache_on_device", value=False),
    _Option("--repack", "repack", _switch, "REPACK", True),
    _Option("-nr --no-repack", "repack", value=False),
    _Option("--mmproj-offload", "mmproj_on_device", _switch, "MMPROJ_OFFLOAD", True),
    _Option("--no-mmproj-offload", "mmproj_on_device", value=False),
    _Option("--embedding --embeddings", "embedding", _switch, "EMBEDDINGS", True),
    _Option("--rerank --reranking", "embedding", _switch, "RERANKING", True),
    _Option("-ot --override-tensor", "host_tensors", _overrides, "OVERRIDE_TENSOR"),
    _Option("-cmoe --cpu-moe", "host_tensors", env="CPU_MOE", value=(_EXPERTS,)),
    _Option("-ncmoe --n-cpu-moe", "host_tensors", _of_first_layers(_EXPERTS), "N_CPU_MOE"),
    _Option("-ncffn --n-cpu-ffn", "host_tensors", _of_first_layers(_DENSE), "N_CPU_FFN"),
)
_BY_NAME = {name: each for each in _DECLARED for name in each.names.split()}


def read_options(arguments: Sequence[str], env: Mapping[str, str]) -> Options:
    """The options that a llama-server's arguments set, else its environment, else the defaults.

    A value that llama.cpp refuses changes nothing: the server's own message says it best.
    """
    found = Options()
    for option in _DECLARED:
        for name in option.env.split():
            if written := env.get(f"LLAMA_ARG_{name}"):
                found = _set(found, option, written)
                break
    for option, written in _given(arguments):
        found = _set(found, option, written)
    return found


def _given(arguments: Sequence[str]) -> Iterator[tuple[_Option, str | None]]:
    """Each option that is there, with its value."""
    rest = list(reversed(arguments))
    while rest:
        name = rest.pop()
        option = _BY_NAME.get(name.replace("_", "-") if name.startswith("--") else name)
        if option is None:
            continue
        # Flash attention was a flag without a value in earlier versions.
        bare = option.field == "flash_attention" and (not rest or rest[-1].startswith("-"))
        if option.value is not None or bare:
            yield option, None
        elif rest:
            yield option, rest.pop()


def _set(options: Options, option: _Option, written: str | None) -> Options:
    value = option.value
    if written is not None and (option.value is None or option.read is _switch):
        try:
            value = option.read(written)
        except ValueError:
            return options
    elif value is None:
        value = True
    if option.field == "host_tensors":
        value = (*options.host_tensors, *value)
    return replace(options, **{option.field: value})

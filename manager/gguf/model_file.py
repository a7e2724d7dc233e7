"""What a person wants to know of a GGUF: its name, what it is for, how large it is."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from manager.gguf.ggml import FILE_TYPES, TYPES
from manager.gguf.reader import Skipped
from manager.gguf.split import Weights, read_weights, stem


class Kind(str, Enum):
    """What a GGUF is used for."""

    CHAT = "chat"
    BASE = "base"
    EMBEDDING = "embedding"
    RERANKER = "reranker"
    MMPROJ = "mmproj"
    ADAPTER = "adapter"
    OTHER = "other"


@dataclass(frozen=True)
class ModelFile:
    """``parameters`` is a count, ``context`` the tokens of context that it was trained for (None:
    the file does not say), ``size`` the bytes of all its ``files``. ``pools``: it says how the
    vectors of a text's tokens become one, as an embedding needs it."""

    path: Path
    files: tuple[Path, ...]
    name: str
    kind: Kind
    architecture: str
    parameters: int
    quantisation: str
    context: int | None
    layers: int | None
    size: int
    pools: bool


def read_model(path: Path) -> ModelFile:
    """What the GGUF at ``path`` is, all its pieces together. Raises GgufError."""
    return describe(read_weights(path))


def describe(weights: Weights) -> ModelFile:
    """What these weights are."""
    architecture = text(weights, "general.architecture")
    return ModelFile(
        path=weights.path,
        files=weights.files,
        name=text(weights, "general.name") or stem(weights.path),
        kind=kind_of(weights),
        architecture=architecture,
        parameters=sum(each.elements for each in weights.tensors),
        quantisation=_quantisation(weights),
        context=number(weights, f"{architecture}.context_length"),
        layers=number(weights, f"{architecture}.block_count"),
        size=weights.size,
        pools=number(weights, f"{architecture}.pooling_type") not in (None, _NO_POOLING),
    )


# llama.cpp, src/llama-arch.cpp: those that have no causal attention and give no text.
ENCODERS = frozenset(
    {
        "bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "modern-bert",
        "neo-bert", "eurobert", "gemma-embedding", "t5encoder", "llama-embed",
    }
)  # fmt: skip
_NO_POOLING, _RANK = 0, 4  # llama.h, `enum llama_pooling_type`
_CLASSIFIERS = frozenset({"cls.output.weight", "cls.weight"})
_RERANKER_NAME = re.compile(r"rerank", re.IGNORECASE)
_EMBEDDING_NAME = re.compile(r"embed", re.IGNORECASE)


def kind_of(weights: Weights) -> Kind:
    """What a model is for, by the first of these that holds:

    - mmproj: ``general.type`` says so, or the architecture is ``clip``;
    - adapter: ``general.type`` or ``adapter.type`` says so;
    - other: ``general.type`` is none of these and not ``model`` (``imatrix``, ``config-vocab``), or
      layers or a vocabulary are missing;
    - reranker: pooling type 4 (rank), tensors of a classifier, or a name with "rerank";
    - embedding: a pooling type but 0 (none), an architecture that only encodes, or a name with
      "embed";
    - chat: it has a chat template; base: it has none.
    """
    architecture = text(weights, "general.architecture")
    declared = text(weights, "general.type")
    if declared == "mmproj" or architecture == "clip":
        return Kind.MMPROJ
    if declared == "adapter" or "adapter.type" in weights.metadata:
        return Kind.ADAPTER
    has_text = "tokenizer.ggml.model" in weights.metadata
    if declared not in ("", "model") or not number(weights, f"{architecture}.block_count"):
        return Kind.OTHER
    if not has_text or not weights.tensors:
        return Kind.OTHER
    names = f"{text(weights, 'general.name')} {weights.path.name}"
    pooling = number(weights, f"{architecture}.pooling_type")
    classifies = any(each.name in _CLASSIFIERS for each in weights.tensors)
    if pooling == _RANK or classifies or _RERANKER_NAME.search(names):
        return Kind.RERANKER
    if (
        pooling not in (None, _NO_POOLING)
        or architecture in ENCODERS
        or _EMBEDDING_NAME.search(names)
    ):
        return Kind.EMBEDDING
    return Kind.CHAT if "tokenizer.chat_template" in weights.metadata else Kind.BASE


def text(weights: Weights, key: str) -> str:
    """The text at a key of the metadata; empty where there is none."""
    value = weights.metadata.get(key)
    return value if isinstance(value, str) else ""


def number(weights: Weights, key: str) -> int | None:
    """The whole number at a key of the metadata, of at least 0."""
    value = weights.metadata.get(key)
    return value if isinstance(value, int) and value >= 0 else None


def vocabulary(weights: Weights) -> int:
    """How many tokens the model knows; 0 where it has no vocabulary."""
    tokens = weights.metadata.get("tokenizer.ggml.tokens")
    return tokens.length if isinstance(tokens, Skipped) else 0


def _quantisation(weights: Weights) -> str:
    declared = FILE_TYPES.get(number(weights, "general.file_type") or 0, "")
    if declared and "general.file_type" in weights.metadata:
        return declared
    by_type: Counter[int] = Counter()
    for each in weights.tensors:
        by_type[each.type] += each.nbytes
    if not by_type:
        return ""
    commonest = by_type.most_common(1)[0][0]
    return TYPES[commonest].name if commonest in TYPES else f"type {commonest}"

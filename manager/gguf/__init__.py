"""GGUF files: what is in them, and how much memory llama.cpp takes for them."""

from manager.gguf.memory import Estimate, Split, estimate
from manager.gguf.model_file import Kind, ModelFile, read_model
from manager.gguf.reader import GgufError, Header, read_header

__all__ = [
    "Estimate",
    "GgufError",
    "Header",
    "Kind",
    "ModelFile",
    "Split",
    "estimate",
    "read_header",
    "read_model",
]

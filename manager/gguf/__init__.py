"""GGUF files: what is in them, and how much memory llama.cpp takes for them."""

from manager.gguf.folder import Listed, Listing, list_models, resolve_inside
from manager.gguf.memory import Estimate, Split, estimate
from manager.gguf.model_file import Kind, ModelFile, read_model
from manager.gguf.reader import GgufError, Header, read_header
from manager.gguf.split import stem

__all__ = [
    "Estimate",
    "GgufError",
    "Header",
    "Kind",
    "Listed",
    "Listing",
    "ModelFile",
    "Split",
    "estimate",
    "list_models",
    "read_header",
    "read_model",
    "resolve_inside",
    "stem",
]

"""The programs whose configs can be imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from manager.importers import llama_swap, llm_manager, ollama
from manager.importers.draft import Draft

READERS: Mapping[str, Callable[[Path], Draft]] = {
    "llama-swap": llama_swap.read,
    "llm-manager": llm_manager.read,
    "ollama": ollama.read,
}
"""What reads the config of a program, at its path. Each raises SourceError."""

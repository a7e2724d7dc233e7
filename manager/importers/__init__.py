"""Configs of other programs as a config.yaml: llama-swap's, LLM-Manager 3.x's, Ollama's models.

Nothing is run, fetched or written: what is read is another program's, and not trusted.
"""

from manager.importers.programs import READERS
from manager.importers.result import Imported, finish
from manager.importers.source import SourceError

__all__ = ["READERS", "Imported", "SourceError", "finish"]

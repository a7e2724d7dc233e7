from __future__ import annotations

from typing import Any

from manager.interfaces.base import Interface
from manager.interfaces.endpoints import OF_EMBEDDING, paths_of


class Embedding(Interface):
    """Vectors of texts: ``/v1/embeddings``."""

    mode = "Embedding"
    endpoints = paths_of(OF_EMBEDDING)

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        return self.endpoints[0], {"model": model, "input": "Hi"}

from __future__ import annotations

from typing import Any

from manager.interfaces.base import Interface


class Embedding(Interface):
    """Vectors of texts: ``/v1/embeddings``."""

    mode = "Embedding"
    endpoints = ("/v1/embeddings",)

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        return self.endpoints[0], {"model": model, "input": "Hi"}

from __future__ import annotations

from typing import Any

from manager.interfaces.base import Interface
from manager.interfaces.endpoints import OF_RERANKER, paths_of


class Reranker(Interface):
    """How well documents answer a query: ``/v1/rerank``."""

    mode = "Reranker"
    endpoints = paths_of(OF_RERANKER)

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        return self.endpoints[0], {"model": model, "query": "Hi", "documents": ["Hi"]}

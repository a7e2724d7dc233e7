from __future__ import annotations

from typing import Any

from manager.interfaces.base import Interface
from manager.interfaces.endpoints import OF_BASE, paths_of


class Base(Interface):
    """Text completions: ``/v1/completions``."""

    mode = "Base"
    endpoints = paths_of(OF_BASE)

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        return self.endpoints[0], {"model": model, "prompt": "Hi", "max_tokens": 1}

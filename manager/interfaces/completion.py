from __future__ import annotations

from typing import Any

from manager.interfaces.base import Interface


class Base(Interface):
    """Text completions: ``/v1/completions``."""

    mode = "Base"
    endpoints = ("/v1/completions",)
    streams_end_with_done = True
    reports_usage_on_request = True

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        return self.endpoints[0], {"model": model, "prompt": "Hi", "max_tokens": 1}

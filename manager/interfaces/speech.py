from __future__ import annotations

from typing import Any

from manager.interfaces.base import Interface
from manager.interfaces.endpoints import OF_SPEECH, paths_of


class Speech(Interface):
    """Texts, spoken: ``/v1/audio/speech``."""

    mode = "Speech"
    endpoints = paths_of(OF_SPEECH)
    may_refuse_probe = True  # each server has voices of its own

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        return self.endpoints[0], {"model": model, "input": "Hi", "voice": "alloy"}

from __future__ import annotations

from typing import Any

from manager.interfaces.base import Interface


class Chat(Interface):
    """Conversations: ``/v1/chat/completions``."""

    mode = "Chat"
    endpoints = ("/v1/chat/completions",)
    streams_end_with_done = True
    reports_usage_on_request = True

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        messages = [{"role": "user", "content": "Hi"}]
        return self.endpoints[0], {"model": model, "messages": messages, "max_tokens": 1}

from __future__ import annotations

from typing import Any

from manager.interfaces.base import Interface
from manager.interfaces.endpoints import OF_CHAT, paths_of


class Chat(Interface):
    """Conversations, in OpenAI's and Anthropic's APIs and llama.cpp's own."""

    mode = "Chat"
    endpoints = paths_of(OF_CHAT)

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        messages = [{"role": "user", "content": "Hi"}]
        return self.endpoints[0], {"model": model, "messages": messages, "max_tokens": 1}

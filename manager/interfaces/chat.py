from __future__ import annotations

from typing import Any

from manager.interfaces.base import Interface
from manager.interfaces.endpoints import CHAT


class Chat(Interface):
    """Conversations: ``/v1/chat/completions``."""

    mode = "Chat"
    endpoints = (CHAT.path,)

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        messages = [{"role": "user", "content": "Hi"}]
        return self.endpoints[0], {"model": model, "messages": messages, "max_tokens": 1}

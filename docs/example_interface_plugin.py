"""An interface plugin: a mode for models that answer Anthropic's Messages API alone.

Copy this file into the folder that ``interface_plugin_dir`` names, restart the program, and give a
model ``mode: Messages``. What each part is for stands in ``interface-plugin.md`` beside this file.
"""

from __future__ import annotations

from typing import Any

from manager.interfaces import Interface


class Messages(Interface):
    """Conversations: ``/v1/messages``, and ``/v1/messages/count_tokens`` to count theirs.

    How their streams end and how their errors look is known: see `manager.interfaces.ENDPOINTS`.
    ``Interface.usage`` reads Anthropic's counts as well.
    """

    mode = "Messages"
    endpoints = ("/v1/messages", "/v1/messages/count_tokens")

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        """One token is enough to know that the model answers."""
        messages = [{"role": "user", "content": "Hi"}]
        return self.endpoints[0], {"model": model, "messages": messages, "max_tokens": 1}

"""An interface plugin: a mode for Anthropic's Messages API, which llama.cpp's server also speaks.

Copy this file into the folder that ``interface_plugin_dir`` names, restart the program, and give a
model ``mode: Messages``. What each part is for stands in ``interface-plugin.md`` beside this file.
"""

from __future__ import annotations

from typing import Any

from manager.interfaces import Interface


class Messages(Interface):
    """Conversations: ``/v1/messages``, and ``/v1/messages/count_tokens`` to count theirs.

    Its streams end with ``message_stop`` and report usage unasked, so that what Interface says of
    OpenAI's streams stays off. ``Interface.usage`` reads Anthropic's counts as well.
    """

    mode = "Messages"
    endpoints = ("/v1/messages", "/v1/messages/count_tokens")

    def probe(self, model: str) -> tuple[str, dict[str, Any]]:
        """One token is enough to know that the model answers."""
        messages = [{"role": "user", "content": "Hi"}]
        return self.endpoints[0], {"model": model, "messages": messages, "max_tokens": 1}

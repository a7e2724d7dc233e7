"""Ollama's API over a model's OpenAI endpoint."""

from manager.relay.ollama.answer import Form, Kind, LineStream, rfc3339
from manager.relay.ollama.request import (
    OpenAIRequest,
    asks_for_stream,
    asks_to_unload,
    from_chat,
    from_embed,
    from_embeddings,
    from_generate,
    from_options,
    hides_thinking,
)
from manager.relay.ollama.translate import replaced, translated

__all__ = [
    "Form",
    "Kind",
    "LineStream",
    "OpenAIRequest",
    "asks_for_stream",
    "asks_to_unload",
    "from_chat",
    "from_embed",
    "from_embeddings",
    "from_generate",
    "from_options",
    "hides_thinking",
    "replaced",
    "rfc3339",
    "translated",
]

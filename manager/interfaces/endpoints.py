"""The endpoints that are known, each declared once."""

from __future__ import annotations

from dataclasses import dataclass

from manager.interfaces.stream_protocol import ANY_STREAM, OPENAI_STREAM, StreamProtocol


@dataclass(frozen=True)
class Endpoint:
    """A path that models answer at.

    ``stream`` is how its answers in server-sent events end and what errors look like there.
    ``asks_for_usage``: its servers understand ``stream_options.include_usage``. ``summary`` and
    ``schema`` (a name in openapi.yaml) describe it.
    """

    path: str
    stream: StreamProtocol = ANY_STREAM
    asks_for_usage: bool = False
    summary: str = "Passed on to the model that the body names, which is started where needed"
    schema: str = "Prompt"


CHAT = Endpoint(
    "/v1/chat/completions",
    OPENAI_STREAM,
    asks_for_usage=True,
    summary="An answer of a model of mode Chat",
    schema="ChatPrompt",
)
COMPLETIONS = Endpoint(
    "/v1/completions",
    OPENAI_STREAM,
    asks_for_usage=True,
    summary="An answer of a model of mode Base",
    schema="CompletionPrompt",
)
EMBEDDINGS = Endpoint(
    "/v1/embeddings", summary="Vectors of a model of mode Embedding", schema="EmbeddingPrompt"
)
RERANK = Endpoint(
    "/v1/rerank", summary="An order by a model of mode Reranker", schema="RerankPrompt"
)

ENDPOINTS = {each.path: each for each in (CHAT, COMPLETIONS, EMBEDDINGS, RERANK)}

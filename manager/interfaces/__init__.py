"""Modes and endpoints: what a model answers, how it is probed, how streams end, token usage."""

from manager.interfaces.base import Interface
from manager.interfaces.chat import Chat
from manager.interfaces.completion import Base
from manager.interfaces.embedding import Embedding
from manager.interfaces.endpoints import (
    CAPABILITIES,
    ENDPOINTS,
    RAW,
    Endpoint,
    canonical,
    error_body,
    is_for_models,
    is_ollamas,
)
from manager.interfaces.error_shapes import anthropic_error
from manager.interfaces.image import Image
from manager.interfaces.reranker import Reranker
from manager.interfaces.speech import Speech
from manager.interfaces.stream_protocol import (
    ANY_STREAM,
    OPENAI_STREAM,
    PROTOCOLS,
    AnswerError,
    StreamProtocol,
    error_in,
    error_of,
    find_error_offsets,
)
from manager.interfaces.transcription import Transcription

BUILT_IN: tuple[type[Interface], ...] = (
    Chat,
    Base,
    Embedding,
    Reranker,
    Transcription,
    Speech,
    Image,
)

__all__ = [
    "ANY_STREAM",
    "BUILT_IN",
    "CAPABILITIES",
    "ENDPOINTS",
    "OPENAI_STREAM",
    "PROTOCOLS",
    "RAW",
    "AnswerError",
    "Base",
    "Chat",
    "Embedding",
    "Endpoint",
    "Image",
    "Interface",
    "Reranker",
    "Speech",
    "StreamProtocol",
    "Transcription",
    "anthropic_error",
    "canonical",
    "error_body",
    "error_in",
    "error_of",
    "find_error_offsets",
    "is_for_models",
    "is_ollamas",
]

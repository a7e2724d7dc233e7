"""The endpoints that are known, each declared once."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Any

from manager.errors import ApiError
from manager.interfaces.error_shapes import anthropic_error, ollama_error, openai_error
from manager.interfaces.stream_protocol import (
    ANTHROPIC_STREAM,
    ANY_STREAM,
    IMAGE_STREAM,
    LLAMA_STREAM,
    OPENAI_STREAM,
    RESPONSES_STREAM,
    SPEECH_STREAM,
    TRANSCRIPT_STREAM,
    StreamProtocol,
)

_BASE = "/v1"
_MODELS = "/models"

# Ollama's API. What else is below /api is for who runs the program.
_OLLAMA_CALLS = (
    *("tags", "show", "ps", "version"),
    *("chat", "generate", "embed", "embeddings"),
    *("pull", "push", "create", "copy", "delete"),
)
_OLLAMA = frozenset(f"/api/{call}" for call in _OLLAMA_CALLS)
_OLLAMA_BLOBS = "/api/blobs/"


@dataclass(frozen=True)
class Endpoint:
    """A path that models answer at.

    - ``path`` is ours, below ``/v1``; ``server_path`` that of the model's server, where it is
      another. ``variants`` are further paths that mean the same.
    - ``method``: with GET the query names the model. ``is_form``: its body is a form
      (multipart/form-data), and not JSON.
    - ``stream`` is how its answers in server-sent events go, and ``error`` the shape of an error.
    - ``asks_for_usage``: its servers understand ``stream_options.include_usage``.
    - ``limits``: the fields that bound the tokens of an answer.
    - ``summary`` and ``schema`` (a name in openapi.yaml) describe it. ``capability`` is what a
      model that has it can do, in ``/v1/models``.
    """

    path: str
    stream: StreamProtocol = ANY_STREAM
    asks_for_usage: bool = False
    server_path: str = ""
    variants: tuple[str, ...] = ()
    method: str = "POST"
    is_form: bool = False
    error: Callable[[ApiError], Mapping[str, Any]] = openai_error
    limits: tuple[str, ...] = ("max_completion_tokens", "max_tokens")
    summary: str = "Passed on to the model that the body names, which is started where needed"
    schema: str = "Prompt"
    capability: str = ""


CHAT = Endpoint(
    "/v1/chat/completions",
    OPENAI_STREAM,
    asks_for_usage=True,
    summary="An answer of a model of mode Chat",
    schema="ChatPrompt",
    capability="chat",
)
COMPLETIONS = Endpoint(
    "/v1/completions",
    OPENAI_STREAM,
    asks_for_usage=True,
    summary="A text that goes on with the prompt",
    schema="CompletionPrompt",
    capability="completion",
)
RESPONSES = Endpoint(
    "/v1/responses",
    RESPONSES_STREAM,
    limits=("max_output_tokens",),
    summary="An answer of a model of mode Chat, in OpenAI's newer API",
)
INPUT_TOKENS = Endpoint(
    "/v1/responses/input_tokens", summary="How many tokens the input of a response has"
)
MESSAGES = Endpoint(
    "/v1/messages",
    ANTHROPIC_STREAM,
    error=anthropic_error,
    summary="An answer of a model of mode Chat, in Anthropic's API",
)
COUNT_TOKENS = Endpoint(
    "/v1/messages/count_tokens",
    error=anthropic_error,
    summary="How many tokens a message of Anthropic's API has",
)
EMBEDDINGS = Endpoint(
    "/v1/embeddings",
    summary="Vectors of a model of mode Embedding",
    schema="EmbeddingPrompt",
    capability="embedding",
)
POOLING = Endpoint(
    "/v1/pooling", server_path="/pooling", summary="Vectors by token or by text, of vLLM"
)
RERANK = Endpoint(
    "/v1/rerank",
    variants=("/v1/reranking", "/v2/rerank"),
    summary="An order by a model of mode Reranker",
    schema="RerankPrompt",
    capability="rerank",
)
SCORE = Endpoint("/v1/score", summary="How alike two texts are, of vLLM")
COMPLETION = Endpoint(
    "/v1/completion",
    LLAMA_STREAM,
    server_path="/completion",
    limits=("n_predict", "max_tokens"),
    summary="A text that goes on with the prompt, in llama.cpp's own API",
)
INFILL = Endpoint(
    "/v1/infill",
    LLAMA_STREAM,
    server_path="/infill",
    limits=("n_predict", "max_tokens"),
    summary="What stands between two texts, of llama.cpp",
)
TOKENIZE = Endpoint("/v1/tokenize", server_path="/tokenize", summary="A text as tokens")
DETOKENIZE = Endpoint("/v1/detokenize", server_path="/detokenize", summary="Tokens as a text")
APPLY_TEMPLATE = Endpoint(
    "/v1/apply-template",
    server_path="/apply-template",
    summary="Messages as the prompt that llama.cpp makes of them",
)
PROPS = Endpoint(
    "/v1/props",
    server_path="/props",
    method="GET",
    summary="What llama.cpp says of a model and its own settings",
)
TRANSCRIPTIONS = Endpoint(
    "/v1/audio/transcriptions",
    TRANSCRIPT_STREAM,
    is_form=True,
    summary="What a recording says, by a model of mode Transcription",
    schema="RecordingForm",
)
TRANSLATIONS = Endpoint(
    "/v1/audio/translations",
    TRANSCRIPT_STREAM,
    is_form=True,
    summary="What a recording says, in English",
    schema="RecordingForm",
)
SPEECH = Endpoint(
    "/v1/audio/speech",
    SPEECH_STREAM,
    summary="A text that a model of mode Speech says",
    schema="SpeechPrompt",
)
VOICES = Endpoint(
    "/v1/audio/voices", method="GET", summary="The voices that a model of mode Speech has"
)
GENERATIONS = Endpoint(
    "/v1/images/generations",
    IMAGE_STREAM,
    summary="Pictures by a model of mode Image",
    schema="ImagePrompt",
)
EDITS = Endpoint(
    "/v1/images/edits",
    IMAGE_STREAM,
    is_form=True,
    summary="Pictures made of others and a prompt",
    schema="PictureForm",
)
VARIATIONS = Endpoint(
    "/v1/images/variations",
    is_form=True,
    summary="Pictures that resemble another",
    schema="PictureForm",
)
RAW = Endpoint("/upstream")
"""The whole of a model's server: any path of it, and any method."""

_TEXT_EXTRAS = (COMPLETION, INFILL, TOKENIZE, DETOKENIZE, APPLY_TEMPLATE, PROPS)
OF_CHAT = (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    INPUT_TOKENS,
    MESSAGES,
    COUNT_TOKENS,
    *_TEXT_EXTRAS,
)
OF_BASE = (COMPLETIONS, *_TEXT_EXTRAS)
OF_EMBEDDING = (EMBEDDINGS, POOLING, TOKENIZE)
OF_RERANKER = (RERANK, SCORE)
OF_TRANSCRIPTION = (TRANSCRIPTIONS, TRANSLATIONS)
OF_SPEECH = (SPEECH, VOICES)
OF_IMAGE = (GENERATIONS, EDITS, VARIATIONS)

_MODES = (
    OF_CHAT,
    OF_BASE,
    OF_EMBEDDING,
    OF_RERANKER,
    OF_TRANSCRIPTION,
    OF_SPEECH,
    OF_IMAGE,
)
ENDPOINTS = {each.path: each for mode in _MODES for each in mode}
_VARIANTS = {variant: each.path for each in ENDPOINTS.values() for variant in each.variants}


CAPABILITIES = (
    "chat",
    "completion",
    "embedding",
    "rerank",
    "vision",
    "tools",
    "reasoning",
    "audio",
)
"""What ``/v1/models`` may say that a model can do."""


def paths_of(endpoints: tuple[Endpoint, ...]) -> tuple[str, ...]:
    """As a mode has them: the first is the one that it is probed at."""
    return tuple(each.path for each in endpoints)


def canonical(path: str, known: Container[str] = ENDPOINTS) -> str:
    """The path that is meant: one of ``known`` without ``/v1`` or with a doubled one, with a slash
    behind it, or by another name. Any other path is returned as it is."""
    if path in known:
        return path
    bare = path
    while bare.startswith(_BASE + "/"):
        bare = bare.removeprefix(_BASE)
    name = bare.rstrip("/")
    for candidate in (_BASE + name, name):
        candidate = _VARIANTS.get(candidate, candidate)
        if candidate in known:
            return candidate
    if bare == path:
        return path
    return _BASE + (name if name == _MODELS else bare)  # the name of a model may end in a slash


def is_ollamas(path: str) -> bool:
    """Whether the path is one of Ollama's API."""
    return path in _OLLAMA or path.startswith(_OLLAMA_BLOBS)


def is_for_models(path: str) -> bool:
    """Whether the path is for who uses models, and not for who runs the program."""
    return path.startswith(f"{_BASE}/") or is_ollamas(path)


def error_body(path: str, error: ApiError) -> Mapping[str, Any]:
    """The JSON of an error, as clients of the endpoint at this path expect it."""
    if is_ollamas(path):
        return ollama_error(error)
    endpoint = ENDPOINTS.get(path)
    return endpoint.error(error) if endpoint is not None else error.body()

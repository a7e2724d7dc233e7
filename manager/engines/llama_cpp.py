"""The command of llama.cpp's server for a GGUF."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath

PORT = "${PORT}"
_ALL_LAYERS = "999"
# Each open connection holds a thread of the server's; when all are held, /health waits.
_HTTP_THREADS = "64"
# A text to embed or to score has to fit into one batch.
_EMBEDDING_BATCH = "2048"
_MODE_FLAGS = {
    "Embedding": ("--embedding", "-b", _EMBEDDING_BATCH, "-ub", _EMBEDDING_BATCH),
    "Reranker": ("--reranking", "-b", _EMBEDDING_BATCH, "-ub", _EMBEDDING_BATCH),
}


def llama_server_command(
    path: PurePath | str,
    *,
    mode: str = "Chat",
    context: int | None = None,
    mmproj: PurePath | str | None = None,
    pooling: str | None = None,
    on_devices: bool = True,
    program: Sequence[str] = ("llama-server",),
) -> list[str]:
    """A scheme's `command` that serves this GGUF on loopback.

    ``mode`` is the config's (`Chat`, `Base`, `Embedding`, `Reranker`), ``context`` in tokens of all
    requests at a time together (None: llama-server's choice), ``mmproj`` an image projector,
    ``pooling`` llama-server's, for an embedding model whose file does not say it.
    ``on_devices`` puts all layers on the devices that the scheme has.
    """
    return [
        *map(literal, program),
        *model_arguments(
            path,
            mode=mode,
            context=context,
            mmproj=mmproj,
            pooling=pooling,
            on_devices=on_devices,
        ),
        *("--host", "127.0.0.1", "--port", PORT),
    ]


def model_arguments(
    path: PurePath | str,
    *,
    mode: str,
    context: int | None,
    mmproj: PurePath | str | None,
    pooling: str | None,
    on_devices: bool,
) -> list[str]:
    """The arguments of llama-server that say what it serves, and how."""
    return [
        *("-m", literal(path)),
        *(("--mmproj", literal(mmproj)) if mmproj else ()),
        *(("-c", str(context)) if context else ()),
        *(("-ngl", _ALL_LAYERS) if on_devices else ()),
        *_MODE_FLAGS.get(mode, ()),
        *(("--pooling", pooling) if pooling else ()),
        *("--threads-http", _HTTP_THREADS),
    ]


def literal(written: PurePath | str) -> str:
    """A text as it stands in a config's command: ``${`` in it names no variable, and a leading
    ``~`` no home."""
    text = str(written).replace("${", "$${")
    return f"./{text}" if text.startswith("~") else text

"""The command that serves a GGUF. Pure."""

from __future__ import annotations

_MODE_FLAGS = {"Embedding": ["--embedding"], "Reranker": ["--reranking"]}


def llama_server_command(
    path: str, *, mode: str = "Chat", context: int | None = None, mmproj: str | None = None
) -> list[str]:
    """llama.cpp's server for a file, with `context` tokens and an image encoder, on the port that
    LLM-Manager chooses."""
    command = ["llama-server", "-m", path, "--host", "127.0.0.1", "--port", "${PORT}"]
    if context is not None:
        command += ["-c", str(context)]
    if mmproj is not None:
        command += ["--mmproj", mmproj]
    return command + _MODE_FLAGS.get(mode, [])

"""Errors as clients of each API expect them, so that their SDKs raise their own classes. Pure."""

from __future__ import annotations

from typing import Any

from manager.errors import ApiError

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def openai_error(error: ApiError) -> dict[str, Any]:
    """``{"error": {"message", "type", "param", "code"}}``"""
    return error.body()


def openai_event(error: ApiError) -> dict[str, Any]:
    """As an event of Responses: its own shape, and ``error`` beside it, by which OpenAI's SDKs know
    that they have to raise."""
    body = error.body()
    named = {name: body["error"][name] for name in ("code", "message", "param")}
    return {"type": "error", **named, "sequence_number": 0, **body}


def anthropic_error(error: ApiError) -> dict[str, Any]:
    """``{"type": "error", "error": {"type", "message"}}``, and what OpenAI's have beside that."""
    other = "api_error" if error.status >= 500 else "invalid_request_error"
    kind = _ANTHROPIC_TYPES.get(error.status, other)
    return {"type": "error", "error": {**error.body()["error"], "type": kind}}


def ollama_error(error: ApiError) -> dict[str, Any]:
    """``{"error": "text"}``"""
    return {"error": error.message}

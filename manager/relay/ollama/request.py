"""What Ollama's clients ask for, as the body of one of OpenAI's endpoints. Pure.

What has no counterpart there, such as ``num_ctx`` and ``keep_alive``, is left out: the config says
how a model is launched. What would change the answer and cannot be passed on is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from manager.errors import ApiError

_CHAT, _COMPLETIONS, _EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"

# Ollama's name of an option, and those that servers know it by.
_OPTIONS = {
    "temperature": ("temperature",),
    "top_p": ("top_p",),
    "top_k": ("top_k",),
    "min_p": ("min_p",),
    "typical_p": ("typical_p",),
    "seed": ("seed",),
    "stop": ("stop",),
    "presence_penalty": ("presence_penalty",),
    "frequency_penalty": ("frequency_penalty",),
    "repeat_penalty": ("repeat_penalty", "repetition_penalty"),  # llama.cpp's, vLLM's
    "repeat_last_n": ("repeat_last_n",),
    "mirostat": ("mirostat",),
    "mirostat_tau": ("mirostat_tau",),
    "mirostat_eta": ("mirostat_eta",),
}
# How base64 of an image begins; the rest is PNG.
_IMAGES = {"/9j/": "jpeg", "UklG": "webp", "R0lG": "gif"}
_NO_TIME = re.compile(r"[+-]?(?:0+(?:\.0*)?(?:ns|us|µs|μs|ms|s|m|h)?)+")


@dataclass(frozen=True)
class OpenAIRequest:
    """``body`` is for the endpoint at ``path``; None where the model is only to be loaded."""

    path: str
    body: dict[str, Any] | None


def from_chat(asked: Mapping[str, Any]) -> OpenAIRequest:
    """The request for ``POST /api/chat``. Raises ApiError 400."""
    messages = _list(asked, "messages", Mapping, "messages")
    if not messages:
        return OpenAIRequest(_CHAT, None)
    body = {"messages": list(_messages(messages))}
    if tools := _list(asked, "tools", Mapping, "tools"):
        body["tools"] = tools
    return OpenAIRequest(_CHAT, body | _thinking(asked) | _settings(asked))


def from_generate(asked: Mapping[str, Any], *, has_chat: bool) -> OpenAIRequest:
    """The request for ``POST /api/generate``; ``has_chat``: the model answers chats, whose server
    makes the prompt of them. Raises ApiError 400."""
    prompt, system = _text(asked, "prompt"), _text(asked, "system")
    suffix, images = _text(asked, "suffix"), _images(asked, "images")
    is_chat = has_chat and not _flag(asked, "raw")
    if not prompt:
        return OpenAIRequest(_CHAT if is_chat else _COMPLETIONS, None)
    if _text(asked, "template"):
        raise _bad("template", "template cannot be set here: the model's server has its own")
    if _list(asked, "context", int, "numbers"):
        raise _bad("context", "context is not supported: use /api/chat, which takes messages")
    if is_chat:
        if suffix:
            raise _bad("suffix", "suffix needs a model of mode Base, or raw: true")
        messages = [_message("user", prompt, images)]
        if system:
            messages.insert(0, _message("system", system, []))
        return OpenAIRequest(_CHAT, {"messages": messages} | _thinking(asked) | _settings(asked))
    if images:
        raise _bad("images", "images need a model of mode Chat, and no raw: true")
    if system and _flag(asked, "raw"):
        raise _bad("system", "with raw: true the prompt is all that the model sees: no system")
    body: dict[str, Any] = {"prompt": f"{system}\n\n{prompt}" if system else prompt}
    if suffix:
        body["suffix"] = suffix
    return OpenAIRequest(_COMPLETIONS, body | _settings(asked))


def from_embed(asked: Mapping[str, Any]) -> OpenAIRequest:
    """The request for ``POST /api/embed``, whose ``input`` is a text or a list of texts. Raises
    ApiError 400."""
    given = asked.get("input")
    if not isinstance(given, str):
        given = _list(asked, "input", str, "texts")
    if not given:
        return OpenAIRequest(_EMBEDDINGS, None)
    body: dict[str, Any] = {"input": given}
    if asked.get("dimensions") is not None:
        body["dimensions"] = asked["dimensions"]
    return OpenAIRequest(_EMBEDDINGS, body)


def from_embeddings(asked: Mapping[str, Any]) -> OpenAIRequest:
    """The request for ``POST /api/embeddings``, which is for one text. Raises ApiError 400."""
    prompt = _text(asked, "prompt")
    return OpenAIRequest(_EMBEDDINGS, {"input": prompt} if prompt else None)


def asks_for_stream(asked: Mapping[str, Any]) -> bool:
    """Whether a chat or a text is to come as a stream, as it does unless the client says no."""
    return _flag(asked, "stream", default=True)


def hides_thinking(asked: Mapping[str, Any]) -> bool:
    """Whether the client does not want to see what the model thinks."""
    return asked.get("think") is False


def asks_to_unload(asked: Mapping[str, Any]) -> bool:
    """Whether ``keep_alive`` is no time: a number, or a duration of Go's such as ``0s``."""
    value = asked.get("keep_alive")
    if isinstance(value, str):
        return _NO_TIME.fullmatch(value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0


def _settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What says how the answer is made and sent."""
    options = asked.get("options")
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise _bad("options", "options has to be an object")
    body = from_options(options)
    return body | _format(asked) | {"stream": asks_for_stream(asked)}


def from_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that stand for Ollama's options. Raises ApiError 400."""
    body = {
        name: options[option]
        for option, names in _OPTIONS.items()
        if options.get(option) not in (None, [])
        for name in names
    }
    most = options.get("num_predict")
    if isinstance(most, float) and most.is_integer():
        most = int(most)
    if most is not None and (not isinstance(most, int) or isinstance(most, bool)):
        raise _bad("options", "options.num_predict has to be a whole number")
    if most is not None and most > 0:  # -1 and -2 are as many as there are
        body["max_tokens"] = most
    return body


def _format(asked: Mapping[str, Any]) -> dict[str, Any]:
    wanted = asked.get("format")
    if wanted in (None, ""):
        return {}
    if wanted == "json":
        return {"response_format": {"type": "json_object"}}
    if not isinstance(wanted, Mapping):
        raise _bad("format", 'format has to be "json" or a JSON schema')
    schema = {"name": "answer", "schema": wanted}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def _thinking(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What templates of models read, and the effort by the name that OpenAI has given it."""
    think = asked.get("think")
    if think in (None, ""):
        return {}
    if isinstance(think, bool):
        return {"chat_template_kwargs": {"enable_thinking": think}}
    if not isinstance(think, str):
        raise _bad("think", 'think has to be true, false, "low", "medium" or "high"')
    effort = {"reasoning_effort": think}
    return {**effort, "chat_template_kwargs": {"enable_thinking": True, **effort}}


# --- messages -----------------------------------------------------------------------------


def _messages(messages: list[Any]) -> Iterator[dict[str, Any]]:
    """With an id for each tool call, by which OpenAI's API finds the call that a result is of;
    Ollama's has the tool's name, or the order alone."""
    unanswered: dict[str, str] = {}  # names by id
    number = 0
    for place, message in enumerate(messages):
        where = f"messages[{place}]."
        role = _text(message, "role", where)
        if not role:
            raise _bad(f"{where}role", f"{where}role is missing")
        images = _images(message, "images", where)
        translated = _message(role, _text(message, "content", where), images)
        if thinking := _text(message, "thinking", where):
            translated["reasoning_content"] = thinking
        if role == "tool":
            call = _text(message, "tool_call_id", where)
            call = call or _call_of(_text(message, "tool_name", where), unanswered)
            unanswered.pop(call, None)
            translated["tool_call_id"] = call
        calls = []
        for one in _list(message, "tool_calls", Mapping, "objects", where):
            call = one.get("id") if isinstance(one.get("id"), str) else ""
            call, number = call or f"call_{number}", number + 1
            function = _function(one.get("function"), where)
            unanswered[call] = function["name"]
            calls.append({"id": call, "type": "function", "function": function})
        if calls:
            translated["tool_calls"] = calls
        yield translated


def _message(role: str, content: str, images: list[str]) -> dict[str, Any]:
    if not images:
        return {"role": role, "content": content}
    parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if content else []
    parts += [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in images]
    return {"role": role, "content": parts}


def _data_url(image: str) -> str:
    if image.startswith("data:"):
        return image
    kinds = (kind for start, kind in _IMAGES.items() if image.startswith(start))
    return f"data:image/{next(kinds, 'png')};base64,{image}"


def _function(function: Any, where: str) -> dict[str, str]:
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise _bad(f"{where}tool_calls", f"{where}tool_calls has one without function.name")
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"name": name, "arguments": text}


def _call_of(tool: str, unanswered: Mapping[str, str]) -> str:
    """The id of the call that a tool's result is of: the first of that name, else the first."""
    named = [call for call, name in unanswered.items() if name == tool]
    return next(iter(named or unanswered), f"call_{tool}")


# --- fields -------------------------------------------------------------------------------


def _text(asked: Mapping[str, Any], name: str, where: str = "") -> str:
    value = asked.get(name)
    if value is not None and not isinstance(value, str):
        raise _bad(where + name, f"{where}{name} has to be a text")
    return value or ""


def _flag(asked: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = asked.get(name)
    if value is not None and not isinstance(value, bool):
        raise _bad(name, f"{name} has to be true or false")
    return default if value is None else value


def _list(asked: Mapping[str, Any], name: str, kind: type, what: str, where: str = "") -> list[Any]:
    value = asked.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        raise _bad(where + name, f"{where}{name} has to be a list of {what}")
    return value


def _images(asked: Mapping[str, Any], name: str, where: str = "") -> list[str]:
    return _list(asked, name, str, "images in base64", where)


def _bad(name: str, message: str) -> ApiError:
    return ApiError(400, "bad_parameter", message, param=name)

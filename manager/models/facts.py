"""What a model's server says of its model: how much it reads at once, and what it can do."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from manager.models import probe
from manager.models.server import ModelDependencies, Server
from manager.relay import UpstreamError
from manager.storage import DatabaseError, server_facts

log = logging.getLogger(__name__)

MAX_CONTEXT = 1 << 40  # tokens; a larger number is a fault
_TIMEOUT_SECONDS = 5.0
_CONTEXT_NAMES = ("max_model_len", "context_length", "max_context_length", "context_window")


@dataclass(frozen=True)
class ServerFacts:
    """``context_length`` is in tokens, None where the server did not say; ``capabilities`` are what
    no endpoint shows: vision, audio, tools, reasoning."""

    context_length: int | None = None
    capabilities: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ServerFacts:
        found = json.loads(text)
        return cls(found["context_length"], tuple(found["capabilities"]))


def read_facts(models: Any, props: Any, name: str) -> ServerFacts:
    """From the decoded answers of ``/v1/models`` (vLLM, llama.cpp, LLM-Manager and others) and of
    llama.cpp's ``/props``; None for what was not answered. ``name`` is what the server calls the
    model."""
    entry, props = _entry(models, name), _mapping(props)
    context = _context(_mapping(props.get("default_generation_settings")).get("n_ctx"))
    for key in _CONTEXT_NAMES:
        context = context or _context(entry.get(key))
    context = context or _context(_mapping(entry.get("meta")).get("n_ctx"))
    return ServerFacts(context, tuple(dict.fromkeys((*_of_props(props), *_of_entry(entry)))))


def _of_props(props: dict[str, Any]) -> Iterator[str]:
    modalities = _mapping(props.get("modalities"))
    for name in ("vision", "audio"):
        if modalities.get(name) is True:
            yield name
    abilities = _mapping(props.get("chat_template_caps"))
    if abilities.get("supports_tools") is True or abilities.get("supports_tool_calls") is True:
        yield "tools"
    template = props.get("chat_template")
    if abilities.get("supports_preserve_reasoning") is True or (
        isinstance(template, str) and "<think>" in template
    ):
        yield "reasoning"


def _of_entry(entry: dict[str, Any]) -> Iterator[str]:
    """As LLM-Manager has it itself."""
    said = entry.get("capabilities")
    for name in ("vision", "audio", "tools", "reasoning"):
        if isinstance(said, list) and name in said:
            yield name


def _entry(models: Any, name: str) -> dict[str, Any]:
    """The entry of that name, or the only one."""
    data = _mapping(models).get("data")
    entries = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
    named = [one for one in entries if one.get("id") == name]
    return (named or entries)[0] if named or len(entries) == 1 else {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _context(value: Any) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and 0 < value < MAX_CONTEXT else None


def learn(
    server: Server, shared: ModelDependencies, known: ServerFacts, is_over: Callable[[], bool]
) -> ServerFacts:
    """What a ready server says, remembered where it is news; what is ``known`` where it says
    nothing. Once ``is_over`` it returns."""
    model = server.settings.name
    try:
        found = _ask(server, shared, is_over)
        if found in (known, ServerFacts()):
            return known
        server_facts.remember(shared.store, model, found.to_json())
    except DatabaseError as error:  # then it is known as long as the program runs
        log.warning("what the server of %s says is not in usage.db: %s", model, error)
    except Exception:
        # A fault of ours: the model's worker lives on.
        log.exception("asking the server of %s failed", model)
        return known
    return found


def _ask(server: Server, shared: ModelDependencies, is_over: Callable[[], bool]) -> ServerFacts:
    def answer(path: str) -> Any:
        try:
            request = probe.ProbeRequest("GET", path)
            status, body = probe.ask(server.upstream, shared, request, _TIMEOUT_SECONDS, is_over)
            return json.loads(body) if status == 200 else None
        except (UpstreamError, ValueError, RecursionError) as error:
            log.debug("%s does not answer %s: %s", server.settings.name, path, error)
            return None

    name = server.settings.served_model_name or server.settings.name
    models = answer("/v1/models")
    # No other server has it: one behind a url may be a program that records each request.
    is_llama = _entry(models, name).get("owned_by") == "llamacpp"
    return read_facts(models, answer("/props") if is_llama else None, name)


def remembered(shared: ModelDependencies) -> dict[str, ServerFacts]:
    """By model, what was remembered. Raises DatabaseError."""
    known = server_facts.remembered(shared.store.path)
    return {model: ServerFacts.from_json(text) for model, text in known.items()}

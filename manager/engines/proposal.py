"""What to write into the config for a model: its name, mode and scheme."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manager.engines.presets import Engine, Request
from manager.gguf import Kind, ModelFile, stem

_MODES = {
    Kind.CHAT: "Chat",
    Kind.BASE: "Base",
    Kind.EMBEDDING: "Embedding",
    Kind.RERANKER: "Reranker",
}
_QUANTISATION = re.compile(r"([-_.](UD|i?q\d\w*|[bf]?f?p?(16|32)|mxfp4\w*))+$", re.IGNORECASE)
_MAX_NAME = 100  # characters; the config takes twice as many


class ProposalError(Exception):
    """The engine cannot run this model; says why, for a person."""


@dataclass(frozen=True)
class Proposal:
    """``name`` is the key below `Local-Models`, ``entry`` its value: what YAML is made of. An entry
    for the user's own command has an empty `command`, which they fill in."""

    name: str
    mode: str
    entry: dict[str, Any] = field(hash=False)


def propose(
    model: ModelFile | str,
    engine: Engine,
    *,
    devices: Sequence[str] = (),
    context: int | None = None,
    projector: Path | None = None,
    mode: str | None = None,
    name: str | None = None,
    taken: Collection[str] = (),
) -> Proposal:
    """An entry of the config that runs a model with an engine.

    ``model`` is a GGUF, or what vLLM takes: a Hugging Face model's name or folder. ``devices`` are
    the names of `required_devices`; ``context`` is in tokens; ``taken`` are names and aliases of
    the config, which the proposed ``name`` is none of. Raises ProposalError.
    """
    if isinstance(model, ModelFile):
        if engine.command and model.kind not in engine.kinds:
            raise ProposalError(f"{model.path}: {engine.title} serves no {model.kind.value}")
        mode = mode or _MODES.get(model.kind)
        files, text = model.files, ""
    else:
        if engine.command and engine.kinds:
            raise ProposalError(f"{engine.title} takes a GGUF file, not {model}")
        files, text = (), model
    if not devices and "cpu" not in engine.device_kinds:
        raise ProposalError(f"{engine.title} needs a device: name one of the machine's cards")
    name = _unique(name or _plain_name(model), taken)
    mode = mode or "Chat"
    # A text model that gives embeddings has read the whole text at its last token.
    guess = mode == "Embedding" and isinstance(model, ModelFile) and not model.pools
    pooling = "last" if guess else None
    request = Request(name, mode, text, files, projector, tuple(devices), context, pooling)
    scheme: dict[str, Any] = {"required_devices": list(devices)}
    scheme["command"] = engine.command(request) if engine.command else []
    if engine.stop:
        scheme["stop_command"] = engine.stop(request)
    entry: dict[str, Any] = {"mode": mode}
    if engine.served_name:
        entry["served_model_name"] = engine.served_name(request)
    if engine.start_timeout:
        entry["start_timeout"] = engine.start_timeout
    entry["GPU" if devices else "CPU"] = scheme
    return Proposal(name, mode, entry)


def _plain_name(model: ModelFile | str) -> str:
    """The file's name without its quantisation, or the last part of a Hugging Face name; of a very
    long one the begin."""
    if isinstance(model, ModelFile):
        name = _QUANTISATION.sub("", stem(model.path)) or stem(model.path)
    else:
        name = re.split(r"[/\\]", model.rstrip("/\\"))[-1] or "model"
    return name[:_MAX_NAME]


def _unique(name: str, taken: Collection[str]) -> str:
    """The name, with a number where it is taken; in any case of letters, since a model's logs are
    in a folder of its name."""
    names = {each.casefold() for each in taken}
    numbered = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(each for each in numbered if each.casefold() not in names)

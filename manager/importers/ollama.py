"""Ollama's folder of models, each run by llama-server.

A manifest (``manifests/HOST/NAMESPACE/NAME/TAG``) names layers by their digest, each of which is a
file in ``blobs``: https://github.com/ollama/ollama, server/internal/manifest/manifest.go.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from manager.engines import BY_ID, ProposalError, propose
from manager.errors import ApiError
from manager.gguf import GgufError, Kind, read_model
from manager.importers.draft import SCHEME, Draft, Part
from manager.importers.source import SourceError, read_bytes

_MAX_BYTES = 1 << 20  # of a manifest, parameters, a config
_DEFAULT_CONTEXT = 4096  # tokens; docs/context-length.mdx of Ollama, for less than 24 GiB
_LEVELS = 4  # of folders, the last of which are the tags
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_LAYER = re.compile(r"application/vnd\.ollama\.image\.([a-z]+)")
_DEFAULT_HOST, _DEFAULT_NAMESPACE = "registry.ollama.ai", "library"
# Parameters of a launch, and llama-server's option.
_FLAGS = {"num_gpu": "-ngl", "num_thread": "-t", "num_batch": "-b"}
_LOST_LAYERS = {
    "template": "its template is left out: llama-server has the one in the file",
    "system": "its system prompt is left out: clients send their own",
    "messages": "its messages are left out: clients send their own",
}


def read(path: Path) -> Draft:
    """What the models in a folder come to: `~/.ollama/models`, or the one above. Raises
    SourceError."""
    folder = next((one for one in (path, path / "models") if (one / "manifests").is_dir()), None)
    if folder is None:
        raise SourceError(
            f"{path} has no folder manifests: name Ollama's, such as ~/.ollama/models"
        )
    draft = Draft(str(path))
    store = _Store(folder)
    for names in _manifests(folder / "manifests", ()):
        _model(store, names, draft)
    if not draft.models:
        raise SourceError(f"{folder} has no models")
    if shutil.which("llama-server") is None:
        draft.program.note(None, "there is no llama-server on the PATH: install llama.cpp's")
    draft.program.note(
        None,
        "Ollama's own engine reads files that llama-server does not, of models that see images"
        " without a projector: where one does not start, get its GGUF from elsewhere",
    )
    return draft


def _manifests(folder: Path, above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The names of the folders and the file, for each manifest; no link is followed."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{folder} cannot be read: {error.strerror}") from error
    for entry in entries:
        names = (*above, entry.name)
        if entry.name.startswith("."):
            continue
        if len(names) < _LEVELS:
            if entry.is_dir(follow_symlinks=False):
                yield from _manifests(folder / entry.name, names)
        elif entry.is_file(follow_symlinks=False):
            yield names


class _Store:
    """The files of a folder, by their digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs = Path(os.path.realpath(folder / "blobs"))

    def manifest(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Raises SourceError."""
        return _object(
            read_bytes(self._folder.joinpath("manifests", *names), _MAX_BYTES, follow=False)
        )

    def path(self, digest: Any) -> Path:
        """The file of a layer, which is in the folder itself. Raises SourceError."""
        match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
        if match is None:
            raise SourceError("a layer's digest is none")
        path = self._blobs / f"sha256-{match[1]}"
        if not path.is_file() or Path(os.path.realpath(path)) != path:
            raise SourceError(f"blobs/{path.name} is missing, or a link")
        return path

    def json(self, digest: Any) -> dict[str, Any]:
        """Raises SourceError."""
        return _object(read_bytes(self.path(digest), _MAX_BYTES, follow=False))


def _object(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SourceError("it is no JSON") from error
    if not isinstance(found, dict):
        raise SourceError("it is no object of JSON")
    return found


def _name(names: tuple[str, ...]) -> str:
    """As Ollama shows it."""
    host, namespace, name, tag = names
    if host != _DEFAULT_HOST:
        return f"{host}/{namespace}/{name}:{tag}"
    return f"{name}:{tag}" if namespace == _DEFAULT_NAMESPACE else f"{namespace}/{name}:{tag}"


def _model(store: _Store, names: tuple[str, ...], draft: Draft) -> None:
    name = _name(names)
    part = draft.add(name)
    try:
        _Model(store, part).read(store.manifest(names))
    except SourceError as error:
        part.left_out.append(str(error))
        return
    short = name.removesuffix(":latest")
    if short != name and draft.take_alias(part, short, None):
        part.set("the tag latest", "aliases", [short])


class _Model:
    def __init__(self, store: _Store, part: Part) -> None:
        self._store = store
        self._part = part

    def read(self, manifest: dict[str, Any]) -> None:
        """Fills the part. Raises SourceError."""
        layers = self._layers(manifest)
        config = manifest.get("config")
        about = self._store.json(config.get("digest")) if isinstance(config, dict) else {}
        if about.get("remote_host"):
            raise SourceError("it runs in Ollama's cloud")
        if "model" not in layers:
            raise SourceError("it has no GGUF")
        params = self._params(layers.get("params", []))
        self._command(layers, params)
        self._request(params)
        for kind, message in _LOST_LAYERS.items():
            if kind in layers:
                self._part.note(None, message)

    def _command(self, layers: dict[str, list[Any]], params: dict[str, Any]) -> None:
        projectors = layers.get("projector", [])
        try:
            model = read_model(self._store.path(layers["model"][0]))
            is_chat = model.kind is Kind.CHAT or "template" in layers
            proposal = propose(
                model,
                BY_ID["llama-server"],
                mode="Chat" if is_chat and model.kind in (Kind.CHAT, Kind.BASE) else None,
                context=self._context(params, model.kind),
                projector=self._store.path(projectors[0]) if projectors else None,
            )
        except (GgufError, ProposalError) as error:
            raise SourceError(str(error)) from error
        [command] = [one["command"] for one in proposal.entry.values() if isinstance(one, dict)]
        command += ["--alias", "${MODEL}"]  # else answers name the model by its file
        for digest in layers.get("adapter", []):
            command += ["--lora", str(self._store.path(digest)).replace("${", "$${")]
        self._part.entry[SCHEME] = {"command": [*command, *self._flags(params)]}
        self._part.take("layers", "command")
        if proposal.mode != "Chat":
            self._part.entry["mode"] = proposal.mode
        elif model.kind is Kind.BASE:
            self._part.note(
                None, "its GGUF has no template for chats: give llama-server one, --chat-template"
            )

    def _context(self, params: dict[str, Any], kind: Kind) -> int | None:
        context = _positive(params.pop("num_ctx", None))
        if context is None and kind in (Kind.CHAT, Kind.BASE):
            context = _DEFAULT_CONTEXT
            self._part.note(None, f"-c {context} is Ollama's default: write more where it fits")
        return context

    def _layers(self, manifest: dict[str, Any]) -> dict[str, list[Any]]:
        """The digests by the kind of layer."""
        layers: dict[str, list[Any]] = {}
        found = manifest.get("layers")
        for layer in found if isinstance(found, list) else ():
            kind = _LAYER.match(str(layer.get("mediaType"))) if isinstance(layer, dict) else None
            if kind:
                layers.setdefault(kind[1], []).append(layer.get("digest"))
        return layers

    def _params(self, digests: list[Any]) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for digest in digests:
            params |= self._store.json(digest)
        return params

    def _flags(self, params: dict[str, Any]) -> list[str]:
        flags = []
        for key, option in _FLAGS.items():
            if number := _positive(params.pop(key, None)):
                flags += [option, str(number)]
                self._part.take(key, option)
        if params.pop("use_mmap", None) is False:
            flags.append("--no-mmap")
        return flags

    def _request(self, params: dict[str, Any]) -> None:
        from manager.relay import ollama as api  # which takes a while to import

        try:
            default = api.from_options(params)
        except ApiError as error:
            self._part.note(None, f"its parameters are left out: {error.message}")
            return
        # What another engine calls it.
        default.pop("repetition_penalty", None)
        if default:
            self._part.set("parameters", "request", {"default": default})
        if lost := sorted(set(params) - set(default) - {"num_predict"}):
            self._part.note(None, f"parameters without a counterpart: {', '.join(lost)}")


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

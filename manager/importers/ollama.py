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

from manager.errors import ApiError
from manager.importers import command_line
from manager.importers.draft import SCHEME, Draft, Part
from manager.importers.engine import llama_server_command
from manager.importers.source import SourceError, read_bytes

_MAX_MODELS = 5000
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

    def gguf(self, digest: Any) -> str:
        """The file of a GGUF, as a command has it. Raises SourceError."""
        path = self.path(digest)
        try:
            with path.open("rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error.strerror}") from error
        if magic != b"GGUF":
            raise SourceError(f"blobs/{path.name} is no GGUF")
        return str(path).replace("${", "$${")

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
    if len(draft.models) >= _MAX_MODELS:
        raise SourceError(f"there are more than {_MAX_MODELS} models")
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
        mode = self._mode(about)
        context = _positive(params.pop("num_ctx", None))
        if context is None and mode == "Chat":
            context = _DEFAULT_CONTEXT
            self._part.note(None, f"-c {context} is Ollama's default: write more where it fits")
        projectors = self._files(layers.get("projector", []))
        command = llama_server_command(
            self._files(layers["model"])[0],
            mode=mode,
            context=context,
            mmproj=projectors[0] if projectors else None,
        )
        for adapter in self._files(layers.get("adapter", [])):
            command += ["--lora", adapter]
        command += self._flags(params)
        self._part.entry[SCHEME] = {"command": command}
        self._part.take("layers", "command")
        if mode != "Chat":
            self._part.entry["mode"] = mode
            self._part.note(None, f"mode: {mode}, by its family or its name: check it")
        self._request(params)
        for kind, message in _LOST_LAYERS.items():
            if kind in layers:
                self._part.note(None, message)

    def _layers(self, manifest: dict[str, Any]) -> dict[str, list[Any]]:
        """The digests by the kind of layer."""
        layers: dict[str, list[Any]] = {}
        found = manifest.get("layers")
        for layer in found if isinstance(found, list) else ():
            kind = _LAYER.match(str(layer.get("mediaType"))) if isinstance(layer, dict) else None
            if kind:
                layers.setdefault(kind[1], []).append(layer.get("digest"))
        return layers

    def _files(self, digests: list[Any]) -> list[str]:
        return [self._store.gguf(digest) for digest in digests]

    def _params(self, digests: list[Any]) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for digest in digests:
            params |= self._store.json(digest)
        return params

    def _mode(self, about: dict[str, Any]) -> str:
        if "bert" in str(about.get("model_family")):
            return "Embedding"
        found, _ = command_line.mode([], self._part.name)
        return found if found in ("Embedding", "Reranker") else "Chat"

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

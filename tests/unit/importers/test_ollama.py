"""Ollama's folder of models: manifests, blobs, and what llama-server is run with."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.config import Config
from manager.engines import llama_server_command
from manager.importers import READERS, SourceError, draft
from tests.support.gguf_files import write_gguf
from tests.support.imported import imported, read_again

KIND = "application/vnd.ollama.image."


class Store:
    """A folder as Ollama has it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "blobs").mkdir(parents=True)
        (folder / "manifests").mkdir()

    def blob(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (self.folder / "blobs" / f"sha256-{digest}").write_bytes(content)
        return f"sha256:{digest}"

    def file(self, content: bytes) -> str:
        """The path of a blob."""
        return str(self.folder / "blobs" / self.blob(content).replace(":", "-"))

    def manifest(self, name: str, *layers: tuple[str, Any], config: Any = None) -> Path:
        """A model of those layers: each a kind and bytes, or what is JSON."""
        found = [
            {
                "mediaType": KIND + kind,
                "digest": self.blob(
                    content if isinstance(content, bytes) else json.dumps(content).encode()
                ),
            }
            for kind, content in layers
        ]
        manifest = {"schemaVersion": 2, "layers": found}
        if config is not None:
            manifest["config"] = {"digest": self.blob(json.dumps(config).encode())}
        return self.write(name, json.dumps(manifest).encode())

    def write(self, name: str, content: bytes) -> Path:
        path = self.folder / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def run(self) -> tuple[Config, str]:
        made = imported("ollama", self.folder)
        return read_again(made, self.folder.parent), made.report


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


LIBRARY = "registry.ollama.ai/library"


def gguf(architecture: str = "llama", **more: Any) -> bytes:
    """A GGUF that is a model, as far as it is read here."""
    metadata = {
        f"{architecture}.block_count": 1,
        "tokenizer.ggml.model": "llama",
        "tokenizer.chat_template": "{{ messages }}",
        **more,
    }
    with tempfile.TemporaryDirectory() as folder:
        tensors = [("output_norm.weight", (4,), GGMLQuantizationType.F32)]
        content = {key: value for key, value in metadata.items() if value is not None}
        return write_gguf(Path(folder) / "a", architecture, content, tensors).read_bytes()


LLAMA = gguf()
MODEL = ("model", LLAMA)


def test_a_model_is_run_by_llama_server(store: Store) -> None:
    store.manifest(
        f"{LIBRARY}/llama3/latest",
        MODEL,
        ("projector", b"GGUFproj"),
        ("adapter", b"GGUFlora"),
        (
            "params",
            {
                "num_ctx": 8192,
                "num_gpu": 20,
                "num_thread": 4,
                "use_mmap": False,
                "temperature": 0.6,
                "repeat_penalty": 1.1,
                "stop": ["<|a|>", "<|b|>"],
                "num_predict": 256,
                "num_keep": 24,
            },
        ),
        ("template", b"{{ .Prompt }}"),
        ("system", b"You are a pirate."),
        ("license", b"..."),
        config={"model_format": "gguf", "model_family": "llama"},
    )
    config, report = store.run()
    [model] = config.models.values()
    assert (model.name, list(model.aliases), model.mode) == ("llama3:latest", ["llama3"], "Chat")
    assert model.schemes[0].command == (
        *llama_server_command(
            store.file(LLAMA),
            context=8192,
            mmproj=store.file(b"GGUFproj"),
            on_devices=False,
        ),
        *("--alias", "${MODEL}"),
        *("--lora", store.file(b"GGUFlora"), "-ngl", "20", "-t", "4", "--no-mmap"),
    )
    assert model.request is not None
    assert model.request.default == {
        "temperature": 0.6,
        "repeat_penalty": 1.1,
        "stop": ["<|a|>", "<|b|>"],
        "max_tokens": 256,
    }
    for line in (
        "its template is left out",
        "its system prompt is left out",
        "parameters without a counterpart: num_keep",
    ):
        assert line in report
    assert "pirate" not in report


def test_names_are_those_that_ollama_shows(store: Store) -> None:
    for name in (
        f"{LIBRARY}/qwen3/8b",
        f"{LIBRARY}/qwen3/latest",
        "registry.ollama.ai/ann/mine/latest",
        "hf.co/org/repo-GGUF/Q4_K_M",
    ):
        store.manifest(name, MODEL)
    config, _ = store.run()
    assert {name: list(model.aliases) for name, model in config.models.items()} == {
        "hf.co/org/repo-GGUF:Q4_K_M": [],
        "ann/mine:latest": ["ann/mine"],
        "qwen3:8b": [],
        "qwen3:latest": ["qwen3"],
    }


@pytest.mark.parametrize(
    ("model", "layers", "mode"),
    [
        (gguf(), (), "Chat"),
        (gguf("bert", **{"tokenizer.chat_template": None}), (), "Embedding"),
        (gguf(**{"llama.pooling_type": 4}), (), "Reranker"),
        (gguf(**{"tokenizer.chat_template": None}), (), "Base"),
        (gguf(**{"tokenizer.chat_template": None}), (("template", b"{{ .Prompt }}"),), "Chat"),
    ],
)
def test_the_mode_is_that_of_the_file(
    store: Store, model: bytes, layers: tuple[tuple[str, bytes], ...], mode: str
) -> None:
    store.manifest(f"{LIBRARY}/a/b", ("model", model), *layers)
    config, report = store.run()
    assert config.models["a:b"].mode == mode
    flag = {"Embedding": "--embedding", "Reranker": "--reranking"}.get(mode, "-c")
    assert flag in config.models["a:b"].schemes[0].command
    assert ("give llama-server one" in report) == bool(layers)


def test_a_chat_without_num_ctx_has_the_context_that_it_had(store: Store) -> None:
    store.manifest(f"{LIBRARY}/a/b", MODEL)
    store.manifest(f"{LIBRARY}/embed/b", ("model", gguf("bert")))
    config, report = store.run()
    commands = [" ".join(model.schemes[0].command) for model in config.models.values()]
    assert ["-c 4096" in command for command in commands] == [True, False]
    assert report.count("-c 4096 is Ollama's default") == 1


def test_the_folder_above_is_found_too(store: Store) -> None:
    store.manifest(f"{LIBRARY}/a/b", MODEL)
    assert list(READERS["ollama"](store.folder.parent).models) == ["a:b"]


def test_a_machine_without_llama_server_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(store.folder))
    store.manifest(f"{LIBRARY}/a/b", MODEL)
    assert "there is no llama-server on the PATH" in store.run()[1]


@pytest.mark.parametrize(
    ("layers", "config", "reason"),
    [
        ([], {"remote_host": "https://ollama.com"}, "it runs in Ollama's cloud"),
        ([("tensor", b"x")], {}, "it has no GGUF"),
        ([("model", b"PK...")], {}, "GGUF"),
        ([("model", LLAMA[:50])], {}, "is cut off inside its header"),
        ([("model", gguf("clip"))], {}, "serves no mmproj"),
        ([MODEL, ("params", b"{")], {}, "it is no JSON"),
        ([MODEL, ("params", b"[" * 100_000)], {}, "it is no JSON"),
        ([MODEL, ("params", [1])], {}, "it is no object of JSON"),
        ([MODEL, ("params", b" " * (1 << 20) + b"{}")], {}, "more than 1,048,576 bytes"),
        ([MODEL, ("params", b'{"temperature": NaN}')], {}, "it cannot be written"),
        ([MODEL, ("params", b'{"stop": ["\\ud800"]}')], {}, "half of a character"),
    ],
)
def test_what_cannot_be_run_is_left_out(
    store: Store, layers: list[Any], config: dict[str, str], reason: str
) -> None:
    store.manifest(f"{LIBRARY}/bad/latest", *layers, config=config)
    store.manifest(f"{LIBRARY}/good/latest", MODEL)
    found, report = store.run()
    assert list(found.models) == ["good:latest"]
    [line] = [line for line in report.splitlines() if "LEFT OUT" in line]
    assert reason in line


@pytest.mark.parametrize(
    "digest",
    [
        *("sha256:../../../../etc/passwd", "../secret", "sha256:" + "0" * 64, "sha256-" + "0" * 63),
        *("", 5, None, ["sha256"], "sha256:" + "0" * 64 + "/../x"),
    ],
)
def test_a_digest_leads_nowhere_else(store: Store, digest: Any) -> None:
    (store.folder / "secret").write_bytes(b"GGUF")
    layers = [{"mediaType": KIND + "model", "digest": digest}]
    store.write(f"{LIBRARY}/a/b", json.dumps({"layers": layers}).encode())
    config, report = store.run()
    assert config.models == {}
    assert "LEFT OUT: " in report


def test_links_are_not_followed(store: Store) -> None:
    outside = store.folder.parent / "outside"
    outside.mkdir()
    real = store.manifest(f"{LIBRARY}/real/latest", MODEL)
    (outside / "latest").write_bytes(real.read_bytes())
    (real.parent.parent / "folder").symlink_to(outside)
    (real.parent / "link").symlink_to(outside / "latest")
    blob = store.manifest(
        f"{LIBRARY}/blob/latest", ("model", gguf(**{"general.name": "elsewhere"}))
    )
    path = Path(store.file(gguf(**{"general.name": "elsewhere"})))
    path.rename(outside / "blob")
    path.symlink_to(outside / "blob")
    assert blob.is_file()
    config, report = store.run()
    assert list(config.models) == ["real:latest"]
    assert "is missing, or a link" in report


def test_a_pipe_is_not_read(store: Store) -> None:
    store.manifest(f"{LIBRARY}/a/b", MODEL)
    os.mkfifo(store.folder / "manifests" / LIBRARY / "a" / "pipe")
    path = Path(store.file(b"gone"))
    path.unlink()
    os.mkfifo(path)
    store.manifest(f"{LIBRARY}/c/d", ("model", b"...."))
    manifest = {"layers": [{"mediaType": KIND + "model", "digest": path.name.replace("-", ":")}]}
    store.write(f"{LIBRARY}/e/f", json.dumps(manifest).encode())
    config, _ = store.run()
    assert list(config.models) == ["a:b"]


def test_a_folder_of_something_else_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no models"):
        READERS["ollama"](store.folder)
    with pytest.raises(SourceError, match="has no folder manifests"):
        READERS["ollama"](tmp_path / "missing")


def test_a_folder_of_too_many_models_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draft, "MAX_MODELS", 3)
    for tag in range(4):
        store.manifest(f"{LIBRARY}/a/{tag}", MODEL)
    with pytest.raises(SourceError, match="more than 3 models"):
        READERS["ollama"](store.folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=25)
@given(manifest=JSON, layers=JSON, params=st.dictionaries(st.text(max_size=9), JSON))
def test_no_manifest_is_a_failure_of_ours(
    tmp_path_factory: pytest.TempPathFactory, manifest: Any, layers: Any, params: Any
) -> None:
    store = Store(tmp_path_factory.mktemp("store") / "models")
    store.manifest(f"{LIBRARY}/params/latest", MODEL, ("params", params))
    store.write(f"{LIBRARY}/any/1", json.dumps(manifest).encode())
    store.write(f"{LIBRARY}/any/2", json.dumps({"layers": layers, "config": layers}).encode())
    store.run()

"""``/api/config``: all that the program runs with, and no secret."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manager.config import loader
from routes.api.config import masked

TEXT = """\
program:
  host: 0.0.0.0
  device_memory_mb: {"rtx 4060": 8000}
  export: {schedule: "0 3 * * *", period: month}
  trusted_proxies: [127.0.0.1, "fd00::/8"]
  cors_origins: ["http://localhost:3000"]
Local-Models:
  Qwen:
    aliases: [gpt]
    port: 10001
    price:
      per_hour: 0.5
      tiers: [{input: 2, output: 8}]
    GPU:
      required_devices: [rtx 4060]
      memory_mb: {rtx 4060: 6000}
      command: [llama-server, --port, "10001", -m, /models/qwen.gguf]
      env: {CUDA_LAUNCH_BLOCKING: "1"}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> loader.Config:
    path = tmp_path / "config.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return loader.load(path, lambda _: ["Chat"])


def shown_with(loaded: loader.Config, **changes: Any) -> str:
    """What is shown of the config once its scheme has these changes."""
    model = loaded.models["Qwen"]
    scheme = replace(model.schemes[0], **changes)
    changed = replace(loaded, models={"Qwen": replace(model, schemes=(scheme,))})
    return json.dumps(masked(changed))


def test_the_config_is_shown_as_plain_json(loaded: loader.Config) -> None:
    shown = json.loads(json.dumps(masked(loaded)))
    assert shown["path"] == str(loaded.path)
    assert shown["program"]["host"] == "0.0.0.0"
    assert shown["program"]["device_memory_mb"] == {"rtx 4060": 8000}
    assert shown["program"]["export"]["schedule"] == "0 3 * * *"
    assert shown["program"]["trusted_proxies"] == ["127.0.0.1/32", "fd00::/8"]
    assert shown["program"]["cors_origins"] == ["http://localhost:3000"]
    assert shown["program"]["require_key"] is None
    model = shown["models"][0]
    assert (model["name"], model["aliases"], model["port"]) == ("Qwen", ["gpt"], 10001)
    scheme = model["schemes"][0]
    assert scheme["command"] == ["llama-server", "--port", "10001", "-m", "/models/qwen.gguf"]
    assert scheme["env"] == {"CUDA_LAUNCH_BLOCKING": "***"}
    assert scheme["memory_mb"] == {"rtx 4060": 6000}


def test_no_value_of_a_variable_is_shown(loaded: loader.Config) -> None:
    shown = shown_with(loaded, env={"DSN": "s3cr3t"})
    assert "s3cr3t" not in shown
    assert '"DSN": "***"' in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["--api-key", "s3cr3t"],
        ["--api-key=s3cr3t"],
        ["--hf-token", "s3cr3t"],
        ["--ssl-key-password", "s3cr3t"],
        ["-password", "s3cr3t"],
    ],
)
def test_an_argument_behind_a_telling_option_is_masked(
    loaded: loader.Config, arguments: list[str]
) -> None:
    shown = shown_with(loaded, command=("vllm", "serve", *arguments, "--port", "10001"))
    assert "s3cr3t" not in shown
    assert arguments[0].partition("=")[0] in shown
    assert '"--port", "10001"' in shown


def test_an_option_that_has_no_argument_hides_no_other_option(loaded: loader.Config) -> None:
    shown = shown_with(loaded, command=("server", "--no-auth", "--port", "10001"))
    assert '"--no-auth", "--port", "10001"' in shown


@pytest.mark.parametrize(
    "command",
    [
        ["env", "HF_TOKEN=s3cr3t", "vllm", "serve"],
        ["sh", "-c", "HF_TOKEN=s3cr3t exec vllm serve"],
        ["sh", "-c", "exec llama-server --api-key s3cr3t"],
        ["server", "--header", "Authorization: Bearer s3cr3t"],
        ["server", "--proxy", "http://user:s3cr3t@proxy:3128"],
    ],
)
def test_a_secret_inside_of_an_argument_is_masked(
    loaded: loader.Config, command: list[str]
) -> None:
    assert "s3cr3t" not in shown_with(loaded, command=tuple(command))


@pytest.mark.parametrize(
    ("url", "still_shown"),
    [
        ("redis://:s3cr3t@cache:6379/0", "cache:6379/0"),
        ("redis://worker:s3cr3t@cache:6379/0", "worker"),
        ("postgresql://worker:s3cr3t@db/queue?sslmode=require", "db/queue?sslmode=require"),
        ("postgresql://worker:s3cr3t@[::1]:5432/queue", "[::1]:5432/queue"),
        ("postgresql://db/queue?user=worker&password=s3cr3t", "db/queue"),
        ("redis://cache:6379/0?password=s3cr3t", "cache:6379/0"),
        ("redis://:a@s3cr3t@cache:6379/0", "cache:6379/0"),
    ],
)
def test_the_queues_password_is_masked_and_the_rest_of_its_url_is_shown(
    loaded: loader.Config, url: str, still_shown: str
) -> None:
    with_queue = replace(loaded, program=replace(loaded.program, queue=url))
    shown = json.dumps(masked(with_queue))
    assert "s3cr3t" not in shown
    assert still_shown in shown


def test_a_queue_without_a_password_is_shown_as_it_is(loaded: loader.Config) -> None:
    url = "redis://cache:6379/0"
    with_queue = replace(loaded, program=replace(loaded.program, queue=url))
    assert masked(with_queue)["program"]["queue"] == url


def test_what_comes_from_the_environment_is_masked_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUEUE_HOST", "s3cr3t.example")
    monkeypatch.setenv("FLAVOUR", "s3cr3t")
    path = tmp_path / "config.yaml"
    text = TEXT.replace("program:", "program:\n  queue: redis://${QUEUE_HOST}:6379/0")
    text = text.replace('BLOCKING: "1"', 'BLOCKING: "1", A: "${FLAVOUR} ice", B: "$${FLAVOUR}"')
    path.write_text(text, encoding="utf-8")
    shown = json.loads(json.dumps(masked(loader.load(path, lambda _: ["Chat"]))))
    assert "s3cr3t" not in str(shown)
    assert (shown["program"]["queue"], shown["program"]["variables"]) == ("***", ["QUEUE_HOST"])
    (scheme,) = shown["models"][0]["schemes"]
    assert set(scheme["env"].values()) == {"***"}
    assert scheme["expanded"] == ["A"]

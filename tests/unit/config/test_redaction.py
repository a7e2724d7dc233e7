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


def test_a_secret_in_a_stop_command_is_not_shown(loaded: loader.Config) -> None:
    shown = shown_with(loaded, stop_command=("stop", "--token", "hunter2", "qwen"))
    assert "hunter2" not in shown
    assert "qwen" in shown


def test_the_key_of_a_server_that_others_start_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROVIDER", "hunter2")
    path = tmp_path / "config.yaml"
    path.write_text(
        "Local-Models:\n"
        '  a: {url: "https://a.example", api_key: "${PROVIDER}"}\n'
        '  b: {url: "https://b.example", api_key: hunter2}\n'
        '  c: {url: "https://c.example"}\n',
        encoding="utf-8",
    )
    loaded = loader.load(path, lambda _: ["Chat"])
    shown = masked(loaded)
    assert [model["api_key"] for model in shown["models"]] == ["***", "***", None]
    assert shown["models"][0]["url"] == "https://a.example"
    assert "hunter2" not in json.dumps(shown) + repr(loaded)


def test_the_names_that_scripts_rely_on_stay(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "program: {threads: 64}\n"
        "Local-Models:\n"
        "  m:\n"
        "    price: {per_hour: 1, tiers: [{input: 2, output: 8}]}\n"
        "    s: {command: [serve], env: {A: b}}\n",
        encoding="utf-8",
    )
    assert masked(loader.load(path, lambda _: ["Chat"])) == {
        "path": str(path),
        "program": {
            "host": "127.0.0.1",
            "port": 8080,
            "ollama_port": None,
            "log_level": "INFO",
            "alive_time": 15.0,
            "disable_gpu_monitoring": False,
            "token_tracker": None,
            "device_plugin_dir": None,
            "interface_plugin_dir": None,
            "models_dir": [],
            "device_memory_mb": {},
            "threads": 64,
            "start_timeout": 300.0,
            "stop_timeout": 10.0,
            "queue_timeout": 300.0,
            "max_waiting": 320,
            "max_body_mb": 64,
            "list_aliases": False,
            "upstream_timeout": 600.0,
            "send_loading_state": False,
            "model_log_mb": 64,
            "currency": "CNY",
            "timezone": None,
            "log_retention_days": 30,
            "request_retention_days": 0,
            "export": None,
            "require_key": None,
            "allowed_hosts": [],
            "cors_origins": [],
            "trusted_proxies": [],
            "watch_config": False,
            "allow_config_edit": False,
        },
        "models": [
            {
                "name": "m",
                "aliases": [],
                "mode": "Chat",
                "endpoints": [],
                "port": None,
                "url": None,
                "api_key": None,
                "auto_start": False,
                "alive_time": 15.0,
                "start_timeout": 300.0,
                "stop_timeout": 10.0,
                "max_waiting": 320,
                "max_concurrency": None,
                "pinned": False,
                "sleep": False,
                "served_model_name": None,
                "request": None,
                "context_length": None,
                "capabilities": [],
                "unlisted": False,
                "ask_usage": True,
                "health": None,
                "probe": True,
                "price": {
                    "per_hour": 1_000_000_000,
                    "tiers": [
                        {
                            "min_input": 0,
                            "max_input": -1,
                            "min_output": 0,
                            "max_output": -1,
                            "input": 2_000_000_000,
                            "output": 8_000_000_000,
                            "cache_read": 0,
                            "cache_write": 0,
                            "support_cache": False,
                        }
                    ],
                },
                "alias_changes": {},
                "schemes": [
                    {
                        "name": "s",
                        "required_devices": [],
                        "script_path": None,
                        "command": ["serve"],
                        "memory_mb": {},
                        "env": {"A": "***"},
                        "cwd": str(tmp_path),
                        "stop_command": [],
                        "detached": False,
                        "expanded": [],
                    }
                ],
            }
        ],
    }


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
def test_an_argument_behind_an_option_for_a_secret_is_masked(
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


def test_what_comes_from_the_environment_is_masked_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAVOUR", "s3cr3t")
    path = tmp_path / "config.yaml"
    text = TEXT.replace('BLOCKING: "1"', 'BLOCKING: "1", A: "${FLAVOUR} ice", B: "$${FLAVOUR}"')
    path.write_text(text, encoding="utf-8")
    shown = json.loads(json.dumps(masked(loader.load(path, lambda _: ["Chat"]))))
    assert "s3cr3t" not in str(shown)
    (scheme,) = shown["models"][0]["schemes"]
    assert set(scheme["env"].values()) == {"***"}
    assert scheme["expanded"] == ["A"]

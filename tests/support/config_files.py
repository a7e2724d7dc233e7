"""Config files for tests of the loader: what loads, and the problems of what does not."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

from manager.config import loader as config

MODES = ("Chat", "Base", "Embedding", "Reranker")

SEED = """\
program:
  host: "0.0.0.0"
  port: 8080
  log_level: "INFO"
  alive_time: 15          # 模型空闲超时时间（分钟），超时后自动关闭
  Disable_GPU_monitoring: false # 是否禁用 GPU 资源监控。禁用后，即使资源不足仍尝试启动模型。
Local-Models:
  Qwen-14B-Chat:
    aliases: ["gpt-3.5-turbo", "qwen-14b"]  # API 调用时使用的模型名称映射
    mode: "Chat"                            # 模式：Chat / Base / Embedding / Reranker
    port: 10001                             # 模型服务监听端口
    auto_start: false                       # 是否随服务启动

    Dual-GPU-Config:
      required_devices: ["rtx 4060", "v100"] # 必须同时在线的设备
      script_path: "scripts/qwen_dual.bat"   # 启动脚本路径（Windows）或 .sh（Linux）
      memory_mb:
        "rtx 4060": 8000
        "v100": 16000

    Single-GPU-Config:
      required_devices: ["v100"]
      script_path: "scripts/qwen_single.bat"
      memory_mb:
        "v100": 24000
"""  # noqa: RUF001 - the comments are Chinese


def builtin_modes(_: Path | None) -> Collection[str]:
    return MODES


def load(home: Path, text: str | bytes) -> config.Config:
    path = home / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return config.load(path, builtin_modes)


def problems(home: Path, text: str | bytes) -> list[tuple[int, str]]:
    with pytest.raises(config.ConfigError) as caught:
        load(home, text)
    return [(problem.line, problem.message) for problem in caught.value.problems]


def only_problem(home: Path, text: str | bytes) -> tuple[int, str]:
    (problem,) = problems(home, text)
    return problem


def good_or_problems(home: Path, text: str | bytes) -> tuple[config.Problem, ...]:
    """The file's problems, none where it loads; every other exception passes."""
    try:
        load(home, text)
    except config.ConfigError as error:
        assert error.problems  # noqa: PT017 - an error without problems says nothing
        return error.problems
    return ()


def program(home: Path, text: str) -> config.Program:
    return load(home, f"program:\n  {text}\n").program


def model_text(body: str) -> str:
    """A whole file with one model `m`, whose keys begin on line 3; line 4 on is its scheme."""
    return f"Local-Models:\n  m:\n    {body}\n    s: {{command: [x]}}\n"


def model(home: Path, body: str) -> config.Model:
    return load(home, model_text(body)).models["m"]


def scheme(home: Path, body: str) -> config.Scheme:
    text = f"Local-Models:\n  m:\n    s: {{{body}}}\n"
    return load(home, text).models["m"].schemes[0]


def scheme_problem(home: Path, body: str) -> str:
    line, message = only_problem(home, f"Local-Models:\n  m:\n    s: {{{body}}}\n")
    assert line == 3
    return message

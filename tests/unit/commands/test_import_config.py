"""`llm-manager import config`: the config on stdout, the report on stderr, a file where asked."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from commands.__main__ import main
from manager.config import loader

SOURCE = "models:\n  a: {cmd: 'serve ${PORT}'}\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "llama-swap.yaml"
    path.write_text(SOURCE)
    return path


def run(source: Path, *options: str) -> int:
    target = source.parent / "config.yaml"
    return main(["import", "config", "llama-swap", str(source), "--config", str(target), *options])


def test_the_config_is_printed_and_the_report_beside_it(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("program:\n")
    assert printed.err.startswith("llama-swap.yaml: 1 of 1 models taken over\n")
    assert list(source.parent.iterdir()) == [source]


def test_it_is_written_where_there_is_no_config_yet(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, "--write") == 0
    target = source.parent / "config.yaml"
    assert "1 models written" in capsys.readouterr().out
    assert main(["check", "--config", str(target)]) == 0
    # It may have keys in it.
    assert target.stat().st_mode & 0o077 == 0


def test_models_are_added_to_a_config_that_is_there(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text(SOURCE + "  b: {cmd: 'x ${PORT}'}\n  c: {cmd: 'x ${PORT}', aliases: [d]}\n")
    source.write_text(
        source.read_text() + "  e: {cmd: 'x', proxy: 'http://localhost:9'}\n"
        "  f: {cmd: 'x', proxy: 'http://localhost:7'}\n"
    )
    target = source.parent / "config.yaml"
    mine = """# mine
program:
  alive_time: 5  # minutes
Local-Models:
  b:
    aliases: [d]
    port: 9
    S:
      command: [mine]
"""
    target.write_text(mine)
    assert run(source, "--write") == 1
    assert target.read_text().startswith(mine)
    config = loader.load(target, lambda _plugins: ["Chat"])
    assert list(config.models) == ["b", "a", "f"]
    assert config.program.alive_time == 5
    printed = capsys.readouterr()
    assert "2 models written" in printed.out
    assert printed.err.startswith("llama-swap.yaml: 2 of 5 models taken over\n")
    for name, line, reason in (("b", 3, "name b"), ("c", 4, "name d"), ("e", 5, "port 9")):
        reason = reason if "port" in reason else f"the {reason}"
        assert f"{name} (line {line})\n  LEFT OUT: {target} has {reason} already" in printed.err
    assert (source.parent / "config.yaml.bak").read_text() == mine


def test_models_keep_the_settings_that_the_config_has_otherwise(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text(
        "globalTTL: 120\nhealthCheckTimeout: 30\nlogLevel: debug\n"
        + SOURCE
        + "  b: {cmd: 'serve ${PORT}', ttl: 60}\n"
        + "peers: {far: {proxy: 'http://far:1', models: [c]}}\n"
    )
    target = source.parent / "config.yaml"
    target.write_text("program: {alive_time: 5, start_timeout: 30}\nLocal-Models: {}\n")
    assert run(source, "--write") == 0
    config = loader.load(target, lambda _plugins: ["Chat"])
    assert (config.program.alive_time, config.program.log_level) == (5, "INFO")
    assert [one.alive_time for one in config.models.values()] == [2, 1, 5]
    assert "start_timeout" not in target.read_text().partition("Local-Models")[2]
    report = capsys.readouterr().err
    lost = "globalTTL → alive_time, healthCheckTimeout → start_timeout, logLevel → log_level"
    assert f"program\n  not taken over, {target} keeps its settings: {lost}\n" in report
    assert "a (line 5)\n  taken over: cmd → command, globalTTL → alive_time\n" in report


@pytest.mark.parametrize("text", ["", "# mine", "# mine\n"])
def test_an_empty_config_gets_all_of_it(source: Path, text: str) -> None:
    source.write_text("globalTTL: 120\n" + SOURCE)
    target = source.parent / "config.yaml"
    target.write_text(text)
    assert run(source, "--write") == 0
    assert target.read_text().startswith(text)
    config = loader.load(target, lambda _plugins: ["Chat"])
    assert (config.program.alive_time, list(config.models)) == (2, ["a"])


@pytest.mark.parametrize(
    "text", ["Local-Models: {b: {", "Local-Models: {b: {S: {command: [x]}}}\n"]
)
def test_a_config_that_cannot_be_added_to_is_left_as_it_is(source: Path, text: str) -> None:
    target = source.parent / "config.yaml"
    target.write_text(text)
    assert run(source, "--write") == 1
    assert target.read_text() == text


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such pipes")
def test_a_pipe_in_the_place_of_the_config_is_not_replaced(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = source.parent / "config.yaml"
    os.mkfifo(target)
    assert run(source, "--write") == 1
    assert "no regular file" in capsys.readouterr().err
    assert target.is_fifo()


def test_a_config_without_models_gets_them(source: Path) -> None:
    target = source.parent / "config.yaml"
    target.write_text("Local-Models: {}  # none yet\n")
    assert run(source, "--write") == 0
    assert list(loader.load(target, lambda _plugins: ["Chat"]).models) == ["a"]


def test_models_that_were_left_out_are_a_failure(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.write_text(SOURCE + "  b: {ttl: 1}\n")
    assert run(source) == 1
    printed = capsys.readouterr()
    assert "serve" in printed.out
    assert printed.err.splitlines()[-1] == "llm-manager: 1 models were left out"


def test_what_cannot_be_read_is_one_line(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source.write_text("models: [")
    assert run(source) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    assert line.startswith("llm-manager: llama-swap.yaml:1: ")

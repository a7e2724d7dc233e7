"""`llm-manager import config`: the config on stdout, the report on stderr, a file where asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands.__main__ import main

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


@pytest.mark.parametrize(
    "text", ["program: {port: 9}\nLocal-Models: {}\n", "Local-Models: {b: {S: {command: [x]}}}\n"]
)
def test_a_config_that_has_something_is_left_as_it_is(
    source: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = source.parent / "config.yaml"
    target.write_text(text)
    assert run(source, "--write") == 1
    assert target.read_text() == text
    assert "is left as it is" in capsys.readouterr().err


def test_a_config_without_models_and_settings_is_replaced_with_a_backup(source: Path) -> None:
    target = source.parent / "config.yaml"
    target.write_text("Local-Models: {}  # none yet\n")
    assert run(source, "--write") == 0
    assert "serve" in target.read_text()
    assert "none yet" in (source.parent / "config.yaml.bak").read_text()


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

"""`llm-manager add` and `remove`, while no program runs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from commands.__main__ import main
from manager.devices import Reading
from tests.support.gguf_files import write_model

Run = Callable[..., int]
TEXT = """\
program:
  port: 8080   # ours
Local-Models:
  Old:   # the first
    CPU: {command: [serve]}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config, models, and a PATH on which llama-server is alone."""
    (tmp_path / "models" / "deep").mkdir(parents=True)
    write_model(tmp_path / "models" / "tiny-Q8_0.gguf")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "llama-server").write_text("#!/bin/sh\n")
    (programs / "llama-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    (tmp_path / "config.yaml").write_text(TEXT)
    monkeypatch.setattr("commands.add.plugins.devices", lambda _folder: [])
    return tmp_path


@pytest.fixture
def run(home: Path) -> Run:
    def run(command: str, *arguments: str) -> int:
        places = ["--config", str(home / "config.yaml"), "--data-dir", str(home / "data")]
        return main([command, *arguments, *places])

    return run


def models(home: Path) -> dict[str, object]:
    found: dict[str, object] = yaml.safe_load((home / "config.yaml").read_text())["Local-Models"]
    return found


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    typed = io.StringIO("".join(f"{answer}\n" for answer in answers))
    typed.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", typed)


def with_cards(monkeypatch: pytest.MonkeyPatch, **cards: int) -> None:
    class Plugin:
        name = "played"

        def read(self, _pids: object) -> list[Reading]:
            return [Reading(name, "nvidia", 0, total_mb=mb) for name, mb in cards.items()]

    monkeypatch.setattr("commands.add.plugins.devices", lambda _folder: [Plugin()])


def test_a_file_is_added_and_the_rest_of_the_config_stays(home: Path, run: Run) -> None:
    path = home / "models" / "tiny-Q8_0.gguf"
    assert run("add", str(path), "--yes") == 0
    assert (home / "config.yaml").read_text().startswith(TEXT)
    command = models(home)["tiny"]["CPU"]["command"]  # type: ignore[index]
    assert command[:3] == ["llama-server", "-m", str(path)]
    assert command[-1] == "${PORT}"
    assert (home / "config.yaml.bak").read_text() == TEXT
    assert run("remove", "tiny", "--yes") == 0
    assert (home / "config.yaml").read_text() == TEXT


@pytest.mark.parametrize("text", [None, "", "# none yet\n"])
def test_the_first_model_makes_the_config(home: Path, run: Run, text: str | None) -> None:
    (home / "config.yaml").unlink()
    if text is not None:
        (home / "config.yaml").write_text(text)
    assert run("add", str(home / "models"), "--yes") == 0
    assert list(models(home)) == ["tiny"]
    assert run("add", str(home / "models"), "--yes") == 0
    assert list(models(home)) == ["tiny", "tiny-2"]


def test_a_dry_run_prints_the_entry_and_writes_nothing(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("add", str(home / "models"), "--dry-run", "--name", "Other", "--context", "512") == 0
    entry = yaml.safe_load(capsys.readouterr().out)["Other"]
    assert "512" in entry["CPU"]["command"]
    assert (home / "config.yaml").read_text() == TEXT


def test_without_a_terminal_and_yes_nothing_is_written(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    for arguments in (["add", str(home / "models")], ["remove", "Old"]):
        assert run(*arguments) == 1
        assert "say --yes" in capsys.readouterr().err
    assert (home / "config.yaml").read_text() == TEXT


def test_on_a_terminal_it_asks_for_what_was_not_said(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(home / "models" / "other.gguf", extra={"llama.context_length": 10_000})
    config = TEXT.replace("program:\n", "program:\n  models_dir: models\n")
    (home / "config.yaml").write_text(config)
    with_cards(monkeypatch, small=1, large=24_000)
    on_a_terminal(monkeypatch, "1", "7", "x", "1", "2", "Mine", "y")
    assert run("add") == 0
    said = capsys.readouterr().err
    assert "other.gguf: " in said
    assert "large: context up to 10,000" in said
    assert "small: too small" in said
    scheme = models(home)["Mine"]["GPU"]  # type: ignore[index]
    assert scheme["required_devices"] == ["large"]
    assert scheme["command"][3:5] == ["-c", "4096"]


def test_what_is_not_in_a_list_is_said_before_it_asks_again(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(home / "models" / "other.gguf")
    on_a_terminal(monkeypatch, "3", "1")
    assert run("add", str(home / "models")) == 1
    assert "3 is not in the list: type a number from 1 to 2\n" in capsys.readouterr().err


def test_the_hint_starts_the_program_with_the_same_config_and_data(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    serve = f"`llm-manager serve --config {home / 'config.yaml'} --data-dir {home / 'data'}`"
    assert run("add", str(home / "models"), "--yes") == 0
    assert serve in capsys.readouterr().err
    assert run("add", str(home / "models"), "--yes", "--start") == 1
    assert serve in capsys.readouterr().err


def test_a_context_beyond_what_the_model_was_trained_for_is_warned_of(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    warning = "tiny-Q8_0.gguf was trained for a context of 4,096 tokens"
    for context, is_warned in (("4096", False), ("4097", True)):
        assert run("add", str(home / "models"), "--dry-run", "--context", context) == 0
        assert (warning in capsys.readouterr().err) is is_warned


def test_a_removal_needs_a_yes_and_a_model_that_is_there(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert run("remove", "New") == 1
    assert "say --yes" not in (said := capsys.readouterr().err)
    assert "New" in said
    on_a_terminal(monkeypatch, "")
    assert run("remove", "Old") == 1
    assert "[y/N]" in capsys.readouterr().err
    assert (home / "config.yaml").read_text() == TEXT
    on_a_terminal(monkeypatch, "y")
    assert run("remove", "Old") == 0


def test_a_no_and_the_end_of_the_input_write_nothing(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(home / "models")
    for answers in (["", "n"], [""], []):
        on_a_terminal(monkeypatch, *answers)
        assert run("add", path) == 1
        assert capsys.readouterr().err.endswith("nothing was written\n")
    assert (home / "config.yaml").read_text() == TEXT


def test_the_largest_card_with_enough_memory_is_taken_and_else_the_processor(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_cards(monkeypatch, small=8_000, large=24_000)
    assert run("add", str(home / "models"), "--yes") == 0
    with_cards(monkeypatch, small=1)
    assert run("add", str(home / "models"), "--yes") == 0
    assert run("add", str(home / "models"), "--yes", "--device", "a", "--device", "a") == 0
    assert run("add", str(home / "models"), "--yes", "--device", "cpu") == 0
    schemes = [entry for name, entry in models(home).items() if name != "Old"]
    devices = [next(iter(list(one.values())[1:]))["required_devices"] for one in schemes]  # type: ignore[attr-defined]
    assert devices == [["large"], [], ["a", "a"], []]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.gguf", "--yes"], "there is no"),
        (["--yes"], "set models_dir"),
        (["models", "--yes", "--name", "Old"], "already"),
        (["models", "--yes", "--start"], "llm-manager serve"),
        (["broken.gguf", "--yes"], "broken.gguf"),
        (["empty", "--yes"], "no GGUF in"),
        (["models", "--yes", "--engine", "vllm"], "needs a device"),
        (["models", "--yes", "--name", "."], "config.yaml:6"),
    ],
)
def test_what_cannot_be_added_is_said_and_nothing_is_written(
    home: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(home)
    (home / "broken.gguf").write_bytes(b"GGUF")
    (home / "empty").mkdir()
    assert run("add", *arguments) == 1
    assert message in capsys.readouterr().err
    assert (home / "config.yaml").read_text() == TEXT


def test_of_several_files_one_has_to_be_named(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write_model(home / "models" / "deep" / "other.gguf")
    assert run("add", str(home / "models"), "--yes") == 1
    assert "say which: " in capsys.readouterr().err
    assert run("add", str(home / "models" / "deep" / "other.gguf"), "--yes") == 0


def test_a_file_of_others_cannot_act_on_the_terminal(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(home / "models" / "other\u202e.gguf", "llama\x1b]0;title\x07")
    (home / "models" / "broken\x1b[31m.gguf").write_bytes(b"GGUF")
    (home / "models" / "broken\u202e.gguf").write_bytes(b"GGUF")
    on_a_terminal(monkeypatch)
    assert run("add", str(home / "models")) == 1
    assert run("add", str(home / "models"), "--yes") == 1
    assert run("add", str(home / "models" / "broken\x1b[31m.gguf"), "--yes") == 1
    output = "".join(capsys.readouterr())
    assert r"llama\x1b]0;title\x07" in output
    assert not [each for each in output if not each.isprintable() and each != "\n"]


def test_a_config_with_a_problem_is_not_written_to(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "config.yaml").write_text(TEXT.replace("port:", "prot:"))
    assert run("add", str(home / "models"), "--yes") == 1
    assert "config.yaml:2: prot: unknown key" in capsys.readouterr().err
    assert run("remove", "Old", "--yes") == 1


def test_nobody_runs_it_where_no_engine_is_installed(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.fspath(home))
    assert run("add", str(home / "models"), "--yes") == 1
    assert "there is no llama-server on the PATH" in capsys.readouterr().err


class Running:
    """A program that runs with the config, and a file that it does not apply by itself."""

    def __init__(self, fault: str | None) -> None:
        self.fault, self.reloads = fault, 0

    def config_fault(self) -> str | None:
        return self.fault

    def devices(self) -> list[object]:
        return []

    def preview(self, _name: str, _entry: str) -> dict[str, object]:
        return {"problems": [], "start": None}

    def reload(self) -> None:
        self.reloads += 1


def test_a_file_that_waits_for_a_reload_is_neither_changed_nor_applied(
    home: Path, run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = Running("3 of 4 models are not in it: a, b, c")
    monkeypatch.setattr("commands.add._running", lambda _arguments: program)
    for arguments in (["add", str(home / "models"), "--yes"], ["remove", "Old", "--yes"]):
        assert run(*arguments) == 1
        said = capsys.readouterr().err
        assert "reload it first: 3 of 4 models are not in it" in said
    assert (home / "config.yaml").read_text() == TEXT
    assert program.reloads == 0
    program.fault = None
    assert run("add", str(home / "models"), "--yes") == 0
    assert program.reloads == 1

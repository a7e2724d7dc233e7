"""What is made from the declarations of the config's keys is what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from manager.config import loader
from manager.config.declaration import keys
from manager.config.settings import Model, Program, Scheme
from scripts import config_reference

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = (ROOT / "config.yaml").read_text(encoding="utf-8")
MODES = ("Chat", "Base", "Embedding", "Reranker")


def errors(text: str) -> list[str]:
    """What an editor marks in a config."""
    schema = json.loads(config_reference.SCHEMA.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    found = Draft202012Validator(schema).iter_errors(yaml.safe_load(text))
    return ["/".join(map(str, error.absolute_path)) for error in found]


def test_the_schema_in_the_repository_is_that_of_the_declarations() -> None:
    written = config_reference.SCHEMA.read_text(encoding="utf-8")
    assert written == config_reference.schema_text(), "run `make reference`"


def test_the_tables_of_the_docs_are_those_of_the_declarations() -> None:
    page = config_reference.PAGE.read_text(encoding="utf-8")
    assert page == config_reference.page_text(page), "run `make reference`"


def test_the_shipped_config_names_the_schema_in_its_first_line() -> None:
    match = re.match(r"# yaml-language-server: \$schema=\./(\S+)\n", SHIPPED)
    assert match is not None
    assert (ROOT / match[1]) == config_reference.SCHEMA
    assert errors(SHIPPED) == []


def test_an_editor_takes_what_the_program_takes() -> None:
    assert errors(Path(__file__).with_name("version_before.yaml").read_text("utf-8")) == []
    text = """\
x-gpu: &gpu {required_devices: [v100], memory_mb: {v100: 8000}}
program:
  queue: redis://cache
  export: {schedule: "0 3 1 * *", period: month}
Local-Models:
  m:
    aliases: [a, 3.10]
    price: {per_hour: 0.1, tiers: [{input: 1, output: "2.5", support_cache: true}]}
    GPU: {<<: *gpu, command: [serve, "${PORT}", 4096, true], env: {A: 1.50}}
    Docker: {command: [docker, run, -d], detached: true, stop_command: [docker, stop, m]}
    Plain: {command: [serve], detached: false}
"""
    assert errors(text) == []


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("programs: {}", ""),
        ("program: {prot: 1}", "program"),
        ("program: {port: 70000}", "program/port"),
        ("program: {alive_time: -1}", "program/alive_time"),
        ("program: {export: {period: day}}", "program/export"),
        ("Local-Models: {m: {port: x}}", "Local-Models/m/port"),
        ("Local-Models: {m: {alias: x}}", "Local-Models/m/alias"),
        ("Local-Models: {m: {s: {command: [x], script_path: y.sh}}}", "Local-Models/m/s"),
        ("Local-Models: {m: {s: {cwd: .}}}", "Local-Models/m/s"),
        ("Local-Models: {m: {s: {command: [x], detached: true}}}", "Local-Models/m/s"),
        (
            "Local-Models: {m: {price: {tiers: [{input: 1}]}}}",
            "Local-Models/m/price/tiers/0",
        ),
    ],
)
def test_an_editor_marks_what_is_wrong(text: str, where: str) -> None:
    assert where in errors(text)


def test_what_the_shipped_config_says_of_defaults_is_true() -> None:
    program = SHIPPED.partition("\nLocal-Models:")[0]
    declared = {key.name: key.default for key in keys(Program)}
    left_out = program.partition("What these are when left out")[2].partition("\n\n")[0]
    commented = dict(re.findall(r"^  # (\w+): +(\S+)", left_out, re.MULTILINE))
    assert len(commented) >= 8
    commented |= dict(re.findall(r"^  # (Disable_\w+): +(\S+)", program, re.MULTILINE))
    written: dict[str, Any] = yaml.safe_load(program)["program"]
    for name, value in {**written, **{k: yaml.safe_load(v) for k, v in commented.items()}}.items():
        assert value == declared[name], name


def test_each_key_that_a_comment_of_the_shipped_config_names_can_be_set(tmp_path: Path) -> None:
    program = SHIPPED.partition("\nLocal-Models:")[0]
    text = re.sub(r"^  # (\w+: +\S)", r"  \1", program, flags=re.MULTILINE)
    assert text.count("\n  ") > 15
    for name in ("interfaces", "devices"):
        (tmp_path / "plugins" / name).mkdir(parents=True)
    (tmp_path / "models").mkdir()
    loaded = loader.parse(f"{text}\nLocal-Models:\n", tmp_path / "config.yaml", lambda _: MODES)
    assert loaded.program.trusted_proxies
    assert loaded.warnings == ()


def test_every_key_has_a_sentence() -> None:
    for key in (key for cls in (Program, Model, Scheme) for key in keys(cls)):
        assert key.help.endswith("."), key.name

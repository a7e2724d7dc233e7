"""config.yaml: every problem is reported at once, with its line and how to fix it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from manager.config import loader as config
from manager.config import yaml_reader
from tests.support.config_files import (
    SEED,
    builtin_modes,
    good_or_problems,
    load,
    model_text,
    only_problem,
    problems,
)

# All problems at once.

# What to write under `program`, which of its lines is wrong, and a part of the message.
PROGRAM_FAULTS: dict[str, tuple[list[str], int, str]] = {
    "host": (["host: 5"], 0, "expected text"),
    "port": (["port: 70000"], 0, "from 1 to 65535, found 70000"),
    "ollama_port": (["ollama_port: 8080"], 0, "8080 is already the program's own"),
    "log_level": (["log_level: LOUD"], 0, "known: DEBUG, INFO"),
    "alive_time": (["alive_time: -1"], 0, "from 0"),
    "gpu": (["Disable_GPU_monitoring: 'false'"], 0, "without quotes"),
    "tracker": (["TokenTracker:", "  - Chat", "  - Chta"], 2, "did you mean Chat"),
    "device_plugin_dir": (["device_plugin_dir: nowhere"], 0, "there is no folder"),
    "interface_plugin_dir": (["interface_plugin_dir: scripts/run.sh"], 0, "there is no folder"),
    "device_memory_mb": (["device_memory_mb:", "  gpu: 8000", "  v100: 0"], 2, "v100: expected"),
    "threads": (["threads: 32"], 0, "from 33"),
    "start_timeout": (["start_timeout: 0"], 0, "above 0"),
    "stop_timeout": (["stop_timeout: .inf"], 0, "above 0"),
    "queue_timeout": (["queue_timeout: .nan"], 0, "above 0"),
    "max_waiting": (["max_waiting: 2.5"], 0, "a whole number"),
    "max_body_mb": (["max_body_mb: true"], 0, "a whole number"),
    "list_aliases": (["list_aliases: 1"], 0, "true or false"),
    "upstream_timeout": (["upstream_timeout: [1]"], 0, "found a list"),
    "currency": (["currency: ''"], 0, "found none"),
    "timezone": (["timezone: Asia/Shanghia"], 0, "did you mean Asia/Shanghai?"),
    "log_retention_days": (["log_retention_days: -1"], 0, "from 0"),
    "request_retention_days": (["request_retention_days: 010"], 0, "found 010"),
    "export": (["export:", "  schedule: 0 3 * *"], 1, "five fields"),
    "require_key": (["require_key: sometimes"], 0, "true or false"),
    "allowed_hosts": (["allowed_hosts:", "  - a.example.org", "  - '*'"], 2, "write each name"),
    "cors_origins": (["cors_origins: ['null']"], 0, "any file"),
    "trusted_proxies": (["trusted_proxies: [0.0.0.0/0]"], 0, "is everybody"),
    "allow_config_edit": (["allow_config_edit: 1"], 0, "true or false"),
    "unknown": (["max_waitin: 4"], 0, "did you mean max_waiting?"),
    "twice": (["x-unknown-but-twice:", "x-unknown-but-twice:"], 1, "twice"),
}
# The same for a model of its own each.
MODEL_FAULTS: dict[str, tuple[list[str], int, str]] = {
    "aliases": (["aliases: one"], 0, "expected a list, found text"),
    "alias": (["aliases: [ok-{0}, [x]]"], 0, "item 2: expected text"),
    "alias changes": (["aliases:", "  n{0}: {sets: {}}"], 1, "did you mean set?"),
    "alias model": (["aliases:", "  n{0}:", "    set: {model: 7}"], 2, "expected text"),
    "alias name": (["aliases:", "  o{0}: {}", "  '': {{}}"], 2, "cannot be empty"),
    "mode": (["mode: chat"], 0, "did you mean Chat?"),
    "port": (["port: '10001'"], 0, "found the text '10001'"),
    "taken": (["port: 8080"], 0, "8080 is already the program's own"),
    "auto_start": (["auto_start: maybe"], 0, "true or false"),
    "max_concurrency": (["max_concurrency: 0"], 0, "from 1"),
    "served": (["served_model_name: {a: b}"], 0, "expected text, found a mapping"),
    "unknown": (["alias: x"], 0, "did you mean aliases?"),
    "case": (["Pinned: true"], 0, "did you mean pinned?"),
    "misplaced": (["script_path: scripts/run.sh"], 0, "inside a scheme"),
    "misplaced env": (["env:", "  A: b"], 0, "inside a scheme"),
    "empty scheme": (["Dual:"], 0, "unknown key"),
    "neither": (["Dual:", "  memory_mb: {}"], 0, "needs script_path or command"),
    "both": (["Dual:", "  command: [x]", "  script_path: scripts/run.sh"], 2, "keep one"),
    "no such script": (["Dual:", "  script_path: scripts/non.sh"], 1, "there is no file"),
    "suffix": (["Dual:", "  script_path: scripts/run.exe"], 1, ".sh, .bat, .cmd, .ps1, .py"),
    "command": (["Dual:", "  command: llama-server -m x"], 1, "expected a list"),
    "devices": (["Dual:", "  command: [x]", "  required_devices: v100"], 2, "expected a list"),
    "memory": (
        ["Dual:", "  command: [x]", "  required_devices: [v100]", "  memory_mb:", "    v10: 1"],
        4,
        "not in required_devices; did you mean v100?",
    ),
    "env": (["Dual:", "  command: [x]", "  env:", "    A: [1]"], 3, "A: expected text"),
    "cwd": (["Dual:", "  command: [x]", "  cwd: nowhere"], 2, "there is no folder"),
    "scheme key": (["Dual:", "  command: [x]", "  memory: {}"], 2, "did you mean memory_mb?"),
    "price": (["price: {}"], 0, "per_hour, tiers or both"),
    "decimals": (["price:", "  per_hour: 0.0000000001"], 1, "nine decimals"),
    "tier": (["price:", "  tiers:", "    - input: 1"], 2, "output is missing"),
    "range": (
        ["price:", "  tiers:", "    - {input: 1, output: 1, min_input: 9, max_input: 5}"],
        2,
        "max_input 5 is not above min_input 9",
    ),
}


def faulty(program_faults: list[str], model_faults: list[str]) -> tuple[str, list[tuple[int, str]]]:
    """A file with these faults, and the line and a part of the message of each."""
    lines = ["program:"]
    expected = []
    for name in program_faults:
        body, wrong, part = PROGRAM_FAULTS[name]
        expected.append((len(lines) + wrong + 1, part))
        if name == "twice":
            expected.append((len(lines) + 1, "unknown key"))
        lines += [f"  {line}" for line in body]
    lines.append("Local-Models:")
    for number, name in enumerate(model_faults):
        body, wrong, part = MODEL_FAULTS[name]
        lines.append(f"  m{number}:")
        expected.append((len(lines) + wrong + 1, part))
        lines += [f"    {line.replace('{0}', str(number))}" for line in body]
        lines.append("    Default: {command: [x]}")
    return "\n".join(lines) + "\n", expected


@given(
    st.lists(st.sampled_from(sorted(PROGRAM_FAULTS)), unique=True),
    st.lists(st.sampled_from(sorted(MODEL_FAULTS)), max_size=8),
)
@example(sorted(PROGRAM_FAULTS), sorted(MODEL_FAULTS))
def test_every_problem_is_reported_at_once_each_at_its_line(
    home: Path, program_faults: list[str], model_faults: list[str]
) -> None:
    text, expected = faulty(program_faults, model_faults)
    if not expected:
        load(home, text)
        return
    left = problems(home, text)
    for line, part in expected:
        (match,) = [found for found in left if found[0] == line and part in found[1]]
        left.remove(match)
    assert left == []


def test_an_error_reads_as_one_line_a_problem_in_the_order_of_the_file(home: Path) -> None:
    text = "Local-Models:\n  m:\n    port: 0\n    s: {command: [x]}\nprogram: {prot: 1}\n"
    with pytest.raises(config.ConfigError) as caught:
        load(home, text)
    assert str(caught.value) == (
        "config.yaml:3: port: expected a whole number from 1 to 65535, found 0\n"
        "config.yaml:5: prot: unknown key; did you mean port?"
    )
    assert caught.value.path == home / "config.yaml"


def test_a_fault_in_a_shared_base_is_reported_once(home: Path) -> None:
    text = """\
Local-Models:
  a: &base
    mode: Chatt
    s: {command: [x], command: [y]}
  b: {<<: *base}
  c: {<<: *base}
"""
    assert [line for line, _ in problems(home, text)] == [3, 4]


# The file itself.


def test_a_missing_file_is_reported_with_its_path(home: Path) -> None:
    with pytest.raises(config.ConfigError, match=re.escape(str(home / "none.yaml"))) as caught:
        config.load(home / "none.yaml", builtin_modes)
    assert str(caught.value).startswith("none.yaml:1: there is no file")


def test_a_file_that_cannot_be_read_is_reported(home: Path) -> None:
    with pytest.raises(config.ConfigError, match="cannot be read"):
        config.load(home / "scripts", builtin_modes)


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "null"])
def test_an_empty_file_is_reported_with_how_to_begin(home: Path, text: str) -> None:
    line, message = only_problem(home, text)
    assert line == 1
    assert message.startswith("the file is empty: begin with `program:`")


@pytest.mark.parametrize(("text", "kind"), [("- a\n", "a list"), ("hello\n", "text"), ("5", "a n")])
def test_a_file_that_is_no_mapping_is_reported(home: Path, text: str, kind: str) -> None:
    line, message = only_problem(home, text)
    assert line == 1
    assert f"expected a mapping (lines of `key: value`), found {kind}" in message


@pytest.mark.parametrize("content", ["# 好\nprogram: 好\n".encode("gbk"), "a: b".encode("utf-16")])
def test_a_file_in_another_encoding_is_reported_as_not_utf8(home: Path, content: bytes) -> None:
    line, message = only_problem(home, content)
    assert line == 1
    assert "save the file as UTF-8" in message


def test_the_line_of_bytes_that_are_not_utf8_is_given(home: Path) -> None:
    assert only_problem(home, b"program:\n  host: a\n  currency: \xff\n")[0] == 3


# The text, the line, and a part of the message: what is wrong before anything can be read.
SYNTAX = {
    "tab": ("program:\n\tport: 1\n", 2, "indent with spaces"),
    "later tab": ("program:\n  host: 好\n  \tport: 1\n", 3, "indent with spaces"),
    "byte order mark and tab": ("\ufeffprogram:\n\tport: 1\n", 2, "indent with spaces"),
    "crlf and tab": ("program:\r\n  host: a\r\n\tport: 1\r\n", 3, "indent with spaces"),
    "backslash": ('program:\n  host: "a\\q"\n', 2, "write / instead"),
    "bare cron": ("program:\n  export:\n    schedule: * * * * *\n", 3, "begins with * in quotes"),
    "variable": ("Local-Models:\n  m: {s: {env: {A: ${B}}}}\n", 2, "${NAME} that is between"),
    "at": ("program:\n  currency: @x\n", 2, "begins with @ in quotes"),
    "open quote": ('program:\n  host: "a\n  port: 1\n', 2, "close the quotes"),
    "open list": ("program:\n  TokenTracker: [Chat\n  port: 1\n", 3, "begins on line 2"),
    "no colon": ("program:\n  host: a\n  port\n", 3, "a colon"),
    "no space": ("program:\n  host:a\n  port: 1\n", 3, "on the line above"),
    "indentation": ("program:\n  host: a\n port: 1\n", 3, "indentation"),
    "two colons": ("program:\n  host: a: b\n", 2, "needs quotes"),
    "control": ("program:\n  host: \x01\n", 2, "'\\x01'"),
    "second document": ("program:\n---\nprogram:\n", 2, "another document"),
    "alias": ("program: *none\n", 1, "undefined alias"),
}


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml_reader.LOADER])
@pytest.mark.parametrize("name", SYNTAX)
def test_what_is_not_yaml_is_reported_with_its_line_and_a_way_out(
    home: Path, name: str, loader: type[yaml.SafeLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_reader, "LOADER", loader)
    text, line, part = SYNTAX[name]
    found = only_problem(home, text)
    assert found[0] == line
    assert part in found[1]


# Pieces of files, so that random ones get past the parser often enough.
PIECES = [
    *("program", "Local-Models", "m", "aliases", "price", "tiers", "command", "env", "export"),
    *(": ", "\n", "  ", "    ", "- ", "[", "]", "{", "}", ",", "&a ", "*a", "<<", "? ", "!!int "),
    *('"', "'", "\\", "\t", "#", "|\n", "~", "1", "-1", ".nan", "true", "x", "\0", "\u2028", "好"),
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text() | st.binary())
def test_no_file_whatever_is_in_it_ends_in_a_traceback(home: Path, text: str | bytes) -> None:
    if isinstance(text, str):
        text = text.encode(errors="surrogatepass")
    found = good_or_problems(home, text)
    assert all(problem.line >= 1 and problem.message for problem in found)
    # YAML has line ends that editors do not count.
    if not set("\r\x85\u2028\u2029") & set(text.decode(errors="replace")):
        assert all(problem.line <= text.count(b"\n") + 1 for problem in found)


def test_any_two_bytes_cut_from_a_good_file_give_a_config_or_problems(home: Path) -> None:
    content = SEED.encode()
    for begin in range(0, len(content), 3):
        good_or_problems(home, content[:begin] + content[begin + 2 :])


# Keys.


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("Local_Models:\n", 1, "did you mean Local-Models?"),
        ("local-models:\n", 1, "did you mean Local-Models?"),
        ("programs:\n", 1, "did you mean program?"),
        ("xyz: 1\n", 1, "known here: program, Local-Models"),
        ("program:\n  disable_gpu_monitoring: true\n", 2, "did you mean Disable_GPU_monitoring?"),
        ("program:\n  PORT: 1\n", 2, "did you mean port?"),
        ("program:\n  token-tracker: []\n", 2, "did you mean TokenTracker?"),
        (
            "program:\n  export: {schedule: '0 3 * * *', direktory: x}\n",
            2,
            "did you mean directory?",
        ),
    ],
)
def test_an_unknown_key_gets_a_did_you_mean(home: Path, text: str, line: int, hint: str) -> None:
    found = only_problem(home, text)
    assert found[0] == line
    assert "unknown key" in found[1]
    assert hint in found[1]


def test_a_key_that_begins_with_x_is_free_for_anchors(home: Path) -> None:
    text = """\
x-gpu: &gpu
  required_devices: [v100]
  memory_mb: {v100: 8000}
x-anything: [1, {a: b}]
Local-Models:
  m:
    GPU: {<<: *gpu, command: [x]}
"""
    loaded = load(home, text)
    assert loaded.models["m"].schemes[0].memory_mb == {"v100": 8000}
    assert loaded.warnings == ()
    assert "unknown key" in only_problem(home, "program: {x-port: 1}\nLocal-Models:\n")[1]
    assert only_problem(home, "X-gpu: 1\n")[0] == 1


@pytest.mark.parametrize(
    ("text", "line", "first"),
    [
        ("program:\nLocal-Models:\nprogram:\n", 3, 1),
        ("program:\n  port: 1\n  host: a\n  port: 2\n", 4, 2),
        ("Local-Models:\n  m: {s: {command: [x]}}\n  'm': {s: {command: [x]}}\n", 3, 2),
        ("Local-Models:\n  m:\n    s: {command: [x]}\n    s: {command: [x]}\n", 4, 3),
        ("Local-Models:\n  m:\n    s:\n      command: [x]\n      cwd: .\n      cwd: .\n", 6, 5),
    ],
)
def test_a_key_that_is_there_twice_is_reported(
    home: Path, text: str, line: int, first: int
) -> None:
    found = only_problem(home, text)
    assert found[0] == line
    assert f"twice, first on line {first}" in found[1]


def test_a_key_that_is_a_list_is_reported(home: Path) -> None:
    assert "a key must be plain text" in only_problem(home, "program:\n  [a, b]: 1\n")[1]


@pytest.mark.parametrize("merge", ["1", "[1]", "null"])
def test_a_merge_of_no_mapping_is_reported(home: Path, merge: str) -> None:
    line, message = only_problem(home, model_text(f"<<: {merge}"))
    assert line == 3
    assert "merges mappings only" in message


def test_a_mapping_that_merges_itself_is_reported(home: Path) -> None:
    line, message = only_problem(home, model_text("x: &x {command: [x], <<: *x}"))
    assert line == 3
    assert "cannot merge itself" in message


@pytest.mark.parametrize("section", ["program", "Local-Models", "Local-Models: {m"])
@pytest.mark.parametrize("wrong", ["5", "text", "[a]", "true"])
def test_a_section_that_is_no_mapping_is_reported(home: Path, section: str, wrong: str) -> None:
    text = f"{section}: {wrong}" + "}" * section.count("{")
    assert "expected a mapping" in only_problem(home, text)[1]


def test_lists_of_lists_by_aliases_are_counted_in_requests(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_reader, "MAX_VALUES", 1000)
    tens = "".join(f"x-{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 4))
    text = "x-0: &x0 [1]\n" + tens + model_text("request: {default: {stop: *x3}}")
    assert "more than 1000 values" in problems(home, text)[-1][1]

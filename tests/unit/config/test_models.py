"""Models and their schemes in config.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.config_files import (
    load,
    model_text,
    only_problem,
    problems,
    program,
    scheme,
    scheme_problem,
)

# Names and ports that are taken.


@pytest.mark.parametrize(
    ("models", "line", "part"),
    [
        (["a: {aliases: [x]", "b: {aliases: [x]"], 3, "x is already an alias of a (line 2)"),
        (["a: {aliases: [x, x]"], 2, "x is already an alias of a (line 2)"),
        (["a: {aliases: [b]", "b: {port: 7"], 2, "b is already the name of a model (line 3)"),
        (["a: {port: 7", "b: {aliases: [a]"], 3, "a is already the name of a model (line 2)"),
        (["a: {port: 7", "b: {port: 7"], 3, "7 is already the port of a (line 2)"),
        (["a: {port: 8080"], 2, "8080 is already the program's own"),
    ],
)
def test_names_and_ports_are_unique_over_all_models(
    home: Path, models: list[str], line: int, part: str
) -> None:
    lines = [f"  {each}, s: {{command: [x]}}}}\n" for each in models]
    found = only_problem(home, "Local-Models:\n" + "".join(lines))
    assert found[0] == line
    assert part in found[1]


def test_the_port_for_ollamas_clients_is_no_models(home: Path) -> None:
    text = "program: {ollama_port: 11434}\nLocal-Models:\n  a: {port: 11434, s: {command: [x]}}\n"
    line, message = only_problem(home, text)
    assert line == 3
    assert "11434 is already the program's, for Ollama (line 1)" in message


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("''", "empty"),
        ("' '", "empty"),
        ('"a\\nb"', "control"),
        ('"\\x7f"', "control"),
        ("a" * 201, "200"),
    ],
)
def test_a_name_that_cannot_be_shown_is_refused(home: Path, name: str, part: str) -> None:
    line, message = only_problem(home, f"Local-Models:\n  ? {name}\n  : {{s: {{command: [x]}}}}\n")
    assert line == 2
    assert part in message
    assert only_problem(home, model_text(f"aliases: [{name}]"))[0] == 3


@pytest.mark.parametrize("name", [".", ".."])
def test_a_model_that_no_address_can_name_is_refused(home: Path, name: str) -> None:
    line, message = only_problem(home, f"Local-Models:\n  {name}:\n    s: {{command: [x]}}\n")
    assert line == 2
    assert "none could ask for it, choose another" in message
    line, message = only_problem(home, model_text(f"aliases: [ok, {name}]"))
    assert line == 3
    assert "none could ask for it" in message
    allowed = load(
        home, f"Local-Models:\n  ...a: {{aliases: [.a, a/..], {name}: {{command: [x]}}}}"
    )
    assert list(allowed.models) == ["...a"]


def test_an_unknown_mode_names_the_known_ones(home: Path) -> None:
    line, message = only_problem(home, model_text("mode: Vision"))
    assert line == 3
    assert "unknown mode 'Vision'; known: Base, Chat, Embedding, Reranker" in message


def test_further_endpoints_are_known_ones(home: Path) -> None:
    text = model_text("endpoints: [/v1/embeddings, /v1/rerank]")
    (model,) = load(home, text).models.values()
    assert model.endpoints == ("/v1/embeddings", "/v1/rerank")
    _, message = only_problem(home, model_text("endpoints: [/v1/embedings]"))
    assert "/v1/embeddings" in message


def test_what_is_changed_in_requests_is_json(home: Path) -> None:
    written = "{strip: [seed], default: {n: 1, t: 0.5}, set: {a: {b: [true, null, x]}, c: '1'}}"
    (model,) = load(home, model_text(f"request: {written}")).models.values()
    changes = model.request
    assert changes is not None
    assert changes.strip == ("seed",)
    assert changes.default == {"n": 1, "t": 0.5}
    assert changes.set == {"a": {"b": [True, None, "x"]}, "c": "1"}


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("{strip: [model]}", "served_model_name"),
        ("{set: {model: x}}", "served_model_name"),
        ("{default: {model: x}}", "served_model_name"),
        ("{set: {n: .inf}}", "put it in quotes"),
        ("{set: {n: 0x1F}}", "put it in quotes"),
        ("{set: {day: 2026-11-27}}", "put it in quotes"),
        (f"{{set: {{n: {'[' * 40}1{']' * 40}}}}}", "nested more than 32 deep"),
        ("{set: 1}", "mapping"),
        ("{remove: [x]}", "remove"),
    ],
)
def test_what_json_cannot_say_is_reported(home: Path, written: str, part: str) -> None:
    _, message = only_problem(home, model_text(f"request: {written}"))
    assert part in message


# Schemes.


def test_a_model_without_a_scheme_is_reported_with_how_to_add_one(home: Path) -> None:
    line, message = only_problem(home, "Local-Models:\n  a:\n    mode: Chat\n")
    assert line == 2
    assert message.startswith("a: has no scheme: add a mapping")
    assert "no scheme" in only_problem(home, "Local-Models:\n  a:\n")[1]


def test_a_misspelt_price_is_not_taken_for_a_scheme_in_silence(home: Path) -> None:
    found = problems(home, model_text("Price: {per_hour: 1}"))
    assert any("did you mean price?" in message for _, message in found)


@pytest.mark.parametrize(
    "written", ['"scripts\\new.bat"', '"scripts\\\\nope.bat"', "scripts", "~/a.sh"]
)
def test_a_script_that_is_not_there_is_reported(home: Path, written: str) -> None:
    text = f"Local-Models:\n  m:\n    s:\n      script_path: {written}\n"
    assert {line for line, _ in problems(home, text)} == {4}


def test_a_windows_path_in_double_quotes_is_explained(home: Path) -> None:
    # \n is a line end there, so that the name is not the one that was meant.
    message = scheme_problem(home, 'script_path: "scripts\\new.bat"')
    assert "in double quotes \\ begins an escape: write / instead" in message


@pytest.mark.parametrize("command", ["[]", "['', a]", "[null]", "x", "{a: b}"])
def test_a_command_begins_with_a_program(home: Path, command: str) -> None:
    text = f"Local-Models:\n  m:\n    s:\n      command: {command}\n"
    assert {line for line, _ in problems(home, text)} == {4}


def test_a_command_and_an_environment_keep_what_was_written(home: Path) -> None:
    read = scheme(home, 'command: [x, "", 0x1F, on, 1e5, ~x, "a b"], env: {P: 010, Q: off, R: 1_0}')
    assert read.command == ("x", "", "0x1F", "on", "1e5", "~x", "a b")
    assert read.env == {"P": "010", "Q": "off", "R": "1_0"}


@pytest.mark.parametrize("env", ["{A=B: 1}", "{'': 1}", "{A: }", "{A: {B: c}}", '{A: "\\0"}'])
def test_an_environment_that_no_process_can_have_is_refused(home: Path, env: str) -> None:
    assert scheme_problem(home, f"command: [x], env: {env}")


def test_memory_has_the_devices_as_required_devices_spells_them(home: Path) -> None:
    read = scheme(home, "command: [x], required_devices: [RTX 4060], memory_mb: {rtx  4060: 8000}")
    assert read.memory_mb == {"RTX 4060": 8000}
    body = "command: [x], required_devices: [v100], memory_mb: {v100: 1, V100: 2}"
    assert "twice" in scheme_problem(home, body)


@pytest.mark.parametrize(
    "body",
    [
        "command: [x], env: KEY=hunter2",
        "command: [x], env: {KEY: [hunter2]}",
        "command: [x], env: [hunter2]",
        "command: run --key hunter2",
        "command: {run: hunter2}",
    ],
)
def test_no_message_repeats_what_may_be_a_secret(home: Path, body: str) -> None:
    assert "hunter2" not in scheme_problem(home, body)


# What stands in the environment instead.


@pytest.fixture
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUR_TOKEN", "hunter2")
    monkeypatch.setenv("_2ND", "${OUR_TOKEN}")
    monkeypatch.setenv("OUR_LINES", "one\ntwo")
    monkeypatch.delenv("NOT_THERE", raising=False)


@pytest.mark.usefixtures("_variables")
@pytest.mark.parametrize(
    ("written", "value", "is_expanded"),
    [
        ("${OUR_TOKEN}", "hunter2", True),
        ("a-${OUR_TOKEN}-b${OUR_TOKEN}", "a-hunter2-bhunter2", True),
        ("${OUR_LINES}", "one\ntwo", True),
        ("${_2ND}", "${OUR_TOKEN}", True),  # what comes from there is taken as it is
        ("$${OUR_TOKEN}", "${OUR_TOKEN}", False),
        ("$${a-${OUR_TOKEN}", "${a-hunter2", True),
        ("$OUR_TOKEN $$ a$ }{", "$OUR_TOKEN $$ a$ }{", False),
    ],
)
def test_a_value_of_a_schemes_environment_may_come_from_the_programs(
    home: Path, written: str, value: str, is_expanded: bool
) -> None:
    read = scheme(home, f"command: [x], env: {{A: '{written}', B: ''}}")
    assert read.env == {"A": value, "B": ""}
    assert read.expanded == ({"A"} if is_expanded else set())
    assert "hunter2" not in repr(read)


@pytest.mark.usefixtures("_variables")
def test_a_command_is_kept_as_it_is_written_until_it_is_run(home: Path) -> None:
    text = """\
Local-Models:
  m:
    s:
      command:
        - vllm
        - --api-key=${OUR_TOKEN}
        - ${NOT_THERE} ${PORT} ${FLAVOUR} ${} $${NOR_THIS}
      env: {FLAVOUR: plain}
"""
    loaded = load(home, text)
    (read,) = loaded.models["m"].schemes
    assert read.command[1] == "--api-key=${OUR_TOKEN}"
    (warning,) = loaded.warnings
    assert (warning.line, warning.message) == (
        7,
        "command, item 3: the environment has no NOT_THERE: ${NOT_THERE} stays as it is",
    )


def test_a_detached_server_needs_a_command_that_stops_it(home: Path) -> None:
    text = "Local-Models:\n  m:\n    s:\n      command: [docker, run, -d]\n      detached: true\n"
    line, message = only_problem(home, text)
    assert line == 5
    assert message.startswith("detached: a detached server needs stop_command")
    read = scheme(home, "command: [x], detached: true, stop_command: [docker, stop, m]")
    assert (read.detached, read.stop_command) == (True, ("docker", "stop", "m"))
    assert not scheme(home, "command: [x], detached: false").detached


@pytest.mark.usefixtures("_variables")
def test_a_stop_command_is_read_as_a_command_is(home: Path) -> None:
    text = """\
Local-Models:
  m:
    s:
      command: [vllm]
      stop_command: [docker, stop, "m-${PORT}-${MODEL}", "${NOT_THERE}"]
"""
    (warning,) = load(home, text).warnings
    assert (warning.line, warning.message) == (
        5,
        "stop_command, item 4: the environment has no NOT_THERE: ${NOT_THERE} stays as it is",
    )
    for wrong in ("[]", "docker stop m", "['', m]"):
        body = f"Local-Models:\n  m:\n    s:\n      command: [x]\n      stop_command: {wrong}\n"
        assert only_problem(home, body)[0] == 5


@pytest.mark.usefixtures("_variables")
def test_nothing_else_is_taken_from_the_environment(home: Path) -> None:
    read = scheme(home, 'command: [x], env: {"${OUR_TOKEN}": a}')
    assert read.env == {"${OUR_TOKEN}": "a"}
    assert program(home, "currency: ${OUR_TOKEN}").currency == "${OUR_TOKEN}"


@pytest.mark.usefixtures("_variables")
@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("hunter2 ${NOT_THERE}", "the environment has no NOT_THERE: "),
        ("${OUR_TOKEN} ${NOT_THERE}", "write $${NOT_THERE} if"),
        ("${OUR_TOKEN} ${}", "write ${NAME}"),
        ("${OUR_TOKEN", "write ${NAME}"),
        ("${hunter2:-x}", "write ${NAME}"),
        ("${ OUR_TOKEN }", "write ${NAME}"),
        ("${1}", "write ${NAME}"),
        ("${ÜBER}", "write ${NAME}"),
    ],
)
def test_what_the_environment_does_not_have_is_reported_with_its_line_and_without_values(
    home: Path, written: str, part: str
) -> None:
    text = f"Local-Models:\n  m:\n    s:\n      command: [x]\n      env:\n        A: '{written}'\n"
    line, message = only_problem(home, text)
    assert line == 6
    assert part in message
    assert "hunter2" not in message


# --- how its server is asked whether it is well -----------------------------------------


@pytest.mark.parametrize(
    "path", ["/healthz", "/api/v2/health", "/v1/models", "/", "/a.b/..c", "/%7Eme", "none"]
)
def test_a_health_is_a_path_or_none(home: Path, path: str) -> None:
    for how in ("s: {command: [x]}", "url: http://10.0.0.5"):
        text = f"Local-Models:\n  m:\n    {how}\n    health: {path}\n    probe: false\n"
        model = load(home, text).models["m"]
        assert (model.health, model.probe) == (path, False)


def test_without_these_keys_a_server_is_asked_for_both(home: Path) -> None:
    model = load(home, "Local-Models:\n  m:\n    s: {command: [x]}\n").models["m"]
    assert (model.health, model.probe) == (None, True)


@pytest.mark.parametrize(
    ("written", "part"),
    [
        ("healthz", "expected a path of its server, such as /healthz"),
        ("http://127.0.0.1/healthz", "expected a path"),
        ("//example.org/healthz", "expected a path"),
        ("/healthz?deep=1", "expected a path"),
        ('"/healthz#now"', "expected a path"),
        ('"/a b"', "expected a path"),
        ("/gesünd", "expected a path"),
        (r"/a\b", "expected a path"),
        (r'"/a\r\nX-A: 1"', "control character"),
        ("/a/../b", "without .. in it"),
        ("/..", "without .. in it"),
        ("/a/%2e%2E/b", "without .. in it"),
        ("/a%2f..%2fb", "without .. in it"),
        ("None", "or none"),
        ("false", "expected text"),
        ("[/health]", "expected text"),
    ],
)
def test_a_health_that_is_no_path_is_a_problem(home: Path, written: str, part: str) -> None:
    text = f"Local-Models:\n  m:\n    s: {{command: [x]}}\n    health: {written}\n"
    line, message = only_problem(home, text)
    assert line == 4
    assert part in message

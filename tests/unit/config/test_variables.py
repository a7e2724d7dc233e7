"""What ``${NAME}`` in a command stands for."""

from __future__ import annotations

import pytest

from manager.config import variables

ENV = {"FLAVOUR": "plain", "TOKEN": "${PORT}~"}
LAUNCH = {"PORT": "10001", "MODEL": "org/m:7b", "SCHEME": "GPU", "DEVICES": "0,1"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("USERPROFILE", "/home/ann")
    monkeypatch.setenv("PORT", "8080")
    monkeypatch.setenv("LLM_MANAGER_PORT", "8080")
    monkeypatch.setenv("LLM_MANAGER_ADMIN", "hunter2")
    monkeypatch.setenv("FLAVOUR", "the program's")
    monkeypatch.setenv("TEAM", "nlp")
    monkeypatch.delenv("NOT_THERE", raising=False)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("--port=${PORT}", "--port=10001"),
        ("${MODEL} ${SCHEME} ${DEVICES}", "org/m:7b GPU 0,1"),
        ("${TOKEN}", "${PORT}~"),  # a value is taken as it is
        ("a${FLAVOUR}b${FLAVOUR}", "aplainbplain"),
        ("~/models/m.gguf", "/home/ann/models/m.gguf"),
        ("~", "/home/ann"),
        ("-m=~/m.gguf", "-m=~/m.gguf"),
        ("$${PORT}", "${PORT}"),
        ("$${a${PORT}", "${a10001"),
        ("${NOT_THERE}", "${NOT_THERE}"),
        ("${NOT_THERE:-x} ${} ${1} $PORT $$ }{", "${NOT_THERE:-x} ${} ${1} $PORT $$ }{"),
        ("", ""),
    ],
)
def test_a_command_gets_its_values_when_it_is_run(written: str, expected: str) -> None:
    assert variables.expand_command(["x", written], {**ENV, **LAUNCH}) == ["x", expected]


def test_before_a_launch_what_it_decides_stands_for_itself() -> None:
    values = variables.known_values(ENV)
    command = ["${PORT}", "${MODEL}", "${LLM_MANAGER_PORT}", "${CUDA_VISIBLE_DEVICES}"]
    assert variables.expand_command(command, values) == command
    expanded = variables.expand_command(["${FLAVOUR}", "${TEAM}"], values)
    assert expanded == ["plain", "nlp"]  # the scheme's own environment, then the program's


def test_names_without_a_value_are_known() -> None:
    argument = "${PORT} ${DEVICES} ${TEAM} ${NOT_THERE} $${ALSO_NOT} ${NOT_THERE}"
    values = variables.known_values(ENV)
    assert variables.unknown_names(argument, values) == ["NOT_THERE"]
    # Our own variables are for no server.
    assert variables.unknown_names("${LLM_MANAGER_ADMIN}", values) == ["LLM_MANAGER_ADMIN"]

"""A config that is to be imported may be anything: it is refused in one line, and in no time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.config import yaml_reader
from manager.importers import READERS, SourceError, macros
from tests.support.imported import Import, imported, read_again

SERVE = "cmd: llama-server --port ${PORT} -m a.gguf"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no models"),
        ("models: []", "has no models"),
        ("- a", "expected a mapping"),
        ("models: {a: {cmd: x}", "llama-swap.yaml:1: this is not YAML"),
        ("models: {a: {cmd: [" + "[" * 200 + "]" * 200 + "]}}", "levels deep"),
    ],
)
def test_what_is_no_config_is_one_line(llama_swap: Import, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message.replace("[", r"\[")):
        llama_swap(text)


def test_macros_that_grow_are_refused(llama_swap: Import) -> None:
    tens = "".join(f"  m{n}: '{f'${{m{n - 1}}} ' * 10}'\n" for n in range(1, 40))
    with pytest.raises(SourceError, match="no system runs such a command"):
        llama_swap(f"macros:\n  m0: x\n{tens}models:\n  a: {{cmd: '${{m39}} ${{PORT}}'}}\n")


def test_macros_that_name_themselves_or_later_ones_end(llama_swap: Import) -> None:
    config, report = llama_swap(
        "macros: {a: 'x ${a}', b: '${c}', c: '${b}'}\n"
        "models: {m: {cmd: 'serve ${PORT} ${a} ${c}'}}\n"
    )
    assert config.models["m"].schemes[0].command == ("serve", "${PORT}", "x", "${a}", "${c}")
    assert "there is no macro a" in report


def test_many_models_with_large_macros_are_refused(
    llama_swap: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(macros, "_MAX_WORK", 10_000)
    models = "".join(f"  m{n}: {{cmd: '${{big}} ${{PORT}}'}}\n" for n in range(20))
    with pytest.raises(SourceError, match="more text than can be read"):
        llama_swap(f"macros: {{big: {'x' * 1000}}}\nmodels:\n{models}")


def test_aliases_of_yaml_that_stand_for_millions_are_refused(
    llama_swap: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yaml_reader, "MAX_VALUES", 2000)
    tens = "".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]\n" for n in range(1, 9))
    with pytest.raises(SourceError, match="aliases counted"):
        llama_swap(
            f"x0: &x0 [1]\n{tens}models:\n  a:\n    {SERVE}\n    filters: {{setParams: {{s: *x8}}}}"
        )


def test_a_file_that_is_no_text_of_some_size_is_refused(tmp_path: Path) -> None:
    large, binary = tmp_path / "large.yaml", tmp_path / "binary.yaml"
    large.write_bytes(b"#" * (1 << 20) + b"\n")
    binary.write_bytes(b"models: \xff\xfe")
    for path, message in (
        (large, "more than 1,048,576 bytes"),
        (binary, "save the file as UTF-8"),
        (tmp_path / "missing.yaml", "cannot be read"),
        (tmp_path, "cannot be read|no regular file"),
        (Path("/dev/zero"), "no regular file|cannot be read"),
    ):
        with pytest.raises(SourceError, match=message):
            READERS["llama-swap"](path)


def test_a_name_with_control_characters_reaches_no_terminal(llama_swap: Import) -> None:
    config, report = llama_swap('models: {"a\\e[2Jb": {cmd: "x ${PORT}"}, c: {cmd: "x ${PORT}"}}')
    assert list(config.models) == ["c"]
    assert "\x1b" not in report
    assert "a\\x1b[2Jb" in report


GOOD = f"""
healthCheckTimeout: 60
macros: {{m: "x ${{PORT}}", n: 5}}
models:
  a: {{cmd: "serve ${{m}} ${{n}}", ttl: 60, env: [A=b], aliases: [c], proxy: "http://localhost:1"}}
  b:
    {SERVE}
    filters: {{stripParams: x, setParams: {{y: 1}}, setParamsByID: {{d: {{z: [1]}}}}}}
groups: {{g: {{persistent: true, members: [a]}}}}
hooks: {{on_startup: {{preload: [a]}}}}
peers: {{p: {{proxy: "https://x.example", models: [e], apiKey: k}}}}
""".encode()


@settings(max_examples=60)
@given(
    at=st.integers(0, len(GOOD)),
    length=st.integers(0, 40),
    put=st.binary(max_size=6)
    | st.sampled_from([b"[]", b"{}", b"null", b": ", b"- ", b"${", b"&a "]),
)
def test_no_file_is_a_failure_of_ours(tmp_path: Path, at: int, length: int, put: bytes) -> None:
    source = tmp_path / "llama-swap.yaml"
    source.write_bytes(GOOD[:at] + put + GOOD[at + length :])
    try:
        made = imported("llama-swap", source)
    except SourceError:
        return
    read_again(made, tmp_path)

"""The command line: what each command takes, and its exit codes."""

from __future__ import annotations

import io
import queue
import re
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands import keys, serve, tray
from commands.__main__ import main
from manager.access import LocalToken, api_keys, audit, credentials, local_token
from manager.storage import maintenance
from scripts import command_reference

COMMANDS = (
    *("serve", "check", "open", "export", "backup", "tray", "import usage", "import config"),
    *("keys list", "keys add", "keys change", "keys rotate", "keys revoke"),
    *("users list", "users add", "users password", "users sign-out", "users remove"),
    *("users add-token", "users remove-token"),
)


@pytest.mark.parametrize("name", [*COMMANDS, "", "keys", "users", "import"])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*name.split(), "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: llm-manager {name}".rstrip())


def test_the_page_of_the_docs_is_that_of_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    page = command_reference.PAGE.read_text(encoding="utf-8")
    assert command_reference.page_text(page) == page, "run `make reference`"
    for name in COMMANDS:
        _, _, section = page.partition(f"\n## llm-manager {name}")
        section, _, _ = section.partition("\n## ")
        with pytest.raises(SystemExit):
            main([*name.split(), "--help"])
        shown = set(re.findall(r"--[\w-]+", capsys.readouterr().out)) - {"--help"}
        rows = re.findall(r"^\| (`--[^|]*)", section, re.MULTILINE)
        assert set(re.findall(r"`(--[\w-]+)", "".join(rows))) == shown


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["keys"],
        ["nonsense"],
        ["serve", "--port", "many"],
        ["serve", "--port", "99999"],
        ["serve", "--port", "-1"],
        ["keys", "add"],
        ["users", "add", "ann", "--role", "king"],
        ["export"],
        ["export", "--day", "2026-11"],
        ["import", "config", "nonsense", "config.yaml"],
        ["import", "config", "llama-swap"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "llm-manager" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["keys", "revoke", "nobody"], "no key"),
        (["users", "password", "nobody"], "no account"),
        (["backup", "copy.db"], "is missing"),
        (["import", "usage", "no.db"], "is missing"),
        (["open"], "does not run on"),
    ],
)
def test_a_failure_ends_with_1_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert main([*arguments, "--data-dir", str(tmp_path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"llm-manager: .*{reason}.*", line)


def test_ctrl_c_ends_with_130_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_prompt: str = "") -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("getpass.getpass", interrupt)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True, readline=interrupt))
    (tmp_path / "config.yaml").write_text("Local-Models:\n  a: {S: {command: [serve]}}\n")
    places = ["--data-dir", str(tmp_path)]
    config = ["--config", str(tmp_path / "config.yaml")]
    for arguments in (["users", "add", "ann"], ["remove", "a", *config]):
        assert main([*arguments, *places]) == 130
        assert capsys.readouterr().err.count("\n") <= 1


def test_check_names_every_problem_on_a_line_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("program: {prot: 1, log_levle: INFO}\nLocal-Models: {}\n")
    for arguments in (["check"], ["serve", "--check"]):
        assert main([*arguments, "--config", str(config)]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2
        assert all(line.startswith("config.yaml:1: ") for line in lines)


def test_check_prints_warnings_and_ends_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("program: {queue: 'redis://somewhere'}\nLocal-Models: {}\n")
    assert main(["check", "--config", str(config)]) == 0
    captured = capsys.readouterr()
    assert "0 models, no problems" in captured.out
    [line] = captured.err.splitlines()
    assert line.startswith("config.yaml:1: ")
    assert line.endswith("(warning)")


def test_a_tilde_that_no_shell_has_expanded_is_the_home_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("program: {}\nLocal-Models: {}\n")
    assert main(["check", "--config", "~/mine.yaml"]) == 0
    assert "0 models, no problems" in capsys.readouterr().out
    assert main(["backup", "~/copy.db", "--data-dir", "~/data"]) == 1
    assert str(tmp_path / "data") in capsys.readouterr().err


def test_what_the_database_refuses_is_a_line_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_connection: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(keys.api_keys, "load", refuse)
    assert main(["keys", "list", "--data-dir", str(tmp_path)]) == 1
    assert "database or disk is full" in capsys.readouterr().err


def test_serve_takes_its_options_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(serve, "run", given.append)
    assert main(["serve", "--host", "::1", "--port", "0", "--data-dir", "d", "--tray"]) == 0
    [arguments] = given
    assert (arguments.host, arguments.port, arguments.data_dir) == ("::1", 0, Path("d"))
    assert (arguments.config, arguments.tray) == (Path("config.yaml"), True)


def test_only_a_tray_that_was_quit_ends_the_program() -> None:
    class Signals:
        def get(self, **_options: float) -> str:
            raise queue.Empty

    codes = iter([None, 0, 1, -9, tray.QUIT])
    assert serve._next(Signals(), SimpleNamespace(poll=lambda: next(codes))) == "stop"
    assert list(codes) == []


def test_large_bodies_are_kept_in_the_data_folder_where_no_other_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "tempdir", None)
    serve._choose_temporary_folder(tmp_path)
    assert tempfile.gettempdir() != str(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "gettempdir", none)
        serve._choose_temporary_folder(tmp_path)
    assert tempfile.gettempdir() == str(tmp_path)


# --- keys ----------------------------------------------------------------------------------

OWN = "sk-7Jq2vXn0Rk5tWbY8cZ1dLs"


def test_a_secret_that_a_client_has_already_is_read_from_standard_input_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def add(name: str, secret: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{secret}\n"))
        code = main(["keys", "add", name, "--secret-stdin", "--data-dir", str(tmp_path)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    assert add("ann", OWN) == (0, "")
    with closing(maintenance.connect(tmp_path / "usage.db")) as connection:
        (key,) = api_keys.load(connection)
        (entry,), _ = audit.page(connection, 10, None)
    assert key.secrets[0].digest == credentials.digest(OWN)
    assert entry.detail == {"secret": "***"}
    LocalToken(tmp_path)
    token = local_token.read(tmp_path)
    for secret, why in (
        (OWN, "is in use"),
        (token, "is in use"),
        ("", "1 to 256"),
        ("sk-1234", "could be guessed"),
    ):
        code, said = add("bob", secret)
        assert (code, why in said) == (1, True)
        assert not secret or secret not in said


# --- accounts ------------------------------------------------------------------------------


@pytest.fixture
def users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str, password: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{password}\n"))
        code = main(["users", *arguments, "--data-dir", str(tmp_path)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def test_the_first_account_is_made_in_a_shell(users: Callable[..., tuple[int, str]]) -> None:
    add = ("add", "ann", "--role", "admin", "--password-stdin")
    assert users(*add, password="correct horse") == (0, "")
    assert re.search(r"^ann +admin ", users("list")[1], re.MULTILINE)
    code, said = users(*add, password="correct horse")
    assert code == 1
    assert "There is an account 'ann' already" in said
    assert users("password", "ann", "--password-stdin", password="another horse") == (0, "")
    assert users("sign-out", "ann") == (0, "")


def test_the_first_account_is_an_admins(users: Callable[..., tuple[int, str]]) -> None:
    code, said = users("add", "eve", "--role", "viewer", "--password-stdin", password="long enough")
    assert code == 1
    assert "admin" in said
    assert "eve" not in users("list")[1]


def test_two_passwords_that_differ_are_refused(
    users: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter(["correct horse", "correct house"])
    monkeypatch.setattr("getpass.getpass", lambda _prompt: next(typed))
    assert users("add", "ann") == (1, "llm-manager: the two passwords are not the same\n")

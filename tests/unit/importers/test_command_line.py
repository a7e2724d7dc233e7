"""Command lines are split as a shell, or Windows, would split them."""

from __future__ import annotations

import contextlib
import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.importers import command_line

ARGUMENTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"])), min_size=1
)


@given(ARGUMENTS)
def test_what_a_shell_would_take_for_arguments_are_those(arguments: list[str]) -> None:
    # A line that begins with # is a comment, and a path of Windows is another matter.
    line = "serve " + shlex.join(arguments)
    if not line.endswith("\\") and not command_line._WINDOWS_PATH.search(line):
        assert command_line.split(line) == ["serve", *arguments]


@given(ARGUMENTS)
def test_what_windows_would_take_for_arguments_are_those(arguments: list[str]) -> None:
    arguments = ["C:\\x.exe", *(argument.rstrip("\\") for argument in arguments)]
    line = subprocess.list2cmdline(arguments)
    assert command_line.split(line) == arguments


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("a \\\n  b\\\n c", ["a", "b", "c"]),
        ("a\n# b\n  # c\nd", ["a", "d"]),
        ("a --x='b c'd \"e\\\"f\" ''", ["a", "--x=b cd", 'e"f', ""]),
        ("a '# b'", ["a", "# b"]),
        ("", []),
    ],
)
def test_lines_and_comments(text: str, arguments: list[str]) -> None:
    assert command_line.split(text) == arguments


@pytest.mark.parametrize("text", ["a 'b", 'a "b', 'C:\\a "b'])
def test_an_open_quote_is_no_command(text: str) -> None:
    with pytest.raises(ValueError, match="quotation"):
        command_line.split(text)


@given(st.text(max_size=200))
def test_any_text_is_split_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        command_line.split(text)

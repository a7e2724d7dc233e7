"""A model's output as people read it: what a terminal would show."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.storage.terminal import plain_text, unfinished_bytes

LINK = b"\x1b]8;;https://example.org/a?b\x1b\\"
SEQUENCES = [
    b"\x1b[0m",
    b"\x1b[1;31m",
    b"\x1b[38;5;196m",
    b"\x1b[?25l",
    b"\x1b[2 q",
    b"\x1b]0;a title\x07",
    b"\x1b]0;a title\x1b\\",
    "\x1b]0;标题\x1b\\".encode(),
    LINK,
    b"\x1bPq#0;2;0;0;0\x1b\\",
    b"\x1b_a\x1b\\",
    b"\x1b(B",
    b"\x1b7",
    b"\x1b=",
    b"\x1b#8",
    "\x9b31m".encode(),
    "\x9d0;title\x9c".encode(),
    b"\x00",
    b"\x07",
    b"\x7f",
    "\x85".encode(),
]


@pytest.mark.parametrize("sequence", SEQUENCES, ids=repr)
def test_what_a_terminal_does_not_show_is_left_out(sequence: bytes) -> None:
    assert plain_text(b"one " + sequence + b"two\tthree" + sequence) == "one two\tthree"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"progress 1/3\rprogress 2/3\rprogress 3/3", "progress 3/3"),
        (b"\rprogress 1/3\rprogress 3/3\r", "progress 3/3"),
        (b"progress 100%\rdone", "done"),
        (b"progress 100%\r             \r", "progress 100%"),
        (b"50%\x1b[2K\x1b[1G100%", "100%"),
        (b"50%\r\x1b[K100%", "100%"),
        (b"\x1b[32m 50%\x1b[0m\r\x1b[32m100%\x1b[0m", "100%"),
        (b"loading |\b/\b-\b\\", "loading \\"),
        (b" 10%\b\b\b\b 99%\b\b\b\b", " 99%"),
        (b"b\bbo\bol\bld\bd", "bold"),
        (b"abc\b \b", "ab "),
        (b"\b\bx", "x"),
        (b"windows\r", "windows"),
        (b"\r", ""),
        (b"  indented  ", "  indented  "),
    ],
)
def test_of_a_progress_bar_the_last_state_is_shown(line: bytes, shown: str) -> None:
    assert plain_text(line) == shown


@pytest.mark.parametrize(
    "line", [b"text\x1b", b"text\x1b[", b"text\x1b[3", b"text\x1b]0;half a title", b"text\x1b("]
)
def test_a_sequence_that_the_end_cuts_off_is_left_out(line: bytes) -> None:
    assert plain_text(line) == "text"


def test_a_broken_sequence_hides_no_more_than_itself() -> None:
    assert plain_text("\x1b[12é".encode()) == "é"
    assert plain_text("\x1bé".encode()) == "é"
    assert plain_text(b"\x1b]0;no end\x1b[1mbold") == "bold"
    assert plain_text(b"\x1b]0;no end\rprogress") == "progress"


def test_bytes_of_another_encoding_stay_visible() -> None:
    assert plain_text("错误 bad".encode("gbk")).endswith(" bad")
    assert plain_text(b"\x9d0;raw\x9c") == "\ufffd0;raw\ufffd"


PIECES = st.lists(
    st.sampled_from([*SEQUENCES, b"\r", b"\b", b"\x1b", b"\x1b[", b"\x1b]", b"\xc2", b"\xff"])
    | st.binary(max_size=6)
    | st.text(max_size=6).map(lambda text: text.encode("utf-8", "replace"))
)
OUTPUT = PIECES.map(b"".join)


@given(OUTPUT)
def test_nothing_that_steers_a_terminal_is_ever_left(line: bytes) -> None:
    line = line.replace(b"\n", b"")
    shown = plain_text(line)
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", shown)
    assert plain_text(shown.encode()) == shown
    assert len(shown) <= len(line)


@given(st.text(st.characters(exclude_categories=("Cc", "Cs"))))
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    assert plain_text(text.encode()) == text


WHOLE = st.lists(st.sampled_from(SEQUENCES) | st.text("ab é标\t").map(str.encode), max_size=12).map(
    b"".join
)


@given(WHOLE, st.integers(0, 200))
def test_a_line_may_be_cut_anywhere_and_shown_piece_by_piece(line: bytes, at: int) -> None:
    first = line[: min(at, len(line))]
    held = unfinished_bytes(first)
    shown, rest = first[: len(first) - held], line[len(first) - held :]
    assert plain_text(shown) + plain_text(rest) == plain_text(line)


@given(WHOLE)
def test_a_finished_line_holds_nothing_back(line: bytes) -> None:
    assert unfinished_bytes(line + b"x") == 0


def test_what_never_ends_is_not_held_back_for_ever() -> None:
    assert unfinished_bytes(b"\x1b]0;" + b"x" * 10_000) == 0

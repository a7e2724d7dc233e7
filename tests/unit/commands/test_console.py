"""What the program does where there is no terminal, or one that cannot show everything."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from commands import console
from commands.__main__ import main


def encoded(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)


def written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_names_that_the_terminal_cannot_show_are_listed(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ["--data-dir", str(tmp_path)]
    out, err = encoded(encoding), encoded(encoding)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["keys", "add", "张三", *data]) == 0
    assert main(["keys", "list", *data]) == 0
    assert main(["keys", "revoke", "李四", *data]) == 1
    assert r"\u5f20\u4e09" in written(out)
    assert r"\u674e\u56db" in written(err)


def test_without_standard_streams_commands_do_what_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["keys", "add", "ann", "--data-dir", str(tmp_path)]) == 0
    assert main(["keys", "revoke", "nobody", "--data-dir", str(tmp_path)]) == 1
    console.write_line("Listening")
    assert not sys.stdout.isatty()


def test_a_line_that_nobody_reads_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        console.write_line("Listening")
        console.write_line("To sign in")
        assert sys.stdout is not pipe
        with pytest.raises(BrokenPipeError):
            pipe.close()

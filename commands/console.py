"""The standard streams: a program may have none, and may lose them while it runs."""

from __future__ import annotations

import io
import os
import sys


def prepare() -> None:
    """Makes the standard streams usable, whatever the program was started with. Call it before any
    file is opened."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by >&- and pythonw
            # Also so that no file of ours gets a number that libraries write errors to.
            setattr(sys, name, _null(mode))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            # A name that the encoding does not have is shown in ASCII, and is no traceback.
            stream.reconfigure(errors="backslashreplace")


def write_line(line: str) -> None:
    """To stdout, in one write, end of line included: a log that shares the terminal must not come
    between. Where nobody reads it, nothing is written from here on."""
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except OSError:  # a pipe whose reader has ended, a full disk
        sys.stdout = _null("w")  # what is still in the buffer would fail again at the exit


def write_note(text: str) -> None:
    """To stderr: what is no result."""
    print(text, file=sys.stderr, flush=True)


def _null(mode: str) -> io.TextIOWrapper:
    # Open until the process ends.
    return open(os.devnull, mode, encoding="utf-8")  # type: ignore[return-value]

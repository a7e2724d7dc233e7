"""A wall clock that a test sets while the program runs, for it and all of its processes."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

_SOURCE = Path(__file__).with_suffix(".c")
_COMPILER = shutil.which("cc")

needs_wall_clock = pytest.mark.skipif(
    sys.platform != "linux" or _COMPILER is None,
    reason="needs a C compiler on Linux: apt-get install gcc libc6-dev",
)


class WallClock:
    """``env`` is for a program whose wall clock it is."""

    def __init__(self, folder: Path) -> None:
        library = folder / "wall_clock.so"
        assert _COMPILER is not None
        subprocess.run(
            [_COMPILER, "-shared", "-fPIC", "-o", library, _SOURCE], check=True, timeout=60
        )
        self._ahead = folder / "ahead"
        self._ahead.write_bytes(struct.pack("q", 0))
        self.env = {"LD_PRELOAD": str(library), "TEST_WALL_CLOCK": str(self._ahead)}

    def set_by(self, seconds: int) -> None:
        """Sets it so far ahead of the system's, or back with a number below zero."""
        with self._ahead.open("r+b") as file:  # which is mapped: it must stay the same file
            file.write(struct.pack("q", seconds))

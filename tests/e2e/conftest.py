"""The program under test: one for each test, or one for a whole file."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .program import Program

Launch = Callable[..., Program]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts programs, each on a folder of its own, that end in good order with the test."""
    with _launcher(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def launch_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """As `launch`, for programs that end with the file's last test."""
    with _launcher(tmp_path_factory.mktemp("shared")) as start:
        yield start


@contextlib.contextmanager
def _launcher(folder: Path) -> Iterator[Launch]:
    numbers = itertools.count(1)
    with contextlib.ExitStack() as programs:

        def launch(models: dict[str, Any], **settings: Any) -> Program:
            program = Program(folder / f"program-{next(numbers)}", models, **settings)
            programs.callback(program.finish)
            return program.start()

        yield launch

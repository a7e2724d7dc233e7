"""The program under test: one for each test, or one for a whole file; and who reads its pages."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.browser import Reader, launch_chromium
from tests.support.program import ROOT, Program, needs_demo_model

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Launch = Callable[..., Program]
OpenBrowser = Callable[..., Reader]


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


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """The shipped config.yaml with its real models."""
    needs_demo_model()
    program = Program(tmp_path_factory.mktemp("demo"), {})
    program.config = ROOT / "config.yaml"
    program.start()
    yield program
    program.finish()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """One browser process for all tests of a worker."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = launch_chromium(playwright)
        yield browser
        browser.close()


@pytest.fixture
def read(chromium: Browser) -> Iterator[OpenBrowser]:
    """Gives readers of a program's pages, who at the end of the test must have met no fault."""
    with contextlib.ExitStack() as readers:

        def read(program: Program, **options: Any) -> Reader:
            reader = Reader(chromium, program, **options)
            readers.callback(reader.close)
            return reader

        yield read

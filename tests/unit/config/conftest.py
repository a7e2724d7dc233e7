"""The folder of the config files under test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scripts that the files here name."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "plugins").mkdir()
    (folder / "scripts").mkdir()
    for name in ("qwen_dual.bat", "qwen_single.bat", "new.bat", "run.sh", "run.exe"):
        (folder / "scripts" / name).touch()
    return folder

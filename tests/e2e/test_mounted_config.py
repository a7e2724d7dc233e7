"""A config that is mounted as one file, as into a container: it cannot be replaced, and can be
saved all the same."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.program import PATIENCE, Program, fake

UNSHARE = ("unshare", "--map-root-user", "--mount")
MOUNTS = {
    "its folder can be written": 'mount --bind "$0" "$0"',
    "its folder is read-only": """
        folder=$(dirname "$0")
        mount --bind "$folder" "$folder" && mount --bind "$0" "$0"
        mount -o remount,bind,ro "$folder"
    """,
}


def _may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=PATIENCE, check=False)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(not _may_mount(), reason="needs mount namespaces (util-linux)")


@pytest.fixture(params=MOUNTS)
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    folder = tmp_path / "mounted"
    mount = f'set -e\n{MOUNTS[request.param]}\nexec "$@"'
    wrapper = [*UNSHARE, "sh", "-c", mount, str(folder / "config.yaml")]
    program = Program(folder, {"One": fake()}, wrapper)
    program.data = tmp_path / "data"
    program.start()
    yield program
    program.finish()


def test_a_mounted_config_is_saved_on_the_page_and_its_copy_is_in_the_data_folder(
    program: Program,
) -> None:
    inode, original = program.config.stat().st_ino, program.config.read_text()
    assert program.get("/api/config/text").json()["writable"] is True
    for name in ("Longer than before", "B"):
        shown = program.get("/api/config/text").json()
        text = original.replace("One:", f"{name}:")
        body = {"text": text, "version": shown["version"]}
        saved = program.request("PUT", "/api/config/text", json=body)
        assert saved.status_code == 200, saved.text
        assert saved.json()["models"] == [name]
        assert program.config.read_text() == text
        assert (program.data / "config.yaml.bak").read_text() == shown["text"]
    assert program.config.stat().st_ino == inode

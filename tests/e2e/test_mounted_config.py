"""A config that is mounted as one file, as into a container: it cannot be replaced, and can be
saved all the same; and one in a folder that Kubernetes mounts, which is applied by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.program import PATIENCE, Program, eventually, fake

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


@pytest.mark.skipif(
    os.geteuid() != 0, reason="to others the folders above belong to nobody in a namespace"
)
def test_a_configmap_is_applied_by_itself_when_its_link_leads_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "mounted"
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    wrapper = [*UNSHARE, "sh", "-c", mount, str(folder)]
    program = Program(folder, {"One": fake(), "Two": fake()}, wrapper, watch_config=True)
    program.data = tmp_path / "data"
    first = program.config.read_text()
    for version, text in (("..1", first), ("..2", first.replace("Two:", "Three:"))):
        (folder / version).mkdir(mode=0o755)
        (folder / version / "config.yaml").write_text(text)
    program.config.unlink()
    program.config.symlink_to("..data/config.yaml")
    (folder / "..data").symlink_to("..1")
    folder.chmod(0o777)  # as Kubernetes has it
    program.start()
    try:
        (folder / "..new").symlink_to("..2")
        (folder / "..new").replace(folder / "..data")
        eventually(lambda: "Three" in program.get("/api/models").text)
        assert "Two" not in program.get("/api/models").text
        assert program.get("/api/config/file").json()["waiting"] is None
    finally:
        program.finish()

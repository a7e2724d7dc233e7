"""What the environment of the program itself leaves to it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.support.fixtures import Launch
from tests.support.program import PATIENCE, error_of, fake

UNSHARE = ["unshare", "--map-root-user", "--mount"]
# Version 1 and version 2 of the same limit, where a container sees it.
LIMITED = """
set -e
mount -t tmpfs tmpfs /sys/fs/cgroup
cd /sys/fs/cgroup
mkdir memory
echo $0 | tee memory.max memory/memory.limit_in_bytes
echo 1073741824 | tee memory.current memory/memory.usage_in_bytes
echo "inactive_file 536870912" > memory.stat
echo "total_inactive_file 536870912" > memory/memory.stat
cd "$OLDPWD"
exec "$@"
"""


def _may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    mount = [*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup"]
    return subprocess.run(mount, capture_output=True, timeout=PATIENCE, check=False).returncode == 0


@pytest.mark.skipif(not _may_mount(), reason="needs mount namespaces and cgroups (util-linux)")
def test_no_more_ram_is_placed_than_the_memory_limit_of_its_container(launch: Launch) -> None:
    def in_ram(mb: int) -> dict[str, object]:
        placed = {"required_devices": ["ram"], "memory_mb": {"ram": mb}}
        return {"Default": {**fake()["Default"], **placed}}

    wrapper = [*UNSHARE, "sh", "-c", LIMITED, str(2 << 30)]
    program = launch({"Fits": in_ram(500), "TooBig": in_ram(4000)}, wrapper=wrapper)
    shown = program.devices()["CPU + RAM #0"]
    assert (shown["total_mb"], shown["used_mb"]) == (2048, 512)
    answer = program.ask("TooBig")
    assert answer.status_code == 503
    error = error_of(answer)
    assert error["code"] == "insufficient_memory"
    assert "2048 MB in all" in error["message"]
    assert program.ask("Fits").status_code == 200

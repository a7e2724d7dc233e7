"""What the environment of the program itself leaves to it: some of the cards, some of the RAM."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cards import Cards, card
from tests.support.fixtures import Launch
from tests.support.program import PATIENCE, env_of, error_of, fake, on

RTX_4060 = "NVIDIA GeForce RTX 4060"
V100 = "Tesla V100"
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


@pytest.mark.parametrize("value", ["1", "GPU-00000001"])
def test_models_are_placed_on_visible_cards_only_and_are_given_the_physical_one(
    launch: Launch, tmp_path: Path, value: str
) -> None:
    cards = Cards(tmp_path / "machine", [card(V100, 16384), card(V100, 16384)])
    models = {"One": on("v100", 9000), "Two": on("v100", 9000)}
    program = launch(models, env={**env_of(cards), "CUDA_VISIBLE_DEVICES": value})
    assert [each for each in program.devices() if V100 in each] == [f"{V100} #1"]
    for name in models:  # the second takes the place of the first, though a hidden card is free
        assert program.ask(name).status_code == 200
        assert program.visible(name) == "1"
        assert program.environment(name)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert program.model("One")["state"] == "stopped"


def test_a_model_for_a_hidden_card_is_rejected_and_the_error_says_what_hides_it(
    launch: Launch, tmp_path: Path
) -> None:
    cards = Cards(tmp_path / "machine", [card(RTX_4060, 8188), card(V100, 16384)])
    program = launch(
        {"Model": on("rtx 4060", 4000)},
        env={**env_of(cards), "CUDA_VISIBLE_DEVICES": ""},
        device_memory_mb={"rtx 4060": 6000},
    )
    answer = program.ask("Model")
    assert answer.status_code == 503
    error = error_of(answer)
    assert error["code"] == "no_matching_scheme"
    assert "rtx 4060 is not online" in error["message"]
    assert f"{RTX_4060} #0 is hidden by CUDA_VISIBLE_DEVICES" in error["message"]
    assert list(program.devices()) == ["CPU + RAM #0"]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="a system that lets nobody choose")
def test_the_program_stays_on_one_processor_and_what_it_starts_has_all(launch: Launch) -> None:
    program = launch({"Model": fake()})
    assert program.ask("Model").status_code == 200
    everywhere = os.sched_getaffinity(0)
    started = [*program.processes("Model"), *program.relays(), *program.workers()]
    assert len(started) >= 3
    assert all(os.sched_getaffinity(process.pid) == everywhere for process in started)
    threads = [int(task.name) for task in Path(f"/proc/{program.pid}/task").iterdir()]
    assert len({frozenset(os.sched_getaffinity(thread)) for thread in threads}) == 1
    assert len(os.sched_getaffinity(program.pid)) == 1

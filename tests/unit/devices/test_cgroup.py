"""RAM within the memory limit of a container or a systemd unit, as Linux' files say it."""

from __future__ import annotations

import logging
import types
from pathlib import Path

import psutil
import pytest

from manager.devices import Cpu, Reading, cgroup

MB = 2**20
GB = 2**30
NO_LIMIT_OF_V1 = 9223372036854771712
V1, V2 = "memory", ""  # folders below sys/fs/cgroup
DOCKER = "0::/\n"
UNIT = "0::/system.slice/llm-manager.service\n"
SLICE, SERVICE = "system.slice", "system.slice/llm-manager.service"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A machine of 64 GB, of which 60 are available."""
    memory = types.SimpleNamespace(total=64 * GB, available=60 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    return memory


class System:
    """A system whose ``/proc/self/cgroup`` says ``membership``."""

    def __init__(self, root: Path, membership: str | None) -> None:
        self.root = root
        if membership is not None:
            file = root / "proc/self/cgroup"
            file.parent.mkdir(parents=True)
            file.write_text(membership)

    def v2(self, path: str, limit: object, used: int = 0, **files: int) -> None:
        """A cgroup of version 2; ``files`` is of its ``memory.stat``. In bytes."""
        stat = {"anon": 1, **files}
        self._write(V2, path, ("memory.max", "memory.current"), limit, used, stat)

    def v1(self, path: str, limit: object, used: int = 0, **files: int) -> None:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        stat = {"inactive_file": 7, **{f"total_{name}": value for name, value in files.items()}}
        self._write(V1, path, names, limit, used, stat)

    def _write(
        self,
        top: str,
        path: str,
        names: tuple[str, str],
        limit: object,
        used: int,
        stat: dict[str, int],
    ) -> None:
        folder = self.root / "sys/fs/cgroup" / top / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{limit}\n")
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text("".join(f"{k} {v}\n" for k, v in stat.items()))

    def ram(self) -> tuple[int | None, int | None]:
        """What is reported of RAM: total and used, in MB."""
        [reading] = Cpu(self.root).read(())
        assert reading.fault() is None
        return reading.total_mb, reading.used_mb


pytestmark = pytest.mark.usefixtures("machine")


def test_without_a_limit_ram_is_the_machines(tmp_path: Path) -> None:
    assert System(tmp_path / "not Linux", None).ram() == (64 * 1024, 4 * 1024)
    system = System(tmp_path / "host", UNIT)
    system.v2(SERVICE, "max", 3 * GB)
    system.v2(SLICE, "max", 3 * GB)
    assert system.ram() == (64 * 1024, 4 * 1024)


def test_in_a_container_ram_is_its_limit_and_what_is_used_within_it(tmp_path: Path) -> None:
    system = System(tmp_path, DOCKER)
    system.v2("", 8 * GB, 3 * GB)
    assert system.ram() == (8 * 1024, 3 * 1024)


def test_in_a_container_of_version_1_its_own_cgroup_is_the_topmost_folder(tmp_path: Path) -> None:
    system = System(tmp_path, "5:cpu,cpuacct:/docker/12ab\n4:memory:/docker/12ab\n0::/\n")
    system.v1("", 8 * GB, 3 * GB, inactive_file=1 * GB)
    assert system.ram() == (8 * 1024, 2 * 1024)


def test_a_unit_of_systemd_has_the_limit_of_its_own(tmp_path: Path) -> None:
    system = System(tmp_path, UNIT)
    system.v2(SERVICE, 8 * GB, 3 * GB)
    assert system.ram() == (8 * 1024, 3 * 1024)


@pytest.mark.parametrize(("of_service", "of_slice"), [(32 * GB, 8 * GB), ("max", 8 * GB)])
def test_the_smallest_limit_of_its_own_cgroup_and_those_above_holds(
    tmp_path: Path, of_service: object, of_slice: object
) -> None:
    system = System(tmp_path, UNIT)
    system.v2(SERVICE, of_service, 1 * GB)
    system.v2(SLICE, of_slice, 3 * GB)
    assert system.ram() == (8 * 1024, 3 * 1024)


def test_what_others_use_of_a_wider_limit_is_not_available_either(tmp_path: Path) -> None:
    system = System(tmp_path, "4:memory:/pod/a\n")
    system.v1("pod/a", 8 * GB, 1 * GB)
    system.v1("pod", 16 * GB, 14 * GB)
    total, used = system.ram()
    assert (total, used) == (8 * 1024, 6 * 1024)  # 2 GB are left, of the pod's 16


def test_what_the_machine_has_left_bounds_what_a_limit_leaves(
    tmp_path: Path, machine: types.SimpleNamespace
) -> None:
    system = System(tmp_path, DOCKER)
    system.v2("", 8 * GB, 1 * GB)
    machine.available = 2 * GB
    assert system.ram() == (8 * 1024, 6 * 1024)


def test_cached_files_that_were_not_read_lately_are_free_as_docker_stats_says(
    tmp_path: Path,
) -> None:
    system = System(tmp_path, DOCKER)
    system.v2("", 8 * GB, 8 * GB, active_file=1 * GB, inactive_file=4 * GB)
    assert system.ram() == (8 * 1024, 4 * 1024)


@pytest.mark.parametrize(
    ("active", "inactive", "mapped", "used"),
    [
        (0, 4, 3, 7),  # of 8 GB used 4 are cached, and 3 of these a model has mapped
        (3, 4, 3, 4),  # they are active, and not taken off twice
        (3, 4, 5, 6),
        (0, 0, 3, 8),
    ],
)
def test_a_models_mapped_file_is_not_free_however_it_is_cached(
    active: int, inactive: int, mapped: int, used: int
) -> None:
    limit = cgroup.MemoryLimit("memory.max", 20, 8, active, inactive)
    assert limit.available(mapped) == 20 - used


def test_over_its_limit_nothing_is_free_and_no_more_used_than_there_is(tmp_path: Path) -> None:
    system = System(tmp_path, DOCKER)
    system.v2("", 8 * GB, 9 * GB)
    assert system.ram() == (8 * 1024, 8 * 1024)


@pytest.mark.parametrize(
    "odd",
    ["max", "", " ", "-1", "0", "4096", "8G", "1.5", "²", "9" * 5000, NO_LIMIT_OF_V1, 64 * GB],
)
def test_a_file_that_has_no_limit_is_none(tmp_path: Path, odd: object) -> None:
    system = System(tmp_path, "4:memory:/docker/12ab\n0::/a/b\n")
    system.v1("", odd, 70 * GB)
    system.v2("a/b", odd, 70 * GB)
    system.v2("a", odd, 70 * GB)
    assert system.ram() == (64 * 1024, 4 * 1024)


def test_files_that_cannot_be_read_are_no_limit(tmp_path: Path) -> None:
    system = System(tmp_path, UNIT)
    system.v2(SLICE, 8 * GB)
    folder = tmp_path / "sys/fs/cgroup" / SLICE
    for name in ("memory.current", "memory.stat"):
        (folder / name).unlink()
    assert system.ram() == (8 * 1024, 0)  # what is used there nobody knows
    (folder / "memory.max").write_bytes(b"\xff\xfe\0")
    assert system.ram() == (64 * 1024, 4 * 1024)
    (folder / "memory.max").unlink()
    (folder / "memory.max").mkdir()
    assert system.ram() == (64 * 1024, 4 * 1024)


@pytest.mark.parametrize(
    "membership", ["", "\n", "0\n", "::\n", "0::\n", "nonsense", "4:memory\n", "0::/a\0b\n"]
)
def test_an_odd_membership_is_read_as_far_as_it_goes(tmp_path: Path, membership: str) -> None:
    assert System(tmp_path, membership).ram() == (64 * 1024, 4 * 1024)


def test_a_cgroup_outside_of_the_namespace_has_no_limit_that_is_seen(tmp_path: Path) -> None:
    system = System(tmp_path, "0::/../other\n")
    system.v2("", 8 * GB, 3 * GB)  # of the namespace's top, which is not above it
    assert system.ram() == (64 * 1024, 4 * 1024)


def test_the_log_says_once_where_ram_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    system = System(tmp_path, UNIT)
    system.v2(SERVICE, 8 * GB)
    system.v2(SLICE, 4 * GB)
    plugin = Cpu(tmp_path)
    for _ in range(2):
        plugin.read(())
    [line] = caplog.messages
    assert line == f"RAM is limited to 4096 MB by {tmp_path}/sys/fs/cgroup/{SLICE}/memory.max"


def test_the_limits_of_the_machine_that_runs_the_program_are_read(tmp_path: Path) -> None:
    [reading] = Cpu().read(())
    [without] = Cpu(tmp_path).read(())
    assert isinstance(reading, Reading)
    assert reading.total_mb is not None
    assert without.total_mb == 64 * 1024
    assert reading.total_mb <= without.total_mb

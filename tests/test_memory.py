"""Memory counts within the limits of containers and jobs."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from minitron_nas import memory
from minitron_nas.errors import PlanError
from minitron_nas.memory import SETTING, available_memory, is_limited, spare_memory, total_memory

GB = 10**9
UNLIMITED = 9223372036854771712


class Machine:
    """A machine of 64 GB, of which 50 are free, and what its system says of this process."""

    def __init__(self, folder: Path) -> None:
        self.process, self.groups = folder / "self", folder / "groups"
        self.process.mkdir()

    def mounted(self, kind: str, path: str, root: str = "/", options: str = "rw,memory") -> None:
        mount = f"36 25 0:30 {root} {self.groups} rw,nosuid shared:9 - {kind} cgroup {options}\n"
        other = "22 28 0:21 / /proc rw - proc proc rw\n"
        (self.process / "mountinfo").write_text(other + mount)
        names = f"0::{path}\n" if kind == "cgroup2" else f"9:cpu:/elsewhere\n4:cpuset,memory:{path}\n0::/\n"
        (self.process / "cgroup").write_text(names)

    def group(self, path: str, **files: Any) -> None:
        folder = self.groups / path.strip("/")
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for name in [SETTING, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.delenv(name, raising=False)
    made = Machine(tmp_path)
    groups = memory._groups
    monkeypatch.setattr(memory, "_groups", lambda: groups(made.process))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GB, available=50 * GB))
    monkeypatch.setattr(memory, "_taken_by_us", lambda: 1 * GB)
    return made


def test_without_limits_the_machine_counts(machine: Machine) -> None:
    assert (total_memory(), available_memory(), is_limited()) == (64 * GB, 50 * GB, False)


def test_of_version_2_the_group_and_all_around_it_count_and_pages_of_files_can_be_taken(machine: Machine) -> None:
    machine.mounted("cgroup2", "/slice/pod/job", options="rw")
    stat = f"anon 1\ninactive_file {GB}\nactive_file {2 * GB}"
    machine.group("/slice/pod", memory__max=8 * GB, memory__current=5 * GB, memory__stat=stat)
    machine.group("/slice/pod/job", memory__max="max", memory__current=4 * GB, memory__stat=stat)
    assert (total_memory(), available_memory(), is_limited()) == (8 * GB, 6 * GB, True)
    machine.group("/slice/pod/job", memory__high=3 * GB)
    assert (total_memory(), available_memory()) == (3 * GB, 2 * GB)


def test_of_version_1_the_group_and_all_around_it_count(machine: Machine) -> None:
    machine.mounted("cgroup", "/docker/abc")
    machine.group("/docker", memory__limit_in_bytes=7 * GB, memory__usage_in_bytes=2 * GB, memory__stat="")
    machine.group("/docker/abc", memory__limit_in_bytes=UNLIMITED, memory__usage_in_bytes=2 * GB)
    assert (total_memory(), available_memory()) == (7 * GB, 5 * GB)


@pytest.mark.parametrize("root", ["/", "/docker/abc", "/.."])
def test_in_a_container_whose_mount_is_its_own_group_the_mount_counts(machine: Machine, root: str) -> None:
    machine.mounted("cgroup", "/docker/abc", root)
    machine.group("/", memory__limit_in_bytes=2 * GB, memory__usage_in_bytes=GB, memory__stat="total_inactive_file 5")
    assert (total_memory(), available_memory()) == (2 * GB, GB + 5)


def test_a_hierarchy_without_memory_is_left_out(machine: Machine) -> None:
    machine.mounted("cgroup", "/job", options="rw,cpu")
    machine.group("/job", memory__limit_in_bytes=GB)
    assert not is_limited()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "4096"}, 4096 << 20),
        ({"SLURM_MEM_PER_CPU": "1000", "SLURM_CPUS_ON_NODE": "6"}, 6000 << 20),
        ({"SLURM_MEM_PER_NODE": "0"}, 64 * GB),
        ({"SLURM_MEM_PER_CPU": "1000"}, 64 * GB),
        ({"SLURM_MEM_PER_NODE": "many"}, 64 * GB),
        ({"SLURM_MEM_PER_NODE": "9999999"}, 64 * GB),
    ],
    ids=str,
)
def test_the_limit_of_a_slurm_job_counts(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, names: dict[str, str], expected: int
) -> None:
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert total_memory() == expected
    assert available_memory() == min(expected - GB, 50 * GB)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GB", 8 * GB),
        ("1500MB", 1500 * 10**6),
        ("2GiB", 2 << 30),
        ("3g", 3 * GB),
        ("5000000000", 5 * GB),
        ("1.5 T", 1500 * GB),
    ],
)
def test_the_setting_overrides_every_limit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, text: str, expected: int
) -> None:
    machine.mounted("cgroup", "/")
    machine.group("/", memory__limit_in_bytes=GB, memory__usage_in_bytes=GB)
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "10")
    monkeypatch.setenv(SETTING, text)
    assert (total_memory(), available_memory()) == (expected, expected - GB)


@pytest.mark.parametrize("text", ["much", "0", "-1GB", "8GB each", "GB", "9" * 400 + "GB"])
def test_a_setting_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(SETTING, text)
    with pytest.raises(PlanError, match=f"{SETTING}=.* is no size of memory; write one such as 8GB"):
        available_memory()


def test_what_is_left_is_never_less_than_nothing(machine: Machine) -> None:
    machine.mounted("cgroup2", "/", options="rw")
    machine.group("/", memory__max=GB, memory__current=2 * GB)
    assert available_memory() == 0


def test_the_real_system_can_be_read() -> None:
    assert 0 <= available_memory() <= psutil.virtual_memory().total
    assert 0 < total_memory() <= psutil.virtual_memory().total


@pytest.mark.parametrize(("setting", "spared"), [("4GB", [(-3, 1 << 20)]), ("64GB", [])])
def test_what_is_freed_goes_back_at_once_where_there_is_little_memory(
    monkeypatch: pytest.MonkeyPatch, setting: str, spared: list[tuple[int, int]]
) -> None:
    asked: list[tuple[int, int]] = []
    library = SimpleNamespace(mallopt=lambda *values: asked.append(values))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: library)
    monkeypatch.setenv(SETTING, setting)
    spare_memory()
    assert asked == spared

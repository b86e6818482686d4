"""How much main memory this process may take: the machine's, within the limits of its container and its job.

Limits are those of cgroups (v1 and v2, of this process' group and of all groups around it) and of a Slurm job. A
setting overrides all of them: the environment variable MINITRON_NAS_MEMORY, such as 8GB.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path

import psutil

from minitron_nas.errors import PlanError

SETTING = "MINITRON_NAS_MEMORY"

_LITTLE_BYTES, _LEAST_MAPPED_BYTES = 8 << 30, 1 << 20
_M_MMAP_THRESHOLD = -3
"""As glibc numbers what mallopt sets: from how many bytes a block is asked for from the system alone."""

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_LIMITS = {"cgroup2": ("memory.max", "memory.high"), "cgroup": ("memory.limit_in_bytes",)}
_USED = {"cgroup2": "memory.current", "cgroup": "memory.usage_in_bytes"}
_CACHES = {"cgroup2": ("inactive_file", "active_file"), "cgroup": ("total_inactive_file", "total_active_file")}
"""Pages of files, which the system gives up when somebody needs memory."""


@dataclass(frozen=True, slots=True)
class _Group:
    """A cgroup with a limit."""

    limit_bytes: int
    used_bytes: int


def total_memory() -> int:
    """Return the bytes of main memory that this process may take if nobody else took any.

    Raises:
        PlanError: If the setting is no size.
    """
    if (setting := _setting()) is not None:
        return setting
    limits = [group.limit_bytes for group in _groups()]
    return min([int(psutil.virtual_memory().total), *limits, *_job_limits()])


def available_memory() -> int:
    """Return the bytes of main memory that this process can still take.

    Raises:
        PlanError: If the setting is no size.
    """
    if (setting := _setting()) is not None:
        return max(setting - _taken_by_us(), 0)
    left = [group.limit_bytes - group.used_bytes for group in _groups()]
    left += [limit - _taken_by_us() for limit in _job_limits()]
    return max(min([int(psutil.virtual_memory().available), *left]), 0)


def spare_memory() -> None:
    """Let memory that is freed go back to the system at once, where this process may take little.

    glibc keeps blocks of up to 32 MB for whatever is asked for next, and is left with holes that nothing fits into:
    a repair in sequence of layers of 15M parameters took 1.4 GB so, and 0.9 without.

    Raises:
        PlanError: If the setting is no size.
    """
    if total_memory() < _LITTLE_BYTES:
        set_malloc(_M_MMAP_THRESHOLD, _LEAST_MAPPED_BYTES)


def set_malloc(parameter: int, value: int) -> None:
    """Set how glibc allocates memory; where the system has another library, nothing.

    Args:
        parameter: By its number in malloc.h.
        value: Of it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)


def is_limited() -> bool:
    """Whether this process may take less memory than the machine has."""
    return total_memory() < int(psutil.virtual_memory().total)


def parse_memory(text: str) -> int | None:
    """Read a size of memory such as 8GB, 1500MB or 64GiB, in bytes; None if it is none.

    Args:
        text: What was given.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    size = float(match[1]) * (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower() or " ")
    return int(size) if 0 < size < inf else None


def _setting() -> int | None:
    text = os.environ.get(SETTING, "").strip()
    if not text:
        return None
    size = parse_memory(text)
    if size is None:
        raise PlanError(f"{SETTING}={text!r} is no size of memory; write one such as 8GB or 1500MB, or unset it")
    return size


def _job_limits() -> list[int]:
    """Return what Slurm allows a job on this node; 0 stands for all of it."""
    limits = []
    with suppress(KeyError, ValueError):
        limits.append(int(os.environ["SLURM_MEM_PER_NODE"]) << 20)
    with suppress(KeyError, ValueError):
        limits.append(int(os.environ["SLURM_MEM_PER_CPU"]) * int(os.environ["SLURM_CPUS_ON_NODE"]) << 20)
    return [limit for limit in limits if limit > 0]


def _taken_by_us() -> int:
    process = psutil.Process()
    taken = int(process.memory_info().rss)
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            taken += int(child.memory_info().rss)
    return taken


def _groups(process: Path = Path("/proc/self")) -> Iterator[_Group]:
    """Yield this process' cgroup and those around it, as far as they limit memory.

    Args:
        process: Where the system says which groups and mounts a process has.
    """
    for kind, group, top in _folders(process):
        for folder in (group, *group.parents):
            for name in _LIMITS[kind]:
                limit = _number(folder / name)
                if limit is not None:
                    yield _Group(limit, _used(folder, kind))
            if folder == top:
                break


def _folders(process: Path) -> Iterator[tuple[str, Path, Path]]:
    """Yield kind, folder and outermost visible folder of each hierarchy of groups that may limit memory."""
    paths = dict(_group_paths(process))
    for line in _lines(process / "mountinfo"):
        before, _, after = line.partition(" - ")
        (_, _, _, root, mount, *_), (kind, _, options, *_) = before.split(), after.split()
        key = {"cgroup2": "", "cgroup": "memory"}.get(kind)
        if key not in paths or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        top, path = Path(mount), paths[key]
        inside = path.removeprefix(root) if root != "/" and path.startswith(root) else path
        folder = top / inside.strip("/")
        # In a container the path may be the host's, which is not to be seen from inside: the mount is the group then.
        yield kind, folder if folder.is_dir() and ".." not in folder.parts else top, top


def _group_paths(process: Path) -> Iterator[tuple[str, str]]:
    for line in _lines(process / "cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _used(folder: Path, kind: str) -> int:
    used = _number(folder / _USED[kind]) or 0
    caches = dict(line.split() for line in _lines(folder / "memory.stat") if len(line.split()) == 2)
    return max(used - sum(int(caches.get(name, 0)) for name in _CACHES[kind]), 0)


def _number(file: Path) -> int | None:
    lines = _lines(file)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []

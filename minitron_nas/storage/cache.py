"""Where this machine keeps what it can make or fetch again: converted teachers, and copies of what lies at URIs."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from minitron_nas.storage.atomic import whole_folder
from minitron_nas.storage.machine import expanded


def cache_folder() -> Path:
    """Return $MINITRON_NAS_CACHE, or ~/.cache/minitron_nas where that is not set."""
    chosen = os.environ.get("MINITRON_NAS_CACHE")
    return expanded(chosen) if chosen else Path.home() / ".cache" / "minitron_nas"


def named_scratch() -> Path | None:
    """Return $MINITRON_NAS_SCRATCH, None where that is not set."""
    chosen = os.environ.get("MINITRON_NAS_SCRATCH")
    return expanded(chosen).absolute() if chosen else None


def scratch_folder() -> Path:
    """Return where runs work whose folder is a URI: $MINITRON_NAS_SCRATCH, or a folder in the cache."""
    return named_scratch() or cache_folder().absolute() / "runs"


def build_once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Return a folder, filling it first if it does not exist; whole or not at all.

    Two processes that ask at the same time fill it once.

    Args:
        folder: The folder.
        fill: Writes the content into the temporary folder that it is given.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            with whole_folder(folder) as partial:
                fill(partial)
    return folder

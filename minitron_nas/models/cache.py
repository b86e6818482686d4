"""Where converted teachers are kept, so that each is converted once."""

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

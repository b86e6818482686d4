"""Checkpoints of a training: which are whole, and which belong to what is being trained."""

import os
import shutil
from pathlib import Path

from minitron_nas.storage.atomic import write_text

_MARK = "complete"


def mark_whole(checkpoint: Path, identity: str) -> None:
    """Mark a checkpoint as whole once it is on the disk, and remove all others.

    A killed process leaves a checkpoint without the mark.

    Args:
        checkpoint: A folder named `checkpoint-STEP`.
        identity: A hash of what is being trained, on what and how.
    """
    os.sync()
    write_text(checkpoint / _MARK, identity)
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other != checkpoint:
            shutil.rmtree(other, ignore_errors=True)


def last_whole(folder: Path, identity: str) -> Path | None:
    """Return the latest checkpoint in a folder that is marked as whole for the same `identity`."""
    marks = folder.glob(f"checkpoint-*/{_MARK}")
    return max((mark.parent for mark in marks if mark.read_text() == identity), key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))

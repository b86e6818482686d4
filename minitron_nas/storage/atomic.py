"""Files and folders that are either whole or absent, whatever kills the process."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minitron_nas.errors import DiskSpaceError
from minitron_nas.settings import about_bytes
from minitron_nas.storage.machine import free_bytes, naming


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; rename it to `path` once the block ends without error.

    Raises:
        MachineError: If the disk is full, read-only or failing; names `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with open(partial, "rb") as handle:
                os.fsync(handle.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, key: str | None = None) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes the place of `path` once the block ends without error.

    Args:
        path: The folder.
        key: Names what is being written. What an attempt with the same key left when it ended early
            is given again, so that it can go on; without a key nothing is left, and nothing taken over.

    Raises:
        MachineError: If the disk is full, read-only or failing; names `path`.
    """
    with naming(path), _filling(path, key) as partial:
        yield partial


@contextmanager
def _filling(path: Path, key: str | None) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    note = path.with_name(f".{path.name}.key")
    if key is None or not note.is_file() or note.read_text(encoding="utf-8") != key:
        shutil.rmtree(partial, ignore_errors=True)
        note.unlink(missing_ok=True)
    partial.mkdir(exist_ok=True)
    if key is not None:
        write_text(note, key)
    try:
        yield partial
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        remove(path)
        os.replace(partial, path)
        note.unlink(missing_ok=True)
    finally:
        if key is None:
            shutil.rmtree(partial, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove whatever lies at a path: a file, a link, a folder or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def require_free_bytes(
    folder: Path, needed_bytes: int, purpose: str, remedy: str = "choose another output folder"
) -> None:
    """Refuse to start what the disk cannot hold.

    Args:
        folder: Where it goes; it need not exist yet.
        needed_bytes: What it takes.
        purpose: What it is.
        remedy: What to do but free some space.

    Raises:
        DiskSpaceError: With the bytes needed and the bytes free.
    """
    free = free_bytes(folder)
    if free < needed_bytes:
        raise DiskSpaceError(
            f"{purpose} needs {about_bytes(needed_bytes)} in {folder}, which has {about_bytes(free)} "
            f"free; free some space or {remedy}"
        )

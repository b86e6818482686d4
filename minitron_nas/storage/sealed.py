"""JSON objects that carry their own checksum, so that what a disk has changed is not taken for what was written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xxhash import xxh3_128_hexdigest

from minitron_nas.storage.atomic import write_text

_CHECKSUM = "xxh3"


def seal(content: Mapping[str, Any]) -> str:
    """Return plain values as one line of JSON, the last of them a checksum of the others."""
    return json.dumps({**content, _CHECKSUM: _checksum(content)})


def unseal(line: str) -> dict[str, Any] | None:
    """Return the values of a line that `seal` wrote, or None if it has changed since or is something else."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or content.pop(_CHECKSUM, None) != _checksum(content):
        return None
    return content


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values with their checksum, whole or not at all."""
    write_text(path, seal(content) + "\n")


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return the values in a file that `write_sealed` wrote, or None if there is none or it has changed since."""
    try:
        return unseal(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _checksum(content: Mapping[str, Any]) -> str:
    return xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())

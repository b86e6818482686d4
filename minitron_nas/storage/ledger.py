"""The ledger of a run: which stages are done, for which inputs, and what they returned."""

import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any


def fingerprint(value: Any) -> str:
    """Hash plain values; equal values give equal fingerprints whatever their key order."""
    text = json.dumps(value, sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished stage."""

    stage: str
    fingerprint: str
    result: Any
    seconds: float


class Ledger:
    """An append-only JSON-lines file; a line that a killed process left half-written is ignored."""

    def __init__(self, path: Path) -> None:
        """Read the ledger at `path`, if there is one."""
        self._path = path
        self._entries: dict[tuple[str, str], Entry] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                content = json.loads(line)
            except json.JSONDecodeError:
                continue
            entry = Entry(content["stage"], content["fingerprint"], content["result"], content["seconds"])
            self._entries[entry.stage, entry.fingerprint] = entry

    def find(self, stage: str, stage_fingerprint: str) -> Entry | None:
        """Return the finished stage, or None."""
        return self._entries.get((stage, stage_fingerprint))

    def append(self, entry: Entry) -> None:
        """Record a finished stage; it is on disk when this returns."""
        line = {
            "stage": entry.stage,
            "fingerprint": entry.fingerprint,
            "result": entry.result,
            "seconds": round(entry.seconds, 3),
            "finished": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds"),
        }
        with open(self._path, "ab") as file:
            # A killed process may have left a line without its end.
            prefix = b"\n" if file.tell() and not self._path.read_bytes().endswith(b"\n") else b""
            file.write(prefix + json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._entries[entry.stage, entry.fingerprint] = entry

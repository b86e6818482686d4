"""The ledger of a run: which stages are done, for which inputs, what they returned and what they left."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from minitron_nas.errors import RunFolderError
from minitron_nas.storage.outputs import Output, from_plain, to_plain
from minitron_nas.storage.sealed import seal, unseal


def fingerprint(value: Any) -> str:
    """Hash plain values; equal values give equal fingerprints whatever their key order."""
    text = json.dumps(value, sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished stage.

    Attributes:
        stage: Its name.
        fingerprint: Of its inputs.
        result: Plain values that it returned.
        seconds: Wall time.
        outputs: The files that it left for others.
        rows: The files of the tables' rows that it left.
        finished: When, as ISO 8601 in UTC; the ledger's own clock says it when it appends.
        stands_for: Of a stage that was made again on another machine, the digest of what it left first, on which others
            have built; what it left now may differ in rounding.
        of_others: How many of its seconds went into the work of other stages, by their names.
    """

    stage: str
    fingerprint: str
    result: Any
    seconds: float
    outputs: tuple[Output, ...] = ()
    rows: tuple[Output, ...] = ()
    finished: str | None = field(default=None, compare=False)
    stands_for: str | None = None
    of_others: Mapping[str, float] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A hash of what it returned and left for others, by content: what decides a stage that builds on it."""
        return self.stands_for or fingerprint([self.result, [output.identity for output in self.outputs]])


class Ledger:
    """An append-only file of JSON lines with checksums, of which the latest of a stage counts.

    A line that a killed process left half-written, or that has changed, is no line.
    """

    def __init__(self, path: Path) -> None:
        """Read the ledger at `path`, if there is one.

        Raises:
            RunFolderError: If it cannot be read.
        """
        self._path = path
        self._entries: dict[str, Entry] = {}
        for line in _lines(path):
            content = unseal(line)
            if content is not None:
                self._entries[content["stage"]] = Entry(
                    content["stage"],
                    content["fingerprint"],
                    content["result"],
                    content["seconds"],
                    from_plain(content["outputs"]),
                    from_plain(content["rows"]),
                    content.get("finished"),
                    content.get("stands_for"),
                    content.get("of_others", {}),
                )

    def latest(self, stage: str) -> Entry | None:
        """Return how a stage was finished last, or None if it never was."""
        return self._entries.get(stage)

    def entries(self) -> list[Entry]:
        """Return the latest entry of every stage, in the order in which the stages were finished first."""
        return list(self._entries.values())

    def append(self, entry: Entry) -> None:
        """Record a finished stage; it is on disk when this returns."""
        line = {
            "stage": entry.stage,
            "fingerprint": entry.fingerprint,
            "result": entry.result,
            "seconds": round(entry.seconds, 3),
            "outputs": to_plain(entry.outputs),
            "rows": to_plain(entry.rows),
            "finished": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds"),
            **({} if entry.stands_for is None else {"stands_for": entry.stands_for}),
            **({} if not entry.of_others else {"of_others": {s: round(t, 3) for s, t in entry.of_others.items()}}),
        }
        with open(self._path, "ab") as file:
            # A killed process may have left a line without its end.
            prefix = b"\n" if file.tell() and not self._path.read_bytes().endswith(b"\n") else b""
            file.write(prefix + seal(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._entries[entry.stage] = entry


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be read ({error.strerror}), so what is done is not known; restore it, or choose another "
            "--out"
        ) from None

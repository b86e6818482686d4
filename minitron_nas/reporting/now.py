"""What a run does now, as the process that works on it has left it in its folder."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitron_nas.reporting import numerals
from minitron_nas.storage.run_folder import RunFolder

_SILENT_SECONDS = 30.0
"""After which something may have ended the process: it writes every other second."""


@dataclass(frozen=True, slots=True)
class Now:
    """What a run does now.

    Attributes:
        stage: What it works on, and how long it has.
        fraction: How much of that is done; None where that is not known yet.
        standing: Trials, the best so far, tokens a second; empty where there is nothing to tell.
        left: The time that is left of the run, or since when nothing was heard of it.
    """

    stage: str
    fraction: float | None
    standing: str
    left: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def read_now(folder: Path) -> Now | None:
    """Return what a run does now; None where no process works on it.

    Args:
        folder: Of the run.
    """
    try:
        content = json.loads(RunFolder(folder).now.read_text(encoding="utf-8"))
        return _told(content, time.time())
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _told(content: Mapping[str, Any], now: float) -> Now:
    stage = f"{content['stage']}: {content['title']}, for {numerals.duration(max(content['at'] - content['began'], 0))}"
    silent, left = now - content["at"], content["seconds_left"]
    told = "" if left is None else f"about {numerals.duration(left)} left"
    if silent > _SILENT_SECONDS:
        told = f"nothing was heard of it for {numerals.duration(silent)}"
    return Now(stage, content["fraction"], content["standing"], told)

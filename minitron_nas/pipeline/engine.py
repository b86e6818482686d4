"""The engine: runs a stage once for its inputs, whatever happens to the process."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minitron_nas.pipeline.display import Display
from minitron_nas.progress import Progress
from minitron_nas.storage.ledger import Entry, Ledger, fingerprint
from minitron_nas.storage.run_folder import RunFolder


class Engine:
    """Skips what the ledger says is done and records what gets done."""

    def __init__(self, folder: RunFolder, display: Display) -> None:
        """Open the folder's ledger.

        Args:
            folder: The run.
            display: Shows the stages.
        """
        self.folder = folder
        self._ledger = Ledger(folder.ledger)
        self._display = display

    def stage(
        self,
        name: str,
        title: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[Path],
        action: Callable[[Progress], Any],
    ) -> Any:
        """Run a stage, or return what it returned before for the same inputs.

        Args:
            name: The stage, e.g. "110M distil".
            title: What it does, for people.
            inputs: Plain values that decide the outcome: settings and fingerprints.
            outputs: Files and folders that the stage leaves; if one is gone the stage runs again.
            action: Does the work and returns plain values. It may be killed at any moment and is then
                called again.
        """
        key = fingerprint(inputs)
        entry = self._ledger.find(name, key)
        if entry is not None and all(path.exists() for path in outputs):
            self._display.skip(name)
            return entry.result
        started = time.perf_counter()
        with self._display.stage(name, title) as progress:
            result = action(progress)
        self._ledger.append(Entry(name, key, result, time.perf_counter() - started))
        return result

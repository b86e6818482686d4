"""A display of which a file says the same, for whoever sees the run's folder, from whichever machine."""

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from minitron_nas.pipeline.clock import Clock, StageWork
from minitron_nas.pipeline.display import Display
from minitron_nas.progress import Progress

_WRITE_SECONDS = 2.0


class LiveDisplay:
    """Passes everything on to another display, and writes what the run does now every other second.

    A file that is not written any more tells that the run has ended without a word. No reader waits for it, and no
    fault of the disk in it is one of the run.
    """

    def __init__(self, display: Display, path: Path) -> None:
        """Show nothing yet.

        Args:
            display: Shows it to a person here.
            path: The file.
        """
        self._display, self._path = display, path
        self._clock, self._lock, self._over = Clock(), threading.Lock(), threading.Event()
        self._now: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._write_again, daemon=True, name="live")

    def __enter__(self) -> Self:
        """Begin to write."""
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Write no more."""
        self._over.set()
        self._thread.join()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def expect(self, workload: Mapping[str, StageWork]) -> None:
        """Learn what each stage of the run will cost."""
        with self._lock:
            self._clock.expect(workload)
        self._display.expect(workload)

    def skip(self, stage: str) -> None:
        """Note that an earlier process finished the stage."""
        with self._lock:
            self._clock.finish(stage, by_us=False)
        self._display.skip(stage)

    def note(self, text: str) -> None:
        """Say something that a person should know."""
        self._display.note(text)

    def stand(self, text: str) -> None:
        """Show how the stage stands."""
        self._change(standing=text)
        self._display.stand(text)

    @contextmanager
    def stage(self, stage: str, title: str) -> Iterator[Progress]:
        """Show a stage."""
        with self._lock:
            self._clock.begin(stage)
            self._now = {"stage": stage, "title": title, "fraction": None, "standing": "", "began": time.time()}
        with self._display.stage(stage, title) as shown:

            def progress(done: int, total: int) -> None:
                fraction = done / max(total, 1)
                with self._lock:
                    self._clock.advance(fraction)
                self._change(fraction=fraction)
                shown(done, total)

            yield progress
        with self._lock:
            self._clock.finish(stage)

    def _change(self, **values: Any) -> None:
        with self._lock:
            if self._now is not None:
                self._now |= values

    def _write_again(self) -> None:
        while not self._over.wait(_WRITE_SECONDS):
            with self._lock:
                left = self._clock.left()
                now = None if self._now is None else {**self._now, "seconds_left": left, "at": time.time()}
            if now is not None:
                self._write(now)

    def _write(self, now: Mapping[str, Any]) -> None:
        partial = self._path.with_name(f".{self._path.name}.partial")
        with suppress(OSError):
            partial.write_text(json.dumps(now), encoding="utf-8")
            os.replace(partial, self._path)

"""What a person sees while a run works: a bar per stage and an estimate of the time left."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from minitron_nas.errors import printable
from minitron_nas.execution.device import announce_device
from minitron_nas.pipeline.clock import Clock, StageWork
from minitron_nas.progress import Progress, silent
from minitron_nas.reporting.numerals import duration

_LINE_SECONDS = 20.0


class Display(Protocol):
    """Shows stages as they come and go."""

    def expect(self, workload: Mapping[str, StageWork]) -> None:
        """Learn what each stage of the run will cost."""

    def skip(self, stage: str) -> None:
        """Note that an earlier process finished the stage."""

    def note(self, text: str) -> None:
        """Say something that a person should know."""

    def stand(self, text: str) -> None:
        """Show how the stage stands, in a line in place of the last one."""

    def stage(self, stage: str, title: str) -> AbstractContextManager[Progress]:
        """Show a stage for the duration of the block; gives its progress function."""


def tell(display: Display, lines: Iterable[str]) -> None:
    """Say what a person should know, line by line.

    Args:
        display: Where to.
        lines: What there is to say.
    """
    for line in lines:
        display.note(line)


class Quiet:
    """Shows nothing."""

    def expect(self, workload: Mapping[str, StageWork]) -> None:
        """Show nothing."""

    def skip(self, stage: str) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def stand(self, text: str) -> None:
        """Show nothing."""

    @contextmanager
    def stage(self, stage: str, title: str) -> Iterator[Progress]:
        """Show nothing."""
        yield silent


class ConsoleDisplay:
    """Bars on a terminal, lines elsewhere; always on stderr."""

    def __init__(self) -> None:
        """Start the clock."""
        self._console = Console(stderr=True, highlight=False, emoji=False)
        self._clock = Clock()
        self._standing = ""

    def expect(self, workload: Mapping[str, StageWork]) -> None:
        """Learn what each stage of the run will cost."""
        self._clock.expect(workload)

    def skip(self, stage: str) -> None:
        """Say that the stage was finished before."""
        self._clock.finish(stage, by_us=False)
        self._print(f"{stage}: finished before", style="dim")

    def note(self, text: str) -> None:
        """Print a line."""
        self._print(text)

    def stand(self, text: str) -> None:
        """Show how the stage stands: below the bar, or in the next line that tells how far it is."""
        self._standing = text

    @contextmanager
    def stage(self, stage: str, title: str) -> Iterator[Progress]:
        """Show a stage."""
        started = time.monotonic()
        self._standing = ""
        self._clock.begin(stage)
        shown = self._bars(stage, title) if self._console.is_terminal else self._lines(stage, title)
        with shown as progress:
            yield progress
        self._clock.finish(stage)
        seconds = time.monotonic() - started
        self._line(f"{stage}: {title}, done in {duration(seconds)}")

    @contextmanager
    def _bars(self, stage: str, title: str) -> Iterator[Progress]:
        name, left = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[left]}", markup=False)
        columns = (name, BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), left)
        with _Bars(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(_shown(f"{stage}: {title}"), total=None, left=self._left())

            def progress(done: int, total: int) -> None:
                self._clock.advance(done / max(total, 1))
                bars.standing = self._standing
                bars.update(task, completed=done, total=total, left=self._left())

            yield progress

    @contextmanager
    def _lines(self, stage: str, title: str) -> Iterator[Progress]:
        self._line(f"{stage}: {title} ...")
        last = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal last
            self._clock.advance(done / max(total, 1))
            if time.monotonic() - last >= _LINE_SECONDS:
                last = time.monotonic()
                self._line("; ".join(filter(None, [f"{stage}: {done / max(total, 1):.0%}", self._standing])))

        yield progress

    def _line(self, text: str) -> None:
        left = self._left()
        self._print(f"{text}; {left}" if left else text)

    def _left(self) -> str:
        left = self._clock.left()
        return "" if left is None else f"about {duration(left)} left"

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(_shown(text), style=style, soft_wrap=True, markup=False)


class _Bars(Bars):
    """Bars, and a line below that says how the stage stands."""

    standing = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Return what is drawn."""
        yield from super().get_renderables()
        if self.standing:
            yield Text(_shown(self.standing), style="dim", no_wrap=True, overflow="ellipsis")


def _shown(text: str) -> str:
    """Return a line that is one line, whatever the names in it hold."""
    return " ".join(printable(text).splitlines())


def default_display() -> Display:
    """Return the console display, or none where stderr is closed; what libraries would say beside it is silenced.

    That holds for the processes that are started from here on, too: they read the environment.
    """
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    announce_device()
    import datasets
    from transformers.utils import logging

    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return ConsoleDisplay() if sys.stderr is not None else Quiet()

"""How long work may go on without a result, by the speed of what went before."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn, Self

from minitron_nas.execution.settings import RunnerSettings

_AT_ONCE_SECONDS = 1e-3


class OverdueError(Exception):
    """Work that has gone on for longer than its deadline."""


@dataclass(slots=True)
class Deadline:
    """A multiple of the slowest that has ended, and a floor.

    Attributes:
        factor: The multiple; None for no deadline.
        floor_seconds: It is never earlier.
        slowest_seconds: What the slowest has taken so far; as long as nothing has ended there is no deadline.
    """

    factor: float | None
    floor_seconds: float
    slowest_seconds: float | None = None

    @classmethod
    def of(cls, settings: RunnerSettings, slowest_seconds: float | None = None) -> Self:
        """Return what the settings say.

        Args:
            settings: Multiple and floor.
            slowest_seconds: What is known from before.
        """
        return cls(settings.timeout_factor, 60 * settings.timeout_minutes, slowest_seconds)

    def learn(self, seconds: float) -> None:
        """Take note of what has ended.

        Args:
            seconds: What it took.
        """
        self.slowest_seconds = max(seconds, self.slowest_seconds or 0.0)

    @property
    def seconds(self) -> float | None:
        """After so many seconds work is overdue; None for never."""
        if self.factor is None or self.slowest_seconds is None:
            return None
        return max(self.factor * self.slowest_seconds, self.floor_seconds)

    def is_over(self, seconds: float) -> bool:
        """Whether work that has gone on for so long is overdue.

        Args:
            seconds: Since it began.
        """
        return self.seconds is not None and seconds > self.seconds

    def __str__(self) -> str:
        """Say what it follows from."""
        return (
            f"timeout: no result after {self.seconds or 0.0:.0f} s, while the slowest before took "
            f"{self.slowest_seconds or 0.0:.0f} s (runner.timeout_factor={self.factor}, at least "
            f"runner.timeout_minutes={self.floor_seconds / 60:g})"
        )

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Let the block raise when it is overdue, as soon as the interpreter runs; in the main thread only.

        Raises:
            OverdueError: If it is.
        """
        if self.seconds is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_: object) -> NoReturn:
            raise OverdueError(str(self))

        previous, begun = signal.signal(signal.SIGALRM, stop), time.monotonic()
        left, _ = signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
            if left:  # an alarm of the caller's
                signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - begun), _AT_ONCE_SECONDS))

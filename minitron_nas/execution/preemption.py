"""Signals that ask a process to end: Ctrl-C, SIGTERM of schedulers, and SIGHUP of a terminal that is gone.

In a program that uses this package only SIGTERM is answered, while something trains. The command answers all
three, wherever it is: the first with an orderly end, the second at once.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from minitron_nas.errors import MinitronNasError, PreemptedError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_ECHO_SECONDS = 0.1
"""A shell and the kernel may both tell that a terminal is gone."""

_goes_on = ["repeat the command"]


@dataclass(slots=True)
class _Heard:
    """What this process is, and when it has heard a signal."""

    is_command: bool = False
    came_at: float | None = None


_process = _Heard()


@contextmanager
def going_on(words: str) -> Iterator[None]:
    """Say in this block how a command goes on that is stopped in it.

    Args:
        words: Such as "the same command goes on in runs/one".
    """
    _goes_on.append(words)
    try:
        yield
    finally:
        _goes_on.pop()


def stopped(signum: int, goes_on: str | None = None) -> BaseException:
    """Return what ends the work after a signal: in another's program, Ctrl-C ends it as Python does.

    Args:
        signum: The signal.
        goes_on: How it goes on; what the innermost `going_on` says without it.
    """
    if signum == signal.SIGINT and not _process.is_command:
        return KeyboardInterrupt()
    return PreemptedError(goes_on or _goes_on[-1], signum)


def answer_signals() -> None:
    """Let all signals end this process in order, the second at once, from now on; for the command itself.

    Those that this process was told to ignore, as `nohup` does, stay ignored.
    """
    _process.is_command = True
    for signum in _heard(SIGNALS):
        signal.signal(signum, _handler(_raise))


@contextmanager
def on_stop(action: Callable[[int], object], signals: Sequence[signal.Signals] = ()) -> Iterator[None]:
    """Let signals call a function, instead of ending the process, while the block runs.

    Python delivers signals to the main thread only; in another thread this changes nothing.

    Args:
        action: Called with the signal between two steps of the interpreter; what it raises, the block raises.
        signals: Which; without it, all in the command, and SIGTERM in another's program.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = _heard(signals or (SIGNALS if _process.is_command else (signal.SIGTERM,)))
    previous = {signum: signal.signal(signum, _handler(action)) for signum in heard}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def put_off() -> Iterator[None]:
    """Let a signal end the work only when the block has ended, and undo what the block does to handlers of signals.

    The block is one that must not be left halfway. In another's program Ctrl-C leaves it nevertheless.
    """
    asked: list[int] = []
    try:
        with _handlers_as_before(), on_stop(asked.append):
            yield
    finally:
        if asked:
            raise stopped(asked[0])


def answer_again() -> None:
    """Set the handlers once more that Python knows of: libraries in C change the system's.

    Python sets handlers in the main thread only; in another thread this changes nothing.
    """
    if threading.current_thread() is threading.main_thread():
        _set({signum: signal.getsignal(signum) for signum in SIGNALS})


def leave(stop: PreemptedError) -> NoReturn:
    """Tell why the command ends, in one line, and end it without waiting for anything.

    Threads of Ray and torch that still run would end a process that takes itself apart by a fault of their own.

    Args:
        stop: Why.
    """
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)  # told once
    _end(str(stop), 128 + stop.signum)


def fail(error: MinitronNasError) -> None:
    """End the command from any thread, in one line and with 2, where the work itself would wait for ever.

    In another's program this does nothing: there is somebody who can end it.

    Args:
        error: Why.
    """
    if _process.is_command:
        _end(f"{error}; {_goes_on[-1]}", 2)


def _end(words: str, code: int) -> NoReturn:
    try:
        sys.stdout.flush()
        os.write(2, f"minitron-nas: {words}\n".encode())
    except OSError:  # the terminal is gone
        pass
    os._exit(code)


@contextmanager
def _handlers_as_before() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        _set(previous)


def _set(handlers: Mapping[signal.Signals, Any]) -> None:
    """Set handlers, even where they are the same to Python, but for those that are not Python's."""
    for signum, handler in handlers.items():
        if handler is not None:
            signal.signal(signum, handler)


def _handler(action: Callable[[int], object]) -> Callable[[int, object], None]:
    def handle(signum: int, _: object) -> None:
        if _process.is_command:
            now, before = time.monotonic(), _process.came_at
            if before is not None and now - before >= _ECHO_SECONDS:
                leave(PreemptedError(_goes_on[-1], signum))
            if before is not None:
                return
            _process.came_at = now
        action(signum)

    return handle


def _heard(signals: Sequence[signal.Signals]) -> list[signal.Signals]:
    return [signum for signum in signals if signal.getsignal(signum) is not signal.SIG_IGN]


def _raise(signum: int) -> NoReturn:
    raise stopped(signum)

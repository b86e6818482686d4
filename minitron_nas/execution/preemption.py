"""Signals: SIGTERM, by which schedulers announce that a machine is about to be taken away, and Ctrl-C."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_sigterm(action: Callable[[], object]) -> Iterator[None]:
    """Let SIGTERM call a function, instead of ending the process, while the block runs.

    Python delivers signals to the main thread only; in another thread this changes nothing.

    Args:
        action: Called between two steps of the interpreter; what it raises, the block raises.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous if previous is not None else signal.SIG_DFL)


@contextmanager
def sigint_as_before() -> Iterator[None]:
    """Undo what the block does to the handler of Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)

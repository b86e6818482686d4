"""SIGTERM, by which schedulers announce that a machine is about to be taken away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def sigterm_sets() -> Iterator[threading.Event]:
    """Give an event that SIGTERM sets, instead of ending the process, while the block runs.

    Python delivers signals to the main thread only; in another thread nothing sets the event.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous if previous is not None else signal.SIG_DFL)

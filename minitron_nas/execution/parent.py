"""Processes that work for another: they end with it, and its folder counts as written to until they have ended."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from minitron_nas.storage.locks import Process, Starter

_VARIABLE = "MINITRON_NAS_STARTER"
_POLL_SECONDS = 0.5
_CODE = 143

_watched: set[Process] = set()


def told_in_environment() -> dict[str, str]:
    """Return the environment variable that tells a process that is started now who has started it."""
    return {_VARIABLE: Starter.current().to_json()}


@contextmanager
def working_for_parent() -> Iterator[None]:
    """Work in this block for the process that has started this one, if it was one of this package's."""
    line = os.environ.get(_VARIABLE)
    if line is None:
        yield
        return
    # torchrun stands between: if it is gone, whoever started it begins again.
    agent = Process.of(os.getppid())
    with working_for(Starter.from_json(line), *([agent] if agent is not None else [])):
        yield


@contextmanager
def working_for(starter: Starter, *others: Process, task: str = "") -> Iterator[None]:
    """Work for a process in this block; on the same machine, this process ends within seconds when that has ended.

    Args:
        starter: What that process told.
        *others: Further processes without which this one is of no use.
        task: What is worked at, for `minitron_nas.storage.locks.writing`.
    """
    needed = [starter.process, *others]
    _end_with(needed)
    with starter.joined(task):
        _end_if_gone(needed)  # another command may have taken the folder meanwhile
        yield


def _end_with(processes: list[Process]) -> None:
    _end_if_gone(processes)
    new = [process for process in processes if process.is_here and process not in _watched]
    if new:
        _watched.update(new)
        threading.Thread(target=_watch, args=(new,), daemon=True, name="parent").start()


def _watch(processes: list[Process]) -> None:
    while True:
        _end_if_gone(processes)
        time.sleep(_POLL_SECONDS)


def _end_if_gone(processes: list[Process]) -> None:
    if any(process.is_gone for process in processes):
        os._exit(_CODE)  # nobody is left who could be told why

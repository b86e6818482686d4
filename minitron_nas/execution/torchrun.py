"""Several processes of one training on this machine, started by torchrun."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Event

import psutil

from minitron_nas.errors import PreemptedError
from minitron_nas.execution.preemption import on_sigterm

_POLL_SECONDS = 0.5
_SHUTDOWN_SECONDS = 3600
"""What torchrun gives its processes after a SIGTERM of its own: a checkpoint of a large model takes minutes."""


def run_processes(module: str, argument: str, num_processes: int, on_wait: Callable[[], None]) -> int:
    """Run a module in several processes that find each other, and return torchrun's exit code.

    SIGTERM is passed on to the processes, which may then take their time. What they print goes to stderr.

    Args:
        module: Started as `python -m MODULE ARGUMENT` in each process.
        argument: The same for all.
        num_processes: One per GPU, or any number on CPUs.
        on_wait: Called twice a second while they work.

    Raises:
        PreemptedError: If SIGTERM came and they have not finished.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(num_processes), "-m", module, argument]
    threads = str(max((os.cpu_count() or 1) // num_processes, 1))
    timeout = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_SHUTDOWN_SECONDS)}
    environment = {"OMP_NUM_THREADS": threads, **timeout, **os.environ}
    process = subprocess.Popen(command, stdout=sys.stderr.fileno(), env=environment)
    asked_to_stop = Event()
    told: set[int] = set()
    with on_sigterm(asked_to_stop.set):
        try:
            while process.poll() is None:
                if asked_to_stop.is_set():
                    _terminate_children(process.pid, told)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                on_wait()
            if asked_to_stop.is_set() and process.returncode:
                raise PreemptedError("stopped by SIGTERM; the same command goes on from the last checkpoint")
            return process.returncode
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _terminate_children(process: int, told: set[int]) -> None:
    """Send SIGTERM to a process' children, once to each: torchrun may still be starting some."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process).children():
            if child.pid not in told:
                told.add(child.pid)
                child.terminate()

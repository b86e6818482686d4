"""Several processes of one training on this machine, started by torchrun."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

import psutil

from minitron_nas.execution.parent import told_in_environment
from minitron_nas.execution.preemption import on_stop, stopped

_POLL_SECONDS = 0.5
_SHUTDOWN_SECONDS = 3600
"""What torchrun gives its processes after a SIGTERM of its own: a checkpoint of a large model takes minutes."""


_SAID = (1, 2, 143, -signal.SIGTERM)
"""What a process ends with that has printed why, or was asked to end."""


def run_processes(module: str, argument: str, num_processes: int, on_wait: Callable[[], None]) -> int:
    """Run a module in several processes that find each other, and return torchrun's exit code.

    A signal that asks this process to stop is passed on to them as SIGTERM, and they may then take their time. They
    are no part of this process' group, to which a terminal sends its signals. What they print goes to stderr.

    Args:
        module: Started as `python -m MODULE ARGUMENT` in each process.
        argument: The same for all.
        num_processes: One per GPU, or any number on CPUs.
        on_wait: Called twice a second while they work.

    Raises:
        PreemptedError: If a signal came and they have not finished.
    """
    command = [sys.executable, "-m", __name__, "--standalone"]
    command += ["--nproc_per_node", str(num_processes), "-m", module, argument]
    threads = str(max((os.cpu_count() or 1) // num_processes, 1))
    timeout = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(_SHUTDOWN_SECONDS)}
    environment = {"OMP_NUM_THREADS": threads, **timeout, **os.environ, **told_in_environment()}
    process = subprocess.Popen(command, stdout=sys.stderr.fileno(), env=environment, start_new_session=True)
    asked_to_stop: list[int] = []
    told: set[int] = set()
    with on_stop(asked_to_stop.append):
        try:
            while process.poll() is None:
                if asked_to_stop:
                    _terminate_children(process.pid, told)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
                on_wait()
            if asked_to_stop and process.returncode:
                raise stopped(asked_to_stop[0], "the same command goes on from the last checkpoint")
            return process.returncode
        finally:
            if process.poll() is None:  # nobody waits for what they do any more
                _kill(process.pid)
                process.wait()


def _kill(process: int) -> None:
    """Kill a process with all that it has started, also what was stopped and hears no other signal."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
        for each in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                each.kill()


def _terminate_children(process: int, told: set[int]) -> None:
    """Send SIGTERM to a process' children, once to each: torchrun may still be starting some."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process).children():
            if child.pid not in told:
                told.add(child.pid)
                child.terminate()


def _agent() -> int:
    """Be torchrun, which would end with a traceback of its own after a process that has said why it ends."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    try:
        main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode not in _SAID:
            sys.stderr.write(f"training process {rank} ended with {failure.exitcode}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_agent())

"""Several processes of one training on this machine, started by torchrun."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

from minitron_nas.errors import PreemptedError

_POLL_SECONDS = 0.5


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
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    process = subprocess.Popen(command, stdout=sys.stderr.fileno(), env=environment)
    with _sigterm_passed_on(process) as asked_to_stop:
        try:
            while process.poll() is None:
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


@contextmanager
def _sigterm_passed_on(process: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """Send SIGTERM on to torchrun's processes, not to torchrun, which would kill them after 30 seconds."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def send(*_: object) -> None:
        came.set()
        for worker in psutil.Process(process.pid).children():
            worker.terminate()

    previous = signal.signal(signal.SIGTERM, send)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, previous if previous is not None else signal.SIG_DFL)

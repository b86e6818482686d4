"""Several processes of one training as Ray Train workers; the only module that imports ray.train."""

import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from minitron_nas.execution import ray_session  # isort: skip  # before ray, for which it sets what ray reads

from ray.actor import ActorHandle
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer

from minitron_nas.errors import MachineError, PlanError
from minitron_nas.execution.parent import working_for
from minitron_nas.execution.preemption import on_stop, stopped
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.storage.locks import Starter
from minitron_nas.storage.machine import quoted_fault

_POLL_SECONDS = 0.5


class _Trainer(TorchTrainer):
    """TorchTrainer that leaves Ctrl-C to Python, which ends this process; its own handler would outlive it."""

    def _register_sigint_handler(self, controller: ActorHandle[Any]) -> None:
        pass


class RayTrain:
    """Runs a function in workers that find each other, on an embedded Ray or on a cluster."""

    def __init__(self, settings: RunnerSettings, folder: Path) -> None:
        """Remember where to run.

        Args:
            settings: Address, CPUs of a worker, and how often lost workers are replaced.
            folder: Where Ray Train keeps its state; removed when a call has ended.
        """
        self._settings, self._folder = settings, folder.absolute()

    def connected(self) -> AbstractContextManager[None]:
        """Be connected to Ray while the block runs."""
        return ray_session.connected(self._settings.cluster, self._folder)

    def num_gpus(self) -> int:
        """Return the number of GPUs that Ray knows of."""
        return ray_session.num_gpus()

    def run(
        self, function: Callable[[str], int], argument: str, num_processes: int, on_wait: Callable[[], None]
    ) -> None:
        """Run a function in every worker.

        A lost worker ends all, and all are started again, `max_worker_losses` times. Workers are threads of
        Ray's and get no signals: one to this process ends this call, and the last checkpoint by the clock counts.

        Args:
            function: A module-level function; another value than 0 ends all workers for good.
            argument: The same for all.
            num_processes: Number of workers, one GPU each where there are any.
            on_wait: Called twice a second while they work.

        Raises:
            MachineError: If workers met a fault of their machine before they could say so themselves.
            PlanError: If the cluster has no room for so many workers, for which Ray would wait without end.
            PreemptedError: After a signal.
        """
        cpus, gpus = self._settings.cpus_per_trial or 1.0, int(self.num_gpus() > 0)
        room = ray_session.room_for(cpus, gpus)
        if room < num_processes:
            raise PlanError(
                f"a training of {num_processes} processes asks for {cpus:g} CPUs and {gpus} GPUs for each, and the "
                f"cluster has room for {room}; lower runner.num_processes or runner.cpus_per_trial"
            )
        ended = self._folder / "ended"
        ended.parent.mkdir(parents=True, exist_ok=True)
        ended.unlink(missing_ok=True)
        starter = Starter.current()

        def work() -> None:
            with working_for(starter):
                _require_success(function, argument, ended)

        trainer = _Trainer(
            work,
            scaling_config=ScalingConfig(
                num_workers=num_processes, use_gpu=bool(gpus), resources_per_worker={"CPU": cpus}
            ),
            run_config=RunConfig(
                name="training",
                storage_path=str(self._folder),
                failure_config=FailureConfig(max_failures=self._settings.max_worker_losses),
            ),
        )
        asked: list[int] = []

        def stop(signum: int) -> None:
            asked.append(signum)
            raise _stopped(signum)

        over = threading.Event()
        watch = threading.Thread(target=_call_until, args=(over, on_wait))
        watch.start()
        try:
            with on_stop(stop):
                trainer.fit()
        except (SystemExit, TrainingFailedError) as error:
            if asked:  # Ray makes an exit with 1 of what is raised while it waits
                raise _stopped(asked[0]) from None
            if isinstance(error, SystemExit):
                raise
            if ended.exists():  # the function has said why it failed
                return
            if (fault := quoted_fault(str(error))) is not None:
                raise MachineError(f"a worker ended: {fault}; mend that and repeat the command") from None
            sys.stderr.write(f"{error}\n")
        finally:
            over.set()
            watch.join()


def _call_until(over: threading.Event, function: Callable[[], None]) -> None:
    while not over.wait(_POLL_SECONDS):
        function()


def _stopped(signum: int) -> BaseException:
    return stopped(signum, "the same command goes on from the last checkpoint")


def _require_success(function: Callable[[str], int], argument: str, ended: Path) -> None:
    """Raise if the function fails, so that Ray Train ends the other workers, which may wait for this one.

    Ray Train then starts all of them again, as after a loss. But a function that returned has said why it fails, and
    would say it again: the file `ended` lets them raise at once.
    """
    if ended.exists():
        raise RuntimeError(ended.read_text(encoding="utf-8"))
    if code := function(argument):
        ended.write_text(f"the worker ended with {code}; what it printed says why", encoding="utf-8")
        raise RuntimeError(ended.read_text(encoding="utf-8"))

"""Where a distillation runs: in this process, in several of this machine, or on a Ray cluster."""

import time

import torch

from minitron_nas.distillation import worker
from minitron_nas.distillation.job import TrainingJob
from minitron_nas.distillation.training.arguments import micro_batch, most_processes
from minitron_nas.distillation.training.checkpoints import load_weights
from minitron_nas.distillation.training.curve import TrainingResult
from minitron_nas.errors import PreemptedError, TrainingProcessError
from minitron_nas.execution.deadline import Deadline
from minitron_nas.execution.device import release_memory
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.execution.torchrun import run_processes
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.loading import load_for_training
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.machine import require_writable


def trained(job: TrainingJob) -> CausalLM:
    """Return the student that a training has left, at its best, on the CPU.

    Args:
        job: A training that `run` has carried out to its end.

    Raises:
        CheckpointError: If its weights are not what was written.
    """
    student: CausalLM = load_for_training(job.student, torch.device("cpu"))  # sharded, it may be larger than one device
    load_weights(job.out, student)
    return student


def run(job: TrainingJob, runner: RunnerSettings, progress: Progress = silent) -> TrainingResult:
    """Carry out a distillation where the runner says, and return its curve.

    Args:
        job: What to train.
        runner: Kind, address and number of processes.
        progress: Told about optimizer steps.

    Raises:
        MinitronNasError: Whatever a process could not do; says what to do.
        TrainingProcessError: If a process died without saying why.
        PreemptedError: After SIGTERM.
    """
    if job.is_done:
        return _result(job)
    path = job.write().absolute()  # workers of a cluster begin in another folder
    num_processes = runner.num_processes
    if num_processes is None and not runner.on_cluster:
        num_processes = most_processes(job.settings, job.schedule, torch.cuda.device_count())
    if num_processes == 1 and job.settings.deepspeed is None and not runner.on_cluster:
        worker.run(job, progress)
        release_memory()
    else:
        _in_processes(job, str(path), runner, num_processes, progress)
    return _result(job)


def _result(job: TrainingJob) -> TrainingResult:
    """Return the curve that a training has left."""
    result = job.result()
    if result is None:
        job.raise_error()
        require_writable(job.out)  # where a process had no room left to say why
        raise TrainingProcessError(
            f"a training process ended without a result; what it printed says why, and the same command goes on from "
            f"the last checkpoint in {job.checkpoints}"
        )
    return result


def _in_processes(
    job: TrainingJob, path: str, runner: RunnerSettings, num_processes: int | None, progress: Progress
) -> None:
    watch = _Watch(job, Deadline.of(runner), progress)
    if runner.kind == "ray":
        from minitron_nas.execution.ray_train import RayTrain  # deferred: Ray is imported where it is used

        ray_train = RayTrain(runner, job.out / "ray")
        with ray_train.connected():
            if num_processes is None:
                num_processes = most_processes(job.settings, job.schedule, ray_train.num_gpus())
            micro_batch(job.settings, job.schedule, num_processes)  # before any process starts
            ray_train.run(worker.run_file, path, num_processes, watch.tell)
    else:
        assert num_processes is not None
        micro_batch(job.settings, job.schedule, num_processes)
        try:
            run_processes(worker.__name__, path, num_processes, watch.look)
        except PreemptedError as stop:
            try:
                job.raise_error()
            except PreemptedError as told:  # which names the checkpoint
                raise PreemptedError(told.goes_on, stop.signum) from None
            raise
    watch.tell()


class _Watch:
    """What a training of several processes has done so far, and whether it still does anything."""

    def __init__(self, job: TrainingJob, deadline: Deadline, progress: Progress) -> None:
        self._job, self._deadline, self._progress = job, deadline, progress
        self._told: tuple[int, int] | None = None
        self._changed_at = time.monotonic()

    def tell(self) -> None:
        """Pass on what the first process has told."""
        told = self._job.progress()
        if told is not None and told != self._told:
            self._deadline.learn(time.monotonic() - self._changed_at)
            self._told, self._changed_at = told, time.monotonic()
            self._progress(*told)

    def look(self) -> None:
        """Pass it on, and end a training that hangs.

        Raises:
            TrainingProcessError: If it has stood still for too long.
        """
        self.tell()
        if self._told is not None and self._told[0] == self._told[1]:
            return  # all steps are done; weights are being written
        if self._deadline.is_over(time.monotonic() - self._changed_at):
            raise TrainingProcessError(
                f"a training hangs, and its processes were ended ({self._deadline}); the same command goes on from the "
                f"last checkpoint in {self._job.checkpoints}"
            )

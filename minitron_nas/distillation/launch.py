"""Where a distillation runs: in this process, in several of this machine, or on a Ray cluster."""

import torch

from minitron_nas.distillation import worker
from minitron_nas.distillation.job import TrainingJob
from minitron_nas.distillation.training.arguments import micro_batch, most_processes
from minitron_nas.distillation.training.checkpoints import load_weights
from minitron_nas.distillation.training.trainer import TrainingResult
from minitron_nas.errors import PreemptedError, TrainingProcessError
from minitron_nas.execution.device import release_memory
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.execution.torchrun import run_processes
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.loading import load_for_training
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.machine import require_writable


def train(job: TrainingJob, runner: RunnerSettings, progress: Progress = silent) -> tuple[CausalLM, TrainingResult]:
    """Do what `run` does with a job that has no `stop_step`, and return the trained student, on the CPU, too.

    Args:
        job: What to train.
        runner: Kind, address and number of processes.
        progress: Told about optimizer steps.

    Raises:
        MinitronNasError: Whatever a process could not do; says what to do.
        CheckpointError: If the trained weights are not what was written.
        PreemptedError: After SIGTERM.
    """
    result = run(job, runner, progress)
    student: CausalLM = load_for_training(job.student, torch.device("cpu"))  # sharded, it may be larger than one device
    load_weights(job.out, student)
    return student, result


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
    on_cluster = runner.kind == "ray" and runner.address is not None
    num_processes = runner.num_processes
    if num_processes is None and not on_cluster:
        num_processes = most_processes(job.settings, job.schedule, torch.cuda.device_count())
    if num_processes == 1 and job.settings.deepspeed is None and not on_cluster:
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
    def look() -> None:
        if (told := job.progress()) is not None:
            progress(*told)

    if runner.kind == "ray":
        from minitron_nas.execution.ray_train import RayTrain  # deferred: Ray is imported where it is used

        ray_train = RayTrain(runner, job.out / "ray")
        with ray_train.connected():
            if num_processes is None:
                num_processes = most_processes(job.settings, job.schedule, ray_train.num_gpus())
            micro_batch(job.settings, job.schedule, num_processes)  # before any process starts
            ray_train.run(worker.run_file, path, num_processes, look)
    else:
        assert num_processes is not None
        micro_batch(job.settings, job.schedule, num_processes)
        try:
            run_processes(worker.__name__, path, num_processes, look)
        except PreemptedError:
            job.raise_error()  # which names the checkpoint
            raise
    look()

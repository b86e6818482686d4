"""One process of a distillation: `torchrun --nproc_per_node 2 -m minitron_nas.distillation.worker JOB.json`."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from torch import distributed

from minitron_nas.distillation.job import TRAINED, TrainingJob
from minitron_nas.distillation.training.arguments import training_arguments, zero_stage
from minitron_nas.distillation.training.lesson import Lesson
from minitron_nas.distillation.training.trainer import distill
from minitron_nas.errors import CheckpointError, MachineError, MinitronNasError, PreemptedError
from minitron_nas.execution.deepspeed import join_processes
from minitron_nas.execution.parent import working_for_parent
from minitron_nas.models.loading import load_for_training
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.machine import machine_error

_PROGRESS_SECONDS = 1.0


def run(job: TrainingJob, progress: Progress = silent) -> None:
    """Train as the job says, and leave beside it how far it is, the result, and unless it is a trial the best weights.

    Args:
        job: What to train.
        progress: Told about optimizer steps, in the first process.

    Raises:
        MinitronNasError: If the training cannot be done; says what to do.
        PreemptedError: After SIGTERM.
    """
    # While these live, from_pretrained shards what it reads under ZeRO-3.
    arguments = training_arguments(job.settings, job.schedule, job.checkpoints, job.seed, use_cache=True)
    rank = arguments.process_index  # this also joins the other processes
    sharded = zero_stage(job.settings) == 3
    if sharded:
        join_processes()
    student = load_for_training(job.student)
    train, validation = job.files.streams(job.settings.asks_teacher, sharded)
    leave = _throttled(job.write_progress)

    def tell(done: int, total: int) -> None:
        leave(done, total)
        progress(done, total)

    result = distill(
        student,
        Lesson(train, validation, job.settings, job.schedule, job.seed, job.judge),
        job.checkpoints,
        job.stop_step,
        tell,
        trained=job.out / TRAINED if job.stop_step is None else None,
    )
    if rank == 0:
        job.write_result(result)


def run_file(path: str) -> int:
    """Carry out a `job.json`; a fault that a user can act on is left beside it for whoever has started this.

    Args:
        path: What `TrainingJob.write` returned.

    Returns:
        What the process should exit with.

    Raises:
        PreemptedError: After SIGTERM.
    """
    rank = int(os.environ.get("RANK", "0"))
    try:
        job = TrainingJob.read(Path(path))
    except CheckpointError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    try:
        with working_for_parent():
            run(job)
    except PreemptedError as stop:
        job.write_error(rank, stop)
        raise
    except Exception as error:
        told = error if isinstance(error, MinitronNasError) else machine_error(error, job.out)
        if told is None:
            raise
        sys.stderr.write(f"{told}\n")
        with suppress(MachineError):  # the disk may be full; whoever has started this looks at it
            job.write_error(rank, told)
        return 2
    return 0


def main(path: str) -> int:
    """Carry out a `job.json` as a whole process, and leave the other processes in order.

    A process that ends while threads of its communication run may abort, though its work is done.

    Args:
        path: What `TrainingJob.write` returned.

    Returns:
        What the process should exit with.

    Raises:
        PreemptedError: After SIGTERM, which stops all processes after the same step.
    """
    try:
        code = run_file(path)
    except PreemptedError:
        _leave()
        raise
    if code == 0:  # after an error others may still wait for this process
        _leave()
    return code


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _throttled(progress: Progress) -> Progress:
    """Pass on at most one report a second, and the last."""
    told_at = 0.0

    def tell(done: int, total: int) -> None:
        nonlocal told_at
        if done == total or time.monotonic() - told_at >= _PROGRESS_SECONDS:
            progress(done, total)
            told_at = time.monotonic()

    return tell


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Several trainings of a size at once, where the machines have room for them."""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from minitron_nas.distillation.job import TrainingJob
from minitron_nas.distillation.launch import run as run_training
from minitron_nas.distillation.training.arguments import most_processes
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.errors import PlanError, WorkerError
from minitron_nas.execution.runner import last_line
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.execution.workers import Workers
from minitron_nas.pipeline.run import Run
from minitron_nas.progress import Progress
from minitron_nas.storage.machine import machine_error


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a training among others.

    Attributes:
        share: Of the time that all of them took.
        error: Why it failed; None if it did not.
    """

    share: float
    error: str | None


@dataclass(frozen=True, slots=True)
class Trainers:
    """Workers whose jobs are whole trainings.

    Each has the processes that it would have alone, on one node, so that the weights are the same.

    Attributes:
        workers: They.
        runner: How a training runs where a job is.
    """

    workers: Workers
    runner: RunnerSettings

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return those of a run.

        Args:
            run: The run.

        Raises:
            PlanError: If no cluster answers.
        """
        plan, runner, num_gpus = run.plan, run.plan.runner, run.workers.num_gpus()
        schedule = Schedule.resolve(plan.distillation, run.tokens.distillation_tokens, plan.text.sequence_length)
        number = runner.num_processes or most_processes(plan.distillation, schedule, num_gpus)
        asked = {
            "cpus_per_trial": number * (runner.cpus_per_trial or 1.0),
            "gpus_per_trial": float(number if num_gpus else 0),
            "timeout_factor": None,  # how long one takes says nothing of another, which may only have had to go on
        }
        there = {"kind": "local", "address": None, "num_processes": number}
        workers = replace(run.workers, settings=runner.model_copy(update=asked))
        return cls(workers, runner.model_copy(update=there))

    def room(self) -> int:
        """Return how many trainings run at once; 0 if no node holds one, which is spread over several then."""
        try:
            return self.workers.room()
        except PlanError:
            return 0

    def train(self, jobs: Sequence[TrainingJob], progress: Progress) -> list[Ended]:
        """Carry out trainings, as many at once as there is room for; what comes out lies where each job says.

        One that fails leaves nothing: it goes on alone in its own stage, which says why it fails, and when the stages
        before it have ended.

        Args:
            jobs: The trainings.
            progress: Told how far they are together.

        Raises:
            MachineError: If a disk is full, read-only, failing or gone, here or where a job ran.
        """
        parts = [{"job": job, "runner": self.runner} for job in jobs]
        try:
            ended = self.workers.share(carry_out, parts, progress)
        except WorkerError as error:  # lost again and again
            lost = str(error).partition("\n")[0]
            return [Ended(1 / len(jobs), None if job.is_done else lost) for job in jobs]
        seconds = sum(each["seconds"] for each in ended)
        return [Ended(each["seconds"] / seconds, each["error"]) for each in ended]


def carry_out(job: TrainingJob, runner: RunnerSettings, progress: Progress) -> dict[str, Any]:
    """Carry out one of them, in a worker.

    Args:
        job: The training.
        runner: How it runs.
        progress: Told about optimizer steps.

    Returns:
        The `seconds` that it took, and as `error` what it raises, but for faults of the machine.
    """
    began, failed = time.perf_counter(), None
    try:
        run_training(job, runner, progress)
    except Exception as error:
        if machine_error(error) is not None:
            raise
        failed = last_line(traceback.format_exc())
    return {"seconds": time.perf_counter() - began, "error": failed}

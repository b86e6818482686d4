"""The tournament: short distillation in rungs, after each of which the worse trials stop.

Rungs are synchronous, so that the result does not depend on which trial is faster. A trial that is
promoted goes on from its checkpoint, with the learning-rate schedule of the last rung. Before the first of several, as
rung 0, the trials are compared as they begin, repaired and untrained. What the rungs decide is in `contest.py`.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import TrainingFiles, TrainingJob
from minitron_nas.distillation.launch import run
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.arguments import most_processes
from minitron_nas.distillation.training.curve import TrainingResult
from minitron_nas.distillation.training.lesson import Lesson
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.distillation.training.trainer import distill
from minitron_nas.evaluation.continuations import continuations
from minitron_nas.execution.runner import Job, Jobs
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.models.causal_lm import CausalLM
from minitron_nas.models.loading import load_for_training
from minitron_nas.progress import Progress, silent
from minitron_nas.search.choice import Choice
from minitron_nas.search.contest import Contest, TrialRow, trial_key
from minitron_nas.search.rungs import quotas
from minitron_nas.search.start import Starts
from minitron_nas.space.enumerate import Candidate


@dataclass(frozen=True, slots=True)
class ShortTraining:
    """How trials are trained.

    Attributes:
        distillation: Learning rate, batch and loss.
        rung_tokens: KD tokens at the end of each rung, ascending; none at that of rung 0.
        reduction: One in this many trials goes on to the next rung, and those that tie with the best.
        seed: Of the training.
    """

    distillation: DistillationSettings
    rung_tokens: tuple[int, ...]
    reduction: int
    seed: int

    def schedule(self, sequence_length: int) -> Schedule:
        """Return the steps and batch of the last rung, along whose learning rates all rungs train."""
        return Schedule.resolve(self.distillation, self.rung_tokens[-1], sequence_length)

    def planned_tokens(self, num_trials: int, place: int = 0, num_members: int = 1) -> int:
        """Return the tokens of all trials together from a rung on, if none fails or ties.

        Args:
            num_trials: Those that take part in it.
            place: Which of the rungs it is, from 0.
            num_members: That are chosen.
        """
        ends = (0, *self.rung_tokens)[place:]
        field = quotas(num_trials, ends[1:], self.reduction, num_members)[:-1]
        return sum(trials * (end - begin) for trials, begin, end in zip(field, ends, ends[1:], strict=False))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a worker."""
        return {
            "distillation": self.distillation.model_dump(mode="json"),
            "rung_tokens": list(self.rung_tokens),
            "reduction": self.reduction,
            "seed": self.seed,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned."""
        settings = DistillationSettings(**values["distillation"])
        return cls(settings, tuple(values["rung_tokens"]), values["reduction"], values["seed"])


def tournament(
    finalists: Sequence[Candidate],
    starts: Starts,
    training: ShortTraining,
    jobs: Jobs,
    checkpoints: Path,
    choice: Choice | None = None,
    progress: Progress = silent,
) -> tuple[list[Candidate], list[TrialRow]]:
    """Train the finalists briefly, rung by rung, and return the chosen, the first one first, and every trial's rungs.

    Args:
        finalists: Best first.
        starts: What trials begin with; those of the chosen stay.
        training: Rungs, reduction between them, and how trials are trained.
        jobs: Where and how trials run.
        checkpoints: A folder of checkpoints, which go when a trial has ended.
        choice: How many are chosen, and by what; the one with the lowest KL without it.
        progress: Told about trial tokens.

    Raises:
        TrialError: If no trial of a rung completed.
    """
    schedule = training.schedule(starts.files.train.open().input_ids.shape[1])
    seen = [tokens and schedule.steps_for(tokens) * schedule.tokens_per_step for tokens in training.rung_tokens]
    choice = choice or Choice()
    contest = Contest(finalists, seen, training.reduction, choice)
    arguments = {"starts": starts.to_dict(), "training": training.to_dict()}
    done, previous = 0, 0
    while not contest.is_over:
        alive, tokens = contest.alive, training.rung_tokens[contest.place]
        todo = [
            Job(
                trial_key(candidate.id, contest.rung),
                {
                    **arguments,
                    "architecture": candidate.architecture.to_dict(),
                    "stop_tokens": tokens,
                    "checkpoints": str(checkpoints.absolute() / candidate.id),
                },
            )
            for candidate in alive
        ]
        step, before = tokens - previous, done
        total = before + training.planned_tokens(len(alive), contest.place, choice.num_members)
        outcomes = jobs.run(
            train_rung,
            todo,
            lambda finished, _, step=step, before=before, total=total: progress(before + finished * step, total),  # type: ignore[misc]
        )
        done, previous = done + len(todo) * step, tokens
        contest.end_rung({c.id: outcomes[job.key] for c, job in zip(alive, todo, strict=True)})
        for candidate in alive:
            if contest.is_over or candidate not in contest.alive:
                shutil.rmtree(checkpoints / candidate.id, ignore_errors=True)
            if candidate not in contest.alive:
                shutil.rmtree(starts.of(candidate.architecture), ignore_errors=True)
    progress(done, done)
    return contest.alive, contest.rows


def train_rung(
    starts: Mapping[str, Any],
    architecture: Mapping[str, Any],
    training: Mapping[str, Any],
    stop_tokens: int,
    checkpoints: str,
) -> dict[str, Any]:
    """Train one candidate to the end of a rung, from where the rung before left it, or from what its student will be.

    To the end of rung 0 it is not trained.

    Args:
        starts: `Starts.to_dict`.
        architecture: The candidate's shape, `Architecture.to_dict`.
        training: `ShortTraining.to_dict`.
        stop_tokens: KD tokens at the end of the rung.
        checkpoints: The trial's folder.
    """
    short, begun, target = ShortTraining.from_dict(training), Starts.from_dict(starts), Architecture(**architecture)
    files = begun.files
    schedule = short.schedule(files.train.open().input_ids.shape[1])
    measured = begun.write(target)
    begins = {"start_kl_nats": measured.kl_nats, "repair": measured.repair}
    if not stop_tokens:
        return {**begins, **measured.standing(), "written": None}
    stop_step = schedule.steps_for(stop_tokens)
    result, student = train_shortly(
        begun.of(target), files, short.distillation, schedule, short.seed, Path(checkpoints), stop_step
    )
    # Where several processes train, none of them has the student as a whole.
    written = continuations(student, files.validation.open()) if student is not None else None
    return {
        "kl_nats": result.final.kl_nats,
        "loss_nats": result.final.loss_nats,
        "sequence_kl_nats": list(result.sequence_kl_nats),
        "written": written,
        **begins,
    }


def train_shortly(
    start: Path,
    files: TrainingFiles,
    distillation: DistillationSettings,
    schedule: Schedule,
    seed: int,
    folder: Path,
    stop_step: int,
) -> tuple[TrainingResult, CausalLM | None]:
    """Train a student without a word to trackers, validate it once at the end, and leave its checkpoints.

    Where this process sees several devices, as one does that Ray has given several to, each trains a part of the batch.

    Args:
        start: The untrained student, a stock folder.
        files: Streams and signals.
        distillation: How it learns.
        schedule: Steps and batch.
        seed: Of the training.
        folder: Of the checkpoints.
        stop_step: Where it stops.

    Returns:
        Its curve, and the student as it stands then; None where several processes train, of which none has it whole.
    """
    once = {"num_evaluations": 1, "report_to": (), "torch_compile": False}
    settings = distillation.model_copy(update=once)
    num_processes = most_processes(settings, schedule, torch.cuda.device_count())
    if num_processes > 1:
        job = TrainingJob(start, files, settings, schedule, folder, seed, folder / "training", stop_step)
        return run(job, RunnerSettings(kind="local", num_processes=num_processes)), None
    alone = settings.model_copy(update={"deepspeed": None})  # which only shards
    train, validation = files.streams(settings.asks_teacher)
    student = load_for_training(start)
    return distill(student, Lesson(train, validation, alone, schedule, seed), folder, stop_step), student

"""The tournament: short distillation in rungs, after each of which the worse trials stop.

Rungs are synchronous, so that the result does not depend on which trial is faster. A trial that is
promoted goes on from its checkpoint, with the learning-rate schedule of the last rung.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Any, Self

import torch

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import TrainingFiles, TrainingJob
from minitron_nas.distillation.launch import run
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.arguments import most_processes
from minitron_nas.distillation.training.lesson import Lesson
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.distillation.training.trainer import distill
from minitron_nas.errors import TrialError
from minitron_nas.execution.runner import Job, Jobs, Outcome, last_line
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.models.loading import load_for_training
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.search.start import write_start
from minitron_nas.space.enumerate import Candidate


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One rung of one trial, as in `trials.parquet`."""

    candidate: Candidate
    rung: int
    tokens: int
    outcome: Outcome
    promoted: bool

    def to_row(self, size: str) -> dict[str, Any]:
        """Return the table's row."""
        value = self.outcome.value or {}
        return {
            "size": size,
            "candidate": self.candidate.id,
            "rung": self.rung,
            "tokens": self.tokens,
            "kl_nats": value.get("kl_nats"),
            "loss_nats": value.get("loss_nats"),
            "start_kl_nats": value.get("start_kl_nats"),
            "repair": value.get("repair"),
            "promoted": self.promoted,
            "status": self.outcome.status,
            "error": last_line(self.outcome.error),
            "num_parameters": self.candidate.num_parameters,
            "seconds": self.outcome.seconds,
        }


@dataclass(frozen=True, slots=True)
class ShortTraining:
    """How trials are trained.

    Attributes:
        distillation: Learning rate, batch and loss.
        rung_tokens: KD tokens at the end of each rung, ascending.
        reduction: One in this many trials goes on to the next rung.
        seed: Of the training.
    """

    distillation: DistillationSettings
    rung_tokens: tuple[int, ...]
    reduction: int
    seed: int

    def schedule(self, sequence_length: int) -> Schedule:
        """Return the steps and batch of the last rung, along whose learning rates all rungs train."""
        return Schedule.resolve(self.distillation, self.rung_tokens[-1], sequence_length)

    def planned_tokens(self, num_trials: int) -> int:
        """Return the tokens of all trials together if none fails."""
        total, previous = 0, 0
        for tokens in self.rung_tokens:
            total += num_trials * (tokens - previous)
            num_trials, previous = ceil(num_trials / self.reduction), tokens
        return total

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
    prepared: PreparedTeacher,
    files: TrainingFiles,
    training: ShortTraining,
    jobs: Jobs,
    checkpoints: Path,
    calibration: Path | None = None,
    progress: Progress = silent,
) -> tuple[Candidate, list[TrialRow]]:
    """Train the finalists briefly, rung by rung, and return the winner and every trial's rungs.

    Args:
        finalists: Best first.
        prepared: The ranked teacher.
        files: Streams and signals.
        training: Rungs, reduction between them, and how trials are trained.
        jobs: Where and how trials run.
        checkpoints: A folder of checkpoints, which go when a trial has ended.
        calibration: The text on which trials are repaired before they train; None to repair nothing.
        progress: Told about trial tokens.

    Raises:
        TrialError: If no trial of a rung completed.
    """
    alive, rows = list(finalists), []
    rungs = training.rung_tokens
    schedule = training.schedule(files.train.open().input_ids.shape[1])
    total, done = training.planned_tokens(len(alive)), 0
    previous = 0
    for rung, tokens in enumerate(rungs, start=1):
        todo = [
            Job(
                f"{candidate.id}.rung-{rung}",
                {
                    "prepared": prepared.to_dict(),
                    "architecture": candidate.architecture.to_dict(),
                    "files": files.to_dict(),
                    "training": training.to_dict(),
                    "stop_tokens": tokens,
                    "checkpoints": str(checkpoints.absolute() / candidate.id),
                    "calibration": str(calibration.absolute()) if calibration is not None else None,
                },
            )
            for candidate in alive
        ]
        step, before = tokens - previous, done
        outcomes = jobs.run(
            train_rung,
            todo,
            lambda finished, _, step=step, before=before: progress(before + finished * step, total),  # type: ignore[misc]
        )
        done, previous = done + len(todo) * step, tokens
        by_candidate = {c.id: outcomes[job.key] for c, job in zip(alive, todo, strict=True)}
        ranked = _ranked(alive, by_candidate)
        if not ranked:
            errors = {last_line(outcome.error) or "its KL is not finite" for outcome in by_candidate.values()}
            raise TrialError(f"no trial of rung {rung} completed with a finite KL: {'; '.join(sorted(errors))}")
        keep = 1 if rung == len(rungs) else ceil(len(ranked) / training.reduction)
        promoted = {candidate.id for candidate in ranked[:keep]}
        seen = schedule.steps_for(tokens) * schedule.tokens_per_step
        rows += [TrialRow(c, rung, seen, by_candidate[c.id], c.id in promoted) for c in alive]
        for candidate in alive:
            if candidate.id not in promoted or rung == len(rungs):
                shutil.rmtree(checkpoints / candidate.id, ignore_errors=True)
        alive = [candidate for candidate in alive if candidate.id in promoted]
    progress(total, total)
    return alive[0], rows


def train_rung(
    prepared: Mapping[str, str],
    architecture: Mapping[str, Any],
    files: Mapping[str, Any],
    training: Mapping[str, Any],
    stop_tokens: int,
    checkpoints: str,
    calibration: str | None = None,
) -> dict[str, Any]:
    """Train one candidate to the end of a rung, from where the rung before left it, or from what its student will be.

    Where this process sees several devices, as one does that Ray has given several to, each trains a part of the batch.

    Args:
        prepared: `PreparedTeacher.to_dict`.
        architecture: The candidate's shape, `Architecture.to_dict`.
        files: `TrainingFiles.to_dict`.
        training: `ShortTraining.to_dict`.
        stop_tokens: KD tokens at the end of the rung.
        checkpoints: The trial's folder.
        calibration: The text that repairs read; None to repair nothing.
    """
    short, training_files, folder = ShortTraining.from_dict(training), TrainingFiles.from_dict(files), Path(checkpoints)
    once = {"num_evaluations": 1, "report_to": (), "torch_compile": False}
    settings = short.distillation.model_copy(update=once)
    schedule = short.schedule(training_files.train.open().input_ids.shape[1])
    stop_step = schedule.steps_for(stop_tokens)

    start = write_start(
        PreparedTeacher.from_dict(prepared),
        Architecture(**architecture),
        Path(calibration) if calibration is not None else None,
        training_files,
        folder / "start",
    )
    num_processes = most_processes(settings, schedule, torch.cuda.device_count())
    if num_processes > 1:
        out = folder / "training"
        job = TrainingJob(folder / "start", training_files, settings, schedule, folder, short.seed, out, stop_step)
        result = run(job, RunnerSettings(kind="local", num_processes=num_processes))
    else:
        alone = settings.model_copy(update={"deepspeed": None})  # which only shards
        train, validation = training_files.streams(settings.asks_teacher)
        lesson = Lesson(train, validation, alone, schedule, short.seed)
        result = distill(load_for_training(folder / "start"), lesson, folder, stop_step)
    told = {"kl_nats": result.final.kl_nats, "loss_nats": result.final.loss_nats}
    return {**told, "start_kl_nats": start.kl_nats, "repair": start.repair}


def _ranked(alive: Sequence[Candidate], outcomes: Mapping[str, Outcome]) -> list[Candidate]:
    """Completed candidates with a finite KL, best first; ties keep their order."""

    def kl(candidate: Candidate) -> float:
        value = outcomes[candidate.id].value
        return float(value["kl_nats"]) if value is not None else float("inf")

    return sorted((candidate for candidate in alive if isfinite(kl(candidate))), key=kl)

"""The tournament: short distillation in rungs, after each of which the worse trials stop.

Rungs are synchronous, so that the result does not depend on which trial is faster. A trial that is
promoted goes on from its checkpoint, with the learning-rate schedule of the last rung.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import torch

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import TrainingFiles, TrainingJob
from minitron_nas.distillation.launch import run
from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.arguments import most_processes
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.distillation.training.trainer import distill
from minitron_nas.errors import TrialError
from minitron_nas.execution.device import pick_device
from minitron_nas.execution.runner import Job, Outcome, Runner, last_line, run_jobs
from minitron_nas.execution.settings import RunnerSettings
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.student import build_student
from minitron_nas.search.settings import SearchSettings
from minitron_nas.space.enumerate import Candidate
from minitron_nas.storage.atomic import whole_folder
from minitron_nas.text.tokens import PackedTokens


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
            "promoted": self.promoted,
            "status": self.outcome.status,
            "error": last_line(self.outcome.error),
            "num_parameters": self.candidate.num_parameters,
            "seconds": self.outcome.seconds,
        }


def tournament(
    finalists: Sequence[Candidate],
    prepared: PreparedTeacher,
    files: TrainingFiles,
    search: SearchSettings,
    distillation: DistillationSettings,
    rung_tokens: Sequence[int],
    runner: Runner,
    max_failures: int,
    folder: Path,
    seed: int,
    progress: Progress = silent,
) -> tuple[Candidate, list[TrialRow]]:
    """Train the finalists briefly, rung by rung, and return the winner and every trial's rungs.

    Args:
        finalists: Best first.
        prepared: The ranked teacher.
        files: Streams and signals.
        search: Reduction between rungs.
        distillation: Learning rate, batch and loss.
        rung_tokens: KD tokens at the end of each rung, ascending.
        runner: Where trials run.
        max_failures: More failed trials than this stop the search.
        folder: Checkpoints and results of trials; checkpoints go when a trial has ended.
        seed: Of the training.
        progress: Told about trial tokens.

    Raises:
        TrialError: If no trial of a rung completed.
    """
    alive, rows = list(finalists), []
    train = PackedTokens.load(files.train_tokens)
    schedule = Schedule.resolve(distillation, rung_tokens[-1], train.input_ids.shape[1])
    total, done = _planned_tokens(len(alive), rung_tokens, search.reduction), 0
    previous = 0
    for rung, tokens in enumerate(rung_tokens, start=1):
        jobs = [
            Job(
                f"{candidate.id}.rung-{rung}",
                {
                    "source": str(prepared.path.absolute()),
                    "prepared": str(prepared.folder.absolute()),
                    "architecture": candidate.architecture.to_dict(),
                    "files": files.to_dict(),
                    "distillation": distillation.model_dump(mode="json"),
                    "schedule_tokens": rung_tokens[-1],
                    "stop_tokens": tokens,
                    "checkpoints": str(folder.absolute() / "checkpoints" / candidate.id),
                    "seed": seed,
                },
            )
            for candidate in alive
        ]
        step, before = tokens - previous, done
        outcomes = run_jobs(
            runner,
            train_rung,
            jobs,
            folder / "results",
            max_failures,
            lambda finished, _, step=step, before=before: progress(before + finished * step, total),  # type: ignore[misc]
        )
        done, previous = done + len(jobs) * step, tokens
        by_candidate = {c.id: outcomes[job.key] for c, job in zip(alive, jobs, strict=True)}
        ranked = _ranked(alive, by_candidate)
        if not ranked:
            errors = {last_line(outcome.error) or "its KL is not finite" for outcome in by_candidate.values()}
            raise TrialError(f"no trial of rung {rung} completed with a finite KL: {'; '.join(sorted(errors))}")
        keep = 1 if rung == len(rung_tokens) else ceil(len(ranked) / search.reduction)
        promoted = {candidate.id for candidate in ranked[:keep]}
        seen = schedule.steps_for(tokens) * schedule.tokens_per_step
        rows += [TrialRow(c, rung, seen, by_candidate[c.id], c.id in promoted) for c in alive]
        for candidate in alive:
            if candidate.id not in promoted or rung == len(rung_tokens):
                shutil.rmtree(folder / "checkpoints" / candidate.id, ignore_errors=True)
        alive = [candidate for candidate in alive if candidate.id in promoted]
    progress(total, total)
    return alive[0], rows


def train_rung(
    source: str,
    prepared: str,
    architecture: Mapping[str, Any],
    files: Mapping[str, str | None],
    distillation: Mapping[str, Any],
    schedule_tokens: int,
    stop_tokens: int,
    checkpoints: str,
    seed: int,
) -> dict[str, float | None]:
    """Train one candidate to the end of a rung, from where the rung before left it.

    Where this process sees several devices, as one does that Ray has given several to, each trains a part of the batch.
    """
    short = {"num_evaluations": 1, "report_to": (), "torch_compile": False}
    settings = DistillationSettings(**distillation).model_copy(update=short)
    training_files, folder = TrainingFiles.from_dict(files), Path(checkpoints)
    sequence_length = PackedTokens.load(training_files.train_tokens).input_ids.shape[1]
    schedule = Schedule.resolve(settings, schedule_tokens, sequence_length)
    stop_step = schedule.steps_for(stop_tokens)

    def sliced() -> Any:
        teacher = PreparedTeacher.open(Path(source), Path(prepared))
        return build_student(teacher, Architecture(**architecture), torch.float32)

    num_processes = most_processes(settings, schedule, torch.cuda.device_count())
    if num_processes > 1:
        start = folder / "start"
        if not start.exists():
            with whole_folder(start) as unfinished:
                sliced().save_pretrained(unfinished)
        job = TrainingJob(start, training_files, settings, schedule, folder, seed, folder / "training", stop_step)
        result = run(job, RunnerSettings(kind="local", num_processes=num_processes))
    else:
        alone = settings.model_copy(update={"deepspeed": None})  # which only shards
        train, validation = training_files.streams(settings.asks_teacher)
        student = sliced().to(pick_device())
        result = distill(student, train, validation, alone, schedule, folder, seed, stop_step)
    return {"kl_nats": result.final.kl_nats, "loss_nats": result.final.loss_nats}


def _ranked(alive: Sequence[Candidate], outcomes: Mapping[str, Outcome]) -> list[Candidate]:
    """Completed candidates with a finite KL, best first; ties keep their order."""

    def kl(candidate: Candidate) -> float:
        value = outcomes[candidate.id].value
        return float(value["kl_nats"]) if value is not None else float("inf")

    return sorted((candidate for candidate in alive if isfinite(kl(candidate))), key=kl)


def _planned_tokens(num_trials: int, rung_tokens: Sequence[int], reduction: int) -> int:
    total, previous = 0, 0
    for tokens in rung_tokens:
        total += num_trials * (tokens - previous)
        num_trials, previous = ceil(num_trials / reduction), tokens
    return total

"""Screening: every candidate's untrained KL to the teacher."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import TrainingFiles
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.errors import TrialError
from minitron_nas.execution.device import compute_dtype, pick_device
from minitron_nas.execution.runner import Job, Jobs, Outcome, last_line
from minitron_nas.models.causal_lm import moved
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.student import build_student
from minitron_nas.search.settings import SearchSettings
from minitron_nas.space.enumerate import Candidate


def sample_candidates(candidates: Sequence[Candidate], settings: SearchSettings, seed: int) -> list[Candidate]:
    """Return all candidates, or a seeded sample of a large space, in their own order.

    Args:
        candidates: Of one size.
        settings: Say how many are screened at most.
        seed: Of the sample.
    """
    if len(candidates) <= settings.max_screened:
        return list(candidates)
    chosen = set(random.Random(seed).sample(range(len(candidates)), settings.max_screened))
    return [candidate for index, candidate in enumerate(candidates) if index in chosen]


def screen(
    candidates: Sequence[Candidate],
    prepared: PreparedTeacher,
    files: TrainingFiles,
    settings: SearchSettings,
    jobs: Jobs,
    progress: Progress = silent,
) -> dict[str, Outcome]:
    """Measure untrained candidates; returns outcomes by candidate id, values `kl_nats` and `loss_nats`.

    Args:
        candidates: What to measure.
        prepared: The ranked teacher that they are cut from.
        files: The held-out stream with the teacher's hidden states.
        settings: Say how many of its sequences are read.
        jobs: Where and how they run.
        progress: Told about candidates.

    Raises:
        TrialError: If too many candidates failed, or none could be measured.
    """
    todo = [
        Job(
            candidate.id,
            {
                "prepared": prepared.to_dict(),
                "architecture": candidate.architecture.to_dict(),
                "files": files.to_dict(),
                "num_sequences": settings.screen_sequences,
            },
        )
        for candidate in candidates
    ]
    outcomes = jobs.run(screen_candidate, todo, progress)
    if all(outcome.value is None for outcome in outcomes.values()):
        errors = {last_line(outcome.error) or "" for outcome in outcomes.values()}
        raise TrialError(f"no candidate could be measured: {'; '.join(sorted(errors))}")
    return outcomes


def screen_candidate(
    prepared: Mapping[str, str],
    architecture: Mapping[str, Any],
    files: Mapping[str, Any],
    num_sequences: int | None,
) -> dict[str, float]:
    """Slice one candidate and validate it as it is.

    Args:
        prepared: `PreparedTeacher.to_dict`.
        architecture: The candidate's shape, `Architecture.to_dict`.
        files: `TrainingFiles.to_dict`.
        num_sequences: How many held-out sequences are read; None for all.
    """
    device = pick_device()
    target = Architecture(**architecture)
    student = build_student(PreparedTeacher.from_dict(prepared), target, compute_dtype(device))
    held_out = TrainingFiles.from_dict(files).held_out()
    tokens = held_out.tokens.first(num_sequences or held_out.tokens.num_sequences)
    losses = validate(moved(student, device), tokens, held_out.signal)
    return {"kl_nats": losses.kl_nats, "loss_nats": losses.loss_nats}

"""Screening: every candidate's untrained KL to the teacher."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.distillation.signals.hidden_cache import HiddenCache
from minitron_nas.errors import TrialError
from minitron_nas.execution.device import compute_dtype, pick_device
from minitron_nas.execution.runner import Job, Outcome, Runner, last_line, run_jobs
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.student import build_student
from minitron_nas.search.settings import SearchSettings
from minitron_nas.space.enumerate import Candidate
from minitron_nas.text.tokens import PackedTokens


@dataclass(frozen=True, slots=True)
class ValidationFiles:
    """Held-out tokens and the teacher's states over them, as paths that any worker can open.

    Attributes:
        tokens: The stream.
        cache: The teacher's hidden states over it.
        teacher_fingerprint: Whose states they must be.
    """

    tokens: Path
    cache: Path
    teacher_fingerprint: str


def sample_candidates(candidates: Sequence[Candidate], settings: SearchSettings, seed: int) -> list[Candidate]:
    """Return all candidates, or a seeded sample of a large space, in their own order."""
    if len(candidates) <= settings.max_screened:
        return list(candidates)
    chosen = set(random.Random(seed).sample(range(len(candidates)), settings.max_screened))
    return [candidate for index, candidate in enumerate(candidates) if index in chosen]


def screen(
    candidates: Sequence[Candidate],
    prepared: PreparedTeacher,
    validation: ValidationFiles,
    settings: SearchSettings,
    runner: Runner,
    max_failures: int,
    results: Path,
    progress: Progress = silent,
) -> dict[str, Outcome]:
    """Measure untrained candidates; returns outcomes by candidate id, values `kl_nats` and `loss_nats`.

    Raises:
        TrialError: If too many candidates failed, or none could be measured.
    """
    jobs = [
        Job(
            candidate.id,
            {
                "source": str(prepared.path.absolute()),
                "prepared": str(prepared.folder.absolute()),
                "architecture": candidate.architecture.to_dict(),
                "tokens": str(validation.tokens.absolute()),
                "cache": str(validation.cache.absolute()),
                "teacher": validation.teacher_fingerprint,
                "num_sequences": settings.screen_sequences,
            },
        )
        for candidate in candidates
    ]
    outcomes = run_jobs(runner, screen_candidate, jobs, results, max_failures, progress)
    if all(outcome.value is None for outcome in outcomes.values()):
        errors = {last_line(outcome.error) or "" for outcome in outcomes.values()}
        raise TrialError(f"no candidate could be measured: {'; '.join(sorted(errors))}")
    return outcomes


def screen_candidate(
    source: str,
    prepared: str,
    architecture: Mapping[str, Any],
    tokens: str,
    cache: str,
    teacher: str,
    num_sequences: int | None,
) -> dict[str, float]:
    """Slice one candidate and validate it as it is."""
    device = pick_device()
    student = build_student(
        PreparedTeacher.open(Path(source), Path(prepared)), Architecture(**architecture), compute_dtype(device)
    )
    held_out = PackedTokens.load(Path(tokens))
    signal = HiddenCache(Path(cache), teacher, held_out)
    losses = validate(student.to(device), held_out.first(num_sequences or held_out.num_sequences), signal)
    return {"kl_nats": losses.kl_nats, "loss_nats": losses.loss_nats}

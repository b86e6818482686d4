"""Screening: the untrained KL of candidates to the teacher."""

from collections.abc import Mapping, Sequence
from typing import Any

from minitron_nas.architecture.spec import Architecture
from minitron_nas.distillation.job import TrainingFiles
from minitron_nas.distillation.loss.validation import validate
from minitron_nas.execution.device import compute_dtype, pick_device
from minitron_nas.execution.runner import Job, Jobs, Outcome
from minitron_nas.models.causal_lm import moved
from minitron_nas.progress import Progress, silent
from minitron_nas.pruning.prepare import PreparedTeacher
from minitron_nas.pruning.student import build_student
from minitron_nas.space.enumerate import Candidate


def screen(
    candidates: Sequence[Candidate],
    prepared: PreparedTeacher,
    files: TrainingFiles,
    num_sequences: int | None,
    jobs: Jobs,
    progress: Progress = silent,
) -> dict[str, Outcome]:
    """Measure untrained candidates; returns outcomes by candidate id.

    Their values are `kl_nats`, `loss_nats`, and `sequence_kl_nats`, the KL of each sequence, summed over its tokens.

    Args:
        candidates: What to measure.
        prepared: The ranked teacher that they are cut from.
        files: The held-out stream with the teacher's hidden states.
        num_sequences: How many of its sequences are read; None for all.
        jobs: Where and how they run.
        progress: Told about candidates.

    Raises:
        TrialError: If too many candidates failed.
    """
    todo = [
        Job(
            candidate.id,
            {
                "prepared": prepared.to_dict(),
                "architecture": candidate.architecture.to_dict(),
                "files": files.to_dict(),
                "num_sequences": num_sequences,
            },
        )
        for candidate in candidates
    ]
    return jobs.run(screen_candidate, todo, progress)


def screen_candidate(
    prepared: Mapping[str, str],
    architecture: Mapping[str, Any],
    files: Mapping[str, Any],
    num_sequences: int | None,
) -> dict[str, Any]:
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
    by_sequence = list(losses.sequence_kl_nats)
    return {"kl_nats": losses.kl_nats, "loss_nats": losses.loss_nats, "sequence_kl_nats": by_sequence}

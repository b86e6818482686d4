"""Learning rates: a few are tried on a size's first finalist, in short trainings from its own start.

A probe has a fortieth of the student's tokens, so that the four that there are at most take a tenth of them, and a
quarter of the student's batch, so that it makes about a tenth of its steps; but no more tokens than a trial, and at
most fifty steps.

What is best for a probe is too low for its student: few steps at a high rate disturb weights that were repaired, and
end before they have gained anything by it. So a higher rate than the default is taken at a probe's word, and a lower
one is not tried, unless training at all others diverges or does far more harm than a probe's few steps explain.
`distillation/README.md` has the figures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from minitron_nas.distillation.job import TrainingFiles
from minitron_nas.distillation.settings import DEFAULT_LEARNING_RATE, PROBES_FIT, DistillationSettings
from minitron_nas.distillation.training.curve import Judge
from minitron_nas.distillation.training.schedule import Schedule
from minitron_nas.errors import NonFiniteLossError, TrialError
from minitron_nas.execution.runner import Job, Jobs, Outcome, last_line
from minitron_nas.progress import Progress, silent
from minitron_nas.search.tournament import train_shortly

RATES = (DEFAULT_LEARNING_RATE, 3e-4, 1e-3)
"""Those that are tried."""

ABOVE, BELOW = 3e-3, 1e-5
"""One more that is tried: the one if the highest was the best, the other if all have done harm."""

HARM = 1.1
"""Beyond so many times the KL of the untrained student, also the best probe has done harm."""

MOST_PROBES = 4

RULE = "three rates from 1e-4 on and one more, 1e-5 where all harm, a tenth of the tokens, a quarter of the batch"
"""What decides which rate is found beside the settings; changes with this file."""

_BATCHES_FIT = 4
_LEAST_STEPS = 4
_MOST_STEPS = 50
"""Those that were measured made 4 to 26; more would cost large runs hours for a number that these tell already."""


@dataclass(frozen=True, slots=True)
class Probing:
    """How learning rates are tried.

    Attributes:
        settings: Of the student's distillation.
        schedule: Steps and batch of a probe.
        seed: Of the trainings.
        untrained: What the student comes to before them on the same held-out text: `kl_nats` and `loss_nats`.
    """

    settings: DistillationSettings
    schedule: Schedule
    seed: int
    untrained: Mapping[str, Any]

    @property
    def judge(self) -> Judge:
        """What probes are compared by."""
        return "kl_nats" if self.settings.asks_teacher else "loss_nats"


@dataclass(frozen=True, slots=True)
class Probe:
    """One learning rate that was tried, as in `rates.parquet`.

    Attributes:
        learning_rate: The peak.
        tokens: KD tokens that it has seen.
        outcome: What became of it; the value has no KL where training diverged.
    """

    learning_rate: float
    tokens: int
    outcome: Outcome

    @property
    def status(self) -> str:
        """What became of it, in a word."""
        diverged = self.outcome.status == "completed" and self.outcome.number("kl_nats") is None
        return "diverged" if diverged else self.outcome.status

    @property
    def error(self) -> str | None:
        """Why it has no KL."""
        value = self.outcome.value
        return last_line(self.outcome.error if value is None else value.get("diverged"))

    def to_row(self, chosen: float) -> dict[str, Any]:
        """Return the table's row without size, candidate and start.

        Args:
            chosen: The rate that was chosen.
        """
        return {
            "learning_rate": self.learning_rate,
            "tokens": self.tokens,
            "kl_nats": self.outcome.number("kl_nats"),
            "loss_nats": self.outcome.number("loss_nats"),
            "chosen": self.learning_rate == chosen,
            "status": self.status,
            "error": self.error,
            "seconds": self.outcome.seconds,
        }


def probe_schedule(
    settings: DistillationSettings, student: Schedule, most_tokens: int | None = None
) -> Schedule | None:
    """Return the steps and batch of a probe; None where its share of the tokens is less than a few steps.

    It is None, too, where the settings give a rate.

    Args:
        settings: Say whether a rate is looked for, and how many sequences go through a forward pass.
        student: Steps and batch of the student.
        most_tokens: More a probe may not have, such as those of a trial; None for a fortieth of the student's.
    """
    if settings.learning_rate != "auto":
        return None
    quarter = max(student.batch_sequences // _BATCHES_FIT, 1)
    unit = min(settings.micro_batch_sequences, quarter)
    batch = quarter // unit * unit
    num_tokens = min(student.num_tokens // PROBES_FIT, most_tokens or student.num_tokens)
    num_steps = min(num_tokens // (batch * student.sequence_length), _MOST_STEPS)
    return Schedule(num_steps, batch, student.sequence_length) if num_steps >= _LEAST_STEPS else None


def why_no_probes(student: Schedule, learning_rate: float) -> str:
    """Say why no rate is looked for where `probe_schedule` returns None, and which is taken.

    Args:
        student: Steps and batch of the student.
        learning_rate: The one that is taken.
    """
    return (
        f"no learning rate is looked for: a fortieth of {student.num_tokens:,} tokens, or those of a trial, are fewer "
        f"than {_LEAST_STEPS} steps; {learning_rate:g} is taken (distillation.learning_rate)"
    )


def told_rates(chosen: float, probes: Sequence[Probe], judge: Judge) -> str:
    """Say in a line which rate was chosen of which.

    Args:
        chosen: The rate.
        probes: All that were tried.
        judge: What they were compared by.
    """
    ends = (
        f"{probe.learning_rate:g} {probe.status if reached is None else f'{reached:.3f}'}"
        for probe in probes
        for reached in (probe.outcome.number(judge),)
    )
    what = "KL" if judge == "kl_nats" else "next-token loss"
    return f"learning rate {chosen:g}; {what} in nats after {probes[0].tokens:,} tokens at each: {', '.join(ends)}"


def find_rate(
    start: Path, files: TrainingFiles, probing: Probing, jobs: Jobs, checkpoints: Path, progress: Progress = silent
) -> tuple[float, list[Probe]]:
    """Try three learning rates and perhaps one more, and return the best and all, ascending.

    Args:
        start: The untrained student, a stock folder.
        files: Streams and signals.
        probing: Which rates, and how they are tried.
        jobs: Where and how probes run.
        checkpoints: A folder for their checkpoints.
        progress: Told about their tokens.

    Raises:
        TrialError: If none of them ended with a finite KL or loss, or too many failed.
    """

    def tried(rates: Sequence[float]) -> dict[float, Probe]:
        todo = {rate: _job(start, files, probing, rate, checkpoints) for rate in rates}
        tokens = probing.schedule.num_tokens
        outcomes = jobs.run(
            train_probe, list(todo.values()), lambda done, total: progress(done * tokens, total * tokens)
        )
        return {rate: Probe(rate, tokens, outcomes[job.key]) for rate, job in todo.items()}

    with jobs.runner.held():
        probes = tried(RATES)
        one_more = _one_more(probes, probing)
        if one_more is not None:
            known = [rate for rate, probe in probes.items() if probe.outcome.status == "completed"]  # as files, by now
            probes |= tried([*known, one_more])
    best = _best(probes, probing.judge)
    if best is None:
        told = "; ".join(f"{rate:g} {probe.status} ({probe.error})" for rate, probe in probes.items())
        raise TrialError(
            f"no learning rate of those that were tried left a student with a finite KL or loss: {told}; give one that "
            "does with distillation.learning_rate"
        )
    return best, [probes[rate] for rate in sorted(probes)]


def train_probe(
    start: str,
    files: Mapping[str, Any],
    settings: Mapping[str, Any],
    schedule: Mapping[str, int],
    seed: int,
    checkpoints: str,
) -> dict[str, Any]:
    """Train a student briefly at one learning rate; one that diverges has no KL, but a word of it.

    Args:
        start: The untrained student.
        files: `TrainingFiles.to_dict`.
        settings: Of the distillation, with the rate.
        schedule: Steps and batch.
        seed: Of the training.
        checkpoints: The probe's folder.
    """
    given, steps = DistillationSettings.model_validate(settings), Schedule(**schedule)
    streams, folder = TrainingFiles.from_dict(files), Path(checkpoints)
    try:
        result, _ = train_shortly(Path(start), streams, given, steps, seed, folder, steps.num_steps)
    except NonFiniteLossError as error:
        return {"kl_nats": None, "loss_nats": None, "diverged": str(error)}
    final = result.final
    if final.kl_nats is None or not isfinite(final.kl_nats):
        return {"kl_nats": None, "loss_nats": None, "diverged": f"its KL is {final.kl_nats}"}
    return {"kl_nats": final.kl_nats, "loss_nats": final.loss_nats}


def _job(start: Path, files: TrainingFiles, probing: Probing, learning_rate: float, checkpoints: Path) -> Job:
    key = f"rate-{learning_rate:g}"
    arguments = {
        "start": str(start.absolute()),
        "files": files.to_dict(),
        "settings": probing.settings.at_rate(learning_rate).model_dump(mode="json"),
        "schedule": asdict(probing.schedule),
        "seed": probing.seed,
        "checkpoints": str(checkpoints.absolute() / key),
    }
    return Job(key, arguments)


def _one_more(probes: Mapping[float, Probe], probing: Probing) -> float | None:
    """Return a rate that is worth trying beyond those that were."""
    best = _best(probes, probing.judge)
    reached = None if best is None else probes[best].outcome.number(probing.judge)
    if reached is None or reached > HARM * probing.untrained[probing.judge]:
        return BELOW
    return ABOVE if best == max(RATES) else None


def _best(probes: Mapping[float, Probe], judge: Judge) -> float | None:
    """Return the rate of the lowest KL or loss, of equals the lower rate; None where none is finite."""
    reached = {
        rate: value
        for rate, probe in sorted(probes.items())
        if probe.status == "completed" and (value := probe.outcome.number(judge)) is not None
    }
    return min(reached, key=lambda rate: reached[rate], default=None)

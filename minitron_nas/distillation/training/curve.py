"""What a distillation has shown: its curve, which validation was the best, and whether it did harm; no torch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, TypeAlias

from minitron_nas.distillation.settings import DistillationSettings
from minitron_nas.distillation.training.schedule import Schedule

Judge: TypeAlias = Literal["kl_nats", "loss_nats"]
"""What validations are compared by: the KL to the teacher, or the next-token loss."""

SEQUENCE_KL = "eval_sequence_kl_nats"
"""What a validation's entry in Trainer's log calls the KL of each held-out sequence."""

_JUDGES: Mapping[Judge, str] = {"kl_nats": "KL", "loss_nats": "loss"}


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One point of a training or validation curve.

    Attributes:
        tokens: Seen so far.
        kl_nats: KL(teacher || student) per token; None for training on anything else.
        loss_nats: Next-token loss; None for training.
        objective: Mean of what was minimised since the point before; None for validation.
        learning_rate: None for validation.
    """

    tokens: int
    kl_nats: float | None
    loss_nats: float | None
    objective: float | None
    learning_rate: float | None

    @property
    def is_validation(self) -> bool:
        """Whether held-out text was read."""
        return self.learning_rate is None

    def judged(self, judge: Judge) -> float:
        """Return what a validation is compared by, in nats; NaN where it has none.

        Args:
            judge: Which of its numbers.
        """
        value: float | None = getattr(self, judge)
        return float("nan") if value is None else value


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a distillation leaves: its curve, which ends with a validation.

    Attributes:
        curve: In the order of training.
        judge: What its validations are compared by.
        sequence_kl_nats: The KL of each held-out sequence in the last validation, summed over its tokens.
    """

    curve: tuple[CurvePoint, ...]
    judge: Judge = "kl_nats"
    sequence_kl_nats: tuple[float, ...] = ()

    @classmethod
    def of(
        cls, history: Iterable[Mapping[str, Any]], settings: DistillationSettings, schedule: Schedule, judge: Judge
    ) -> "TrainingResult":
        """Read what Trainer has logged.

        Args:
            history: Its entries.
            settings: Say what was minimised.
            schedule: Says how many tokens a step is.
            judge: What validations are compared by.
        """
        entries = list(history)
        points = (_curve_point(entry, settings, schedule) for entry in entries)
        by_sequence = [entry[SEQUENCE_KL] for entry in entries if SEQUENCE_KL in entry]
        last = tuple(by_sequence[-1]) if by_sequence else ()
        return cls(tuple(point for point in points if point is not None), judge, last)

    @property
    def final(self) -> CurvePoint:
        """The last validation."""
        return self._validations[-1]

    @property
    def best(self) -> CurvePoint:
        """The best validation, the first of equals; the last one where none is a number."""
        finite = [point for point in self._validations if isfinite(point.judged(self.judge))]
        return min(finite, key=lambda point: point.judged(self.judge), default=self.final)

    @property
    def harm(self) -> str | None:
        """What training did to a student that it left worse than it was, in words; None where it did no harm."""
        first = self._validations[0]
        return told_harm(first.judged(self.judge), self.final, self.best.tokens, self.judge)

    @property
    def _validations(self) -> list[CurvePoint]:
        return [point for point in self.curve if point.is_validation]


def told_harm(before: float, after: CurvePoint, exported_tokens: int, judge: Judge) -> str | None:
    """Say what training did to a student that it left worse than it was; None where it did no harm.

    Args:
        before: What is compared, before training.
        after: The last validation.
        exported_tokens: KD tokens after which the weights were what they are in the student's folder.
        judge: What is compared.
    """
    if not after.judged(judge) > before:
        return None
    kept = f"those after {exported_tokens:,} tokens are kept" if exported_tokens else "the untrained ones are kept"
    return (
        f"training made it worse: validation {_JUDGES[judge]} {before:.3f} nats before it, {after.judged(judge):.3f} "
        f"after {after.tokens:,} tokens; of its weights {kept}"
    )


def is_better(value: float, best: float | None) -> bool:
    """Whether a validation is better than the best before it.

    Args:
        value: What is compared, in nats.
        best: The same of the best so far; None where there is none.
    """
    return isfinite(value) and (best is None or value < best)


def _curve_point(entry: Mapping[str, Any], settings: DistillationSettings, schedule: Schedule) -> CurvePoint | None:
    tokens = entry["step"] * schedule.tokens_per_step
    if "eval_kl_nats" in entry:
        return CurvePoint(tokens, entry["eval_kl_nats"], entry["eval_loss_nats"], None, None)
    if "loss" in entry:
        kl = entry["loss"] if settings.minimises_kl else None
        return CurvePoint(tokens, kl, None, entry["loss"], entry["learning_rate"])
    return None

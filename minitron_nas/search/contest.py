"""The decisions of a tournament: from what the trials of a rung have come to, to who trains on and who is chosen.

Nothing is trained here, so that whoever has KLs, measured or simulated, can hold the same contest. Who goes on, and
whether another rung could change anything, is decided in `rungs.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean
from typing import Any

from minitron_nas.errors import TrialError
from minitron_nas.evaluation.continuations import agreement
from minitron_nas.execution.runner import Outcome, last_line
from minitron_nas.search.choice import Choice
from minitron_nas.search.rungs import Standing, going_on, is_decided, p_worse, quotas, share
from minitron_nas.space.enumerate import Candidate


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One rung of one trial, as in `trials.parquet`."""

    candidate: Candidate
    rung: int
    tokens: int
    outcome: Outcome
    promoted: bool
    p_worse: float | None = None

    def to_row(self, size: str, teacher: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
        """Return the table's row.

        Args:
            size: The label.
            teacher: How the teacher continues held-out text.
        """
        value = self.outcome.value or {}
        written = value.get("written")
        return {
            "size": size,
            "candidate": self.candidate.id,
            "rung": self.rung,
            "tokens": self.tokens,
            "kl_nats": value.get("kl_nats"),
            "loss_nats": value.get("loss_nats"),
            "start_kl_nats": value.get("start_kl_nats"),
            "repair": value.get("repair"),
            "p_worse": self.p_worse,
            "agreement_tokens": fmean(agreement(written, teacher)) if written and teacher else None,
            "promoted": self.promoted,
            "status": self.outcome.status,
            "error": last_line(self.outcome.error),
            "num_parameters": self.candidate.num_parameters,
            "seconds": self.outcome.seconds,
            "began_seconds": self.outcome.began,
        }


def trial_key(candidate: str, rung: int) -> str:
    """Return what the job of a trial's rung is called.

    Args:
        candidate: The shape id.
        rung: Its number.
    """
    return f"{candidate}.rung-{rung}"


def of_key(key: str) -> tuple[str, int | None]:
    """Return the shape id and the rung that `trial_key` was given; of a screening's key, the shape id and None.

    Args:
        key: Of a job.
    """
    candidate, _, rung = key.partition(".rung-")
    return candidate, int(rung) if rung else None


class Contest:
    """Where a tournament stands.

    Attributes:
        alive: Who takes part in the rung; when it is over, the chosen, the first one first.
        place: Which of the rungs it is, from 0.
        rows: Every trial's rungs that have ended.
        is_over: Whether it is decided.
    """

    def __init__(
        self, finalists: Sequence[Candidate], rung_tokens: Sequence[int], reduction: int, choice: Choice
    ) -> None:
        """Begin the first rung.

        Args:
            finalists: Who takes part, best first.
            rung_tokens: KD tokens that a trial has seen at the end of each rung, ascending.
            reduction: One in this many goes on.
            choice: How many are chosen, and by what.
        """
        self.alive, self.place, self.is_over = list(finalists), 0, False
        self.rows: list[TrialRow] = []
        self._rung_tokens, self._reduction, self._choice = tuple(rung_tokens), reduction, choice
        self._quotas = [*quotas(len(self.alive), rung_tokens, reduction), *(1 for _ in rung_tokens)]
        self._before: list[Standing] = []

    @property
    def rung(self) -> int:
        """The number of the rung: 0 before any training, else from 1."""
        return self.place + (self._rung_tokens[0] > 0)

    def end_rung(self, outcomes: Mapping[str, Outcome]) -> None:
        """Rank the trials of a rung, and go on to the next with those that are promoted.

        Args:
            outcomes: Of all that took part, by candidate id; values `kl_nats` and `sequence_kl_nats`.

        Raises:
            TrialError: If none completed.
        """
        ranked = _ranked(self.alive, outcomes)
        if not ranked:
            errors = {last_line(outcome.error) or "its KL is not finite" for outcome in outcomes.values()}
            raise TrialError(f"no trial of rung {self.rung} completed with a finite KL: {'; '.join(sorted(errors))}")
        choice = self._choice
        single, seen = choice.num_members == 1 and not choice.by_front, self._rung_tokens[self.place]
        quota = min(self._quotas[self.place + 1], share(len(ranked), seen, self._reduction))
        promoted = going_on(choice.ranked(ranked), max(quota, choice.num_members))
        decided = seen > 0 and (len(promoted) == 1 or (single and is_decided(self._before, ranked)))
        self.is_over = self.place == len(self._rung_tokens) - 1 or decided
        promoted = choice.members(ranked) if self.is_over else promoted
        p_values = {standing.candidate: p_worse(standing, ranked[0]) for standing in ranked[1:]}
        self.rows += [
            TrialRow(c, self.rung, seen, outcomes[c.id], c.id in promoted, p_values.get(c.id)) for c in self.alive
        ]
        by_id = {candidate.id: candidate for candidate in self.alive}
        self.alive = (
            [by_id[key] for key in promoted] if self.is_over else [each for each in self.alive if each.id in promoted]
        )
        self.place, self._before = self.place + 1, ranked if seen else []


def _ranked(alive: Sequence[Candidate], outcomes: Mapping[str, Outcome]) -> list[Standing]:
    """Completed trials with a finite KL, best first; ties keep their order."""
    values = {candidate.id: outcomes[candidate.id].value for candidate in alive}
    standings = [
        Standing(key, value["kl_nats"], value["sequence_kl_nats"])
        for key, value in values.items()
        if value is not None and isfinite(value["kl_nats"])
    ]
    return sorted(standings, key=lambda standing: standing.kl_nats)

"""Settings of the search; no torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, field_validator

from minitron_nas.search.objectives import TIMED, Constraint, Objective
from minitron_nas.settings import Count, Settings

SamplerName: TypeAlias = Literal["pool", "random", "tpe", "gp", "nsga2"]

First: TypeAlias = Literal["kl", "knee"]
"""Which point of a front comes first: that with the lowest KL, or the one nearest to the best of every objective."""

PROCEDURES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "exhaustive": {"sampler": "random", "max_screened": None, "num_finalists": None, "num_rungs": 1},
    "screen-only": {"num_finalists": 1, "num_rungs": 0},
    "random": {"sampler": "random", "max_screened": 1, "num_finalists": 1, "num_rungs": 0},
}
"""Searches by name: this engine's; the papers', which train every candidate (arXiv 2407.14679, section 4); that of
NVIDIA's released tool, which trains none; and a shape drawn at random."""


class SearchSettings(Settings):
    """How one shape per size is found.

    In a plan `search: NAME` stands for a procedure: `default`; `exhaustive`, which trains every candidate as the papers
    do; `screen-only`, which trains none; `random`, which draws one.

    Attributes:
        sampler: Who says what is screened next: `pool` looks at all candidates through a Gaussian process, `random`
            draws, `tpe`, `gp` and `nsga2` are Optuna's.
        objectives: What is weighed, KL first, then any of num_parameters, memory_bytes, prefill_seconds and
            decode_seconds; with several, the front is searched.
        constraints: What a candidate must keep to, such as `decode_speedup >= 1.6` or
            `memory_bytes <= 6GB at batch 8, context 32k`; speed-ups are relative to the first teacher.
        batch_size: Sequences at a time that memory is counted for.
        context_tokens: Tokens of each that keys and values are counted for.
        latency: A file of `minitron-nas latency`, which predicts seconds; without it the run measures one where
            seconds are weighed or constrained, or a size is told in speed.
        extends: A run whose screening this one goes on from: what was measured there under the same conditions, of any
            size, is known before the first round, and only what is measured beyond it counts for `max_screened`.
        max_screened: Candidates whose untrained KL is measured at most; null for all.
        round_size: Candidates that are screened before the sampler looks again; as many as run at a time, or more.
        screen_sequences: Validation sequences of the screening, of each held-out text; all without it.
        num_finalists: Candidates of the screening that take part in the tournament; null for all that were screened.
        tokens: KD tokens of the last rung; without it, 2 % of a student's tokens, which is what the
            papers spent (1.8B of 94B).
        num_rungs: Rungs of the tournament; each has `reduction` times the tokens of the one before. With two or more,
            finalists are compared as they begin, as rung 0, before any is trained. With 0 the best of the screening
            is taken.
        reduction: One in this many trials goes on to the next rung, one in its square from rung 0, and those that tie
            with the best, up to half as many more.
    """

    sampler: SamplerName = "pool"
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = ("kl",)
    constraints: tuple[str, ...] = ()
    batch_size: Annotated[int, Field(ge=1)] = 1
    context_tokens: Count = 4096
    latency: str | None = None
    extends: str | None = None
    max_screened: Annotated[int, Field(ge=1)] | None = 64
    round_size: Annotated[int, Field(ge=1)] = 8
    screen_sequences: Annotated[int, Field(ge=1)] | None = None
    num_finalists: Annotated[int, Field(ge=1)] | None = 16
    tokens: Count | None = None
    num_rungs: Annotated[int, Field(ge=0)] = 3
    reduction: Annotated[int, Field(ge=2)] = 2

    @field_validator("constraints")
    @classmethod
    def _readable(cls, constraints: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(Constraint.parse(text).text for text in constraints)

    @field_validator("objectives")
    @classmethod
    def _kl_first(cls, objectives: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if objectives[0] != "kl" or len(set(objectives)) < len(objectives):
            raise ValueError(f"objectives {', '.join(objectives)} must begin with kl and name each once")
        return objectives

    @property
    def others(self) -> tuple[str, ...]:
        """The objectives beside KL."""
        return self.objectives[1:]

    @property
    def weighed(self) -> tuple[str, ...]:
        """What the front is told in beside KL: the other objectives, or memory where there are none."""
        return self.others or ("memory_bytes",)

    @property
    def asks_for_seconds(self) -> bool:
        """Whether an objective or a constraint is predicted by a latency model."""
        return any(name in TIMED for name in (*self.others, *(each.column for each in self.bounds)))

    @property
    def bounds(self) -> tuple[Constraint, ...]:
        """The constraints, read."""
        return tuple(map(Constraint.parse, self.constraints))

    def num_screened(self, num_candidates: int) -> int:
        """Return how many candidates of a size are screened at most.

        Args:
            num_candidates: Of the size.
        """
        return min(num_candidates, self.max_screened or num_candidates)

    def finalists_of(self, num_candidates: int) -> int:
        """Return how many candidates of a size take part in its tournament at most.

        Args:
            num_candidates: Of the size.
        """
        screened = self.num_screened(num_candidates)
        return min(screened, self.num_finalists or screened) if self.num_rungs else 0

    def rung_tokens(self, distillation_tokens: int) -> list[int]:
        """Return the KD tokens at the end of each rung, ascending; at that of rung 0 none."""
        last = self.tokens or max(distillation_tokens // 50, 1)
        ends = [max(last // self.reduction**step, 1) for step in reversed(range(self.num_rungs))]
        return [0, *ends] if len(ends) > 1 else ends

    def last_rung(self, distillation_tokens: int) -> int | None:
        """Return the KD tokens of a trial that reaches the last rung; None where none is trained."""
        return next(reversed(self.rung_tokens(distillation_tokens)), None)


def procedure(name: str) -> dict[str, Any]:
    """Return what a named search sets.

    Args:
        name: One of `PROCEDURES`.

    Raises:
        ValueError: If there is no such search.
    """
    if name not in PROCEDURES:
        raise ValueError(f"search={name!r} is no procedure; choose from {', '.join(PROCEDURES)}, or give its settings")
    return dict(PROCEDURES[name])

"""Settings of the search; no torch."""

from typing import Annotated

from pydantic import Field

from minitron_nas.settings import Count, Settings


class SearchSettings(Settings):
    """How one shape per size is found.

    Attributes:
        max_screened: Candidates whose untrained KL is measured; a larger space is sampled by the
            plan's seed.
        screen_sequences: Validation sequences of the screening; all without it.
        num_finalists: Best candidates of the screening that are trained.
        tokens: KD tokens of the last rung; without it, 2 % of a student's tokens, which is what the
            papers spent (1.8B of 94B).
        num_rungs: Rungs of the tournament; each has `reduction` times the tokens of the one before.
        reduction: One in this many trials goes on to the next rung, and those that tie with the best, up to half as
            many more.
    """

    max_screened: Annotated[int, Field(ge=1)] = 64
    screen_sequences: Annotated[int, Field(ge=1)] | None = None
    num_finalists: Annotated[int, Field(ge=1)] = 8
    tokens: Count | None = None
    num_rungs: Annotated[int, Field(ge=1)] = 3
    reduction: Annotated[int, Field(ge=2)] = 2

    def rung_tokens(self, distillation_tokens: int) -> list[int]:
        """Return the KD tokens at the end of each rung, ascending."""
        last = self.tokens or max(distillation_tokens // 50, 1)
        return [max(last // self.reduction**step, 1) for step in reversed(range(self.num_rungs))]

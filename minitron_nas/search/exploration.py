"""Exploring a pool: rounds of proposals and measurements, until nothing that is left promises a gain."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from types import MappingProxyType
from typing import Any, Self, TypeAlias

from minitron_nas.errors import TrialError
from minitron_nas.execution.runner import Outcome, last_line
from minitron_nas.search.pool import Pool
from minitron_nas.search.proposals import Beyond, PoolSampler, RandomSampler, Sampler
from minitron_nas.search.settings import SearchSettings
from minitron_nas.space.enumerate import Candidate

Measure: TypeAlias = Callable[[Sequence[Candidate]], Mapping[str, Outcome]]
"""Measures candidates; returns outcomes by candidate id, values `kl_nats` and `loss_nats`."""

_LEAST_GAIN = 0.001
"""What is worth a round: of the least KL, or of the space between the front and the worst of every objective."""

_STILL_ROUNDS = 2
"""Rounds in a row after which nothing may promise more: early on the surrogate is often too sure."""


@dataclass(frozen=True, slots=True)
class Exploration:
    """What was measured of a pool.

    Attributes:
        outcomes: By index in the pool, in the order of the measurements; their keys are candidate ids.
        rounds: In which round each was measured, from 1, by index; 0 for what was known before.
        ended: Why no more were, in words.
    """

    outcomes: Mapping[int, Outcome]
    rounds: Mapping[int, int]
    ended: str

    def kls(self) -> dict[int, float]:
        """Return the finite KLs by index, in the order of the measurements."""
        found = {index: outcome.number("kl_nats") for index, outcome in self.outcomes.items()}
        return {index: kl for index, kl in found.items() if kl is not None and isfinite(kl)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without times: what is measured again is the same although it took another time."""
        return {
            "outcomes": {str(index): _without_times(outcome) for index, outcome in self.outcomes.items()},
            "rounds": {str(index): each for index, each in self.rounds.items()},
            "ended": self.ended,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned."""
        outcomes = {int(index): Outcome(**outcome) for index, outcome in values["outcomes"].items()}
        return cls(outcomes, {int(index): each for index, each in values["rounds"].items()}, values["ended"])


def _without_times(outcome: Outcome) -> dict[str, Any]:
    return {name: value for name, value in asdict(replace(outcome, seconds=0.0)).items() if name != "began"}


def explore(
    pool: Pool,
    sampler: Sampler,
    settings: SearchSettings,
    measure: Measure,
    before: Mapping[int, Outcome] = MappingProxyType({}),
) -> Exploration:
    """Measure candidates round by round.

    It ends when `max_screened` are measured or the pool is empty; with a sampler that predicts, also when after each of
    two rounds in a row no shape that is left is expected to gain as much as 0.1 %: of the least KL, or of the space
    that a front leaves.

    Args:
        pool: What is explored.
        sampler: Proposes.
        settings: Width of a round, and how many are measured at most.
        measure: Measures; called once a round.
        before: What is known already, by index.

    Raises:
        TrialError: If none could be measured.
    """
    most = len(before) + settings.num_screened(len(pool) - len(before))
    outcomes, rounds = dict(before), dict.fromkeys(before, 0)
    known = {index: outcome.number("kl_nats") for index, outcome in outcomes.items()}
    still = 0
    while len(outcomes) < most:
        proposed = sampler.propose(known, min(settings.round_size, most - len(outcomes)))
        found = measure([pool.candidates[index] for index in proposed])
        outcomes |= {index: found[pool.candidates[index].id] for index in proposed}
        rounds |= dict.fromkeys(proposed, max(rounds.values(), default=0) + 1)
        known |= {index: outcomes[index].number("kl_nats") for index in proposed}
        if len(outcomes) == most:
            break
        promised = sampler.promised(known) if isinstance(sampler, PoolSampler) else None
        still = still + 1 if promised is not None and promised < _LEAST_GAIN else 0
        if still == _STILL_ROUNDS:
            return Exploration(outcomes, rounds, f"no other shape promised a gain of {_LEAST_GAIN:.1%}")
    if all(outcome.value is None for outcome in outcomes.values()):
        errors = {last_line(outcome.error) or "" for outcome in outcomes.values()}
        raise TrialError(f"no candidate could be measured: {'; '.join(sorted(errors))}")
    new = most - len(before)
    ended = "all were measured" if most == len(pool) else f"search.max_screened={new} were measured"
    return Exploration(outcomes, rounds, ended)


def make_sampler(pool: Pool, settings: SearchSettings, seed: int, beyond: Sequence[Beyond] = ()) -> Sampler:
    """Return the sampler that the settings name.

    Args:
        pool: What is explored.
        settings: Name it, and the objectives.
        seed: Of its draws.
        beyond: What is known of other sizes, which only `pool` makes use of.
    """
    if settings.sampler == "random":
        return RandomSampler(pool, seed)
    if settings.sampler == "pool":
        return PoolSampler(pool, settings.others, seed, tuple(beyond))
    from minitron_nas.search.optuna_sampler import OptunaSampler  # deferred: importing optuna takes a second

    return OptunaSampler(pool, settings.sampler, settings.others, seed)

"""Who goes on from a rung, and when a tournament is decided: paired tests over the held-out sequences.

All trials are validated on the same sequences. Of two trials, d_i is by how much the KL of the one over sequence i is
larger than that of the other, and

    t = mean(d) / (sd(d) / sqrt(n)),    p = P(T > t),  T of Student's distribution with n - 1 degrees of freedom

is how likely such a difference were if it were noise of the sequences alone. It says nothing of what training will
still change: that is what later rungs are for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from scipy.special import stdtr

LEVEL = 0.05
"""A trial is worse than another where p is below this; of k trials that are held against the best, below 1/k of it."""

MOST_OF_QUOTA = 1.5
"""With those that are not significantly worse, at most so many times the quota go on."""

_COMPARED = 3
"""A tournament is decided when so many of the best have kept their order."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A trial at the end of a rung.

    Attributes:
        candidate: Its id.
        kl_nats: Mean KL per token of the held-out text.
        sequence_kl_nats: The same by sequence, summed over its tokens.
    """

    candidate: str
    kl_nats: float
    sequence_kl_nats: Sequence[float]


def p_worse(one: Standing, other: Standing) -> float:
    """Return the p-value of the paired t-test, one-sided, that one trial is worse than another.

    It is 1 where fewer than two sequences leave no noise to measure, and where both are the same.

    Args:
        one: The trial that may be worse.
        other: The trial that may be better.
    """
    differences = np.subtract(one.sequence_kl_nats, other.sequence_kl_nats)
    if len(differences) < 2 or not differences.any():  # one degree of freedom
        return 1.0
    deviation = float(differences.std(ddof=1))
    if deviation == 0.0:
        return 0.0 if differences[0] > 0 else 1.0
    t = float(differences.mean()) / (deviation / len(differences) ** 0.5)
    return float(stdtr(len(differences) - 1, -t))


def quotas(num_trials: int, rung_tokens: Sequence[int], reduction: int, num_members: int = 1) -> list[int]:
    """Return how many trials each rung takes where none ties and none fails, and then how many are chosen.

    There are no other rungs when one is left.

    Args:
        num_trials: Of the first rung.
        rung_tokens: KD tokens at the end of each rung, ascending.
        reduction: One in this many goes on.
        num_members: That are chosen; so many go on in any case.
    """
    field, least = [num_trials], min(num_members, num_trials)
    for tokens in rung_tokens[:-1]:
        going = max(share(field[-1], tokens, reduction), least)
        if tokens and going == 1:
            break
        field.append(going)
    return [*field, least]


def most_trained(num_trials: int, rung_tokens: Sequence[int], reduction: int, num_members: int = 1) -> int:
    """Return how many trials are trained at most, ties with them.

    Args:
        num_trials: That take part.
        rung_tokens: KD tokens at the end of each rung, ascending.
        reduction: One in this many goes on.
        num_members: That are chosen; so many go on in any case.
    """
    if not rung_tokens or rung_tokens[0]:
        return num_trials
    quota = max(share(num_trials, 0, reduction), num_members)
    return min(ceil(MOST_OF_QUOTA * quota), num_trials)


def share(num_trials: int, tokens: int, reduction: int) -> int:
    """Return how many trials of a rung go on where none ties.

    Rung 0 asks for no training, and so looks at more: of those one in the square of the reduction is trained, and two
    at least, so that training decides.

    Args:
        num_trials: Of the rung.
        tokens: KD tokens at its end.
        reduction: One in this many goes on.
    """
    if tokens:
        return ceil(num_trials / reduction)
    return max(ceil(num_trials / reduction**2), min(num_trials, 2))


def going_on(ranked: Sequence[Standing], quota: int) -> list[str]:
    """Return who goes on: the quota, and who is not significantly worse than the best, up to `MOST_OF_QUOTA`.

    Args:
        ranked: Trials of a rung, best first.
        quota: How many go on in any case.
    """
    level = LEVEL / max(len(ranked) - 1, 1)
    kept = list(ranked[:quota])
    for standing in ranked[quota:]:
        if len(kept) < ceil(MOST_OF_QUOTA * quota) and p_worse(standing, ranked[0]) >= level:
            kept.append(standing)
    return [standing.candidate for standing in kept]


def is_decided(before: Sequence[Standing], now: Sequence[Standing]) -> bool:
    """Whether the best three kept their order over two rungs, with every gap between them above the noise in both.

    Fewer than three decide nothing before the last rung.

    Args:
        before: Trials of the rung before, best first.
        now: Trials of this rung, best first.
    """
    rungs = [before[:_COMPARED], now[:_COMPARED]]
    orders = [[standing.candidate for standing in rung] for rung in rungs]
    if len(now) < _COMPARED or orders[0] != orders[1]:
        return False
    return all(p_worse(rung[place + 1], rung[place]) < LEVEL for rung in rungs for place in range(_COMPARED - 1))

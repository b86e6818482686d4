"""Finalists: which of the screened candidates are trained."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from minitron_nas.architecture.spec import Architecture
from minitron_nas.search.pareto import spread_front
from minitron_nas.search.pool import Pool

Stratum: TypeAlias = tuple[bool, bool, bool]
"""Whether layers were dropped, hidden channels cut, and query heads or KV groups cut."""

_WORTH_TRAINING = 2.0
"""A kind of shape whose best has more than this many times the least KL is not trained for its own sake."""


def stratum(target: Architecture, source: Architecture) -> Stratum:
    """Say of which kind a shape is: untrained KL orders shapes of one kind well, and kinds among each other badly.

    Args:
        target: The candidate's shape.
        source: What it is cut from.

    Source: figure 6 of arXiv 2407.14679 for depth against width.
    """
    groups = (target.num_attention_heads, target.num_key_value_heads)
    return (
        target.num_hidden_layers < source.num_hidden_layers,
        target.hidden_size < source.hidden_size,
        groups != (source.num_attention_heads, source.num_key_value_heads),
    )


def choose_finalists(pool: Pool, kls: Mapping[int, float], others: Sequence[str], num: int | None) -> list[int]:
    """Return indices of the shapes to train, the most promising first.

    Half of them, rounded up, are those with the least KL, or where there are more objectives points of the front, from
    the least KL on each the farthest from those before it. The others are the best of each kind that has none yet, as
    long as its KL is within twice the least; what is left goes by the same order again.

    Args:
        pool: The size's candidates.
        kls: Untrained KL by index; finite.
        others: Objectives beside KL.
        num: How many at most; None for all.
    """
    ranked = sorted(kls, key=lambda index: kls[index])
    if num is None or num >= len(ranked):
        return ranked
    costs = pool.costs(others)
    front = spread_front([(kls[index], *costs[index]) for index in ranked]) if others else []
    first = [ranked[place] for place in front]
    first += [index for index in ranked if index not in first]
    chosen = first[: (num + 1) // 2]
    kinds = {index: stratum(pool.candidates[index].architecture, pool.source) for index in ranked}
    for index in ranked:
        is_new = kinds[index] not in {kinds[each] for each in chosen}
        if len(chosen) < num and is_new and kls[index] <= _WORTH_TRAINING * kls[ranked[0]]:
            chosen.append(index)
    chosen += [index for index in first if index not in chosen][: num - len(chosen)]
    return sorted(chosen, key=lambda index: kls[index])

"""How well each cheaper look at candidates foretold a dearer one: rank correlations between all of them."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isfinite
from typing import Any

from minitron_nas.execution.runner import Outcome
from minitron_nas.search.contest import TrialRow

_FEWEST = 3
"""Fewer have no order worth a correlation."""


def rank_correlations(screened: Mapping[str, Outcome], trials: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """Return a row of `correlations.parquet`, without the size, for each pair of looks at the candidates.

    The looks are the screening, the repaired start of each finalist, and every rung. A later one sees those alone that
    earlier ones let through, whose ranks are harder to foretell than those of all.

    Args:
        screened: Outcomes of the screening by candidate id.
        trials: Every rung of every trial.
    """
    looks: dict[str, dict[str, float]] = {"screen": {}, "start": {}}
    for key, outcome in screened.items():
        _put(looks["screen"], key, outcome.number("kl_nats"))
    for trial in sorted(trials, key=lambda trial: trial.rung):
        _put(looks["start"], trial.candidate.id, trial.outcome.number("start_kl_nats"))
        if trial.tokens:  # rung 0 is how finalists begin
            _put(looks.setdefault(f"rung {trial.rung}", {}), trial.candidate.id, trial.outcome.number("kl_nats"))
    return [
        {"earlier": earlier, "later": later, **agreement(looks[earlier], looks[later])}
        for earlier, later in combinations(looks, 2)
    ]


def _put(look: dict[str, float], candidate: str, kl: float | None) -> None:
    if kl is not None and isfinite(kl):
        look[candidate] = kl


def agreement(earlier: Mapping[str, float], later: Mapping[str, float]) -> dict[str, Any]:
    """Return `num_candidates`, `spearman` and `kendall` of candidates that were measured twice.

    Args:
        earlier: KL by candidate id.
        later: The same of another look.
    """
    from scipy.stats import kendalltau, spearmanr  # deferred: importing it takes a second

    both = [candidate for candidate in earlier if candidate in later]
    first, second = ([look[candidate] for candidate in both] for look in (earlier, later))
    known = len(both) >= _FEWEST and len(set(first)) > 1 and len(set(second)) > 1
    return {
        "num_candidates": len(both),
        "spearman": float(spearmanr(first, second).statistic) if known else None,
        "kendall": float(kendalltau(first, second).statistic) if known else None,
    }

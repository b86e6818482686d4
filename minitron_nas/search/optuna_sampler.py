"""Optuna's samplers over a pool, by ask and tell; one of the two modules that import it.

Optuna proposes sizes without knowing which of them make up a legal shape of the budget; the nearest shape of the pool
that was not measured takes the place of each proposal, and is what Optuna is told about.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import TrialState, create_trial

from minitron_nas.search.pool import Pool
from minitron_nas.search.proposals import scaled


class OptunaSampler:
    """A study in memory that is asked and told."""

    def __init__(self, pool: Pool, name: str, others: tuple[str, ...], seed: int) -> None:
        """Begin a study.

        Args:
            pool: What is searched.
            name: tpe, gp or nsga2.
            others: Objectives beside KL, columns of the pool.
            seed: Of its draws.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._pool, self._features, self._costs = pool, scaled(pool), pool.costs(others)
        self._study = optuna.create_study(
            sampler=_sampler(name, seed), directions=["minimize"] * (1 + len(others)), study_name=name
        )
        self._told = set[int]()
        low, high = self._features.min(axis=0), self._features.max(axis=0)
        self._axes: dict[str, BaseDistribution] = {
            f"axis_{number}": FloatDistribution(float(least), float(most))
            for number, (least, most) in enumerate(zip(low, high, strict=True))
        }

    def propose(self, measured: Mapping[int, float | None], num: int) -> list[int]:
        """Return indices of shapes that were not measured, at most `num`.

        Args:
            measured: KL by index; None or not finite where a shape could not be measured.
            num: How many.
        """
        for index, kl in measured.items():
            if index not in self._told:
                self._study.add_trial(self._trial(index, kl))
                self._told.add(index)
        free = np.setdiff1d(np.arange(len(self._features)), list(measured))
        chosen = list[int]()
        for _ in range(min(num, len(free))):
            asked = self._study.ask(self._axes)
            point = np.array([asked.params[name] for name in self._axes])
            nearest = int(np.argmin(np.linalg.norm(self._features[free] - point, axis=1)))
            chosen.append(int(free[nearest]))
            free = np.delete(free, nearest)
            self._study.tell(asked, state=TrialState.FAIL)  # what it proposed is told as the shape in its place
        return chosen

    def _trial(self, index: int, kl: float | None) -> optuna.trial.FrozenTrial:
        params = dict(zip(self._axes, self._features[index].tolist(), strict=True))
        given: dict[str, Any] = {"params": params, "distributions": self._axes}
        if kl is None or not isfinite(kl):
            return create_trial(state=TrialState.FAIL, **given)
        return create_trial(values=[kl, *self._costs[index].tolist()], **given)


def _sampler(name: str, seed: int) -> BaseSampler:
    if name == "tpe":
        return TPESampler(seed=seed, multivariate=True)
    return GPSampler(seed=seed) if name == "gp" else NSGAIISampler(seed=seed)

"""Which shapes of a pool are measured next: the samplers of the screening; the same seed gives the same proposals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol, Self, TypeAlias

import numpy as np

from minitron_nas.search.costing import Values
from minitron_nas.search.improvement import expected_hypervolume_gain, expected_improvement
from minitron_nas.search.pareto import pareto_front
from minitron_nas.search.pool import Pool
from minitron_nas.search.surrogate import Surrogate

_FIRST_ROUND = 8
"""Measured before a surrogate says anything."""

_INCUMBENTS = 3
"""Best shapes measured, around which mutations are looked for."""

_SHORTLIST = 1024
"""Most promising shapes among which a round's own are chosen one by one."""


Beyond: TypeAlias = tuple[Mapping[str, int | None], float]
"""The sizes and the KL of a shape that is not in the pool."""


class Sampler(Protocol):
    """Chooses shapes of a pool."""

    def propose(self, measured: Mapping[int, float | None], num: int) -> list[int]:
        """Return indices of shapes that were not measured, at most `num`, most promising first.

        Args:
            measured: KL by index; None or not finite where a shape could not be measured.
            num: How many.
        """


@dataclass(frozen=True, slots=True)
class RandomSampler:
    """Draws evenly.

    Attributes:
        pool: What is drawn from.
        seed: Of the draws.
    """

    pool: Pool
    seed: int

    def propose(self, measured: Mapping[int, float | None], num: int) -> list[int]:
        """Return the next ones of a fixed order of the whole pool."""
        order = np.random.default_rng(self.seed).permutation(len(self.pool))
        chosen: list[int] = order[~np.isin(order, list(measured))][:num].tolist()
        return chosen


def references(pool: Pool, seed: int) -> dict[str, int]:
    """Return what is always screened, to hold the choice against: a shape drawn at random, and the largest.

    Args:
        pool: The size's candidates; of equally large ones the first counts.
        seed: Of the draw.

    Returns:
        Indices by the names `random` and `largest`.
    """
    drawn = RandomSampler(pool, seed).propose({}, 1)[0]
    return {"random": drawn, "largest": int(np.argmax(pool.columns["num_parameters"]))}


@dataclass(frozen=True, slots=True)
class PoolSampler:
    """Looks at the whole pool through a surrogate.

    Before all others come the references. The others of the first round lie as far apart as the pool allows. Of every
    later round one half has the greatest expected improvement, each chosen as if what the surrogate says of those
    before it had been measured; three in eight are the nearest neighbours of the best so far; and the last is drawn at
    random, which keeps the surrogate honest. Where other sizes tell enough, the first round has the shapes that promise
    most already, and one at random.

    Attributes:
        pool: What is searched.
        others: Objectives beside KL, columns of the pool; with any, improvement is that of the hypervolume.
        seed: Of the draws.
        beyond: Shapes of other sizes that are cut from the same model, with their KL; the surrogate knows them too.
    """

    pool: Pool
    others: tuple[str, ...]
    seed: int
    beyond: tuple[Beyond, ...] = ()

    def propose(self, measured: Mapping[int, float | None], num: int) -> list[int]:
        """Return a round of proposals."""
        features = scaled(self.pool)
        left = np.setdiff1d(np.arange(len(features)), list(measured))
        num = min(num, len(left))
        known = _usable(measured)
        first = [index for index in dict.fromkeys(references(self.pool, self.seed).values()) if index not in measured]
        first = first[:num]
        left, num = left[~np.isin(left, first)], num - len(first)
        if len(known) + len(self.beyond) < min(_FIRST_ROUND, len(features)) or not features.shape[1]:
            return first + spread(features, [*measured, *first], num, self.seed)
        num_random = 1 if num > 1 else 0
        num_near = min(3 * num // 8, num - num_random) if known else 0
        chosen = self._improving(features, left, known, num - num_near - num_random)
        chosen += self._near(features, left, known, chosen, num_near)
        gone = dict.fromkeys([*measured, *first, *chosen])
        return first + chosen + RandomSampler(self.pool, self.seed).propose(gone, num - len(chosen))

    def predict(self, measured: Mapping[int, float | None]) -> Values | None:
        """Return the KL that the surrogate expects of every shape; None while too few are measured.

        Args:
            measured: KL by index.
        """
        known = _usable(measured)
        features = scaled(self.pool)
        if len(known) < _FIRST_ROUND or not features.shape[1]:
            return None
        expected: Values = np.exp(self._surrogate(features, known).predict(features)[0])
        return expected

    def promised(self, measured: Mapping[int, float | None]) -> float | None:
        """Return the greatest gain that is expected of a shape that was not measured; None while too few are.

        Args:
            measured: KL by index.

        Returns:
            A share of the least KL; with more objectives, of the space that they span.
        """
        known, features = _usable(measured), scaled(self.pool)
        left = np.setdiff1d(np.arange(len(features)), list(measured))
        if len(known) < _FIRST_ROUND or not features.shape[1] or not len(left):
            return None
        return float(self._gains(self._surrogate(features, known), features, left, _Reached.of(known)).max())

    def _improving(self, features: Values, left: Values, known: Mapping[int, float], num: int) -> list[int]:
        surrogate, chosen = self._surrogate(features, known), list[int]()
        reached = _Reached.of(known)
        shortlist = left
        for _ in range(num):
            gains = self._gains(surrogate, features, shortlist, reached)
            if len(shortlist) > _SHORTLIST:
                kept = np.sort(np.argsort(-gains, kind="stable")[:_SHORTLIST])
                shortlist, gains = shortlist[kept], gains[kept]
            best = int(np.argmax(gains))
            chosen.append(int(shortlist[best]))
            surrogate = surrogate.believing(features[shortlist[best : best + 1]])
            reached = reached.believing(chosen[-1], float(surrogate.values[-1]))
            shortlist = np.delete(shortlist, best)
        return chosen

    def _gains(self, surrogate: Surrogate, features: Values, shapes: Values, reached: "_Reached") -> Values:
        means, deviations = surrogate.predict(features[shapes])
        if not self.others:
            return expected_improvement(means, deviations, min(reached.log_kls, default=float(means.min())))
        costs = np.log(self.pool.costs(self.others))
        at, log_kls = costs[reached.shapes], np.array(reached.log_kls)
        return expected_hypervolume_gain(means, deviations, costs[shapes], log_kls, at, self.seed)

    def _surrogate(self, features: Values, known: Mapping[int, float]) -> Surrogate:
        places, kls = [features[list(known)]], [*known.values()]
        if self.beyond:
            scale = _scale(self.pool.features())
            found = self.pool.places([sizes for sizes, _ in self.beyond])
            for place, (_, kl) in zip(found, self.beyond, strict=True):
                if place is not None:
                    places.append(place[None] / scale)
                    kls.append(kl)
        return Surrogate.fit(np.concatenate(places), np.array(kls))

    def _near(
        self, features: Values, left: Values, known: Mapping[int, float], taken: Sequence[int], num: int
    ) -> list[int]:
        """Return unmeasured shapes around the incumbents, one around each in turn."""
        chosen = list[int]()
        incumbents = _best(self.pool, self.others, known)
        for number in range(num):
            centre = features[incumbents[number % len(incumbents)]]
            free = left[~np.isin(left, [*taken, *chosen])]
            if len(free):
                chosen.append(int(free[np.argmin(np.linalg.norm(features[free] - centre, axis=1))]))
        return chosen


@dataclass(frozen=True, slots=True)
class _Reached:
    """What is to be improved on: what was measured, and what is believed of shapes that were chosen since."""

    shapes: list[int]
    log_kls: list[float]

    @classmethod
    def of(cls, known: Mapping[int, float]) -> Self:
        return cls([*known], np.log([*known.values()]).tolist())

    def believing(self, shape: int, log_kl: float) -> Self:
        return type(self)([*self.shapes, shape], [*self.log_kls, log_kl])


def scaled(pool: Pool) -> Values:
    """Return the pool's features, each axis scaled to a range of one."""
    features = pool.features()
    return features / _scale(features)


def _scale(features: Values) -> Values:
    scale: Values = np.maximum(np.ptp(features, axis=0), 1e-12)
    return scale


def spread(features: Values, taken: Sequence[int], num: int, seed: int) -> list[int]:
    """Return shapes that lie far from each other: each the farthest from all before it, out of a random half.

    Args:
        features: (num_shapes, num_axes).
        taken: Shapes that are there already.
        num: How many.
        seed: Of the halves, without which only corners would be taken.
    """
    random = np.random.default_rng(seed)
    distances, chosen = np.full(len(features), np.inf), list[int]()
    for index in taken:
        distances = np.minimum(distances, np.linalg.norm(features - features[index], axis=1))
    open_ = np.ones(len(features), dtype=bool)
    open_[list(taken)] = False
    for _ in range(min(num, int(open_.sum()))):
        half = np.flatnonzero(open_ & (random.random(len(features)) < 0.5))
        half = half if len(half) else np.flatnonzero(open_)
        ranks = distances[half]
        index = int(half[np.argmax(ranks)]) if np.isfinite(ranks).all() else int(half[random.integers(len(half))])
        chosen.append(index)
        open_[index] = False
        distances = np.minimum(distances, np.linalg.norm(features - features[index], axis=1))
    return chosen


def _usable(measured: Mapping[int, float | None]) -> dict[int, float]:
    """What has a logarithm."""
    return {index: kl for index, kl in measured.items() if kl is not None and isfinite(kl) and kl > 0}


def _best(pool: Pool, others: Sequence[str], known: Mapping[int, float]) -> list[int]:
    """Return the incumbents: the lowest KLs, or the front where there are more objectives."""
    ranked = sorted(known, key=lambda index: known[index])
    if not others:
        return ranked[:_INCUMBENTS]
    costs = pool.costs(others)
    front = pareto_front([(known[index], *costs[index]) for index in ranked])
    return [index for index, on_front in zip(ranked, front, strict=True) if on_front]

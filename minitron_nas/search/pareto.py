"""The Pareto front."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pareto_front(points: Sequence[Sequence[float]] | ArrayLike) -> list[bool]:
    """Say for every point whether no other one is at least as good in all and better in one objective.

    One or two objectives are one sort. With more, points are taken by the sum of their ranks: none is dominated by a
    later one, and those that dominate most come first. The time grows with points times points on the front.

    Args:
        points: (num_points, num_objectives), every objective to be minimised. Points that are equal
            in all objectives are on the front together; NaN never is.
    """
    values = np.asarray(points, dtype=float)
    if not len(values):
        return []
    on_front = np.zeros(len(values), dtype=bool)
    valid = np.flatnonzero(~np.isnan(values).any(axis=1))
    if not len(valid):
        return on_front.tolist()
    order = valid[np.lexsort(values[valid].T[::-1])]
    ascending = values[order]
    is_new = np.concatenate([[True], np.any(ascending[1:] != ascending[:-1], axis=1)])
    on_front[order] = _of_distinct(ascending[is_new])[np.cumsum(is_new) - 1]
    return on_front.tolist()


def _of_distinct(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The same for distinct points in lexical order."""
    on_front = np.zeros(len(points), dtype=bool)
    if points.shape[1] <= 2:
        # Of two objectives the first ascends, so a point is on the front if the second is a new minimum.
        last = points[:, -1]
        on_front[0] = True
        on_front[1:] = last[1:] < np.minimum.accumulate(last)[:-1]
        if points.shape[1] == 1:
            on_front[1:] = False
        return on_front
    ranks = [np.unique(column, return_inverse=True)[1] for column in points.T]
    alive = np.argsort(np.sum(ranks, axis=0), kind="stable")
    while len(alive):
        first, alive = alive[0], alive[1:]
        on_front[first] = True
        alive = alive[~np.all(points[first] <= points[alive], axis=1)]
    return on_front

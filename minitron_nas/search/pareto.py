"""The Pareto front."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pareto_front(points: Sequence[Sequence[float]] | ArrayLike) -> list[bool]:
    """Say for every point whether no other one is at least as good in all and better in one objective.

    Up to three objectives are one sort and one pass. With more, points are taken by the sum of their ranks: none is
    dominated by a later one, and those that dominate most come first; the time grows with points times points on the
    front.

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


def spread_front(points: ArrayLike, knee: bool = False) -> list[int]:
    """Return the points of the front, each the farthest from those before it, every objective scaled to its range.

    Args:
        points: (num_points, num_objectives), every objective to be minimised; at least one without NaN.
        knee: Whether the point nearest to the best of every objective comes first; else the first of the front does.
    """
    values = np.asarray(points, dtype=float)
    left = [place for place, on in enumerate(pareto_front(values)) if on]
    scaled = (values - values.min(axis=0)) / np.maximum(np.ptp(values, axis=0), 1e-12)
    chosen = [min(left, key=lambda place: float(np.linalg.norm(scaled[place]))) if knee else left[0]]
    left.remove(chosen[0])
    distances = np.full(len(values), np.inf)
    while left:
        distances = np.minimum(distances, np.linalg.norm(scaled - scaled[chosen[-1]], axis=1))
        chosen.append(max(left, key=lambda place: float(distances[place])))
        left.remove(chosen[-1])
    return chosen


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
    if points.shape[1] == 3:
        return _of_three(points)
    ranks = [np.unique(column, return_inverse=True)[1] for column in points.T]
    alive = np.argsort(np.sum(ranks, axis=0), kind="stable")
    while len(alive):
        first, alive = alive[0], alive[1:]
        on_front[first] = True
        alive = alive[~np.all(points[first] <= points[alive], axis=1)]
    return on_front


def _of_three(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The same of three objectives: the first ascends, and of the other two the front so far is kept as a staircase.

    Source: Kung, Luccio and Preparata 1975, "On finding the maxima of a set of vectors", section 3.
    """
    on_front = np.zeros(len(points), dtype=bool)
    seconds, thirds = list[float](), list[float]()  # ascending and descending
    for place, (_, second, third) in enumerate(points.tolist()):
        step = bisect_left(seconds, second)
        beaten = (step and thirds[step - 1] <= third) or (
            seconds[step : step + 1] == [second] and thirds[step] <= third
        )
        if beaten:
            continue
        on_front[place] = True
        end = step
        while end < len(thirds) and thirds[end] >= third:
            end += 1
        seconds[step:end], thirds[step:end] = [second], [third]
    return on_front

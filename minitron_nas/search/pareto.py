"""The Pareto front."""

from collections.abc import Sequence
from math import isnan


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Say for every point whether no other one is at least as good in all and better in one objective.

    Args:
        points: (num_points, num_objectives), every objective to be minimised. Points that are equal
            in all objectives are on the front together; NaN never is.
    """
    return [
        not any(isnan(value) for value in point) and not any(_dominates(other, point) for other in points)
        for point in points
    ]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)

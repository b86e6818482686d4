"""Which axes of a shape matter: how much of untrained KL each explains in a line through the screened shapes.

    log KL = a_0 + sum_i a_i log size_i

    share of i = mean over all orders of the axes of how much R^2 rises when i joins those before it

The shares add up to R^2 and take account of axes that move together, as they do where all shapes are of one size
(Lindeman, Merenda and Gold 1980; Shapley values of R^2). How good the line is says R^2 of each shape held out in turn,
which least squares gives in closed form: the residual over one less its leverage.
"""

from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minitron_nas.architecture.spec import SHAPE_FIELDS

Values: TypeAlias = NDArray[np.float64]

LEAST_SHAPES, SHAPES_PER_AXIS = 8, 3
"""Fewer screened shapes than this, in all or for each axis that varies, say nothing."""

LEAST_HELD_OUT = 0.5
"""R^2 of shapes that were held out, below which the line is not worth telling."""


@dataclass(frozen=True, slots=True)
class AxisShare:
    """What one axis of the shapes explains.

    Attributes:
        name: The axis, in Hugging Face's words.
        share: Of the variation of log KL.
        rises: Whether KL is higher where there is more of it, among the shapes of the size.
    """

    name: str
    share: float
    rises: bool


@dataclass(frozen=True, slots=True)
class AxisShares:
    """What the axes of one size's shapes explain.

    Attributes:
        axes: The greatest share first.
        num_shapes: That were screened.
        held_out: R^2 of each shape held out in turn.
    """

    axes: tuple[AxisShare, ...]
    num_shapes: int
    held_out: float


def axis_shares(candidates: pd.DataFrame, size: str) -> AxisShares | str:
    """Return the shares of a size, or why there are none.

    Args:
        candidates: Of the run.
        size: The label.
    """
    mine = candidates[(candidates["size"] == size) & (candidates["screen_kl_nats"] > 0)]
    names = [name for name in SHAPE_FIELDS if mine[name].notna().all() and len(set(mine[name])) > 1]
    if not names or len(mine) < max(LEAST_SHAPES, SHAPES_PER_AXIS * len(names)):
        return f"{len(mine):,} screened shapes are too few to tell which axes matter"
    values = np.log(mine["screen_kl_nats"].to_numpy(dtype=float))
    if not np.ptp(values):
        return "all screened shapes have the same KL"
    sizes = np.log(mine[names].to_numpy(dtype=float))
    if not (quality := held_out(sizes, values)) >= LEAST_HELD_OUT:
        told = f"R\N{SUPERSCRIPT TWO} of shapes held out in turn is {quality:.2f}"
        return f"no line foretells the KL of {len(mine):,} screened shapes: {told}"
    rises = [bool(np.cov(sizes[:, at], values)[0, 1] > 0) for at in range(len(names))]
    found = [AxisShare(*each) for each in zip(names, shares(sizes, values), rises, strict=True)]
    return AxisShares(tuple(sorted(found, key=lambda axis: -axis.share)), len(mine), quality)


def shares(sizes: Values, values: Values) -> list[float]:
    """Return the share of each axis in R^2.

    Args:
        sizes: (num_shapes, num_axes), logarithms.
        values: (num_shapes,), logarithms.
    """
    correlations: Values = np.corrcoef(np.column_stack([sizes, values]), rowvar=False)
    axes, found = range(sizes.shape[1]), list[float]()
    explained = {
        chosen: _explained(correlations, list(chosen))
        for number in range(len(axes) + 1)
        for chosen in combinations(axes, number)
    }
    for axis in axes:
        others = [other for other in axes if other != axis]
        gains = (
            _weight(number, len(axes)) * (explained[tuple(sorted((*before, axis)))] - explained[before])
            for number in axes
            for before in combinations(others, number)
        )
        found.append(sum(gains))
    return found


def _weight(number: int, num_axes: int) -> float:
    """Return the share of all orders of the axes in which exactly these, so many, stand before another one."""
    return factorial(number) * factorial(num_axes - 1 - number) / factorial(num_axes)


def _explained(correlations: Values, chosen: list[int]) -> float:
    """Return R^2 of a line through some axes: r' C^-1 r of their correlations with the values and each other."""
    with_values = correlations[chosen, -1]
    return float(with_values @ np.linalg.pinv(correlations[np.ix_(chosen, chosen)]) @ with_values) if chosen else 0.0


def held_out(sizes: Values, values: Values) -> float:
    """Return R^2 of each shape held out in turn, against the mean of the others.

    Args:
        sizes: (num_shapes, num_axes), logarithms.
        values: (num_shapes,), logarithms.
    """
    known = np.column_stack([np.ones(len(values)), sizes])
    left, singular, _ = np.linalg.svd(known, full_matrices=False)
    basis = left[:, singular > singular[0] * 1e-12]
    leverages = (basis**2).sum(axis=1)
    away = (values - basis @ (basis.T @ values)) / np.maximum(1 - leverages, 1e-12)
    away_from_mean = (values - values.mean()) / (1 - 1 / len(values))
    return 1 - float(away @ away) / float(away_from_mean @ away_from_mean)

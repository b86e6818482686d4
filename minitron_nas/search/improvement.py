"""How much a shape is expected to improve on what has been measured: of KL alone, or of a front."""

from collections.abc import Sequence

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.stats import norm

from minitron_nas.search.costing import Values
from minitron_nas.search.pareto import pareto_front

_SHORTLIST = 512
"""Shapes whose gain in hypervolume is computed; the others are predicted further behind the front."""

_SAMPLES = 2048
"""Points at which a front's hypervolume is sampled."""

_REFERENCE = 1.1
"""Up to where volume counts in every objective, as a share of its range, so that the ends of a front count too."""


def expected_improvement(means: Values, deviations: Values, best: float) -> Values:
    """Return E[max(best - y, 0)] for normal y.

    Args:
        means: (num_shapes,).
        deviations: (num_shapes,).
        best: The least value measured.

    Source: Jones, Schonlau and Welch 1998, equation 15.
    """
    deviations = np.maximum(deviations, 1e-12)
    ahead = best - means
    scaled = ahead / deviations
    gain: Values = ahead * norm.cdf(scaled) + deviations * norm.pdf(scaled)
    return gain


def expected_hypervolume_gain(
    means: Values, deviations: Values, costs: Values, measured: Values, measured_costs: Values, seed: int
) -> Values:
    """Return how much of the space of objectives a shape is expected to add to what the front dominates.

    The first objective is uncertain and normal, the others are known. Every objective is scaled to the range of the
    pool; the expectation is taken by Gauss-Hermite quadrature, the volume by sampling.

    Args:
        means: (num_shapes,), of the first objective.
        deviations: (num_shapes,).
        costs: (num_shapes, num_others), the other objectives.
        measured: (num_measured,), the first objective of what was measured.
        measured_costs: (num_measured, num_others).
        seed: Of the sampled points.

    Returns:
        (num_shapes,), in units of the box of all ranges; 0 for those that are predicted too far behind to matter.

    Source: Emmerich, Giannakoglou and Naujoks 2006, for the criterion.
    """
    gains = np.zeros(len(means))
    optimistic = np.column_stack([means - 2 * deviations, costs])
    front = np.column_stack([measured, measured_costs])
    everything = np.concatenate([optimistic, front])
    low = everything.min(axis=0)
    span = np.maximum(np.ptp(everything, axis=0), 1e-12)
    optimistic, front = (optimistic - low) / span, (front - low) / span
    front = front[np.array(pareto_front(front), dtype=bool)]
    shortlist = _least_behind(optimistic, front)
    points = _REFERENCE * np.random.default_rng(seed).random((_SAMPLES, front.shape[1]))
    points = points[~_dominated(points, front)]
    nodes, weights = hermegauss(9)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        first = (means[shortlist] + node * deviations[shortlist] - low[0]) / span[0]
        shapes = np.column_stack([first, optimistic[shortlist, 1:]])
        gains[shortlist] += weight * np.array([np.count_nonzero(np.all(shape <= points, axis=1)) for shape in shapes])
    gained: Values = gains / _SAMPLES * _REFERENCE ** front.shape[1]
    return gained


def _least_behind(shapes: Values, front: Values) -> Sequence[int]:
    """Return the shapes that the front dominates by least: those ahead of it first."""
    order: Sequence[int] = np.argsort(_behind(shapes, front), kind="stable")[:_SHORTLIST].tolist()
    return order


def _behind(shapes: Values, front: Values) -> Values:
    """Return by how much a shape would have to be better in every objective to be on the front; negative if it is."""
    columns = [np.ascontiguousarray(column) for column in shapes.T]  # far quicker than rows of two or three numbers
    behind = np.full(len(shapes), -np.inf)
    for point in front:
        least = columns[0] - point[0]
        for column, value in zip(columns[1:], point[1:], strict=True):
            np.minimum(least, column - value, out=least)
        np.maximum(behind, least, out=behind)
    return behind


def _dominated(points: Values, front: Values) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    dominated = np.zeros(len(points), dtype=bool)
    for point in front:
        dominated |= np.all(point <= points, axis=1)
    return dominated

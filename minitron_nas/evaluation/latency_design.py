"""What a latency model is made of: few shapes, far apart, of the sizes that candidates have, and times of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minitron_nas.evaluation.latency_terms import (
    Reals,
)

SEED = 0


@dataclass(frozen=True, slots=True)
class Lengths:
    """How much is read and written while the clock runs.

    Attributes:
        batch: Sequences at once.
        prompt_tokens: Of each, in one prefill.
        context_tokens: Of each, before the first token that is decoded.
    """

    batch: int = 1
    prompt_tokens: int = 512
    context_tokens: int = 512


@dataclass(frozen=True, slots=True)
class StackTimes:
    """One shape of layers, measured as stacks of N and 2N of them; prefill first, then decode.

    Attributes:
        shape: Sizes by name, without the number of layers.
        num_layers: N.
        layer: What one layer adds, over what the reference takes in the same turns.
        stack: The stack of 2N, over the same.
        reference_seconds: Medians of the reference in these turns.
    """

    shape: dict[str, int]
    num_layers: int
    layer: tuple[float, float]
    stack: tuple[float, float]
    reference_seconds: tuple[float, float]


@dataclass(frozen=True, slots=True)
class WholeTimes:
    """A whole model, over the reference in the same turns; prefill first, then decode."""

    shape: dict[str, int]
    whole: tuple[float, float]
    reference_seconds: tuple[float, float]


def far_apart(columns: Mapping[str, NDArray[np.int64]], names: Sequence[str], num: int) -> list[dict[str, int]]:
    """Pick shapes that are far apart: the largest first, then each time the one farthest from all picked before.

    Distances are between logarithms of sizes, each axis from 0 to 1; of shapes that are equally far, the first.

    Args:
        columns: Legal shapes, (num_shapes,) each.
        names: The sizes that count; shapes that differ in others only are one.
        num: How many at most.

    Returns:
        Sizes by name, `names` only.
    """
    distinct = np.unique(np.stack([columns[name] for name in names], axis=1), axis=0)
    places = _places(distinct)
    picked = [int(places.sum(axis=1).argmax())]
    distance = _squares(places, picked[0])
    while len(picked) < min(num, len(distinct)):
        picked.append(int(distance.argmax()))
        distance = np.minimum(distance, _squares(places, picked[-1]))
    return [dict(zip(names, distinct[index].tolist(), strict=True)) for index in picked]


def at_random(columns: Mapping[str, NDArray[np.int64]], num: int, seed: int = SEED) -> list[dict[str, int]]:
    """Pick whole shapes at random.

    Args:
        columns: Legal shapes, (num_shapes,) each.
        num: How many at most.
        seed: Of the choice.
    """
    total = len(next(iter(columns.values())))
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(num, total), replace=False))
    rows = zip(*(column[chosen].tolist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _places(shapes: NDArray[np.int64]) -> Reals:
    logarithms = np.log2(np.maximum(shapes, 1))
    width = np.ptp(logarithms, axis=0)
    places: Reals = (logarithms - logarithms.min(axis=0)) / np.where(width == 0, 1, width)
    return places


def _squares(places: Reals, index: int) -> Reals:
    squares: Reals = ((places - places[index]) ** 2).sum(axis=1)
    return squares

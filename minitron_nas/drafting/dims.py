"""Which products of axes explain the sizes that a dimension has in all probes."""

from collections.abc import Sequence

from minitron_nas.architecture.layout import (
    EXPERT_NEURONS,
    EXPERTS,
    HEAD_DIM,
    HEADWISE_QKV,
    HIDDEN,
    KEYS,
    NEURONS,
    POSITIONS,
    QUERIES,
    VOCAB,
    Axis,
    Dim,
    axis_sizes,
    dim,
)
from minitron_nas.architecture.spec import Architecture

HEADS = dim(Axis.KV_GROUPS, Axis.GROUP_HEADS)
GROUPS = dim(Axis.KV_GROUPS)
ONE = dim()
FUSED_QKV = QUERIES + KEYS + KEYS

CANDIDATES: dict[str, Dim] = {
    "VOCAB": VOCAB,
    "HIDDEN": HIDDEN,
    "NEURONS": NEURONS,
    "QUERIES": QUERIES,
    "KEYS": KEYS,
    "HEAD_DIM": HEAD_DIM,
    "QUERIES + KEYS + KEYS": FUSED_QKV,
    "HEADWISE_QKV": HEADWISE_QKV,
    "KEYS + KEYS": KEYS + KEYS,
    "NEURONS + NEURONS": NEURONS + NEURONS,
    "POSITIONS": POSITIONS,
    "POSITIONS + ONE + ONE": POSITIONS + ONE + ONE,
    "EXPERTS": EXPERTS,
    "EXPERT_NEURONS": EXPERT_NEURONS,
    "EXPERT_NEURONS + EXPERT_NEURONS": EXPERT_NEURONS + EXPERT_NEURONS,
    "HEADS": HEADS,
    "GROUPS": GROUPS,
    "ONE": ONE,
}
"""Every dimension that a draft can name, as Python writes it."""

OWN_NAMES = {"HEADS": "dim(Axis.KV_GROUPS, Axis.GROUP_HEADS)", "GROUPS": "dim(Axis.KV_GROUPS)", "ONE": "dim()"}
"""Those that the grammar has no name for, and how they are written."""


def explanations(sizes: Sequence[int], shapes: Sequence[Architecture]) -> list[Dim]:
    """Return the dimensions that have these sizes in models of these shapes, the likeliest first.

    Args:
        sizes: Of one dimension, in each probe.
        shapes: Of the probes.
    """
    if set(sizes) == {1}:
        return [ONE]
    by_axis = [axis_sizes(shape) for shape in shapes]
    return [
        each
        for each in CANDIDATES.values()
        if each is not ONE and all(int(each.size(axes)) == size for axes, size in zip(by_axis, sizes, strict=True))
    ]


def name_of(dimension: Dim) -> str:
    """Return how Python writes a dimension."""
    return next(name for name, each in CANDIDATES.items() if each == dimension)

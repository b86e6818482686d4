"""`Grid`: every combination of a space's sizes, numbered but never written out."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Self

import numpy as np

from minitron_nas.architecture.costs import Columns, Integers
from minitron_nas.architecture.layout import Layout
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import SpaceError
from minitron_nas.space.axes import SpaceAxes

BLOCK = 2**16
"""Combinations that are looked at together: few enough for their columns to stay in the cache."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Every combination of a space's sizes, numbered from 0 in the order of the candidates.

    Attributes:
        wheels: Arrays of sizes that change together, by name; the last wheel turns fastest.
    """

    wheels: tuple[Columns, ...]

    @classmethod
    def of(cls, axes: SpaceAxes, source: Architecture, layout: Layout) -> Self:
        """Lay out a space: more layers, fewer heads, wider channels, fewer neurons, more experts first.

        A fraction of a size that the family lacks is nothing: such an axis is left out.

        Args:
            axes: What may change.
            source: The shape that candidates are cut from.
            layout: The table of its family.

        Raises:
            SpaceError: If the space lists values or ratios of a size that the source's family lacks.
        """
        names = layout.shape_fields_of(source)
        for name, axis in axes.given().items():
            if name not in names and axis.min_fraction is None:
                raise SpaceError(
                    f"the space lists an axis {name!r}, a size that family {layout.model_type!r} lacks; "
                    f"its axes may be {', '.join(names)}"
                )
        axes = axes.model_copy(update=dict.fromkeys(set(axes.given()) - set(names)))
        wheels = (
            _wheel(axes, source, "num_hidden_layers"),
            *_head_wheels(axes, source),
            *_channel_wheels(axes, source),
            _wheel(axes, source, "num_experts"),
            _wheel(axes, source, "moe_intermediate_size", ascending=True),
            _wheel(axes, source, "shared_expert_intermediate_size", ascending=True),
            _wheel(axes, source, "mamba_num_heads"),
            _wheel(axes, source, "mamba_head_dim"),
        )
        return cls(tuple(wheel for wheel in wheels if set(wheel) <= set(layout.column_fields())))

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of positions of every wheel."""
        return tuple(len(next(iter(wheel.values()))) for wheel in self.wheels)

    def __len__(self) -> int:
        """Return the number of combinations."""
        return prod(self.shape)

    def blocks(self) -> Iterator[Integers]:
        """Yield the numbers of all combinations, a block at a time."""
        for start in range(0, len(self), BLOCK):
            yield np.arange(start, min(start + BLOCK, len(self)))

    def columns(self, numbers: Integers) -> Columns:
        """Return the sizes of the combinations with these numbers."""
        positions = np.unravel_index(numbers, self.shape)
        return {
            name: sizes[position]
            for wheel, position in zip(self.wheels, positions, strict=True)
            for name, sizes in wheel.items()
        }


def _wheel(axes: SpaceAxes, source: Architecture, name: str, ascending: bool = False) -> Columns:
    sizes = axes.sizes(name, source)
    return {name: np.array(sizes[::-1] if ascending else sizes, dtype=np.int64)}


def _head_wheels(axes: SpaceAxes, source: Architecture) -> list[Columns]:
    """Heads and groups: two wheels where both have an axis, else one moves the other along."""
    if axes.num_attention_heads is None:
        groups = _wheel(axes, source, "num_key_value_heads", ascending=True)
        return [{"num_attention_heads": groups["num_key_value_heads"] * source.heads_per_group} | groups]
    heads = _wheel(axes, source, "num_attention_heads", ascending=True)
    if axes.num_key_value_heads is None and source.heads_per_group == 1:
        return [heads | {"num_key_value_heads": heads["num_attention_heads"]}]
    return [heads, _wheel(axes, source, "num_key_value_heads", ascending=True)]


def _channel_wheels(axes: SpaceAxes, source: Architecture) -> list[Columns]:
    """Channels and neurons: one wheel where the neurons are ratios of the channels, else two."""
    neurons = axes.intermediate_size
    if neurons is None or neurons.ratios is None:
        return [_wheel(axes, source, "hidden_size"), _wheel(axes, source, "intermediate_size", ascending=True)]
    pairs = {
        (hidden, int(hidden * ratio + 1e-9) // neurons.multiple_of * neurons.multiple_of)
        for hidden, ratio in product(axes.sizes("hidden_size", source), neurons.ratios)
    }
    table = np.array(sorted(pairs, key=lambda pair: (-pair[0], pair[1])), dtype=np.int64)
    return [{"hidden_size": table[:, 0], "intermediate_size": table[:, 1]}]

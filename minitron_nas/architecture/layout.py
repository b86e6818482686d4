"""The grammar of family tables: which axes every tensor of a checkpoint runs along.

A `Layout` lists `TensorRow`s. Each dimension of a row is a product of axes: the rows of a query
projection run along KV_GROUPS x GROUP_HEADS x HEAD_DIM. Parameter counts, checkpoint checks,
slicing and the places where importance is measured are all derived from these rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from minitron_nas.architecture.spec import Architecture


class Axis(StrEnum):
    """What a tensor dimension counts."""

    VOCAB = "vocab_size"
    HIDDEN = "hidden_size"
    NEURONS = "intermediate_size"
    KV_GROUPS = "num_key_value_heads"
    GROUP_HEADS = "heads_per_group"
    HEAD_DIM = "head_dim"


Dim: TypeAlias = tuple[Axis, ...]

VOCAB: Dim = (Axis.VOCAB,)
HIDDEN: Dim = (Axis.HIDDEN,)
NEURONS: Dim = (Axis.NEURONS,)
QUERIES: Dim = (Axis.KV_GROUPS, Axis.GROUP_HEADS, Axis.HEAD_DIM)
KEYS: Dim = (Axis.KV_GROUPS, Axis.HEAD_DIM)


@dataclass(frozen=True, slots=True)
class TensorRow:
    """One tensor of the checkpoint, or one per layer where the name holds `{layer}`.

    `when` names a boolean field of `Architecture` that must be true for the tensor to exist,
    `unless` one that must be false.
    """

    name: str
    dims: tuple[Dim, ...]
    when: str | None = None
    unless: str | None = None

    @property
    def per_layer(self) -> bool:
        """Whether the tensor exists once per decoder layer."""
        return "{layer}" in self.name

    def exists(self, architecture: Architecture) -> bool:
        """Whether a checkpoint of this architecture holds the tensor."""
        needed = self.when is None or getattr(architecture, self.when)
        excluded = self.unless is not None and getattr(architecture, self.unless)
        return bool(needed and not excluded)

    def shape(self, architecture: Architecture) -> tuple[int, ...]:
        """Return the tensor's shape in a checkpoint of this architecture."""
        sizes = axis_sizes(architecture)
        return tuple(_product(dim, sizes) for dim in self.dims)


def row(name: str, *dims: Dim, when: str | None = None, unless: str | None = None) -> TensorRow:
    """Write one line of a family table: dimensions in the checkpoint's order."""
    return TensorRow(name, dims, when, unless)


@dataclass(frozen=True, slots=True)
class Layout:
    """The table of one model family.

    Attributes:
        model_type: The family's `model_type` in `config.json`.
        rows: Every tensor of a checkpoint.
        ignored: Name endings of tensors that old checkpoints carry and transformers drops.
        hidden_multiple_of_heads: Whether stock transformers refuses a `hidden_size` that is no
            multiple of `num_attention_heads`.
    """

    model_type: str
    rows: tuple[TensorRow, ...]
    ignored: tuple[str, ...] = ()
    hidden_multiple_of_heads: bool = False

    def tensors(self, architecture: Architecture) -> Iterator[tuple[str, TensorRow, int | None]]:
        """Yield (tensor name, row, layer index or None) for a checkpoint of this architecture."""
        for table_row in self.rows:
            if not table_row.exists(architecture):
                continue
            if table_row.per_layer:
                for layer in range(architecture.num_hidden_layers):
                    yield table_row.name.format(layer=layer), table_row, layer
            else:
                yield table_row.name, table_row, None

    def hidden_norms(self) -> list[str]:
        """Module names, with `{layer}`, of the norms whose output a layer's projections read."""
        return [
            r.name.removesuffix(".weight")
            for r in self.rows
            if r.per_layer and r.dims == (HIDDEN,) and r.name.endswith("norm.weight")
        ]

    def output_projection(self, axis: Axis) -> str:
        """Module name, with `{layer}`, of the projection whose inputs run along the given axis."""
        names = [
            r.name.removesuffix(".weight")
            for r in self.rows
            if r.per_layer and len(r.dims) == 2 and r.dims[0] == HIDDEN and axis in r.dims[1]
        ]
        (name,) = names
        return name

    @property
    def layer_module(self) -> str:
        """Module name, with `{layer}`, of one decoder layer."""
        name = next(r.name for r in self.rows if r.per_layer)
        return name[: name.index("{layer}") + len("{layer}")]


def axis_sizes(architecture: Architecture) -> dict[Axis, int]:
    """Return the size of every axis."""
    return {axis: getattr(architecture, axis.value) for axis in Axis}


def _product(dim: Dim, sizes: Mapping[Axis, int]) -> int:
    result = 1
    for axis in dim:
        result *= sizes[axis]
    return result

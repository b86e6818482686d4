"""What scores are added up from: sums over samples, by place, and a file of them for each shard of the text.

The shards depend on the text alone, and their sums are added in order: whoever has measured which shard, and however
often that was interrupted, the scores are the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minitron_nas.architecture.layout import NEURON_AXES, Axis, Layout, TensorRow, axis_sizes
from minitron_nas.architecture.spec import Architecture
from minitron_nas.importance.aggregation import over_samples
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.importance.settings import ImportanceSettings
from minitron_nas.storage.atomic import whole_file
from minitron_nas.storage.weights import is_whole
from minitron_nas.text.tokens import PackedTokens

Sums: TypeAlias = dict[str, Tensor]
"""(3, num_units), as `sample_sums` returns them, by the place in the model that they were measured at."""

BATCH_SEQUENCES = 4
"""Of a forward pass over calibration text."""

_MOST_SHARDS = 16
_SUMS_BYTES = 3 * 8
"""Of a unit."""


def text_shards(num_sequences: int, batch_sequences: int = BATCH_SEQUENCES) -> list[range]:
    """Return the sequences of each shard of a text, whole batches.

    Args:
        num_sequences: Of the text.
        batch_sequences: Of a batch; the last may have fewer.
    """
    num_batches = -(-num_sequences // batch_sequences)
    size = -(-num_batches // _MOST_SHARDS) * batch_sequences
    return [range(start, min(start + size, num_sequences)) for start in range(0, num_sequences, size)]


def added(parts: Iterable[Sums]) -> Sums:
    """Add the sums of parts of a text, in order.

    Args:
        parts: Of one model.
    """
    whole: Sums = {}
    for part in parts:
        for place, sums in part.items():
            whole[place] = whole[place] + sums if place in whole else sums
    return whole


def hidden_place(layout: Layout, reader: TensorRow, layer: int) -> str:
    """Return the place of hidden channels that a matrix reads.

    Args:
        layout: The table of the model's family.
        reader: The matrix.
        layer: Whose it is.
    """
    return layout.module_of(reader).format(layer=layer)


def scores_of(sums: Sums, architecture: Architecture, layout: Layout, settings: ImportanceSettings) -> ImportanceScores:
    """Return the scores of a model.

    Args:
        sums: Of the whole text.
        architecture: Its shape.
        layout: Its family table.
        settings: How samples are aggregated.
    """
    layers, experts = range(architecture.num_hidden_layers), range(architecture.num_experts)

    def scored(places: Iterable[str], num_units: int) -> Tensor:
        missing, kind = torch.full((num_units,), nan), settings.batch_aggregation
        return torch.stack([over_samples(sums[place], kind) if place in sums else missing for place in places])

    def of_layers(name: str, num_units: int) -> Tensor:
        return scored((f"{name}.{layer}" for layer in layers), num_units)

    def of_neurons(axis: Axis) -> Tensor:
        size = axis_sizes(architecture)[axis]
        if axis not in layout.neuron_axes_of(architecture):
            return torch.zeros(len(layers), 0)
        if not layout.in_experts(axis):
            return of_layers(axis, size)
        return torch.stack([scored((f"{axis}.{layer}.{expert}" for expert in experts), size) for layer in layers])

    read = [hidden_place(layout, r, layer) for layer in layers for r in layout.readers(architecture.kinds[layer])]
    cosines = torch.cat([over_samples(sums[f"cosines.{layer}"], "mean") for layer in layers])
    return ImportanceScores(
        hidden=scored((place for place in read if place in sums), architecture.hidden_size).sum(dim=0),
        **{name: of_neurons(axis) for axis, name in NEURON_AXES.items()},
        heads=of_layers("heads", architecture.num_attention_heads),
        kv_groups=of_layers("kv_groups", architecture.num_key_value_heads),
        experts=of_layers("experts", architecture.num_experts),
        layers=1 - cosines,
        mamba_heads=of_layers("mamba_heads", architecture.mamba_num_heads),
        mamba_channels=of_layers("mamba_channels", architecture.mamba_head_dim),
    )


def num_scores(architecture: Architecture, layout: Layout) -> int:
    """Return how many numbers the scores of a model are.

    Args:
        architecture: Its shape.
        layout: Its family table.
    """
    sizes, shape = axis_sizes(architecture), architecture
    heads = shape.num_attention_heads + shape.num_key_value_heads + shape.mamba_num_heads + shape.mamba_head_dim
    in_layer = heads + shape.num_experts + 1
    for axis in layout.neuron_axes_of(architecture):
        in_layer += sizes[axis] * (shape.num_experts if layout.in_experts(axis) else 1)
    return shape.hidden_size + shape.num_hidden_layers * in_layer


def sums_bytes(architecture: Architecture, layout: Layout) -> int:
    """Return the most bytes that a model's sums over a shard take, whatever its size.

    Args:
        architecture: The model's shape.
        layout: Its family table.
    """
    num_readers = sum(len(layout.readers(kind)) for kind in architecture.kinds)  # each is a place of hidden channels
    num_units = num_scores(architecture, layout) + (num_readers - 1) * architecture.hidden_size
    return num_units * _SUMS_BYTES


@dataclass(frozen=True, slots=True)
class SumsFolder:
    """The sums of each shard of a text, in a file that is whole or absent.

    Attributes:
        path: The folder.
        text: The text.
    """

    path: Path
    text: PackedTokens

    @property
    def shards(self) -> list[range]:
        """The sequences of each."""
        return text_shards(self.text.num_sequences)

    def missing(self) -> list[int]:
        """Return the numbers of the shards that have no file yet, or one that was cut."""
        return [shard for shard in range(len(self.shards)) if not is_whole(self._file(shard))]

    def text_of(self, shards: Iterable[int]) -> PackedTokens:
        """Return the sequences of some shards, in memory.

        Args:
            shards: Their numbers, ascending.
        """
        return self.text.sequences(torch.cat([torch.tensor(self.shards[shard]) for shard in shards]))

    def write(self, shard: int, sums: Sums) -> None:
        """Keep the sums of a shard.

        Args:
            shard: Its number.
            sums: Its sums.
        """
        with whole_file(self._file(shard)) as partial:
            save_file(sums, partial)

    def total(self) -> Sums:
        """Return the sums of the whole text, none of whose shards is missing."""
        return added(load_file(self._file(shard)) for shard in range(len(self.shards)))

    def _file(self, shard: int) -> Path:
        return self.path / f"{shard:02d}.safetensors"

"""`PruningOrder`: which units leave first, and the index arithmetic of sorting and slicing.

Preparing sorts every prunable axis of the teacher once, most important first. A candidate is then
a prefix of each axis. What it keeps is put back in the teacher's own order, so that pruning
nothing gives the teacher's tensors to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minitron_nas.architecture.layout import HIDDEN, KEYS, NEURONS, QUERIES, VOCAB, Dim
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError
from minitron_nas.importance.scores import ImportanceScores, descending


@dataclass(frozen=True, slots=True)
class PruningOrder:
    """Permutations of every prunable axis, most important first; all tensors int64.

    Attributes:
        hidden: (hidden_size,).
        neurons: (num_hidden_layers, intermediate_size).
        kv_groups: (num_hidden_layers, num_key_value_heads).
        group_heads: (num_hidden_layers, num_key_value_heads, heads_per_group): for each group, in
            the teacher's order, its heads' places within the group.
        layers: (num_hidden_layers,), protected layers first.
    """

    hidden: Tensor
    neurons: Tensor
    kv_groups: Tensor
    group_heads: Tensor
    layers: Tensor

    @classmethod
    def from_scores(cls, scores: ImportanceScores, architecture: Architecture, protected_layers: Sequence[int]) -> Self:
        """Rank every axis by its scores.

        Query heads are ranked within their own KV group, so that any number of heads a group can be
        kept in all groups alike.

        Raises:
            InvalidArchitectureError: If a protected layer does not exist.
        """
        cls.check_layers(architecture, protected_layers)
        num_layers = architecture.num_hidden_layers
        importance = scores.layers.clone()
        importance[[layer % num_layers for layer in protected_layers]] = float("inf")
        grouped = scores.heads.view(num_layers, architecture.num_key_value_heads, architecture.heads_per_group)
        return cls(
            hidden=descending(scores.hidden),
            neurons=descending(scores.neurons),
            kv_groups=descending(scores.kv_groups),
            group_heads=descending(grouped),
            layers=descending(importance),
        )

    @staticmethod
    def check_layers(architecture: Architecture, protected_layers: Sequence[int], num_kept: int | None = None) -> None:
        """Refuse protected layers that the source does not have, or more of them than layers are kept.

        Raises:
            InvalidArchitectureError: Naming the layer and the source's layers, or both numbers.
        """
        num_layers = architecture.num_hidden_layers
        num_protected = len({layer % num_layers for layer in protected_layers})
        if num_kept is not None and num_kept < num_protected:
            raise InvalidArchitectureError(
                f"num_hidden_layers={num_kept} is below the {num_protected} protected layers "
                f"{list(protected_layers)}; keep more layers or protect fewer"
            )
        for layer in protected_layers:
            if not -num_layers <= layer < num_layers:
                raise InvalidArchitectureError(
                    f"protected layer {layer} does not exist; the source has {num_layers} layers (0 to "
                    f"{num_layers - 1}, or -{num_layers} to -1 from the end)"
                )

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({field.name: getattr(self, field.name).contiguous() for field in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**load_file(path))

    def kept_layers(self, num_layers: int) -> list[int]:
        """Return the ascending indices of the layers that a model of `num_layers` keeps."""
        return sorted(self.layers[:num_layers].tolist())

    def sorted_indices(self, dim: Dim, layer: int, source: Architecture) -> Tensor | None:
        """Return which entries of a teacher's dimension come first, second, ... after sorting.

        Returns:
            (size of the dimension,), or None where the dimension is not sorted.
        """
        if dim == VOCAB:
            return None
        if dim == HIDDEN:
            return self.hidden
        if dim == NEURONS:
            return self.neurons[layer]
        groups = self.kv_groups[layer]
        if dim == KEYS:
            return _blocks(groups, source.head_dim)
        assert dim == QUERIES, dim
        heads = groups[:, None] * source.heads_per_group + self.group_heads[layer][groups]
        return _blocks(heads.flatten(), source.head_dim)

    def kept_indices(self, dim: Dim, layer: int, source: Architecture, target: Architecture) -> Tensor | None:
        """Return where a candidate's entries lie in the sorted dimension, in the teacher's order.

        Returns:
            (size of the target's dimension,), or None where the dimension is kept as it is.
        """
        if dim == VOCAB:
            return None
        if dim == HIDDEN:
            return _restored(self.hidden[: target.hidden_size])
        if dim == NEURONS:
            return _restored(self.neurons[layer][: target.intermediate_size])
        kept_groups = self.kv_groups[layer][: target.num_key_value_heads]
        groups = _restored(kept_groups)
        if dim == KEYS:
            return _blocks(groups, source.head_dim)
        assert dim == QUERIES, dim
        kept_heads = self.group_heads[layer][kept_groups][:, : target.heads_per_group]
        heads = groups[:, None] * source.heads_per_group + _restored(kept_heads)[groups]
        return _blocks(heads.flatten(), source.head_dim)


def _restored(kept: Tensor) -> Tensor:
    """Positions within a prefix that put its entries in ascending order of the teacher's indices."""
    return torch.argsort(kept, dim=-1)


def _blocks(indices: Tensor, width: int) -> Tensor:
    """Turn indices of blocks into indices of their entries."""
    return (indices[:, None] * width + torch.arange(width)).flatten()

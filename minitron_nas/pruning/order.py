"""`PruningOrder`: which units leave first, and where those that stay lie in the teacher's tensors.

Every prunable axis of the teacher is ranked once, most important first. A candidate keeps a prefix
of each ranking, so candidates are nested. Layers alone have a table, because contiguous blocks of
them are not nested. What a candidate keeps stays in the teacher's own order, so that pruning nothing
gives the teacher's tensors to the bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minitron_nas.architecture.kinds import fewest_layers
from minitron_nas.architecture.layout import NEURON_AXES, Axis, Dim, Factor, Sizes, TensorPlace, axis_sizes, factor_size
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError, ScoresError
from minitron_nas.importance.depth_modes import ranked_layers
from minitron_nas.importance.scores import ImportanceScores, descending
from minitron_nas.pruning.merging import merge_partners

_PER_LAYER = {
    **NEURON_AXES,
    Axis.KV_GROUPS: "kv_groups",
    Axis.GROUP_HEADS: "group_heads",
    Axis.EXPERTS: "experts",
    Axis.MAMBA_GROUP_HEADS: "mamba_heads",
    Axis.MAMBA_HEAD_DIM: "mamba_channels",
}
"""Which ranking of `PruningOrder` belongs to an axis that every layer ranks for itself."""


@dataclass(frozen=True, slots=True)
class PruningOrder:
    """Permutations (int64) of every prunable axis, most important first, and the layers that stay.

    Attributes:
        hidden: (hidden_size,).
        neurons: (num_hidden_layers, num_neurons), or (num_hidden_layers, num_experts, num_neurons), as in the scores.
        kv_groups: (num_hidden_layers, num_key_value_heads).
        group_heads: (num_hidden_layers, num_key_value_heads, heads_per_group): for each group, in
            the teacher's order, its heads' places within the group.
        experts: (num_hidden_layers, num_experts); where they lie in groups, the best of each, then the second best.
        layers: (num_hidden_layers, num_hidden_layers), bool; row n - 1 says which layers a model of n
            layers keeps, none where that was not measured.
        expert_neurons: (num_hidden_layers, num_experts, num_neurons).
        shared_neurons: (num_hidden_layers, num_neurons).
        conv_channels: (num_hidden_layers, hidden_size).
        mamba_heads: (num_hidden_layers, mamba_num_groups, mamba_group_heads), as `group_heads`.
        mamba_channels: (num_hidden_layers, mamba_head_dim); all heads of a layer keep the same channels.
        wide_neurons: (num_hidden_layers, num_neurons).
    """

    hidden: Tensor
    neurons: Tensor
    kv_groups: Tensor
    group_heads: Tensor
    experts: Tensor
    layers: Tensor
    expert_neurons: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.int64))
    shared_neurons: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    conv_channels: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    mamba_heads: Tensor = field(default_factory=lambda: torch.zeros(0, 0, 0, dtype=torch.int64))
    mamba_channels: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    wide_neurons: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))

    @classmethod
    def from_scores(
        cls,
        scores: ImportanceScores,
        architecture: Architecture,
        protected_layers: Sequence[int],
        layers: Tensor | None = None,
    ) -> Self:
        """Rank every axis by its scores.

        Query heads are ranked within their own KV group, and heads of Mamba mixers within theirs, so that any number of
        heads a group can be kept in all groups alike.

        Args:
            scores: Of every part.
            architecture: The teacher's shape.
            protected_layers: Those that leave last.
            layers: (num_hidden_layers, num_hidden_layers), which layers models of each depth keep; by
                default the best by score.

        Raises:
            InvalidArchitectureError: If a protected layer does not exist.
            ScoresError: If an earlier version made them, which ranked fewer axes.
        """
        cls.check_layers(architecture, protected_layers)
        num_layers = architecture.num_hidden_layers
        if layers is None:
            protected = {layer % num_layers for layer in protected_layers}
            layers = ranked_layers(scores.layers.tolist(), protected, architecture.kinds)
        grouped = scores.heads.view(num_layers, architecture.num_key_value_heads, architecture.heads_per_group)
        in_mixers = (num_layers, architecture.mamba_num_groups, architecture.mamba_group_heads)
        if scores.mamba_heads.numel() != prod(in_mixers):
            raise ScoresError(
                "these scores rank no heads of Mamba mixers, which the model has: an earlier version made them; score "
                "it again"
            )
        return cls(
            hidden=descending(scores.hidden),
            neurons=descending(scores.neurons),
            kv_groups=descending(scores.kv_groups),
            group_heads=descending(grouped),
            experts=_by_group(descending(scores.experts), architecture.num_expert_groups),
            layers=layers,
            expert_neurons=descending(scores.expert_neurons),
            shared_neurons=descending(scores.shared_neurons),
            conv_channels=descending(scores.conv_channels),
            mamba_heads=descending(scores.mamba_heads.view(in_mixers)),
            mamba_channels=descending(scores.mamba_channels),
            wide_neurons=descending(scores.wide_neurons),
        )

    @staticmethod
    def check_layers(architecture: Architecture, protected_layers: Sequence[int], num_kept: int | None = None) -> None:
        """Refuse protected layers that the source does not have, or more of them than layers are kept.

        Args:
            architecture: The source's shape.
            protected_layers: Indices, negative ones from the end.
            num_kept: How many layers are kept, if that is known.

        Raises:
            InvalidArchitectureError: Naming the layer and the source's layers, or both numbers.
        """
        num_layers = architecture.num_hidden_layers
        for layer in protected_layers:
            if not -num_layers <= layer < num_layers:
                raise InvalidArchitectureError(
                    f"protected layer {layer} does not exist; the source has {num_layers} layers (0 to "
                    f"{num_layers - 1}, or -{num_layers} to -1 from the end)"
                )
        protected = {layer % num_layers for layer in protected_layers}
        fewest = fewest_layers(architecture.kinds, protected)
        if num_kept is not None and num_kept < len(protected):
            raise InvalidArchitectureError(
                f"num_hidden_layers={num_kept} is below the {len(protected)} protected layers "
                f"{list(protected_layers)}; keep more layers or protect fewer"
            )
        if num_kept is not None and num_kept < fewest:
            raise InvalidArchitectureError(
                f"a model of num_hidden_layers={num_kept} keeps fewer layers of some kind than are protected among "
                f"{list(protected_layers)}; keep at least {fewest} layers or protect fewer"
            )

    def save(self, path: Path) -> None:
        """Write a safetensors file."""
        save_file({each.name: getattr(self, each.name).contiguous() for each in fields(self)}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**load_file(path))

    def kept_layers(self, num_layers: int) -> list[int]:
        """Return the ascending indices of the layers that a model of `num_layers` keeps.

        Raises:
            InvalidArchitectureError: If that was not measured for this number.
        """
        kept: list[int] = self.layers[num_layers - 1].nonzero().flatten().tolist()
        if len(kept) != num_layers:
            known = ", ".join(str(row + 1) for row, measured in enumerate(self.layers.any(dim=1).tolist()) if measured)
            raise InvalidArchitectureError(
                f"which layers a model of num_hidden_layers={num_layers} keeps was not measured, only for {known}; "
                "name the number in space.axes.num_hidden_layers, or choose importance.depth.mode=layers, which ranks "
                "all layers"
            )
        return kept

    def kept_experts(self, layer: int, num_experts: int) -> list[int]:
        """Return the ascending indices of the experts that a layer keeps.

        Args:
            layer: The layer, by its number in the teacher.
            num_experts: How many it keeps.
        """
        return sorted(self.experts[layer][:num_experts].tolist())

    def kept_entries(
        self, dimension: Dim, place: TensorPlace, source: Architecture, target: Architecture
    ) -> Tensor | None:
        """Return where a candidate's entries lie along a dimension of the teacher's tensor.

        Args:
            dimension: The dimension.
            place: The teacher's tensor.
            source: The teacher's shape.
            target: The candidate's.

        Returns:
            (size of the target's dimension,), ascending, or None where all entries stay.
        """
        sizes, wanted = axis_sizes(source), axis_sizes(target)
        if all(sizes[axis] == wanted[axis] for axis in dimension.axes):
            return None
        return self._entries(
            dimension, sizes, lambda factor: self._kept(factor, place, factor_size(factor, sizes), target)
        )

    def merged_entries(
        self, dimension: Dim, place: TensorPlace, source: Architecture, target: Architecture
    ) -> Tensor | None:
        """Return with which entries of heads that leave the kept entries are merged.

        Args:
            dimension: The dimension.
            place: The teacher's tensor.
            source: The teacher's shape.
            target: The candidate's.

        Returns:
            (size of the target's dimension,), -1 where an entry is merged with none; or None where no head leaves a
            group that stays.
        """
        if place.layer is None or Axis.GROUP_HEADS not in dimension or source.heads_per_group == target.heads_per_group:
            return None
        sizes = axis_sizes(source)
        groups = _first(self.kv_groups[place.layer], target.num_key_value_heads)
        partners = merge_partners(self.group_heads[place.layer][groups], target.heads_per_group)

        def kept(factor: Factor) -> Tensor:
            return self._kept(factor, place, factor_size(factor, sizes), target)

        def merged(factor: Factor) -> Tensor:
            return partners.where(partners >= 0, kept(factor)) if factor is Axis.GROUP_HEADS else kept(factor)

        own, others = (self._entries(dimension, sizes, along) for along in (kept, merged))
        return others.where(others != own, -1)

    @staticmethod
    def _entries(dimension: Dim, sizes: Sizes, along: Callable[[Factor], Tensor]) -> Tensor:
        """Return where entries lie along a dimension, from their indices along each factor."""
        found, begin = [], 0
        for part in dimension.parts:
            entries = torch.tensor(begin)
            lengths = [factor_size(factor, sizes) for factor in part]
            for position, factor in enumerate(part):
                entries = entries[..., None] + prod(lengths[position + 1 :]) * along(factor)
            found.append(entries.flatten())
            begin += prod(lengths)
        return torch.cat(found)

    def _kept(self, factor: Factor, place: TensorPlace, size: int, target: Architecture) -> Tensor:
        """Ascending indices along one factor; of heads within groups, a row for each group that stays."""
        if factor is Axis.HIDDEN:
            return _first(self.hidden, target.hidden_size)
        if factor is Axis.LAYERS:
            return torch.tensor(self.kept_layers(target.num_hidden_layers))
        if place.layer is None or not isinstance(factor, Axis) or factor not in _PER_LAYER:
            return torch.arange(size)
        if factor is Axis.GROUP_HEADS:
            groups = _first(self.kv_groups[place.layer], target.num_key_value_heads)
            return _first(self.group_heads[place.layer][groups], target.heads_per_group)
        ranking: Tensor = getattr(self, _PER_LAYER[factor])[place.layer]
        if place.expert is not None:
            ranking = ranking[place.expert]
        return _first(ranking, axis_sizes(target)[factor])


def _by_group(ranking: Tensor, num_groups: int) -> Tensor:
    """Rank experts so that the first of any number of whole rounds holds equally many of each group.

    Args:
        ranking: (num_hidden_layers, num_experts), most important first.
        num_groups: Groups of experts that lie one after the other; 0 leaves the ranking as it is.
    """
    if num_groups == 0 or ranking.shape[1] == 0:
        return ranking
    group = ranking // (ranking.shape[1] // num_groups)
    rounds = (group[:, :, None] == torch.arange(num_groups)).cumsum(dim=1).gather(2, group[:, :, None]).squeeze(2)
    return ranking.gather(1, torch.argsort(rounds, dim=1, stable=True))


def _first(ranking: Tensor, count: int) -> Tensor:
    """Return the first entries of a ranking in ascending order, along the last axis."""
    return torch.sort(ranking[..., :count], dim=-1).values

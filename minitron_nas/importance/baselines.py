"""Scores that need no text and no forward pass: weight norms and random numbers, as baselines."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from math import nan, prod

import torch
from torch import Tensor

from minitron_nas.architecture.layout import NEURON_AXES, Axis, Dim, Layout, TensorPlace, axis_sizes, factor_size
from minitron_nas.architecture.spec import Architecture
from minitron_nas.importance.scores import ImportanceScores
from minitron_nas.progress import Progress, silent
from minitron_nas.storage.weights import TensorHeader, float_rows, in_threads, row_blocks


def magnitude_scores(
    headers: Mapping[str, TensorHeader], architecture: Architecture, layout: Layout, progress: Progress = silent
) -> ImportanceScores:
    """Score every part by the L2 norm of the weights of all matrices that run along it.

    Reads the checkpoint once, a few megabytes at a time.

    Args:
        headers: Where each tensor lies, by the table's names.
        architecture: The checkpoint's shape.
        layout: The table of its family.
        progress: Told the number of tensors read.

    Source: the weight-norm criterion of Li et al. 2017 (arXiv 1608.08710), over all axes.
    """
    energy = _zeros(architecture, layout)
    places = [place for place in layout.tensors(architecture) if len(place.row.dims) == 2]

    def read(place: TensorPlace) -> tuple[Tensor, Tensor]:
        return _energies(headers[place.name])

    for done, (place, sums) in enumerate(zip(places, in_threads(read, places), strict=True), start=1):
        for dimension, along in zip(place.row.dims, sums, strict=True):
            _spread(energy, dimension, place, along, architecture)
        if place.layer is not None:
            energy.layers[place.layer] += sums[0].sum()
            if place.expert is not None:
                energy.experts[place.layer, place.expert] += sums[0].sum()
        progress(done, len(places))
    return _each(energy, lambda scores: scores.sqrt().float())


def random_scores(architecture: Architecture, layout: Layout, seed: int) -> ImportanceScores:
    """Score every part by a uniform random number; the same seed gives the same scores.

    Args:
        architecture: The checkpoint's shape.
        layout: The table of its family.
        seed: Of the scores.
    """
    generator = torch.Generator().manual_seed(seed)
    return _each(
        _zeros(architecture, layout),
        lambda scores: torch.rand(scores.shape, generator=generator).masked_fill(scores.isnan(), nan),
    )


def _zeros(architecture: Architecture, layout: Layout) -> ImportanceScores:
    """Zero for every part, NaN for those that a layer does not have."""
    layers, experts = architecture.num_hidden_layers, architecture.num_experts
    sizes = axis_sizes(architecture)
    ranked = layout.neuron_axes_of(architecture)

    def of_neurons(axis: Axis) -> tuple[int, ...]:
        if axis not in ranked:
            return layers, 0
        return (layers, experts, sizes[axis]) if layout.in_experts(axis) else (layers, sizes[axis])

    shapes = {
        "hidden": (architecture.hidden_size,),
        **{name: of_neurons(axis) for axis, name in NEURON_AXES.items()},
        "heads": (layers, architecture.num_attention_heads),
        "kv_groups": (layers, architecture.num_key_value_heads),
        "experts": (layers, experts),
        "layers": (layers,),
        "mamba_heads": (layers, architecture.mamba_num_heads),
        "mamba_channels": (layers, architecture.mamba_head_dim),
    }
    scores = ImportanceScores(**{name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()})
    axes = {
        **{axis: (getattr(scores, name),) for axis, name in NEURON_AXES.items()},
        Axis.KV_GROUPS: (scores.heads, scores.kv_groups),
        Axis.EXPERTS: (scores.experts,),
        Axis.MAMBA_GROUP_HEADS: (scores.mamba_heads, scores.mamba_channels),
    }
    for layer, kind in enumerate(architecture.kinds):
        for axis, parts in axes.items():
            for part in parts if not layout.has_axis(axis, kind) else ():
                part[layer] = nan
    return scores


def _each(scores: ImportanceScores, function: Callable[[Tensor], Tensor]) -> ImportanceScores:
    return ImportanceScores(**{field.name: function(getattr(scores, field.name)) for field in fields(scores)})


def _energies(header: TensorHeader) -> tuple[Tensor, Tensor]:
    """Sums of squares of a matrix along its rows and along its columns, float64."""
    rows, columns = [], torch.zeros(header.shape[1], dtype=torch.float64)
    for first, last in row_blocks(header):
        squares = float_rows(header, first, last) ** 2
        rows.append(torch.from_numpy(squares.sum(axis=1, dtype="f8")))
        columns += torch.from_numpy(squares.sum(axis=0, dtype="f8"))
    return torch.cat(rows), columns


def _spread(
    energy: ImportanceScores, dimension: Dim, place: TensorPlace, along: Tensor, architecture: Architecture
) -> None:
    """Add what lies along one dimension of a matrix to the parts that it runs along."""
    sizes, begin = axis_sizes(architecture), 0
    for part in dimension.parts:
        lengths = [factor_size(factor, sizes) for factor in part]
        values = along[begin : begin + prod(lengths)].reshape(lengths)
        begin += prod(lengths)
        layer, expert = place.layer, place.expert
        if part == (Axis.HIDDEN,):
            energy.hidden.add_(values)
        elif part[:1] == (Axis.LAYERS,):
            energy.layers.add_(values.flatten(1).sum(dim=1))
        elif layer is None:
            continue
        elif part and isinstance(part[0], Axis) and part[0] in NEURON_AXES:
            own: Tensor = getattr(energy, NEURON_AXES[part[0]])[layer]
            (own if expert is None else own[expert]).add_(values.flatten(1).sum(dim=1) if len(part) > 1 else values)
        elif part == (Axis.EXPERTS,):
            energy.experts[layer].add_(values)
        elif part[:1] == (Axis.KV_GROUPS,):
            energy.kv_groups[layer].add_(values.flatten(1).sum(dim=1))
            if Axis.GROUP_HEADS in part:
                energy.heads[layer].add_(values.flatten(2).sum(dim=-1).flatten())
        elif Axis.MAMBA_GROUP_HEADS in part:
            by_head = values.flatten(0, 1).view(architecture.mamba_num_heads, -1)
            energy.mamba_heads[layer].add_(by_head.sum(dim=1))
            if Axis.MAMBA_HEAD_DIM in part:
                energy.mamba_channels[layer].add_(by_head.sum(dim=0))

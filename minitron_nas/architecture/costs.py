"""What a shape costs: parameters, FLOPs and bytes, exact, for one shape or for arrays of them."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minitron_nas.architecture.kinds import kept_of_each_kind
from minitron_nas.architecture.layout import Axis, Layout, Sizes, TensorRow, axis_sizes
from minitron_nas.architecture.spec import Architecture

Integers: TypeAlias = NDArray[np.int64]
Columns: TypeAlias = dict[str, Integers]
"""One array per prunable size of a family, by the names of `SHAPE_FIELDS`, all of one length."""

_SHARED_WIDTH = "shared_expert_intermediate_size"


def count_parameters(architecture: Architecture, layout: Layout) -> int:
    """Total parameters of a model, tied embeddings counted once, all experts counted.

    Args:
        architecture: Its shape.
        layout: The table of its family.
    """
    return int(count_parameters_of(layout, architecture, axis_sizes(architecture), architecture.num_hidden_layers))


def count_parameters_of(
    layout: Layout, source: Architecture, sizes: Sizes, num_hidden_layers: int | NDArray[np.integer[Any]]
) -> Any:
    """Total parameters for many shapes at once.

    Args:
        layout: The family table.
        source: Says which optional tensors exist.
        sizes: Axis sizes, scalars or arrays.
        num_hidden_layers: Scalar or array.

    Returns:
        An int64 scalar or array.
    """
    outside: Any = np.int64(0)
    per_layer: dict[tuple[str, ...], Any] = {}
    for table_row in layout.rows:
        if table_row.exists(source) and not table_row.is_buffer:
            elements = _in_all_experts(table_row, sizes)
            if table_row.per_layer:
                per_layer[table_row.kinds] = per_layer.get(table_row.kinds, np.int64(0)) + elements
            else:
                outside = outside + elements
    return outside + _in_all_layers(per_layer, source, num_hidden_layers)


def count_embedding_parameters(architecture: Architecture, layout: Layout) -> int:
    """Parameters of the token embedding, of those of single layers, and of the untied output head.

    Args:
        architecture: The model's shape.
        layout: The table of its family.
    """
    return int(_embedding_parameters(layout, architecture, axis_sizes(architecture)))


def forward_flops_per_token(architecture: Architecture, layout: Layout, context_tokens: int) -> int:
    """Floating-point operations of one forward pass, per token.

    Two operations per weight of every matrix product that the token takes part in (of the experts,
    those that it is sent to; the token look-up is none, the output head is one) plus
    4 x context_tokens x what the output projection reads per layer with attention. What a layer that
    hands on a state does to the state, and its convolution, are left out.

    Args:
        architecture: The shape.
        layout: Its family table.
        context_tokens: Mean number of tokens attended to.
    """
    sizes = axis_sizes(architecture)
    return int(_forward_flops(layout, architecture, sizes, architecture.num_hidden_layers, context_tokens))


def kv_cache_bytes_per_token(architecture: Architecture, layout: Layout, bytes_per_value: int = 2) -> int:
    """Bytes of keys and values that one token of context keeps, in the layers with attention.

    Args:
        architecture: The model's shape.
        layout: The table of its family.
        bytes_per_value: 2 in half precision.
    """
    values = _cached_values(layout, architecture, axis_sizes(architecture), architecture.num_hidden_layers)
    return int(values) * bytes_per_value


def state_bytes_per_sequence(architecture: Architecture, layout: Layout, bytes_per_value: int = 2) -> int:
    """Bytes that layers keep of a sequence, however long it is: their states, and what convolutions read again.

    Args:
        architecture: The model's shape.
        layout: The table of its family.
        bytes_per_value: 2 in half precision.
    """
    values = _state_values(layout, architecture, axis_sizes(architecture), architecture.num_hidden_layers)
    return int(values) * bytes_per_value


def costs_of(layout: Layout, source: Architecture, columns: Columns, context_tokens: int) -> dict[str, Integers]:
    """What many shapes cost, exactly.

    Args:
        layout: The family table.
        source: The shape that they are cut from; says which optional tensors exist.
        columns: An array for each prunable size of the family.
        context_tokens: Mean number of tokens attended to, for the FLOPs.

    Returns:
        Arrays by name: `num_parameters`; `num_active_parameters`, which leaves out experts that a token is not sent
        to; `num_embedding_parameters`; `forward_flops_per_token`; `kv_cache_bytes_per_token` and
        `state_bytes_per_sequence` in half precision.
    """
    sizes, num_layers = axis_sizes_of(source, columns), columns["num_hidden_layers"]
    sent_to = sizes | {Axis.EXPERTS: source.num_experts_per_tok}
    costs = {
        "num_parameters": count_parameters_of(layout, source, sizes, num_layers),
        "num_active_parameters": _active_parameters(layout, source, sizes, sent_to, num_layers),
        "num_embedding_parameters": _embedding_parameters(layout, source, sizes),
        "forward_flops_per_token": _forward_flops(layout, source, sizes, num_layers, context_tokens),
        "kv_cache_bytes_per_token": 2 * _cached_values(layout, source, sizes, num_layers),
        "state_bytes_per_sequence": 2 * _state_values(layout, source, sizes, num_layers),
    }
    return {name: np.broadcast_to(values, num_layers.shape).astype(np.int64) for name, values in costs.items()}


def axis_sizes_of(source: Architecture, columns: Columns) -> dict[str, Any]:
    """Return the sizes of all axes: arrays for those that the columns name, the source's for the others.

    Args:
        source: The shape that the others are cut from.
        columns: An array for each prunable size.
    """
    sizes: dict[str, Any] = dict(axis_sizes(source))
    sizes |= {Axis(name): column for name, column in columns.items() if name in set(Axis)}
    mamba_heads = columns.get("mamba_num_heads", source.mamba_num_heads)
    own, following = columns.get(_SHARED_WIDTH), source.num_shared_experts * sizes[Axis.EXPERT_NEURONS]
    return sizes | {
        Axis.GROUP_HEADS: columns.get("num_attention_heads", source.num_attention_heads) // sizes[Axis.KV_GROUPS],
        Axis.SHARED_NEURONS: following if own is None else own,
        Axis.CONV_CHANNELS: sizes[Axis.HIDDEN],
        Axis.WIDE_NEURONS: sizes[Axis.NEURONS] * (1 + source.double_wide_ffn),
        Axis.MAMBA_GROUP_HEADS: mamba_heads // max(1, source.mamba_num_groups),
    }


def _active_parameters(layout: Layout, source: Architecture, sizes: Sizes, sent_to: Sizes, num_layers: Any) -> Any:
    """All parameters, with the experts' matrices counted as often as a token is sent to one."""
    idle: dict[tuple[str, ...], Any] = {}
    for row in layout.rows:
        if row.exists(source) and row.per_expert:
            unused = _in_all_experts(row, sizes) - _in_all_experts(row, sent_to)
            idle[row.kinds] = idle.get(row.kinds, np.int64(0)) + unused
    return count_parameters_of(layout, source, sizes, num_layers) - _in_all_layers(idle, source, num_layers)


def _embedding_parameters(layout: Layout, source: Architecture, sizes: Sizes) -> Any:
    return sum(row.elements(sizes) for row in layout.rows if row.exists(source) and row.counts_tokens)


def _forward_flops(layout: Layout, source: Architecture, sizes: Sizes, num_layers: Any, context_tokens: int) -> Any:
    per_layer: dict[tuple[str, ...], Any] = {}
    outside: Any = np.int64(0)
    for row in layout.rows:
        if row.per_layer and len(row.dims) == 2 and row.exists(source):
            weights = row.elements(sizes) * (source.num_experts_per_tok if row.per_expert else 1)
            per_layer[row.kinds] = per_layer.get(row.kinds, np.int64(0)) + weights
        elif layout.is_of_all_layers(row) and row.exists(source) and not row.counts_tokens:
            outside = outside + row.elements(sizes)
    attended = sum(
        _num_layers_of(kinds, source, num_layers) * read.size(sizes) for kinds, read, _ in layout.attentions()
    )
    attention = 4 * attended * context_tokens
    outside = outside + source.vocab_size * sizes[Axis.HIDDEN]
    return 2 * _in_all_layers(per_layer, source, num_layers) + attention + 2 * outside


def _in_all_experts(table_row: TensorRow, sizes: Sizes) -> Any:
    elements = table_row.elements(sizes)
    return elements * sizes[Axis.EXPERTS] if table_row.per_expert else elements


def _in_all_layers(per_layer: Mapping[tuple[str, ...], Any], source: Architecture, num_layers: Any) -> Any:
    """Add up what comes once in every layer of some kinds; the kinds of a shape's layers follow from their number."""
    return sum(amount * _num_layers_of(kinds, source, num_layers) for kinds, amount in per_layer.items())


def _num_layers_of(kinds: tuple[str, ...], source: Architecture, num_layers: Any) -> Any:
    if not kinds:
        return num_layers
    counts = [kept_of_each_kind(source.kinds, number) for number in range(source.num_hidden_layers + 1)]
    return np.array([sum(count[kind] for kind in kinds) for count in counts])[num_layers]


def _cached_values(layout: Layout, source: Architecture, sizes: Sizes, num_layers: Any) -> Any:
    """What all layers with attention keep of a token of context."""
    return sum(
        _num_layers_of(kinds, source, num_layers) * cached.size(sizes) for kinds, _, cached in layout.attentions()
    )


def _state_values(layout: Layout, source: Architecture, sizes: Sizes, num_layers: Any) -> Any:
    """What all layers that hand on a state keep of a sequence."""
    return sum(_num_layers_of((kind,), source, num_layers) * kept.size(sizes) for kind, kept in layout.states.items())

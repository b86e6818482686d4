"""What a shape costs: parameters, FLOPs and bytes, exact, for one shape or for arrays of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_nas.architecture.layout import Axis, Layout, Sizes, TensorRow, axis_sizes
from minitron_nas.architecture.spec import Architecture


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
    per_layer: Any = np.int64(0)
    for table_row in layout.rows:
        if table_row.exists(source):
            elements = _in_all_experts(table_row, sizes)
            if table_row.per_layer:
                per_layer = per_layer + elements
            else:
                outside = outside + elements
    return outside + per_layer * num_hidden_layers


def count_embedding_parameters(architecture: Architecture, layout: Layout) -> int:
    """Parameters of the token embedding and of the untied output head.

    Args:
        architecture: The model's shape.
        layout: The table of its family.
    """
    sizes = axis_sizes(architecture)
    return int(
        sum(r.elements(sizes) for r in layout.rows if r.exists(architecture) and any(Axis.VOCAB in d for d in r.dims))
    )


def forward_flops_per_token(architecture: Architecture, layout: Layout, context_tokens: int) -> int:
    """Floating-point operations of one forward pass, per token.

    Two operations per weight of every matrix product that the token takes part in (of the experts,
    those that it is sent to; the token look-up is none, the output head is one) plus
    4 x num_attention_heads x head_dim x context_tokens per layer for attention.

    Args:
        architecture: The shape.
        layout: Its family table.
        context_tokens: Mean number of tokens attended to.
    """
    sizes = axis_sizes(architecture)
    per_layer = sum(
        r.elements(sizes) * (architecture.num_experts_per_tok if r.per_expert else 1)
        for r in layout.rows
        if r.per_layer and len(r.dims) == 2 and r.exists(architecture)
    )
    attention = 4 * architecture.num_attention_heads * architecture.head_dim * context_tokens
    head = 2 * architecture.vocab_size * architecture.hidden_size
    return int(architecture.num_hidden_layers * (2 * per_layer + attention) + head)


def kv_cache_bytes_per_token(architecture: Architecture, bytes_per_value: int = 2) -> int:
    """Bytes of keys and values that one token of context keeps.

    Args:
        architecture: The model's shape.
        bytes_per_value: 2 in half precision.
    """
    per_layer = 2 * architecture.num_key_value_heads * architecture.head_dim
    return architecture.num_hidden_layers * per_layer * bytes_per_value


def _in_all_experts(table_row: TensorRow, sizes: Sizes) -> Any:
    elements = table_row.elements(sizes)
    return elements * sizes[Axis.EXPERTS] if table_row.per_expert else elements

"""What keeps a model's constants right when a size that they depend on changes.

Three constants of decoders depend on `hidden_size`:

- RMSNorm divides by the root of the mean square over all channels. A student has fewer channels,
  so its mean is larger by d / d' than the teacher's with the lost channels at zero. Gains times
  sqrt(d / d') and an epsilon times d / d' make up for it exactly (to the rounding of the stored
  gains), where no other norm shares the epsilon.
- Gemma multiplies embeddings by sqrt(hidden_size). Embeddings times sqrt(d / d') make up for it
  exactly; where the output head is tied to them, the final norm's gain is divided by the same.
- LayerNorm also subtracts the mean over all channels, for which no gain makes up: its gains stay.

Gemma 4 divides what it makes of embeddings for single layers by sqrt(hidden_size), before a norm of its
own. That needs no help: with fewer channels it is sqrt(d / d') times as large, which the norm divides out
again, for the epsilon that it shares with the others is d / d' times as large.

What `config.json` spells out (Granite's multipliers, Gemma's query_pre_attn_scalar) does not depend
on a size, and stays. A norm over the queries of all heads (OLMo 2) stays too: the mean over the heads
that are kept stands for the mean over all, which no constant could make exact.
"""

from collections.abc import Mapping
from math import sqrt
from typing import Any, NamedTuple

from minitron_nas.architecture.layout import HIDDEN, VOCAB, Layout, TensorRow
from minitron_nas.architecture.spec import Architecture
from minitron_nas.errors import InvalidArchitectureError


class Scaling(NamedTuple):
    """A tensor becomes (x + offset) * factor - offset."""

    factor: float = 1.0
    offset: float = 0.0


def scaling_of(row: TensorRow, layout: Layout, source: Architecture, target: Architecture) -> Scaling:
    """Return by how much a tensor grows because the student has fewer hidden channels.

    Args:
        row: The tensor.
        layout: The table of its family.
        source: The teacher's shape.
        target: The student's.
    """
    ratio = sqrt(source.hidden_size / target.hidden_size)
    factor = 1.0
    if row.is_norm and row.dims == (HIDDEN,):
        if not layout.norm_centres:
            factor *= ratio
        if layout.scales_embeddings and source.tie_word_embeddings and not row.per_layer:
            factor /= ratio
    elif layout.scales_embeddings and row.dims == (VOCAB, HIDDEN) and row.unless is None:
        factor *= ratio
    return Scaling(factor, layout.norm_offset if row.is_norm else 0.0)


def scaled_constants(
    config: Mapping[str, Any], layout: Layout, source: Architecture, target: Architecture
) -> dict[str, Any]:
    """Return the entries of `config.json` that change with the hidden size.

    Args:
        config: The teacher's `config.json`, with all that transformers fills in.
        layout: The table of its family.
        source: The teacher's shape.
        target: The student's.

    Raises:
        InvalidArchitectureError: If the config has no epsilon under the table's key.
    """
    if layout.norm_centres or source.hidden_size == target.hidden_size:
        return {}
    if layout.epsilon not in config:
        raise InvalidArchitectureError(
            f"the config of {layout.model_type} has no {layout.epsilon!r}, which the table names as the norms' epsilon;"
            " name another key in the table"
        )
    return {layout.epsilon: config[layout.epsilon] * source.hidden_size / target.hidden_size}

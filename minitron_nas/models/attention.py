"""Attention over documents that are packed into one sequence, without a mask of (seq_len x seq_len).

transformers keeps packed documents apart by a mask, through which attention computes every pair of tokens, those of
different documents and of the future too. Here each document attends by itself, causally, which computes the same from
a fraction of the pairs. Documents are told from what transformers' mask says of neighbours, so that blocks of another
kind (attention in chunks) are found as well; whatever is no row of causal blocks goes the way of transformers.

It is taken where a model would attend by scaled dot products: on a GPU by torch's flash attention over lengths, where
this torch has it; on a CPU one document after the other.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minitron_nas.families.catalog import layouts
from minitron_nas.models.causal_lm import CausalLM

_VARLEN: Any = import_module("torch.nn.attention.varlen") if find_spec("torch.nn.attention.varlen") else None
"""Flash attention over lengths, since torch 2.10."""

_MASKED, _BY_DOCUMENT = "sdpa", "minitron_nas_by_document"


def attend_by_document(model: CausalLM, wanted: bool = True) -> None:
    """Let a model attend within each packed document alone, where it would by a mask, or by a mask again.

    Args:
        model: A model that attends by scaled dot products and finds the borders of documents; others stay as they are,
            and so do those whose last layers read the keys of others: transformers cuts what it takes for their masks.
        wanted: Whether by document.
    """
    before, after = (_MASKED, _BY_DOCUMENT) if wanted else (_BY_DOCUMENT, _MASKED)
    layout = layouts().get(model.config.model_type)
    is_masked = getattr(model.config, "num_kv_shared_layers", 0) or not (layout is None or layout.finds_borders)
    if model.config._attn_implementation == before and not is_masked:
        model.config._attn_implementation = after


def attends_over_lengths(device: torch.device) -> bool:
    """Whether one kernel attends to all documents of a batch, which is a GPU's.

    Args:
        device: Of the model.
    """
    return _VARLEN is not None and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _mask(
    *,
    batch_size: int,
    q_length: int,
    mask_function: Callable[..., Tensor],
    local_size: int | None = None,
    device: torch.device | str = "cpu",
    **others: Any,
) -> Tensor | None:
    """Return the lengths of documents, (batch, most_documents), padded by zeros; else what transformers would."""
    place = torch.device(device)
    if _may_be_blocks(q_length, **others) and (place.type == "cpu" or attends_over_lengths(place)):
        lengths = _lengths(mask_function, batch_size, q_length, place)
        if lengths.shape[1] > 1 and (local_size is None or int(lengths.max()) <= local_size):
            return lengths
    masked: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        mask_function=mask_function,
        local_size=local_size,
        device=device,
        **others,
    )
    return masked


def _may_be_blocks(
    q_length: int, *, kv_length: int, attention_mask: Tensor | None = None, use_vmap: bool = False, **_: Any
) -> bool:
    """Whether a mask is of sequences without padding, seen from their start."""
    return q_length == kv_length > 1 and attention_mask is None and not use_vmap


def _lengths(mask_function: Callable[..., Tensor], batch_size: int, length: int, device: torch.device) -> Tensor:
    """Return how long the blocks are in which every token sees the one before it."""
    with device:
        rows, later = torch.arange(batch_size)[:, None], torch.arange(1, length)[None]
        begins = torch.ones(batch_size, length, dtype=torch.bool)
        begins[:, 1:] = ~mask_function(rows, torch.zeros(1, 1, dtype=torch.long), later, later - 1)
        number = begins.cumsum(1) - 1
        most = 1 << int(number.max()).bit_length()  # powers of two, so that compiled layers meet few shapes
        lengths = torch.zeros(batch_size, most, dtype=torch.long)
    return lengths.scatter_add_(1, number, torch.ones_like(number))


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    """Attend as transformers does, each document by itself where `_mask` has told their lengths.

    Args:
        module: The attention.
        query: (batch, num_heads, seq_len, head_dim).
        key: (batch, num_kv_heads, seq_len, head_dim), and so the value.
        value: As the key.
        attention_mask: What `_mask` returned.
        **others: What transformers says beside them.

    Returns:
        (batch, seq_len, num_heads, head_dim).
    """
    if attention_mask is None or attention_mask.ndim > 2:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    if attends_over_lengths(query.device) and _suits_kernel(key, value, **others):
        return _attend_over_lengths(query, key, value, attention_mask, others.get("scaling")), None
    rows = []
    for row, lengths in enumerate(attention_mask.tolist()):
        sizes = [size for size in lengths if size]
        documents = zip(*(each[row : row + 1].split(sizes, 2) for each in (query, key, value)), strict=True)
        outputs = [sdpa_attention_forward(module, q, k, v, None, **others)[0] for q, k, v in documents]
        rows.append(torch.cat(outputs, 1))
    return torch.cat(rows), None


def _suits_kernel(key: Tensor, value: Tensor, *, dropout: float = 0.0, **others: Any) -> bool:
    """Whether flash attention computes what is asked for: it knows half precision, and heads of one size up to 256."""
    head_dim = value.shape[-1]
    is_plain = dropout == 0 and others.get("position_bias") is None
    return is_plain and value.element_size() == 2 and key.shape[-1] == head_dim <= 256 and head_dim % 8 == 0


def _attend_over_lengths(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor, scaling: float | None) -> Tensor:
    """Attend to all documents of a batch at once; of what autocast left in float32, the value knows the type."""
    batch, num_heads, length, _ = query.shape
    repeats = num_heads // key.shape[1]
    sides = (query, repeat_kv(key, repeats), repeat_kv(value, repeats))
    q, k, v = (side.to(value.dtype).transpose(1, 2).flatten(0, 1) for side in sides)
    bounds = pad(lengths.flatten().cumsum(0, dtype=torch.int32), (1, 0))
    attended: Tensor = _VARLEN.varlen_attn(q, k, v, bounds, bounds, length, length, scale=scaling, window_size=(-1, 0))
    return attended.view(batch, length, num_heads, -1)


AttentionInterface.register(_BY_DOCUMENT, _attend)
AttentionMaskInterface.register(_BY_DOCUMENT, _mask)

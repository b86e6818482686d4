"""Attention over documents that are packed into one sequence, without a mask of (seq_len x seq_len).

transformers keeps packed documents apart by a mask, through which attention computes every pair of tokens, those of
different documents and of the future too. Here each document attends by itself, causally, which computes the same from
a fraction of the pairs. Documents are told from what transformers' mask says of neighbours, so that blocks of another
kind (attention in chunks) are found as well; whatever is no row of causal blocks goes the way of transformers.

It is taken on the CPU, where it was measured, and where a model would attend by scaled dot products.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minitron_nas.models.causal_lm import CausalLM

_MASKED, _BY_DOCUMENT = "sdpa", "minitron_nas_by_document"


def attend_by_document(model: CausalLM, wanted: bool = True) -> None:
    """Let a model attend within each packed document alone, where it would by a mask, or by a mask again.

    Args:
        model: A model that attends by scaled dot products; others stay as they are.
        wanted: Whether by document.
    """
    before, after = (_MASKED, _BY_DOCUMENT) if wanted else (_BY_DOCUMENT, _MASKED)
    if model.config._attn_implementation == before:
        model.config._attn_implementation = after


def _mask(
    *,
    batch_size: int,
    q_length: int,
    mask_function: Callable[..., Tensor],
    local_size: int | None = None,
    **others: Any,
) -> Tensor | None:
    """Return the lengths of documents, (batch, most_documents), padded by zeros; else what transformers would."""
    if _may_be_blocks(q_length, **others):
        lengths = _lengths(mask_function, batch_size, q_length)
        if lengths.shape[1] > 1 and (local_size is None or int(lengths.max()) <= local_size):
            return lengths
    masked: Tensor | None = sdpa_mask(
        batch_size=batch_size, q_length=q_length, mask_function=mask_function, local_size=local_size, **others
    )
    return masked


def _may_be_blocks(
    q_length: int,
    *,
    kv_length: int,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> bool:
    """Whether a mask is of sequences without padding, seen from their start, and on the CPU."""
    return torch.device(device).type == "cpu" and q_length == kv_length > 1 and attention_mask is None and not use_vmap


def _lengths(mask_function: Callable[..., Tensor], batch_size: int, length: int) -> Tensor:
    """Return how long the blocks are in which every token sees the one before it."""
    rows, later = torch.arange(batch_size)[:, None], torch.arange(1, length)[None]
    begins = torch.ones(batch_size, length, dtype=torch.bool)
    begins[:, 1:] = ~mask_function(rows, torch.zeros(1, 1, dtype=torch.long), later, later - 1)
    number = begins.cumsum(1) - 1
    lengths = torch.zeros(batch_size, int(number.max()) + 1, dtype=torch.long)
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
    rows = []
    for row, lengths in enumerate(attention_mask.tolist()):
        sizes = [size for size in lengths if size]
        documents = zip(*(each[row : row + 1].split(sizes, 2) for each in (query, key, value)), strict=True)
        outputs = [sdpa_attention_forward(module, q, k, v, None, **others)[0] for q, k, v in documents]
        rows.append(torch.cat(outputs, 1))
    return torch.cat(rows), None


AttentionInterface.register(_BY_DOCUMENT, _attend)
AttentionMaskInterface.register(_BY_DOCUMENT, _mask)

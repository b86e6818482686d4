"""Masks that keep the documents of a sequence apart, for models that do not look for the borders themselves."""

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_masks_for_generate

from minitron_nas.families.catalog import layouts
from minitron_nas.models.causal_lm import CausalLM


def border_masks(model: CausalLM, position_ids: Tensor) -> dict[str, Any]:
    """Return what a decoder is called with beside tokens and positions; nothing where it finds borders in these.

    Args:
        model: A causal LM.
        position_ids: (batch, seq_len), restarting at each document, on the model's device.
    """
    layout = layouts().get(model.config.model_type)
    if layout is None or layout.finds_borders:
        return {}
    # Of the embeddings only the shape, type and device are looked at.
    like = torch.empty((*position_ids.shape, 0), dtype=model.dtype, device=position_ids.device)
    return {"attention_mask": create_masks_for_generate(model.config, like, None, None, position_ids=position_ids)}

"""`CausalLM`: a loaded model, as every function that takes one expects it."""

from typing import TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

CausalLM: TypeAlias = PreTrainedModel
"""A causal language model of transformers, with `get_decoder`, `get_output_embeddings` and a `config`."""


def moved(model: CausalLM, device: torch.device) -> CausalLM:
    """Move a model to a device and return it; transformers leaves its own `to` without usable types.

    Args:
        model: The model; it is changed.
        device: Where it goes.
    """
    module: nn.Module = model
    module.to(device)
    return model

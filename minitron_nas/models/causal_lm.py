"""`CausalLM`: a loaded model, as every function that takes one expects it."""

from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

CausalLM: TypeAlias = PreTrainedModel
"""A causal language model of transformers, with `get_output_embeddings` and a `config`."""


def decoder_of(model: CausalLM) -> PreTrainedModel:
    """Return the part of a model between its tokens and its output head.

    transformers takes Llama 4 for a decoder itself, because its class names another inner model than it has.

    Args:
        model: A causal LM.
    """
    found: PreTrainedModel = model.get_decoder()
    if found is not model:
        return found
    return next(inner for inner in model.children() if isinstance(inner, PreTrainedModel))


@torch.no_grad()
def logits_of(model: CausalLM, input_ids: Tensor) -> Tensor:
    """Return a model's logits, (batch, seq_len, vocab_size), float32; it is set to evaluate.

    Args:
        model: A causal LM.
        input_ids: (batch, seq_len), on its device.
    """
    logits: Tensor = model.eval()(input_ids=input_ids, use_cache=False).logits
    return logits.float()


def moved(model: CausalLM, device: torch.device) -> CausalLM:
    """Move a model to a device and return it; transformers leaves its own `to` without usable types.

    Args:
        model: The model; it is changed.
        device: Where it goes.
    """
    module: nn.Module = model
    module.to(device)
    return model

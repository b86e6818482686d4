"""Loading a stock folder whole, in the type and on the device that this process computes with."""

from pathlib import Path

import torch

from minitron_nas.execution.device import compute_dtype, pick_device
from minitron_nas.models.causal_lm import CausalLM, moved


def load_for_inference(path: Path) -> CausalLM:
    """Load a stock folder on this process' device, in the dtype it computes best with.

    Args:
        path: The folder.
    """
    return _load(path, compute_dtype(pick_device()), pick_device())


def load_for_training(path: Path, device: torch.device | None = None) -> CausalLM:
    """Load a stock folder with float32 weights, on this process' device unless another is named.

    Args:
        path: The folder.
        device: Where to, instead of this process' device.
    """
    return _load(path, torch.float32, device or pick_device())


def _load(path: Path, dtype: torch.dtype, device: torch.device) -> CausalLM:
    from transformers import AutoModelForCausalLM  # deferred: importing model classes takes seconds

    model: CausalLM = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False)
    return moved(model.eval(), device)

"""Loading a stock folder whole, in the type and on the device that this process computes with."""

from pathlib import Path
from typing import Any

import torch

from minitron_nas.execution.device import compute_dtype, pick_device


def load_for_inference(path: Path) -> Any:
    """Load a stock folder on this process' device, in the dtype it computes best with."""
    return _load(path, compute_dtype(pick_device()), pick_device())


def load_for_training(path: Path, device: torch.device | None = None) -> Any:
    """Load a stock folder with float32 weights, on this process' device unless another is named."""
    return _load(path, torch.float32, device or pick_device())


def _load(path: Path, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM  # deferred: importing model classes takes seconds

    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=False)
    placed: Any = model.eval()
    return placed.to(device)

"""How fast this device trains, about."""

import time

import torch

from minitron_nas.execution.device import compute_dtype, pick_device

_SECONDS = 2.0
_SIZES = {"cpu": 1024, "cuda": 8192}
_TRAINING_SHARE = 0.5
"""Of the pace of large matrix products alone, which are the most of a training step; the rest waits for memory."""


def measure_throughput(seconds: float = _SECONDS) -> float:
    """Return about how many floating-point operations of a training this device does in a second.

    Args:
        seconds: How long to measure.
    """
    device = pick_device()
    size = _SIZES[device.type]
    left, right = (torch.randn(size, size, dtype=compute_dtype(device), device=device) for _ in range(2))
    _multiply(left, right)  # the first product loads a library
    started, num_products = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds or not num_products:
        _multiply(left, right)
        num_products += 1
    return _TRAINING_SHARE * 2 * size**3 * num_products / passed


def _multiply(left: torch.Tensor, right: torch.Tensor) -> None:
    product = left @ right
    if product.device.type == "cuda":
        torch.cuda.synchronize(product.device)

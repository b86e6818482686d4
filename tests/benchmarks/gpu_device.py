"""The device that `gpu.py` measures on: what it can do, and moments on it; imports nothing but torch."""

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from gpu_shapes import Scale, data_sheet_flops

from minitron_nas.execution.device import compute_dtype, pick_device, total_bytes

DEVICE = pick_device()
DTYPE = compute_dtype(DEVICE)
PRODUCTS = 20


def device(scale: Scale) -> dict[str, Any]:
    """Return which device this is, its memory, and how many operations a second it multiplies with."""
    name = torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else "CPU"
    known, size = data_sheet_flops(name), scale.product_size
    return {
        "name": name,
        "dtype": str(DTYPE).removeprefix("torch."),
        "memory_bytes": total_bytes(DEVICE),
        "peak_flops": known or product_flops(size),
        "peak_source": "its data sheet" if known else f"a product of {size} x {size} matrices",
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def product_flops(size: int) -> float:
    """Return the operations a second of a large matrix product, the fastest of a few."""
    one, other = (torch.randn(size, size, device=DEVICE).to(DTYPE) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: one @ other) for _ in range(PRODUCTS))


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long something takes, until the device has done it."""
    started = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)
    return time.perf_counter() - started


def moment() -> Any:
    """Now, on a CPU; on a GPU when it has done what it was given so far."""
    if DEVICE.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(begin: Any, end: Any) -> float:
    """Return the seconds between two moments, which must have come."""
    return float(end - begin) if DEVICE.type == "cpu" else float(begin.elapsed_time(end)) / 1000
